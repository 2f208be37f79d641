"""Captions on demand: pictures are captioned immediately, in this process, and nothing is written to the store."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.captioner import bundle
from pipeline.captioner.captioner import Caption, Captioner
from pipeline.captioner.registry import read_champion
from pipeline.config import DecodingConfig
from pipeline.data.decoders import Decoders
from pipeline.data.images import FORMATS, MAX_BYTES, Picture
from pipeline.data.recognition import recognize
from pipeline.errors import PipelineError, printable
from pipeline.features import encoder as encoders
from pipeline.features import extraction
from pipeline.features.encoder import Encoder
from pipeline.storage import Bucket, LocalBucket, ObjectNotFoundError, open_bucket, open_object
from pipeline.timing import Stopwatch

NO_PICTURE = f"there is no picture in this folder, that is, no file in one of the formats {', '.join(FORMATS)}"


@dataclass(frozen=True)
class Captioned:
    """A picture by its given name, and its captions, the best first; or the error."""

    picture: str
    captions: Sequence[Caption]
    error: str | None = None

    def to_text(self) -> str:
        """A line with picture, caption and how sure it is; alternatives are indented below it, the best first."""
        picture = printable(self.picture) or "''"
        if self.error is not None:
            return f"error: {picture}: {printable(self.error)}"
        best, *others = self.captions
        sure = ""
        if best.novel:
            sure = " (unlike the photographs it learned from)"
        elif best.confidence is not None:
            sure = f" ({100 * best.confidence:.0f} % sure)"
        return "\n    ".join([f"{picture}: {best.text}{sure}", *(caption.text for caption in others)])

    def to_json(self) -> str:
        """A line of JSON: picture, caption, its numbers and alternatives, or picture and error."""
        if self.error is not None:
            return json.dumps({"picture": self.picture, "error": self.error})
        best, *others = (
            {"caption": caption.text, "log_prob": caption.log_prob, "probability": caption.probability}
            for caption in self.captions
        )
        sure = {"confidence": self.captions[0].confidence, "novel": self.captions[0].novel}
        return json.dumps({"picture": self.picture, **best, **sure, "alternatives": others})


def caption(
    pictures: Sequence[str], *, version: str | None, decoding: DecodingConfig, alternatives: int, store: Bucket
) -> list[Captioned]:
    """Caption pictures, in their order; a picture that can't be read does not affect the others.

    Args:
        pictures: paths or URIs of pictures, or of folders, whose pictures are captioned in the order of their names. On
            S3, a folder ends in ``/``.
        version: of the model; by default the champion.
        decoding: how captions are decoded.
        alternatives: further captions of each picture.
        store: the store of models and encoders.

    Raises:
        PipelineError: there is no such model or no champion, or the beam is too narrow for the alternatives.
    """
    if alternatives >= decoding.beam_width:
        raise PipelineError(
            f"A beam of width {decoding.beam_width} gives the best caption and {decoding.beam_width - 1} alternatives, "
            f"not {alternatives}: raise --beam-width, or lower --alternatives."
        )
    model = load(version or read_champion(store).version, store)
    sources = [source for picture in pictures for source in _find(picture)]
    by_name = {source.picture: source for source in sources}
    with Decoders(model.encoder.size) as decoders:
        return model.caption(
            [(source.picture, source.key) for source in sources],
            lambda row, out: by_name[row[0]].read(decoders, out),
            decoding=decoding,
            alternatives=alternatives,
        )


@dataclass(frozen=True)
class Model:
    """A captioner with its encoder."""

    version: str
    captioner: Captioner
    encoder: Encoder

    def caption(
        self,
        rows: list[tuple[str, str]],
        read: Callable[[tuple[str, str], npt.NDArray[np.uint8]], Picture | str],
        *,
        decoding: DecodingConfig,
        alternatives: int,
    ) -> list[Captioned]:
        """Caption pictures, in their order.

        Args:
            rows: the name of each picture, and another string for ``read``.
            read: returns the decoded picture of a row, or the error, as ``extraction.encode`` takes it.
            decoding: how captions are decoded.
            alternatives: further captions of each picture.
        """
        features, errors, _ = extraction.encode(rows, read, self.encoder, Stopwatch())
        readable = np.array([error is None for error in errors], bool)
        beams = iter(self.captioner.alternatives(features[readable], decoding))
        return [
            Captioned(name, next(beams)[: 1 + alternatives] if error is None else [], error)
            for (name, _), error in zip(rows, errors, strict=True)
        ]


def load(version: str, store: Bucket) -> Model:
    """Load a model and its encoder. Raises ``PipelineError`` if one of them is missing or incomplete."""
    captioner, metadata = bundle.load(version, store)
    return Model(version, captioner, encoders.load(metadata.encoder_id, store))


@dataclass(frozen=True)
class _Source:
    """The location of a picture or, without a bucket, the error."""

    picture: str
    bucket: Bucket | None = None
    key: str = ""
    error: str = ""

    def read(self, decoders: Decoders, out: npt.NDArray[np.uint8]) -> Picture | str:
        if self.bucket is None:
            return self.error
        try:
            return decoders.decode(self.bucket.get(self.key, limit=MAX_BYTES), out=out)
        except ObjectNotFoundError:
            return "there is no such file or folder"
        except (PipelineError, OSError, ValueError) as error:  # a bad image, or an impossible file name
            return str(error)


def _find(picture: str) -> list[_Source]:
    """The picture or, for a folder, all pictures in it."""
    if not picture:
        return [_Source(picture, error="the name is empty; give the path or URI of a picture or a folder")]
    try:
        if (folder := _folder(picture)) is None:
            return [_Source(picture, *open_object(picture))]
        keys = [item.key for page in recognize(folder.list(), folder) for item, is_image in page if is_image]
    except (PipelineError, OSError, ValueError, RuntimeError) as error:  # the last two: impossible file names
        return [_Source(picture, error=str(error))]
    if not keys:
        return [_Source(picture, error=NO_PICTURE)]
    names = (folder.url(key) if "://" in picture else f"{picture.rstrip('/')}/{key}" for key in keys)
    return [_Source(name, folder, key) for name, key in zip(names, keys, strict=True)]


def _folder(picture: str) -> Bucket | None:
    """The folder as a bucket; ``None`` if the name is not that of a folder."""
    bucket = open_bucket(picture) if "://" in picture else LocalBucket(Path(picture).resolve())
    is_folder = bucket.root.is_dir() if isinstance(bucket, LocalBucket) else picture.endswith("/")
    return bucket if is_folder else None

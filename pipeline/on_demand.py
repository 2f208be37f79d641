"""Captions on demand: pictures that a person names are captioned at once, and nothing is written to the store."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import captioner as captioners
from pipeline import encoder as encoders
from pipeline import features, registry
from pipeline.captioner import Caption, Captioner
from pipeline.decoders import Decoders
from pipeline.encoder import Encoder
from pipeline.errors import PipelineError
from pipeline.features import Picture
from pipeline.images import MAX_BYTES, is_image
from pipeline.recipe import Search
from pipeline.storage import Bucket, LocalBucket, ObjectNotFoundError, open_bucket, open_object
from pipeline.timing import Stopwatch


@dataclass(frozen=True)
class Captioned:
    """A picture under the name that it was given, and its captions, best first; or none, and why."""

    picture: str
    captions: Sequence[Caption]
    error: str | None = None

    def to_text(self) -> str:
        """A line with picture and caption; alternatives are indented below it, and then all have their probability."""
        picture = _printable(self.picture)
        if self.error is not None:
            return f"error: {picture}: {_printable(self.error)}"
        if len(self.captions) == 1:
            return f"{picture}: {self.captions[0].text}"
        best, *others = (f"{caption.text} (p = {caption.probability:.2g})" for caption in self.captions)
        return "\n    ".join([f"{picture}: {best}", *others])

    def to_json(self) -> str:
        """A line: an object of picture, caption, log_prob, probability and alternatives, or of picture and error."""
        if self.error is not None:
            return json.dumps({"picture": self.picture, "error": self.error})
        best, *others = (
            {"caption": caption.text, "log_prob": caption.log_prob, "probability": caption.probability}
            for caption in self.captions
        )
        return json.dumps({"picture": self.picture, **best, "alternatives": others})


def caption(
    pictures: Sequence[str], *, version: str | None, search: Search, alternatives: int, store: Bucket
) -> list[Captioned]:
    """Caption pictures, in their order; one that can't be read does not keep the others from it.

    Args:
        pictures: paths or URIs of pictures, or of folders, which stand for the pictures below them, by name. On S3 what
            ends in ``/`` is a folder.
        version: of the model; by default the champion.
        search: how captions are looked for.
        alternatives: captions wanted of each picture beside the best.
        store: where models and encoders lie.

    Raises:
        PipelineError: there is no such model, no champion, or fewer captions in the beam than wanted.
    """
    if alternatives >= search.beam_width:
        raise PipelineError(
            f"A beam of {search.beam_width} holds the best caption and {search.beam_width - 1} alternatives, "
            f"not {alternatives}: widen the beam, or ask for fewer."
        )
    model = load(version or registry.champion(store).version, store)
    sources = [source for picture in pictures for source in _find(picture)]
    by_name = {source.picture: source for source in sources}
    with Decoders(model.encoder.size) as decoders:
        return model.caption(
            [(source.picture, source.key) for source in sources],
            lambda row: by_name[row[0]].read(decoders),
            search=search,
            alternatives=alternatives,
        )


@dataclass(frozen=True)
class Model:
    """A captioner, and the encoder that it was trained on."""

    version: str
    captioner: Captioner
    encoder: Encoder

    def caption(
        self,
        rows: list[tuple[str, str]],
        read: Callable[[tuple[str, str]], Picture],
        *,
        search: Search,
        alternatives: int,
    ) -> list[Captioned]:
        """Caption pictures, in their order.

        Args:
            rows: the pictures' names, and what else ``read`` needs of them.
            read: from a row to the decoded picture, or to why there is none; called from several threads.
            search: how captions are looked for.
            alternatives: captions wanted of each picture beside the best.
        """
        vectors, errors = features.encode(rows, read, self.encoder, Stopwatch())
        readable = np.array([error is None for error in errors], bool)
        beams = iter(self.captioner.alternatives(vectors[readable].astype(np.float32), search))
        return [
            Captioned(name, next(beams)[: 1 + alternatives] if error is None else [], error)
            for (name, _), error in zip(rows, errors, strict=True)
        ]


def load(version: str, store: Bucket) -> Model:
    """The model of this version. Raises ``PipelineError`` where it or its encoder isn't stored, or isn't whole."""
    captioner, metadata = captioners.load(version, store)
    return Model(version, captioner, encoders.load(metadata.encoder_id, store))


@dataclass(frozen=True)
class _Source:
    """Where a picture lies; or, without a bucket, why there is none."""

    picture: str
    bucket: Bucket | None = None
    key: str = ""
    error: str = ""

    def read(self, decoders: Decoders) -> Picture:
        if self.bucket is None:
            return self.error
        try:
            return decoders.decode(self.bucket.get(self.key, limit=MAX_BYTES))
        except ObjectNotFoundError:
            return "there is no such file"
        except (PipelineError, OSError, ValueError) as error:  # a bad image, or a name that no file can have
            return str(error)


def _find(picture: str) -> list[_Source]:
    """The picture; of a folder, all that lie below it."""
    try:
        if (folder := _folder(picture)) is None:
            return [_Source(picture, *open_object(picture))]
        keys = [item.key for item in folder.list() if is_image(item.key)]
    except (PipelineError, OSError, ValueError, RuntimeError) as error:  # the last two: names that no file can have
        return [_Source(picture, error=str(error))]
    if not keys:
        return [_Source(picture, error="there is no picture in this folder")]
    names = (folder.url(key) if "://" in picture else f"{picture.rstrip('/')}/{key}" for key in keys)
    return [_Source(name, folder, key) for name, key in zip(names, keys, strict=True)]


def _folder(picture: str) -> Bucket | None:
    """What lies below the folder; ``None`` where the name is not that of a folder."""
    bucket = open_bucket(picture) if "://" in picture else LocalBucket(Path(picture).resolve())
    is_folder = bucket.root.is_dir() if isinstance(bucket, LocalBucket) else picture.endswith("/")
    return bucket if is_folder else None


def _printable(name: str) -> str:
    """The name on one line, whatever characters it has; bytes that are not UTF-8 among them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

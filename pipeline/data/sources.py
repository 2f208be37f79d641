"""A source of captioned photographs, read into the rows that it gives a dataset, and those that it can't.

Where there are several sources, the same picture may be in two of them, so the bytes of all images are hashed.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.data.annotation_formats import SUFFIXES, read_annotations
from pipeline.data.annotations import Annotations, Dropped, assemble, check_dropped
from pipeline.progress import track
from pipeline.storage import Bucket, ObjectChangedError, ObjectDeniedError, ObjectNotFoundError, source_name

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

READERS = 16
"""Threads that read images to hash them."""

_SHOWN = 5
"""Files that a log shows."""


class SourceCounts(BaseModel):
    """What a source gave a dataset, before copies of a picture were merged."""

    model_config = ConfigDict(frozen=True)

    images: int
    captions: int
    dropped: int

    @classmethod
    def of(cls, table: "pa.Table", dropped: Sequence[Dropped]) -> "SourceCounts":
        """Count the images and captions of rows, and the dropped rows."""
        return cls(images=len(table), captions=count_captions(table), dropped=len(dropped))


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one source, or of several that were merged.

    Attributes:
        title: a name for a dataset of these rows.
        table: the rows of a dataset, of the schema that ``dataset_schema`` gives.
        sources: the counts of each source, by its name.
        dropped: the rows that can't be used.
        licence: of the captions and photographs, if one is stated for all of them.
        split_by_hash: number of images whose split a hash chose.
        merged: number of images that were merged into another one with the same bytes.
        undecided: the splits between which a hash chose, by key of the image.
    """

    title: str
    table: "pa.Table"
    sources: dict[str, SourceCounts]
    dropped: list[Dropped]
    licence: str = ""
    split_by_hash: int = 0
    merged: int = 0
    undecided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PublishedCaptions:
    """A source in one of the ``annotation_formats``, of which no image has been read yet.

    Attributes:
        title: a name for a dataset of this source.
        name: the source in reports: the address of the file of captions, or that of the folder if it holds several.
        bucket: the bucket of the photographs.
        bucket_name: the name under which the store refers to the bucket.
        annotations: the captions.
    """

    title: str
    name: str
    bucket: Bucket
    bucket_name: str
    annotations: Annotations

    @classmethod
    def read(cls, source: str, store: Bucket) -> "PublishedCaptions":
        """Read the captions at a path or URI.

        Raises:
            PipelineError: the source does not exist, its format or its columns are unknown, or a name means several
                image files.
        """
        bucket, annotations = read_annotations(source)
        files, bucket_name = annotations.files, source_name(bucket, store)
        more = f" and {len(files) - _SHOWN:,} more files" if len(files) > _SHOWN else ""
        log.info("the captions are those of %s%s", ", ".join(map(bucket.url, files[:_SHOWN])), more)
        # A folder may hold several files of captions, each of them a source.
        name = bucket_name + (bucket.url(files[0]).removeprefix(bucket.uri) if len(files) == 1 else "")
        return cls(_title_of(source), name, bucket, bucket_name, annotations)

    def part(self, *, max_dropped_fraction: float, hash_all: bool) -> Part:
        """The rows of the source.

        Args:
            max_dropped_fraction: share of the captions that may be dropped.
            hash_all: hash all images, and drop those that can't be read; otherwise, only those without a split.

        Raises:
            PipelineError: too many captions were dropped.
        """
        annotations, bucket = self.annotations, self.bucket
        etags = {row.photograph.key: row.photograph.etag for row in annotations.rows if row.photograph}
        keys = sorted(etags if hash_all else annotations.undecided.keys() & etags)
        pictures = [(bucket, key, etags[key]) for key in keys]
        hashes = content_hashes(pictures, "so its captions are dropped: its split depends on its bytes")
        annotations.decide_splits(dict(zip(keys, hashes, strict=True)))
        table, dropped = assemble(annotations, self.bucket_name)
        dropped = [row.model_copy(update={"source": self.name}) for row in dropped]
        files = set(annotations.files)
        check_dropped(
            [row for row in dropped if row.file in files],
            count_captions(table),
            place=bucket.url(annotations.files[0]) if len(files) == 1 else bucket.uri,
            folder=bucket.uri,
            allowed=max_dropped_fraction,
        )
        return Part(
            title=self.title,
            table=table,
            sources={self.name: SourceCounts.of(table, dropped)},
            dropped=dropped,
            split_by_hash=len(annotations.undecided.keys() & set(table["image_key"].to_pylist())),
            undecided=annotations.undecided,
        )


def count_captions(table: "pa.Table") -> int:
    """The number of captions in the rows of a dataset."""
    return sum(map(len, table["captions"].to_pylist()))


def content_hashes(pictures: list[tuple[Bucket, str, str]], consequence: str) -> list[str | None]:
    """The hashes of pictures, given by bucket, key and etag; None, with a warning, for those that can't be read."""
    from pipeline.data.images import content_hash

    def hash_of(picture: tuple[Bucket, str, str]) -> str | None:
        bucket, key, etag = picture
        try:
            return content_hash(bucket.get(key, etag=etag))
        except (ObjectNotFoundError, ObjectChangedError, ObjectDeniedError) as error:
            log.warning("%s can't be read, %s: %s", key, consequence, error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return list(track(pool.map(hash_of, pictures), total=len(pictures), unit="images", log=log))


def _title_of(source: str) -> str:
    """A name for the dataset of a source, from that of its file or folder."""
    name = PurePosixPath(source).name
    if name in ("", ".."):
        name = Path(source).resolve().name
    stem = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:200] or "photographs"

"""Published captions with their photographs, as they are read before they become a dataset.

The formats are in ``annotation_formats``. Rows that can't be used are dropped, counted and listed with their line, and
too many of them are an error: a model trained on the rest of a broken export would look like any other.
"""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "dev", "test")

SPLIT_NAMES = {**{split: split for split in SPLITS}, "val": "dev", "valid": "dev", "validation": "dev"}
"""The names of splits that are accepted, in lower case."""

_SHOWN = 5
"""Dropped rows that an error message shows."""


class Dropped(BaseModel):
    """A row that can't be used. ``line`` counts from 1; in a Parquet table it is the number of the row."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Row:
    """A caption as it was read; ``photograph`` is None if its file is missing, ``number`` orders them."""

    line: int
    text: str
    photograph: StoredObject | None
    number: int
    caption: str


@dataclass
class Annotations:
    """The content of a source of captions.

    Attributes:
        file: key of the file that holds the captions.
        rows: the captions that were parsed.
        splits: the splits of each image, by key.
        dropped: the rows that could not be parsed, and errors in the splits.
    """

    file: str
    rows: list[Row] = field(default_factory=list)
    splits: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, line: int, reason: str, text: str, *, file: str | None = None) -> None:
        """Record a dropped row."""
        self.dropped.append(_dropped(file or self.file, line, reason, text))


class Photographs:
    """The image files of a bucket, by key and by name."""

    def __init__(self, files: Iterable[StoredObject]) -> None:
        from pipeline.data.images import is_image

        self.by_key = {item.key: item for item in files if is_image(item.key)}
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for key in self.by_key:
            self._by_name[posixpath.basename(key)].append(key)

    def find(self, name: str) -> StoredObject | None:
        """The image file with this key or, in any folder, with this name."""
        keys = [name] if name in self.by_key else self._by_name.get(name, [])
        if len(keys) > 1:
            raise ambiguous(name, keys)
        return self.by_key[keys[0]] if keys else None


def dataset_schema() -> "pa.Schema":
    """The schema of a dataset's table."""
    import pyarrow as pa

    from pipeline.storage.parquet import column

    return pa.schema(
        [
            column("image_id", pa.string(), "id of the image in the dataset: the name of its file, which is unique"),
            column("source", pa.string(), "bucket of the image: a URI, or `store:` and a folder of the store"),
            column("image_key", pa.string(), "key of the image in this bucket"),
            column("image_etag", pa.string(), "etag of the image; for a corrected picture, the hash of its content"),
            column(
                "content_hash",
                pa.string(),
                "hash of the content; null in train, or if the image could not be read",
            ),
            column("split", pa.string(), "train, dev or test"),
            column("captions", pa.list_(pa.string()), "the human captions of the image as they were read, in order"),
        ]
    )


def split_by_hash(key: str) -> str:
    """A split chosen by the name of the file: train for 80 %, dev and test for 10 % each; it never changes."""
    digest = hashlib.sha256(posixpath.basename(key).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return "train" if share < 0.8 else "dev" if share < 0.9 else "test"


def assemble(annotations: Annotations, source: str) -> "tuple[pa.Table, list[Dropped]]":
    """The dataset rows of a source, one per image, without hashes, and the rows that can't be used, by file and line.

    Args:
        annotations: the captions.
        source: name of the bucket that holds the photographs, as ``source_name`` gives it.
    """
    import pyarrow as pa

    captions: defaultdict[StoredObject, dict[int, str]] = defaultdict(dict)
    dropped = list(annotations.dropped)
    for row in annotations.rows:
        splits = annotations.splits.get(row.photograph.key, set()) if row.photograph else set()
        if not row.caption:
            reason = "empty caption"
        elif row.photograph is None:
            reason = "image missing"
        elif row.number in captions[row.photograph]:
            reason = "duplicate"
        elif len(splits) != 1:
            reason = "image in two splits" if splits else "image in no split"
        else:
            captions[row.photograph][row.number] = row.caption
            continue
        dropped.append(_dropped(annotations.file, row.line, reason, row.text))

    keys: dict[str, str] = {}
    rows = []
    for photograph in (photograph for photograph, texts in captions.items() if texts):
        image_id = posixpath.basename(photograph.key)
        if image_id in keys:
            raise ambiguous(image_id, [keys[image_id], photograph.key])
        keys[image_id] = photograph.key
        (split,) = annotations.splits[photograph.key]
        texts = [text for _, text in sorted(captions[photograph].items())]
        rows.append((image_id, source, photograph.key, photograph.etag, None, split, texts))
    schema = dataset_schema()
    columns = zip(*sorted(rows), strict=True) if rows else [[]] * len(schema)
    return pa.table(list(map(list, columns)), schema=schema), sorted(dropped, key=lambda row: (row.file, row.line))


def _dropped(file: str, line: int, reason: str, text: str) -> Dropped:
    text = text.encode(errors="surrogateescape").decode(errors="replace")  # a record holds no other bytes than UTF-8
    return Dropped(file=file, line=line, reason=reason, text=text if len(text) <= 100 else f"{text[:99]}…")


def ambiguous(name: str, keys: list[str]) -> PipelineError:
    """The error for several files of the same name."""
    return PipelineError(f"{len(keys)} files are named {name}: {', '.join(keys)}. Rename or remove all but one.")


def check_dropped(file: str, dropped: list[Dropped], kept: int, bucket: Bucket, allowed: float) -> None:
    """Raise ``PipelineError`` if more than the allowed share of the captions in a file was dropped."""
    rows = [row for row in dropped if row.file == file]
    total = kept + len(rows)
    if not total:
        raise PipelineError(f"{bucket.url(file)} holds no captions.")
    if len(rows) / total <= allowed:
        return
    reasons = Counter(row.reason for row in rows).most_common()
    shown = "; ".join(f"line {row.line}, {row.reason}: {row.text}" for row in rows[:_SHOWN])
    raise PipelineError(
        f"{len(rows)} of the {total} captions in {bucket.url(file)} can't be used ({len(rows) / total:.1%}, allowed "
        f"{allowed:.1%}): {', '.join(f'{reason} {count}' for reason, count in reasons)}. Fix these rows, put "
        f"the missing image files into {bucket.uri}, or raise --max-dropped-fraction. The first rows: {shown}"
    )

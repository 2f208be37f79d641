"""Captioned photographs: from the forms in which they are published to one validated table.

Two forms are read. The Flickr8k layout (Hodosh, Young and Hockenmaier, 2013, "Framing Image Description as a Ranking
Task", JAIR 47): ``Flickr8k.token.txt``, the three lists of images that make up the splits, and the image files anywhere
below the folder. And a CSV or Parquet table with the columns ``image``, ``caption`` and perhaps ``split``, one row a
caption, with the image files below the table's folder.

What cannot be used is dropped, counted and listed with its line, and too much of it is an error: a model trained on
the remains of a broken export would look like any other.
"""

import codecs
import csv
import hashlib
import io
import json
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject, open_bucket, open_object

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")

TOKEN_FILE = "Flickr8k.token.txt"  # noqa: S105 - the captions' file, not a secret
SPLIT_FILES = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}

_TABLE_SUFFIXES = (".csv", ".parquet")
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "val": "dev", "valid": "dev", "validation": "dev"}
_SHOWN = 5
"""Dropped rows that an error message shows."""


class Dropped(BaseModel):
    """A row that could not be used. ``line`` counts from 1; in a Parquet table it is the row."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    reason: str
    text: str


class IngestReport(BaseModel):
    """What an ingest kept and dropped.

    Attributes:
        dataset: URI of the ``dataset.parquet``.
        fingerprint: hash of the table's content and source; it names the dataset's version.
        source: URI of the bucket that holds the photographs.
        images: images by split.
        captions: captions kept.
        dropped: dropped rows by reason.
        dropped_rows: each of them.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    fingerprint: str
    source: str
    images: dict[str, int]
    captions: int
    dropped: dict[str, int]
    dropped_rows: tuple[Dropped, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Captioned photographs.

    Attributes:
        name: as given to ``ingest``.
        fingerprint: hash of the table's content and source.
        source: URI of the bucket that holds the photographs.
        table: one row an image, by ``image_id``: ``image_id`` (the file's name, unique), ``image_key`` (in the source),
            ``etag``, ``split`` (one of ``SPLITS``), all string, and ``captions``, list of string, raw, in their order.
    """

    name: str
    fingerprint: str
    source: str
    table: "pa.Table"

    def split(self, name: str) -> "pa.Table":
        """The rows of one of ``SPLITS``."""
        import pyarrow.compute as pc

        if name not in SPLITS:
            raise ValueError(f"Expected one of {', '.join(SPLITS)}. Received: {name!r}")
        return self.table.filter(pc.equal(self.table["split"], name))


def ingest(source: str, store: Bucket, *, name: str, max_dropped_fraction: float = 0.05) -> IngestReport:
    """Read captioned photographs into ``datasets/<name>/<fingerprint>/dataset.parquet``.

    The same data gives the same URI, and what is there already is not written again. ``ingest.json`` beside the table
    is the report. Captions are kept raw, but for white space around them.

    Args:
        source: a folder in the Flickr8k layout, or a ``.csv`` or ``.parquet`` table; a path, ``file://`` or ``s3://``.
            In a table, ``image`` is a path relative to the table's folder or the name of a file anywhere below it, and
            ``split`` is train, dev (or val, valid, validation) or test. Without that column, four fifths of the images
            are train and a tenth each dev and test, by a hash of the image's name.
        store: the store.
        name: of the dataset: letters, digits, ``.``, ``_`` and ``-``.
        max_dropped_fraction: share of the captions that may be dropped.

    Raises:
        PipelineError: the layout or the columns are unknown, two image files share a name, too much was dropped, or a
            split is empty.
    """
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise PipelineError(f"A dataset's name is made of letters, digits, '.', '_' and '-'. Received: {name!r}")
    bucket, annotations = _read(source)
    table, dropped = _assemble(annotations)
    captions = sum(map(len, table["captions"].to_pylist()))
    _check_dropped(annotations.file, dropped, captions, bucket, max_dropped_fraction)
    images = {split: table["split"].to_pylist().count(split) for split in SPLITS}
    if empty := [split for split, count in images.items() if not count]:
        raise PipelineError(
            f"{bucket.uri}: no image with captions is in the split {' or '.join(empty)} (images: {images}). Give each "
            f"split some, in {', '.join(SPLIT_FILES.values())} or in the table's column split."
        )
    _check_table(table, bucket.uri)

    fingerprint = hashlib.sha256(json.dumps([bucket.uri, table.to_pydict()]).encode()).hexdigest()[:16]
    folder = f"datasets/{name}/{fingerprint}"
    report = IngestReport(
        dataset=store.url(f"{folder}/dataset.parquet"),
        fingerprint=fingerprint,
        source=bucket.uri,
        images=images,
        captions=captions,
        dropped=dict(Counter(row.reason for row in dropped).most_common()),
        dropped_rows=tuple(dropped),
    )
    if store.exists(f"{folder}/dataset.parquet"):
        log.info("%s exists: nothing to do", report.dataset)
        return report
    from pipeline import tables

    # The table goes last: whoever sees it sees the report too.
    store.put(f"{folder}/ingest.json", report.model_dump_json(indent=2).encode())
    about = {"name": name, "fingerprint": fingerprint, "source": bucket.uri}
    tables.write(table, f"{folder}/dataset.parquet", store, about=about)
    log.info("%s: images %s, %d captions, dropped %s", report.dataset, images, captions, report.dropped or "nothing")
    return report


def load(uri: str) -> Dataset:
    """The dataset at the URI of a ``dataset.parquet``.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is not a dataset that ``ingest`` wrote.
    """
    from pipeline import tables

    bucket, key = open_object(uri)
    table = tables.read(key, bucket)
    about = tables.about(table)
    if missing := {"name", "fingerprint", "source"} - about.keys():
        raise PipelineError(
            f"{uri} is not a dataset: its metadata lacks {', '.join(sorted(missing))}. "
            "Give the URI of a dataset.parquet that `python -m pipeline ingest` has written."
        )
    _check_table(table, uri)
    return Dataset(about["name"], about["fingerprint"], about["source"], table)


@dataclass(frozen=True)
class _Row:
    """A caption as it was found; ``photograph`` is None where no image file has the name. ``number`` is its place."""

    line: int
    text: str
    photograph: StoredObject | None
    number: int
    caption: str


@dataclass
class _Annotations:
    """What a source says.

    Attributes:
        file: key of the file that holds the captions.
        rows: the captions that could be parsed.
        splits: by key of the image, the splits in which it is.
        dropped: what could not be parsed, and what is wrong with the splits.
    """

    file: str
    rows: list[_Row] = field(default_factory=list)
    splits: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, line: int, reason: str, text: str, *, file: str | None = None) -> None:
        """Note a row as dropped."""
        self.dropped.append(_dropped(file or self.file, line, reason, text))


class _Photographs:
    """The image files of a bucket, by key and by name."""

    def __init__(self, files: Iterable[StoredObject]) -> None:
        from pipeline.images import is_image

        self.by_key = {item.key: item for item in files if is_image(item.key)}
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for key in self.by_key:
            self._by_name[posixpath.basename(key)].append(key)

    def find(self, name: str) -> StoredObject | None:
        """The image file of this key or, wherever it lies, of this name."""
        keys = [name] if name in self.by_key else self._by_name.get(name, [])
        if len(keys) > 1:
            raise _ambiguous(name, keys)
        return self.by_key[keys[0]] if keys else None


def _read(source: str) -> tuple[Bucket, _Annotations]:
    if source.lower().endswith(_TABLE_SUFFIXES):
        bucket, key = open_object(source)
        rows = _csv_rows(bucket, key) if key.lower().endswith(".csv") else _parquet_rows(bucket, key)
        return bucket, _read_table(key, rows, _Photographs(bucket.list()))
    bucket = open_bucket(source)
    return bucket, _read_flickr8k(bucket)


def _read_flickr8k(bucket: Bucket) -> _Annotations:
    files = list(bucket.list())
    photographs = _Photographs(files)
    annotations = _Annotations(_only(TOKEN_FILE, files, photographs, bucket))
    captioned = set()
    for line, text in _lines(bucket, annotations.file, annotations):
        # 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing up a set of stairs .
        match = re.fullmatch(r"(?s)(.+)#([0-9]+)\t(.*)", text)
        if match is None:
            annotations.drop(line, "not IMAGE#K<TAB>CAPTION", text)
            continue
        image, number, caption = match.groups()
        captioned.add(image)
        annotations.rows.append(_Row(line, text, photographs.find(image), int(number), caption.strip()))
    for split, name in SPLIT_FILES.items():
        file = _only(name, files, photographs, bucket)
        for line, text in _lines(bucket, file, annotations):
            image = text.strip()
            photograph = photographs.find(image)
            if photograph is None:
                annotations.drop(line, "split names a missing image", text, file=file)
            elif image not in captioned:
                annotations.drop(line, "split names an image without captions", text, file=file)
            else:
                if annotations.splits[photograph.key] - {split}:
                    annotations.drop(line, "image in two splits", text, file=file)
                annotations.splits[photograph.key].add(split)
    return annotations


def _only(name: str, files: list[StoredObject], photographs: _Photographs, bucket: Bucket) -> str:
    """The key of the one file of this name."""
    keys = [item.key for item in files if posixpath.basename(item.key) == name]
    if len(keys) > 1:
        raise _ambiguous(name, keys)
    if not keys:
        raise PipelineError(
            f"{bucket.uri} is not in a layout that can be read: there is no {name} in it (it holds {len(files)} files, "
            f"{len(photographs.by_key)} of them images). Expected a folder with {TOKEN_FILE}, "
            f"{', '.join(SPLIT_FILES.values())} and the image files, or a table with the suffix "
            f"{' or '.join(_TABLE_SUFFIXES)} and the columns image, caption and perhaps split."
        )
    return keys[0]


def _lines(bucket: Bucket, key: str, annotations: _Annotations) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1."""
    # Not splitlines(): it also breaks lines at characters that may stand within a caption.
    for number, line in enumerate(bucket.get(key).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            annotations.drop(number, "not UTF-8", line.decode(errors="replace"), file=key)
            continue
        if text.strip():
            yield number, text


def _read_table(key: str, rows: Iterator[tuple[int, list[Any]]], photographs: _Photographs) -> _Annotations:
    annotations = _Annotations(key)
    _, header = next(rows)
    for line, values in rows:
        text = ", ".join(map(str, values))
        if "\ufffd" in text and any(isinstance(value, _Undecodable) for value in values):
            annotations.drop(line, "not UTF-8", text)
            continue
        cells = dict(zip(header, values, strict=False))
        if len(values) != len(header) or not all(isinstance(value, str) for value in cells.values()):
            annotations.drop(line, "not a row of texts", text)
            continue
        photograph = photographs.find(cells["image"].strip())
        split = cells.get("split", "").strip().lower()
        if split and split not in _SPLIT_NAMES:
            annotations.drop(line, "unknown split", text)
            continue
        if photograph is not None:
            if "split" not in cells:
                annotations.splits[photograph.key] = {_split_by_hash(posixpath.basename(photograph.key))}
            elif split:
                annotations.splits[photograph.key].add(_SPLIT_NAMES[split])
        annotations.rows.append(_Row(line, text, photograph, line, cells["caption"].strip()))
    return annotations

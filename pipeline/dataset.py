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

    def __str__(self) -> str:
        splits = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        dropped = f", {len(self.dropped_rows):,} dropped" if self.dropped_rows else ""
        return f"{sum(self.images.values()):,} images ({splits}), {self.captions:,} captions{dropped}"


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


def images(table: "pa.Table") -> "pa.Table":
    """The photographs of a dataset's rows as a listing: ``key`` and ``etag``, string."""
    return table.select(["image_key", "etag"]).rename_columns(["key", "etag"])


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


def newest(store: Bucket, *, limit: int) -> list[str]:
    """URIs of the datasets that ``ingest`` has written, the newest first."""
    tables = [item for item in store.list("datasets/") if item.key.endswith("/dataset.parquet")]
    tables.sort(key=lambda item: item.modified, reverse=True)
    return [store.url(item.key) for item in tables[:limit]]


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
        return bucket, _read_table(bucket, key)
    bucket = open_bucket(source)
    return bucket, _read_flickr8k(bucket)


def _read_flickr8k(bucket: Bucket) -> _Annotations:
    files = list(bucket.list())
    photographs = _Photographs(files)
    annotations = _Annotations(_only(TOKEN_FILE, files, photographs, bucket))
    captioned = set()
    for line, text in _lines(bucket, annotations.file, annotations):
        # 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing up a set of stairs .
        match = re.fullmatch(r"([^\t]+)#([0-9]{1,9})\t(.*)", text)
        if match is None:
            annotations.drop(line, "malformed", text)
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


def _read_table(bucket: Bucket, key: str) -> _Annotations:
    photographs = _Photographs(bucket.list())
    annotations = _Annotations(key)
    rows = _csv_rows if key.lower().endswith(".csv") else _parquet_rows
    for line, cells in rows(bucket, key):
        text = ", ".join(map(str, cells.values()))
        image, caption, split = (_text(cells.get(column)) for column in ("image", "caption", "split"))
        if not _is_utf8(text):
            annotations.drop(line, "not UTF-8", text)
        elif image is None or caption is None or (split is None and "split" in cells):
            annotations.drop(line, "malformed", text)
        elif split and split.lower() not in _SPLIT_NAMES:
            annotations.drop(line, "unknown split", text)
        else:
            photograph = photographs.find(image)
            if photograph is not None and split is None:
                annotations.splits[photograph.key].add(_split_by_hash(photograph.key))
            elif photograph is not None and split:
                annotations.splits[photograph.key].add(_SPLIT_NAMES[split.lower()])
            annotations.rows.append(_Row(line, text, photograph, line, caption))
    return annotations


def _csv_rows(bucket: Bucket, key: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The line on which each row begins, and its cells by column."""
    # Undecodable bytes are carried through, so that they cost their row only.
    text = bucket.get(key).decode("utf-8-sig", errors="surrogateescape")
    # Strict: otherwise a quotation mark that is never closed would swallow the rows below it into one caption.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, bucket.url(key))
        line = reader.line_num + 1
        for values in reader:
            if len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            elif values:
                yield line, dict(enumerate(values))  # which cell is which, nobody knows
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(
            f"{bucket.url(key)}, line {reader.line_num}: {error}. Put texts that hold a comma or a quotation mark "
            "between quotation marks, and double those inside them."
        ) from error


def _parquet_rows(bucket: Bucket, key: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The number of each row, from 1, and its cells by column."""
    from pipeline import tables

    table = tables.read(key, bucket)
    _check_columns(table.column_names, bucket.url(key))
    table = table.select([name for name in ("image", "caption", "split") if name in table.column_names])
    # A missing value is no text at all.
    rows = ({name: "" if cell is None else cell for name, cell in row.items()} for row in table.to_pylist())
    yield from enumerate(rows, 1)


def _check_columns(names: list[str], table: str) -> None:
    if missing := [name for name in ("image", "caption") if name not in names]:
        raise PipelineError(
            f"{table} has no column {' and no column '.join(missing)}. Expected image, caption and perhaps split. "
            f"Received: {_printable(', '.join(names)) or 'none'}"
        )


def _text(cell: object) -> str | None:
    return cell.strip() if isinstance(cell, str) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _split_by_hash(key: str) -> str:
    """Train for four fifths of all names, dev and test for a tenth each; a name's split never changes."""
    digest = hashlib.sha256(posixpath.basename(key).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return "train" if share < 0.8 else "dev" if share < 0.9 else "test"


def _assemble(annotations: _Annotations) -> "tuple[pa.Table, list[Dropped]]":
    """One row an image out of what can be used, and what cannot, by file and line."""
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

    names: dict[str, str] = {}
    rows = []
    for photograph in (photograph for photograph, texts in captions.items() if texts):
        image_id = posixpath.basename(photograph.key)
        if image_id in names:
            raise _ambiguous(image_id, [names[image_id], photograph.key])
        names[image_id] = photograph.key
        (split,) = annotations.splits[photograph.key]
        texts = [text for _, text in sorted(captions[photograph].items())]
        rows.append((image_id, photograph.key, photograph.etag, split, texts))
    columns = zip(*sorted(rows), strict=True) if rows else [[]] * 5
    text = pa.string()
    schema = pa.schema({"image_id": text, "image_key": text, "etag": text, "split": text, "captions": pa.list_(text)})
    return pa.table(list(map(list, columns)), schema=schema), sorted(dropped, key=lambda row: (row.file, row.line))


def _dropped(file: str, line: int, reason: str, text: str) -> Dropped:
    text = _printable(text)
    return Dropped(file=file, line=line, reason=reason, text=text if len(text) <= 100 else f"{text[:99]}…")


def _ambiguous(name: str, keys: list[str]) -> PipelineError:
    return PipelineError(f"{len(keys)} files are named {name}: {', '.join(keys)}. Rename or remove all but one.")


def _check_dropped(file: str, dropped: list[Dropped], kept: int, bucket: Bucket, allowed: float) -> None:
    rows = [row for row in dropped if row.file == file]
    total = kept + len(rows)
    if not total:
        raise PipelineError(f"{bucket.url(file)} holds no captions.")
    if len(rows) / total <= allowed:
        return
    reasons = Counter(row.reason for row in rows).most_common()
    offenders = [f"  line {row.line}, {row.reason}: {row.text}" for row in rows[:_SHOWN]]
    raise PipelineError(
        f"{len(rows)} of the {total} captions in {bucket.url(file)} cannot be used ({len(rows) / total:.1%}; allowed "
        f"are {allowed:.1%}): {', '.join(f'{reason} {count}' for reason, count in reasons)}. The first are\n"
        + "\n".join(offenders)
        + f"\nMend these rows, put the missing image files below {bucket.uri}, or allow more by max_dropped_fraction."
    )


def _check_table(table: "pa.Table", origin: str) -> None:
    """Check what every reader of a dataset relies on."""
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    filled = pandera.Check.str_length(min_value=1)
    schema = pandera.DataFrameSchema(
        {
            "image_id": pandera.Column(str, filled, unique=True),
            "image_key": pandera.Column(str, filled, unique=True),
            "etag": pandera.Column(str, filled),
            "split": pandera.Column(str, pandera.Check.isin(SPLITS)),
            "captions": pandera.Column(
                object, pandera.Check(lambda texts: len(texts) > 0 and all(texts), element_wise=True)
            ),
        },
        strict=True,
    )
    try:
        schema.validate(table.to_pandas(), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases[["column", "check", "failure_case"]].head(_SHOWN).to_string(index=False)
        raise PipelineError(
            f"{origin} is not a valid dataset table. Ingest it again. What is wrong:\n{cases}"
        ) from None

"""Captions as they are published, with the photographs that they are of.

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
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pipeline.bucket import is_utf8
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject, open_bucket, open_object

if TYPE_CHECKING:
    import pyarrow as pa

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


@dataclass(frozen=True)
class Row:
    """A caption as it was found; ``photograph`` is None where no image file has the name. ``number`` is its place."""

    line: int
    text: str
    photograph: StoredObject | None
    number: int
    caption: str


@dataclass
class Annotations:
    """What a source says.

    Attributes:
        file: key of the file that holds the captions.
        rows: the captions that could be parsed.
        splits: by key of the image, the splits in which it is.
        dropped: what could not be parsed, and what is wrong with the splits.
    """

    file: str
    rows: list[Row] = field(default_factory=list)
    splits: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, line: int, reason: str, text: str, *, file: str | None = None) -> None:
        """Note a row as dropped."""
        self.dropped.append(_dropped(file or self.file, line, reason, text))


class Photographs:
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


def read(source: str) -> tuple[Bucket, Annotations]:
    """What a source says, a folder in the Flickr8k layout or the URI of a table; and the bucket of its photographs."""
    if source.lower().endswith(_TABLE_SUFFIXES):
        bucket, key = open_object(source)
        return bucket, _read_table(bucket, key)
    bucket = open_bucket(source)
    return bucket, _read_flickr8k(bucket)


def _read_flickr8k(bucket: Bucket) -> Annotations:
    files = list(bucket.list())
    photographs = Photographs(files)
    annotations = Annotations(_only(TOKEN_FILE, files, photographs, bucket))
    captioned = set()
    for line, text in _lines(bucket, annotations.file, annotations):
        # 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing up a set of stairs .
        match = re.fullmatch(r"([^\t]+)#([0-9]{1,9})\t(.*)", text)
        if match is None:
            annotations.drop(line, "malformed", text)
            continue
        image, number, caption = match.groups()
        captioned.add(image)
        annotations.rows.append(Row(line, text, photographs.find(image), int(number), caption.strip()))
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


def _only(name: str, files: list[StoredObject], photographs: Photographs, bucket: Bucket) -> str:
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


def _lines(bucket: Bucket, key: str, annotations: Annotations) -> Iterator[tuple[int, str]]:
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


def _read_table(bucket: Bucket, key: str) -> Annotations:
    photographs = Photographs(bucket.list())
    annotations = Annotations(key)
    rows = _csv_rows if key.lower().endswith(".csv") else _parquet_rows
    for line, cells in rows(bucket, key):
        text = ", ".join(map(str, cells.values()))
        image, caption, split = (_text(cells.get(column)) for column in ("image", "caption", "split"))
        if not is_utf8(text):
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
            annotations.rows.append(Row(line, text, photograph, line, caption))
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


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _split_by_hash(key: str) -> str:
    """Train for four fifths of all names, dev and test for a tenth each; a name's split never changes."""
    digest = hashlib.sha256(posixpath.basename(key).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return "train" if share < 0.8 else "dev" if share < 0.9 else "test"


def assemble(annotations: Annotations, source: str) -> "tuple[pa.Table, list[Dropped]]":
    """One row an image of a source out of what can be used, and what cannot, by file and line."""
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
        rows.append((image_id, source, photograph.key, photograph.etag, split, texts))
    columns = zip(*sorted(rows), strict=True) if rows else [[]] * 6
    texts_of = ("image_id", "source", "image_key", "etag", "split")
    schema = pa.schema([*((name, pa.string()) for name in texts_of), ("captions", pa.list_(pa.string()))])
    return pa.table(list(map(list, columns)), schema=schema), sorted(dropped, key=lambda row: (row.file, row.line))


def _dropped(file: str, line: int, reason: str, text: str) -> Dropped:
    text = _printable(text)
    return Dropped(file=file, line=line, reason=reason, text=text if len(text) <= 100 else f"{text[:99]}…")


def _ambiguous(name: str, keys: list[str]) -> PipelineError:
    return PipelineError(f"{len(keys)} files are named {name}: {', '.join(keys)}. Rename or remove all but one.")


def check_dropped(file: str, dropped: list[Dropped], kept: int, bucket: Bucket, allowed: float) -> None:
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

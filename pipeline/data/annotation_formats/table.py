"""A CSV or Parquet table with the columns ``image``, ``caption`` and, optionally, ``split``, one row per caption.

``image`` is a path relative to the folder of the table, or the name of a file anywhere in it. ``split`` is train, dev
(or val, valid, validation) or test. Without this column, a hash of the name of the image assigns 80 % of the images to
train, and 10 % each to dev and test.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

from pipeline.data.annotations import SPLIT_NAMES, Annotations, Photographs, Row, split_by_hash
from pipeline.errors import PipelineError, printable
from pipeline.storage import Bucket
from pipeline.storage.bucket import is_utf8

SUFFIXES = (".csv", ".parquet")


def read(bucket: Bucket, key: str) -> Annotations:
    """Read a table. Raises ``PipelineError`` if a column is missing or the file can't be parsed."""
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
        elif split and split.lower() not in SPLIT_NAMES:
            annotations.drop(line, "unknown split", text)
        else:
            photograph = photographs.find(image)
            if photograph is not None and split is None:
                annotations.splits[photograph.key].add(split_by_hash(photograph.key))
            elif photograph is not None and split:
                annotations.splits[photograph.key].add(SPLIT_NAMES[split.lower()])
            annotations.rows.append(Row(line, text, photograph, line, caption))
    return annotations


def _csv_rows(bucket: Bucket, key: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The line on which each row begins, and its cells by column."""
    # Undecodable bytes are kept, so that only their row is dropped.
    text = bucket.get(key).decode("utf-8-sig", errors="surrogateescape")
    # Without strict, an unclosed quotation mark would join the following rows into one caption.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, bucket.url(key))
        line = reader.line_num + 1
        for values in reader:
            if len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            elif values:
                yield line, dict(enumerate(values))  # the cells can't be assigned to columns
            line = reader.line_num + 1
    except csv.Error as error:
        raise PipelineError(
            f"{bucket.url(key)}, line {reader.line_num}: {error}. Enclose texts that contain a comma or a quotation "
            "mark in quotation marks, and double the ones inside."
        ) from error


def _parquet_rows(bucket: Bucket, key: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The number of each row, from 1, and its cells by column."""
    from pipeline.storage import parquet

    table = parquet.read(key, bucket)
    _check_columns(table.column_names, bucket.url(key))
    table = table.select([name for name in ("image", "caption", "split") if name in table.column_names])
    # A missing value is an empty text.
    rows = ({name: "" if cell is None else cell for name, cell in row.items()} for row in table.to_pylist())
    yield from enumerate(rows, 1)


def _check_columns(names: list[str], table: str) -> None:
    if missing := [name for name in ("image", "caption") if name not in names]:
        raise PipelineError(
            f"{table} has no column {' and no column '.join(missing)}. Expected image, caption and, optionally, split. "
            f"Received: {printable(', '.join(names)) or 'none'}"
        )


def _text(cell: object) -> str | None:
    return cell.strip() if isinstance(cell, str) else None

"""Tables of captions as text, with commas, semicolons, tabs or bars between the columns and a line of column names.

Among them are Kaggle's form of Flickr8k, ``captions.txt``, and Flickr30k's ``results.csv``.
"""

import csv
import io
from collections.abc import Iterator

from pipeline.data.annotation_formats.columns import Columns, TableRow, missing_columns, read_rows
from pipeline.data.annotations import Annotations, Photographs, Source

DELIMITERS = ",;\t|"

PUBLISHED = ("captions.txt", "captions.csv", "results.csv")
"""Names of tables in published data sets. A folder may hold other tables beside one of these."""


def find_published(source: Source) -> list[str]:
    """The keys of the tables in a folder that have the first of these names that is there."""
    return next((keys for name in PUBLISHED if (keys := source.named(name))), [])


def find(source: Source) -> list[str]:
    """The keys of all tables in a folder."""
    return source.named("*.csv", "*.tsv")


def read(source: Source, keys: list[str]) -> Annotations:
    """Read a table. Raises ``PipelineError`` if a column is missing, or if there are several tables."""
    key = source.single(keys)
    annotations = Annotations([key])
    lines = io.StringIO(source.text(key), newline="").readlines()
    header, delimiter, columns = _header(lines[0] if lines else "", source.bucket.url(key))
    rows = _rows(lines, header, delimiter, columns, source.photographs)
    read_rows(rows, source, key, annotations)
    return annotations


def _header(line: str, table: str) -> tuple[list[str], str, Columns]:
    """The names of the columns, the delimiter that separates them, and the columns to read."""
    headers = {delimiter: [name.strip() for name in _cells(line, delimiter)] for delimiter in DELIMITERS}
    for delimiter, names in headers.items():
        if (columns := Columns.find(names)) is not None:
            return names, delimiter, columns
    raise missing_columns(max(headers.values(), key=len), table)


def _rows(
    lines: list[str], header: list[str], delimiter: str, columns: Columns, photographs: Photographs
) -> Iterator[TableRow]:
    """The rows below the header; those that can't be assigned to its columns have no cells."""
    image = header.index(columns.image)
    start = 1
    while start < len(lines):
        # Strict: otherwise an unclosed quotation mark joins the following rows into one caption.
        reader = csv.reader(map(lines.__getitem__, range(start, len(lines))), delimiter=delimiter, strict=True)
        try:
            cells, end = next(reader), start + reader.line_num
            # A quotation mark in a later row may close it, too: then one cell holds whole rows.
            closed = not any(_names_image(line, delimiter, image, photographs) for line in lines[start + 1 : end])
        except csv.Error:
            cells, end, closed = [], start + 1, False
        if not closed:
            end = start + 1
        text = "".join(lines[start:end]).strip()
        if closed and len(cells) > len(header) and columns.caption == header[-1]:
            # The caption is the last column, and holds delimiters without quotation marks: it takes all further cells.
            cells[len(header) - 1 :] = [delimiter.join(cells[len(header) - 1 :])]
        if closed and len(cells) == len(header):
            named = dict(zip(header, cells, strict=True))
            split = None if columns.split is None else named[columns.split]
            yield TableRow(start + 1, text, named[columns.image], named[columns.caption], split)
        elif text:
            yield TableRow(start + 1, text, None, None, None)
        start = end


def _names_image(line: str, delimiter: str, column: int, photographs: Photographs) -> bool:
    """Whether a line by itself would be a row, with the name of an image in its column."""
    cells = _cells(line, delimiter)
    return len(cells) > column and bool(photographs.matches(cells[column].strip()))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell of more than 128 kB: this is no table
        return []

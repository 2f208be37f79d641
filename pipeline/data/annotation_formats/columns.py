"""The columns of tables of captions, one row per caption or per image, whatever the format of the table.

The image is a path relative to the folder of the table, or the end of the path of one file below it. The split is
train (or restval), dev (or val, valid, validation) or test. Without this column, a hash of the bytes of the image
assigns it.
"""

import ast
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.data.annotations import SPLIT_NAMES, SPLITS, Annotations, Row, Source
from pipeline.errors import PipelineError, printable

IMAGE = (
    *("image", "image_name", "image_path", "image_file", "filename", "file_name", "filepath", "file_path", "file"),
    *("path", "img", "picture", "photo", "image_id"),
)
"""The names of the column of the image; of several, the first counts."""

CAPTION = ("caption", "captions", "comment", "comments", "sentence", "sentences", "text", "description", "raw")

SPLIT = ("split",)


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; ``split`` is None if there is none."""

    image: str
    caption: str
    split: str | None

    @classmethod
    def find(cls, names: list[str]) -> "Columns | None":
        """The columns among these names, in upper or lower case; None if that of the image or caption is missing."""
        usual = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in names}
        image, caption, split = (
            next((usual[name] for name in known if name in usual), None) for known in (IMAGE, CAPTION, SPLIT)
        )
        return None if image is None or caption is None else cls(image, caption, split)


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its line, its text for a report, and its cells; ``split`` is None without such a column."""

    line: int
    text: str
    image: object
    caption: object
    split: object


def read_rows(rows: Iterable[TableRow], source: Source, key: str, annotations: Annotations) -> None:
    """Add the captions and splits of rows to ``annotations``, or drop the rows."""
    folder = posixpath.dirname(key)
    for row in rows:
        captions = _captions(row.caption)
        if not isinstance(row.image, str) or captions is None or not isinstance(row.split, str | None):
            annotations.drop(key, row.line, "malformed", row.text)
        elif row.split and row.split.strip() and row.split.strip().lower() not in SPLIT_NAMES:
            annotations.drop(key, row.line, "unknown split", row.text)
        else:
            photograph = source.photographs.find(row.image.strip(), folder)
            if photograph is not None and row.split is None:
                annotations.undecided[photograph.key] = SPLITS
            elif photograph is not None and row.split and row.split.strip():
                annotations.splits[photograph.key].add(SPLIT_NAMES[row.split.strip().lower()])
            for caption in captions:
                number = len(annotations.rows)
                annotations.rows.append(Row(key, row.line, row.text, photograph, number, caption.strip()))


def missing_columns(names: list[str], table: str) -> PipelineError:
    """The error for a table without a column of the image or the caption."""
    usual = {re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names}
    missing = [known[0] for known in (IMAGE, CAPTION) if usual.isdisjoint(known)]
    return PipelineError(
        f"{table} has no column {' and no column '.join(missing)}. Expected image (or {', '.join(IMAGE[1:])}), caption "
        f"(or {', '.join(CAPTION[1:])}) and, optionally, split. Received: {printable(', '.join(names))[:500] or 'none'}"
    )


def _captions(cell: object) -> list[str] | None:
    """The captions in a cell, which is a text or a list of texts, also as pandas and JSON write lists; else None."""
    if isinstance(cell, str) and cell.strip().startswith("[") and cell.strip().endswith("]"):
        try:
            listed = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
        cell = listed if isinstance(listed, list) and all(isinstance(text, str) for text in listed) else cell
    if isinstance(cell, list):
        return ["" if text is None else text for text in cell] or [""]
    return [cell] if isinstance(cell, str) else None

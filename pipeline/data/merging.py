"""Sources merged into one: each picture is in one row, with the captions of all sources, and so in one split.

Pictures are compared by their bytes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pipeline.data.annotations import SPLITS, dataset_schema, image_ids, split_by_hash
from pipeline.data.sources import Part
from pipeline.errors import PipelineError
from pipeline.storage import names

PRECEDENCE = (("test",), ("dev",), ("dev", "test"), ("train",), SPLITS)
"""A source gives a picture one split, or several between which a hash chooses. If the sources of its copies differ, the
first in this list counts: no model trains on a picture that any source holds out."""

Row = dict[str, Any]


def merge(parts: Sequence[Part]) -> Part:
    """Merge the rows of several sources, of which all images must have been hashed.

    Of copies of a picture, the row that is first by source and key stays, and of the same file, that of the first part.
    It gets the captions of the others that it does not have, and the split that takes precedence. A licence stays if
    all sources have it.

    Raises:
        PipelineError: an image was replaced after one of the sources was read.
    """
    import pyarrow as pa

    copies, choices = defaultdict[str, list[Row]](list), defaultdict[str, set[tuple[str, ...]]](set)
    for part in parts:
        for row in part.table.to_pylist():
            copies[row["content_hash"]].append(row)
            choices[row["content_hash"]].add(part.undecided.get(row["image_key"], (row["split"],)))
    decisive = {content: min(each, key=PRECEDENCE.index) for content, each in choices.items()}
    rows = [
        {**_with_all_captions(same), "split": split_by_hash(content, decisive[content])}
        for content, same in copies.items()
    ]
    _check_versions(rows)
    licences = {part.licence for part in parts}
    ids = image_ids([(row["source"], row["image_key"]) for row in rows])
    rows = [{**row, "image_id": image_id} for row, image_id in zip(rows, ids, strict=True)]
    return Part(
        title="-and-".join(sorted({part.title for part in parts}))[: names.MAX_NAME].rstrip("-."),
        table=pa.Table.from_pylist(rows, schema=dataset_schema()).sort_by("image_id"),
        sources={name: counts for part in parts for name, counts in part.sources.items()},
        dropped=[row for part in parts for row in part.dropped],
        licence=licences.pop() if len(licences) == 1 else "",
        split_by_hash=sum(len(splits) > 1 for splits in decisive.values()),
        merged=sum(map(len, copies.values())) - len(copies),
    )


def _with_all_captions(copies: list[Row]) -> Row:
    """The first of the rows of a picture, with the captions of the others that it does not have."""
    first, *others = sorted(copies, key=lambda row: (row["source"], row["image_key"]))
    more = dict.fromkeys(caption for row in others for caption in row["captions"])
    return {**first, "captions": [*first["captions"], *(text for text in more if text not in first["captions"])]}


def _check_versions(rows: list[Row]) -> None:
    """Raise ``PipelineError`` if two rows are of the same image file: their bytes differ, so it was replaced."""
    seen = set()
    for row in rows:
        if (image := (row["source"], row["image_key"])) in seen:
            raise PipelineError(
                f"{row['image_key']} in {row['source']} was replaced after one of the sources was read. In place of a "
                "dataset that was made before, pass the captions from which it was made."
            )
        seen.add(image)

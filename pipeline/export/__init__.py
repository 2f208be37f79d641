"""Exports of the current captions: each module of this package writes one format.

To add a format, write a module for it. Then add it to ``Format``, and to ``RENDERERS`` or, if it is more than one file,
to ``export``; and to the option ``--format`` in ``pipeline/cli/captions.py``.
"""

from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.export import coco, csv, iceberg, jsonl, label_studio, webdataset
from pipeline.ops.browse_current import Filters, row_filter, with_texts
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, open_bucket, open_object

Format = Literal["csv", "jsonl", "coco", "label-studio", "webdataset", "iceberg"]

SUFFIXES: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".json": "coco"}
"""The formats that the suffix of the destination tells."""

RENDERERS = {"csv": csv.render, "jsonl": jsonl.render, "coco": coco.render}
"""The formats that are one file of which a table gives the bytes."""

CAPTIONED_ONLY = {"coco", "label-studio", "webdataset"}
"""The formats of captioned photographs, in which a photograph without a caption has no place."""


def select(table: pa.Table, filters: Filters) -> pa.Table:
    """The rows of the current captions that pass the filters."""
    return with_texts(table.filter(row_filter(filters)), filters)


def choose_format(destination: str, given: Format | None) -> Format:
    """The format that was given, or else the one of the destination's suffix.

    Raises:
        PipelineError: none was given, and the suffix tells none.
    """
    by_suffix = next((form for suffix, form in SUFFIXES.items() if destination.lower().endswith(suffix)), None)
    if (chosen := given or by_suffix) is None:
        raise PipelineError(
            f"{destination!r} does not tell the format, as {', '.join(SUFFIXES)} do. Add --format and one of "
            f"{', '.join(get_args(Format))}."
        )
    return chosen


def export(
    table: pa.Table,
    destination: str,
    *,
    form: Format,
    store: Bucket,
    inbox: Bucket,
    overwrite: bool = False,
    iceberg_table: str = iceberg.TABLE,
    iceberg_catalog: str = "",
) -> dict[str, Any]:
    """Write rows of the current captions to a file, a folder of shards, or an Iceberg table.

    Args:
        table: the rows.
        destination: path or URI: of a file, of the folder of the shards (webdataset), or of the warehouse (iceberg).
        form: the format.
        store: the store, in which nothing is exported.
        inbox: the bucket of the photographs, which webdataset reads, and tasks of Label Studio refer to.
        overwrite: replace what is there.
        iceberg_table: namespace and name of the table.
        iceberg_catalog: SQLAlchemy URL of the catalogue; empty for a file in a local warehouse.

    Returns:
        What was written, with counts and a ``summary``.

    Raises:
        PipelineError: the destination is in the store, or exists and is not to be overwritten.
    """
    if f"{open_bucket(destination).uri}/".startswith(f"{store.uri}/"):
        raise PipelineError(
            f"{destination} is in the store, which holds only what the pipeline writes: export elsewhere."
        )
    counts: dict[str, Any] = {"format": form}
    if form in CAPTIONED_ONLY:
        captioned = table.filter(pc.field("caption").is_valid())
        counts["without_caption"] = len(table) - len(captioned)
        table = captioned
    counts["rows"] = len(table)
    if form == "webdataset":
        counts |= webdataset.write(table, open_bucket(destination), inbox=inbox, overwrite=overwrite)
    elif form == "iceberg":
        counts |= iceberg.write(
            table, open_bucket(destination), name=iceberg_table, catalog=iceberg_catalog, overwrite=overwrite
        )
    else:
        bucket, key = open_object(destination)
        data = label_studio.render(table, inbox) if form == "label-studio" else RENDERERS[form](table)
        _put(data, bucket, key, overwrite=overwrite)
        counts["destination"] = bucket.url(key)
    shown = ", ".join(
        f"{count:,} {(name.removesuffix('s') if count == 1 else name).replace('_', ' ')}"
        for name, count in counts.items()
        if isinstance(count, int)
    )
    return {**counts, "summary": f"{form}: {shown}"}


def _put(data: bytes, bucket: Bucket, key: str, *, overwrite: bool) -> None:
    try:
        bucket.put(key, data, if_match=None if overwrite else ABSENT)
    except ObjectChangedError as error:
        raise PipelineError(
            f"{bucket.url(key)} exists. Choose another name, or replace it with --overwrite."
        ) from error

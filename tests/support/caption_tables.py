"""Tables of captions that no model wrote."""

from datetime import UTC, datetime

import pyarrow as pa

from pipeline.nightly import captions
from pipeline.storage import layout, parquet


def row(key, caption="a dog", *, log_prob=-1.0, error=None, version="m1"):
    """A row of captions."""
    return {
        "image_key": key,
        "image_etag": "e",
        "caption": None if error else caption,
        "log_prob": None if error else log_prob,
        "status": "failed" if error else "ok",
        "error": error,
        "model_version": version,
        "encoder_id": "x",
        "captioned_at": datetime(2026, 1, 1, tzinfo=UTC),
    }


def write(store, rows, *, night, shard, version="m1"):
    """Write a shard of captions."""
    table = pa.Table.from_pylist([{**each, "model_version": version} for each in rows], schema=captions.SCHEMA)
    parquet.write(table, layout.shard_result(layout.captions_folder(version, night), shard), store)

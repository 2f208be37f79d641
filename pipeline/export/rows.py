"""The rows of a table as JSON can hold them."""

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.progress import track

BATCH = 10_000
"""Rows that are plain values at once: these take far more memory than the table."""


def json_rows(table: pa.Table, log: logging.Logger) -> Iterator[dict[str, Any]]:
    """Each row as ``json_row`` gives it, with progress."""
    rows = (row for batch in table.to_batches(BATCH) for row in batch.to_pylist())
    return map(json_row, track(rows, total=len(table), unit="rows", log=log))


def json_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its times as texts in ISO 8601."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}

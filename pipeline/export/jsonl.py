"""JSON lines: one object a row, with all columns, in UTF-8."""

import io
import json
import logging

import pyarrow as pa

from pipeline.export.rows import json_rows

log = logging.getLogger(__name__)


def render(table: pa.Table) -> bytes:
    """The file; times are in ISO 8601."""
    file = io.BytesIO()
    for row in json_rows(table, log):
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return file.getvalue()

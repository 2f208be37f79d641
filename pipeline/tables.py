"""Parquet tables in a bucket."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.storage import Bucket


def write(table: pa.Table, key: str, bucket: Bucket, *, about: Mapping[str, str] | None = None) -> None:
    """Put the table under ``key`` as one Parquet file (zstd), with ``about`` as its schema's metadata."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(dict(about or {})), sink, compression="zstd")
    bucket.put(key, bytes(sink.getvalue()))


def read(key: str, bucket: Bucket, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The table under ``key``, or only some of its columns, of which alone the bytes are fetched.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is no Parquet file.
    """
    try:
        with bucket.open(key) as file:
            return pq.ParquetFile(file).read(columns=columns)
    except pa.ArrowInvalid as error:
        raise _unreadable(key, bucket, error) from error


def fetch(key: str, bucket: Bucket) -> pq.ParquetFile:
    """The file of the table under ``key``, fetched whole by one request; its columns are decoded when they are read.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is no Parquet file.
    """
    data = bucket.get(key)
    try:
        return pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise _unreadable(key, bucket, error) from error


def about(table: pa.Table) -> dict[str, str]:
    """What ``write`` was told about the table."""
    return {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}


def _unreadable(key: str, bucket: Bucket, error: pa.ArrowInvalid) -> PipelineError:
    return PipelineError(f"{bucket.url(key)} is no Parquet file that can be read: {error}")

"""Parquet tables in a bucket."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.storage import Bucket


def column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    """A column of a schema. Its description is stored in the metadata of the field, and so in the files, too."""
    return pa.field(name, kind, metadata={"description": description})


def write(table: pa.Table, key: str, bucket: Bucket, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the table as one Parquet file (zstd), with ``metadata`` as the metadata of its schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(dict(metadata or {})), sink, compression="zstd")
    bucket.put(key, bytes(sink.getvalue()))


def read(key: str, bucket: Bucket, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or some of its columns; only the bytes of these are fetched.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is not a Parquet file.
    """
    try:
        with bucket.open(key) as file:
            return pq.ParquetFile(file).read(columns=columns)
    except pa.ArrowInvalid as error:
        raise _unreadable(key, bucket, error) from error


def fetch(key: str, bucket: Bucket) -> pq.ParquetFile:
    """Fetch the whole file of a table in one request; columns are decoded when they are read.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is not a Parquet file.
    """
    data = bucket.get(key)
    try:
        return pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise _unreadable(key, bucket, error) from error


def metadata(table: pa.Table) -> dict[str, str]:
    """The metadata that ``write`` stored with the table."""
    return {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}


def _unreadable(key: str, bucket: Bucket, error: pa.ArrowInvalid) -> PipelineError:
    return PipelineError(f"{bucket.url(key)} is not a readable Parquet file: {error}")

"""Parquet tables in a bucket."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Bucket, DamagedObjectError
from pipeline.storage.bucket import read_each


def column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    """A column of a schema. Its description is stored in the metadata of the field, and so in the files, too."""
    return pa.field(name, kind, metadata={"description": description})


def write(
    table: pa.Table,
    key: str,
    bucket: Bucket,
    *,
    metadata: Mapping[str, str] | None = None,
    row_group_size: int | None = None,
    if_match: str | None = None,
) -> None:
    """Write the table as one Parquet file (zstd, pages with checksums).

    Args:
        table: the table.
        key: of the file.
        bucket: where it goes.
        metadata: stored in the schema.
        row_group_size: rows of a row group, where single ones are to be read.
        if_match: etag of the file that it replaces, as for ``Bucket.put``.

    Raises:
        ObjectChangedError: the file's etag is not ``if_match``.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(dict(metadata or {})),
        sink,
        compression="zstd",
        write_page_checksum=True,
        row_group_size=row_group_size,
    )
    bucket.put(key, bytes(sink.getvalue()), if_match=if_match)


def read(
    key: str,
    bucket: Bucket,
    *,
    columns: Sequence[str] | pa.Schema | None = None,
    by_ranges: bool = False,
    etag: str | None = None,
    advice: str = "",
) -> pa.Table:
    """Read a table, or some of its columns as for ``select``; the other arguments and errors are those of ``opened``.

    Raises:
        DamagedObjectError: also if the table has not all of the columns, or one is of another type.
    """
    with opened(key, bucket, by_ranges=by_ranges, etag=etag, advice=advice) as file:
        return file.read() if columns is None else select(file, columns)


def select(
    file: pq.ParquetFile, columns: Sequence[str] | pa.Schema, *, groups: Sequence[int] | None = None
) -> pa.Table:
    """Read columns of an open file, with the metadata of its table.

    Args:
        file: as ``opened`` gives it, in whose ``with`` block errors are those of a damaged file.
        columns: their names, or a schema, to whose types they are cast.
        groups: the row groups that are read; None for all.

    Raises:
        ArrowInvalid: a column is missing, or can't be cast.
        ArrowNotImplementedError: a column is of a type that is never cast to the expected one.
    """
    names = columns.names if isinstance(columns, pa.Schema) else list(columns)
    _require(file, names)
    table = file.read(columns=names) if groups is None else file.read_row_groups(groups, columns=names)
    if isinstance(columns, pa.Schema):
        table = table.select(names).cast(columns).replace_schema_metadata(table.schema.metadata)
    return table


def select_batches(file: pq.ParquetFile, columns: Sequence[str], *, rows: int) -> Iterator[pa.RecordBatch]:
    """Read columns of an open file as ``select`` does, but only so many rows at a time."""
    _require(file, columns)
    yield from file.iter_batches(batch_size=rows, columns=list(columns))


def _require(file: pq.ParquetFile, columns: Sequence[str]) -> None:
    if missing := set(columns) - set(file.schema_arrow.names):
        raise pa.ArrowInvalid(f"it has no column {', '.join(sorted(missing))}")


@contextlib.contextmanager
def opened(
    key: str, bucket: Bucket, *, by_ranges: bool = False, etag: str | None = None, advice: str = ""
) -> Iterator[pq.ParquetFile]:
    """Open the file of a table. Columns are decoded when they are read, and the checksums of their pages are verified.

    Args:
        key: of the file.
        bucket: where it is.
        by_ranges: fetch only the bytes that are read. By default, the whole file is fetched in one request.
        etag: the version that is expected, if the whole file is fetched.
        advice: what to do if the file is damaged; ends the error message.

    Raises:
        ObjectNotFoundError: there is no such object.
        ObjectChangedError: it does not have this etag any more.
        DamagedObjectError: it is not a readable Parquet file; reads inside the ``with`` block raise it, too.
    """
    with contextlib.closing(bucket.open(key) if by_ranges else pa.BufferReader(bucket.get(key, etag=etag))) as source:
        try:
            yield pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            # By contract, errors of the bucket that are not PipelineErrors carry a note: this one is Arrow's.
            if getattr(error, "__notes__", None):
                raise
            message = f"{bucket.url(key)} is damaged, or not a Parquet file of this kind: {error}."
            raise DamagedObjectError(f"{message} {advice}".rstrip()) from error


def groups_with(file: pq.ParquetFile, name: str, values: Collection[str]) -> list[int]:
    """The row groups of an open file that may hold one of the values in a column of text, by their statistics."""
    place = file.schema_arrow.names.index(name)
    statistics = [file.metadata.row_group(group).column(place).statistics for group in range(file.num_row_groups)]
    return [
        group
        for group, found in enumerate(statistics)
        if found is None or not found.has_min_max or any(found.min <= value <= found.max for value in values)
    ]


def read_all(
    keys: Iterable[str],
    bucket: Bucket,
    *,
    columns: Sequence[str] | pa.Schema,
    by_ranges: bool = False,
    advice: str = "",
    damaged: list[str] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """Read many tables in parallel, as ``read_each`` does; the other arguments are those of ``read``."""
    read_one = partial(read, bucket=bucket, columns=columns, by_ranges=by_ranges, advice=advice)
    return read_each(read_one, keys, damaged=damaged)


def metadata(table: pa.Table) -> dict[str, str]:
    """The metadata that ``write`` stored with the table."""
    return {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}

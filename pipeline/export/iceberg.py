"""Iceberg: a table in a warehouse outside the store, which Trino, Spark, DuckDB, polars and others read.

An SQL catalogue, such as a file of SQLite, says which version of the table is the current one. An export is one commit
with one snapshot, so that readers see the earlier rows or the new ones, and never a mixture.
"""

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, S3Bucket

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog

TABLE = "captioning.captions"
"""Namespace and name of the table by default."""

CATALOG = "captioning"
"""The name of the catalogue, which readers must give, too: one database can hold several."""

CATALOG_FILE = "catalog.db"
"""The catalogue in a local warehouse."""


def write(table: pa.Table, warehouse: Bucket, *, name: str, catalog: str, overwrite: bool) -> dict[str, Any]:
    """Make these the rows of a table. Columns that the table lacks are added to it.

    Args:
        table: the rows.
        warehouse: where the files of the table are.
        name: namespace and name of the table, with a dot between them.
        catalog: SQLAlchemy URL of the catalogue; empty for a file in a local warehouse.
        overwrite: replace the rows of a table that is there.

    Returns:
        The ``destination`` and the ``table``.

    Raises:
        PipelineError: the name has no namespace, a warehouse on S3 has no catalogue, the URL of the catalogue is none,
            the table exists and is not to be overwritten, or one of its columns has another type.
    """
    from pyiceberg.exceptions import ValidationError
    from pyiceberg.io import load_file_io
    from pyiceberg.io.pyarrow import pyarrow_to_schema, write_file
    from pyiceberg.table import WriteTask

    if len(parts := name.split(".")) < 2 or not all(parts):
        raise PipelineError(f"Expected the namespace and the name of a table, such as {TABLE}. Received: {name!r}")
    with contextlib.closing(_open_catalog(warehouse, catalog)) as opened:
        exists = opened.table_exists(name)
        if exists and not overwrite:
            raise PipelineError(
                f"The table {name} exists in {warehouse.uri}. Choose another --table, or replace its rows with "
                "--overwrite."
            )
        opened.create_namespace_if_not_exists(".".join(parts[:-1]))
        schema = _described(table.schema)
        target = opened.load_table(name) if exists else None
        with target.transaction() if target else opened.create_table_transaction(name, schema) as transaction:
            if target:
                try:
                    with transaction.update_schema() as update:
                        update.union_by_name(schema)
                except (ValidationError, ValueError) as error:
                    raise PipelineError(
                        f"The table {name} has other columns: {error}. Choose another --table."
                    ) from error
            metadata = transaction.table_metadata
            files = load_file_io({**opened.properties, **metadata.properties}, metadata.location)
            file_schema = pyarrow_to_schema(schema, name_mapping=metadata.schema().name_mapping)
            task = WriteTask(uuid.uuid4(), 0, file_schema, table.to_batches())
            with transaction.update_snapshot().overwrite() as snapshot:
                for old in target.scan().plan_files() if target else ():
                    snapshot.delete_data_file(old.file)
                for new in write_file(files, metadata, iter([task] if len(table) else [])):
                    snapshot.append_data_file(new)
    return {"destination": warehouse.uri, "table": name}


def _open_catalog(warehouse: Bucket, url: str) -> "SqlCatalog":
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError

    properties = {}
    if isinstance(warehouse, LocalBucket):
        warehouse.root.mkdir(parents=True, exist_ok=True)
        url = url or URL.create("sqlite", database=str(warehouse.root / CATALOG_FILE)).render_as_string()
        properties["warehouse"] = f"file://{warehouse.root}"  # not percent-encoded: pyiceberg takes it as it is
    elif isinstance(warehouse, S3Bucket):
        properties = {"warehouse": warehouse.uri, **s3_properties(warehouse)}
    if not url:
        raise PipelineError(
            f"{warehouse.uri} can't hold the file of a catalogue: add --catalog sqlite:////PATH/{CATALOG_FILE}"
        )
    try:
        return SqlCatalog(CATALOG, uri=url, **properties)
    except ArgumentError as error:
        raise PipelineError(f"Expected the SQLAlchemy URL of a catalogue. Received: {url!r}") from error


def s3_properties(bucket: S3Bucket) -> dict[str, str]:
    """What boto3 has found out about the bucket's service, for Arrow's own client of S3."""
    import boto3

    meta = bucket.client.meta
    # Services at a bare address have no host name for each bucket.
    found: dict[str, str | None]
    found = {"s3.endpoint": meta.endpoint_url, "s3.region": meta.region_name, "s3.force-virtual-addressing": "false"}
    if (credentials := boto3.Session().get_credentials()) is not None:
        keys = credentials.get_frozen_credentials()
        found |= {
            "s3.access-key-id": keys.access_key,
            "s3.secret-access-key": keys.secret_key,
            "s3.session-token": keys.token,
        }
    return {name: value for name, value in found.items() if value}


def _described(schema: pa.Schema) -> pa.Schema:
    """The schema with the descriptions of its columns where Iceberg looks for them."""
    return pa.schema(
        [field.with_metadata({"doc": (field.metadata or {}).get(b"description", b"")}) for field in schema]
    )

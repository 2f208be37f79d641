"""The reference documents are up to date and complete, and their queries run."""

import re
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pytest

from pipeline.storage import layout, open_bucket, parquet
from scripts import write_docs
from tests.support.paths import PROJECT
from tests.support.variables import DEFAULTS

DOCS = PROJECT / "docs"

VALUES = {
    pa.list_(pa.string()): ["a dog"],
    pa.int32(): 0,
    pa.float32(): -1.0,
    pa.timestamp("us", tz="UTC"): datetime(2026, 1, 1, tzinfo=UTC),
}
"""A value of each type but string; of others it is null."""


@pytest.mark.parametrize("name", write_docs.DOCUMENTS)
def test_documents_are_up_to_date(name):
    """Each document is what the script renders from the code."""
    assert (DOCS / name).read_text() == write_docs.DOCUMENTS[name](), f"docs/{name} is stale: run `make docs`"


def test_every_setting_is_in_one_group():
    """The document lists each setting once."""
    listed = re.findall(r"^\| `(CAPTION_\w+)`", write_docs.render_configuration(), re.MULTILINE)
    assert sorted(listed) == sorted(DEFAULTS)


@pytest.mark.parametrize("name", ["cli.md", "configuration.md"])
def test_everything_is_described(name):
    """Settings, fields, commands, arguments and options have a description."""
    rows = [line for line in write_docs.DOCUMENTS[name]().splitlines() if line.startswith("| ")]
    assert [row for row in rows if row.endswith(("|  |", "None |"))] == []


@pytest.mark.parametrize("table", write_docs.TABLES, ids=lambda table: table.title)
def test_every_column_is_described(table):
    """The schemas describe all their columns."""
    assert all(write_docs.describe(column) for column in table.schema)


def test_every_folder_is_described():
    """The layout describes each folder at the top of the store, and has keys in each."""
    folders = {value for name, value in vars(layout).items() if name.isupper() and str(value).endswith("/")}
    inner = {layout.OPEN_SHARDS, layout.CORRECTION_PICTURES, layout.PROFILES, layout.STEPS}
    assert folders - inner == layout.FOLDERS.keys()
    document = write_docs.render_store()
    assert all(f"| `{folder}" in document for folder in layout.FOLDERS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The folder of a store with an ok and a failed row in each table, and features with crops as well."""
    folder = tmp_path_factory.mktemp("store")
    bucket = open_bucket(str(folder))
    crops = write_docs.feature_store.schema((6, 2048))
    files = {table.files.replace("*", "1"): table.schema for table in write_docs.TABLES}
    files[layout.shard_result(layout.features_folder("2"), "1")] = crops
    for key, schema in files.items():
        rows = [
            {column.name: {**VALUES, pa.string(): text}.get(column.type) for column in schema}
            for text in ("ok", "failed")
        ]
        parquet.write(pa.Table.from_pylist(rows, schema=schema), key, bucket)
    return folder


QUERIES = re.findall(r"```sql\n(.*?)```", (DOCS / "store.md").read_text(), re.DOTALL)


def test_every_table_has_a_query():
    """There is one query for each table."""
    assert len(QUERIES) == len(write_docs.TABLES)


@pytest.mark.parametrize("query", QUERIES, ids=[table.title for table in write_docs.TABLES])
def test_queries_run(query, store):
    """DuckDB runs the queries as they are in the document, but for the address of the store."""
    assert query.count(write_docs.STORE) == 1
    assert duckdb.sql(query.replace(write_docs.STORE, str(store))).fetchall()

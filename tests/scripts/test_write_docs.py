"""The reference documents are up to date and complete, and their queries run."""

import re
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pytest
import sqlglot

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


def test_tables_agree_on_the_names_of_columns():
    """Each names an image by ``image_key`` and ``image_etag``, and a column of one name has one type everywhere."""
    types = {}
    for table in write_docs.TABLES:
        assert {"image_key", "image_etag"} < set(table.schema.names), table.title
        for column in table.schema:
            assert types.setdefault(column.name, column.type) == column.type, (table.title, column.name)


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
    files = {
        table.files.replace("date=*", "date=2026-01-01").replace("*", "1"): table.schema for table in write_docs.TABLES
    }
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


TABLES_OF_CAPTIONS = {"current_captions": layout.CURRENT_CAPTIONS, "captions": f"{layout.CAPTIONS}*/*/*.parquet"}
"""The files of the tables that SQL engines read, by name."""


def statements(engine):
    """The statements of docs/sql.md for an engine, as they are and parsed."""
    [chapter] = re.findall(rf"^## {engine}\n(.*?)(?=^## |\Z)", (DOCS / "sql.md").read_text(), re.DOTALL | re.MULTILINE)
    found = re.findall(r"```sql\n(.*?)```", chapter, re.DOTALL)
    return [(text, sqlglot.parse_one(text, read=engine.lower())) for text in found]


@pytest.mark.parametrize("engine", ["Athena", "Trino"])
def test_the_tables_of_sql_engines_are_those_of_the_store(engine, store):
    """Each has the columns of the files, with types that hold them; its folder has no other objects."""
    defined = {}
    for text, statement in statements(engine):
        if isinstance(statement, sqlglot.exp.Create):
            columns = {each.name: each.kind.sql("duckdb") for each in statement.find_all(sqlglot.exp.ColumnDef)}
            [place] = re.findall(f"'{write_docs.S3_STORE}/([a-z]+/)'", text)
            defined[statement.find(sqlglot.exp.Table).name] = (place, columns)
    assert defined.keys() == TABLES_OF_CAPTIONS.keys()
    for name, (place, columns) in defined.items():
        keys = {key for key in write_docs._keys() if key.startswith(place)}
        assert keys == {
            layout.CURRENT_CAPTIONS if place == layout.CURRENT else layout.captions_folder("VERSION", "YYYY-MM-DD")
        }
        read = duckdb.sql(
            f"describe from read_parquet('{store}/{TABLES_OF_CAPTIONS[name]}', hive_types_autocast = false)"
        )
        expected = {column: kind for column, kind, *_ in read.fetchall()}
        types = {"TEXT": "VARCHAR", "REAL": "FLOAT", "INT": "INTEGER"}
        found = {column: types.get(kind, kind) for column, kind in columns.items()}
        times = {"TIMESTAMP", "TIMESTAMP(3)"}  # in UTC
        assert found.pop("captioned_at") in times
        assert expected.pop("captioned_at") == "TIMESTAMP WITH TIME ZONE"
        assert found == expected


@pytest.mark.parametrize("engine", ["Athena", "Trino"])
def test_the_queries_of_sql_engines_run(engine, store):
    """Translated to the SQL of DuckDB, where the tables have the columns of the files."""
    queries = [statement for _, statement in statements(engine) if isinstance(statement, sqlglot.exp.Select)]
    assert len(queries) == 2
    for query in queries:
        [table] = query.find_all(sqlglot.exp.Table)
        files = f"read_parquet('{store}/{TABLES_OF_CAPTIONS[table.name]}', hive_types_autocast = false)"
        table.replace(sqlglot.select("*").from_(files, dialect="duckdb").subquery())
        text = query.sql("duckdb").replace(write_docs.MODEL, "1")
        assert duckdb.sql(text).fetchall()

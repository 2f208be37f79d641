"""Parquet tables: what is written is read again, and a damaged file is an error that names it, or is left out."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError, open_bucket, parquet
from tests.support.effort import random_inputs
from tests.support.memory import MemoryBucket

TABLE = pa.table({"key": [f"{number}.jpg" for number in range(500)], "size": list(range(500))})


@pytest.mark.parametrize("by_ranges", [False, True])
def test_a_table_is_read_as_it_was_written(bucket: Bucket, by_ranges: bool) -> None:
    """All of it or some columns, with its metadata."""
    parquet.write(TABLE, "a.parquet", bucket, metadata={"kind": "test"})
    found = parquet.read("a.parquet", bucket, by_ranges=by_ranges)
    assert found.equals(TABLE)
    assert parquet.metadata(found) == {"kind": "test"}
    assert parquet.read("a.parquet", bucket, columns=["size"], by_ranges=by_ranges).column_names == ["size"]
    with pytest.raises(ObjectNotFoundError):
        parquet.read("b.parquet", bucket, by_ranges=by_ranges)


@pytest.mark.parametrize("by_ranges", [False, True])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"nothing of ours", b"PAR1" * 9])
def test_what_is_no_table_is_named(bucket: Bucket, data: bytes, by_ranges: bool) -> None:
    """The error has the object's address, and the advice of the caller at its end."""
    bucket.put("a.parquet", data)
    with pytest.raises(DamagedObjectError) as error:
        parquet.read("a.parquet", bucket, by_ranges=by_ranges, advice="Write it again.")
    assert str(error.value).startswith(f"{bucket.url('a.parquet')} is damaged")
    assert str(error.value).endswith(" Write it again.")


def test_a_table_of_another_kind_is_named(tmp_path) -> None:
    """Another program's table lacks our columns."""
    bucket = open_bucket(str(tmp_path))
    parquet.write(TABLE, "a.parquet", bucket)
    with pytest.raises(DamagedObjectError, match="it has no column caption, error"):
        parquet.read("a.parquet", bucket, columns=["key", "caption", "error"])


def test_columns_of_other_types(tmp_path) -> None:
    """They are cast where that is possible; otherwise the error names the table."""
    bucket = open_bucket(str(tmp_path))
    parquet.write(TABLE, "a.parquet", bucket, metadata={"kind": "test"})
    schema = pa.schema({"size": pa.int32(), "key": pa.large_string()})
    found = parquet.read("a.parquet", bucket, columns=schema)
    assert (found.schema, parquet.metadata(found)) == (schema, {"kind": "test"})
    for kind in (pa.timestamp("us"), pa.list_(pa.string())):
        with pytest.raises(DamagedObjectError, match=r"a\.parquet is damaged"):
            parquet.read("a.parquet", bucket, columns=pa.schema({"key": kind}))


def test_a_page_with_flipped_bytes_is_never_read() -> None:
    """Wherever a byte of the pages is changed, the read fails: each page has a checksum. The footer has none."""
    bucket = MemoryBucket("store")
    parquet.write(TABLE, "a.parquet", bucket)
    data = bucket.get("a.parquet")
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    random.seed(0)
    for place in random.sample(range(4, footer), random_inputs(100)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << random.randrange(8)
        bucket.put("a.parquet", bytes(damaged))
        try:
            found = parquet.read("a.parquet", bucket)
        except DamagedObjectError:
            continue
        assert found.equals(TABLE)  # a part of a page's header that nothing reads


def test_any_damage_is_that_error() -> None:
    """Whatever Arrow raises on a file with a changed footer, it is never a traceback that names nothing."""
    bucket = MemoryBucket("store")
    parquet.write(TABLE, "a.parquet", bucket)
    data = bucket.get("a.parquet")
    random.seed(0)
    for _ in range(random_inputs(200)):
        damaged = bytearray(data[: random.randrange(1, len(data))] if random.random() < 0.2 else data)
        damaged[-random.randrange(1, min(len(damaged), 2000))] ^= 1 << random.randrange(8)
        bucket.put("a.parquet", bytes(damaged))
        try:
            parquet.read("a.parquet", bucket)
        except DamagedObjectError as error:
            assert "a.parquet" in str(error)


@pytest.mark.parametrize("by_ranges", [False, True])
def test_an_error_of_the_bucket_is_not_damage(monkeypatch, by_ranges: bool) -> None:
    """A connection that is lost, which carries a note by contract, keeps its type, so that the step is retried."""
    bucket = MemoryBucket("store")
    parquet.write(TABLE, "a.parquet", bucket)

    def lose(*_: object, **__: object) -> None:
        error = TimeoutError("too slow")
        error.add_note("while accessing a.parquet")
        raise error

    reader = bucket.open("a.parquet")
    monkeypatch.setattr(bucket, "get", lose)
    monkeypatch.setattr(bucket, "open", lambda _: Lost(reader, lose))
    with pytest.raises(TimeoutError, match="too slow"):
        parquet.read("a.parquet", bucket, by_ranges=by_ranges)


class Lost:
    """A reader whose connection breaks off."""

    closed = False

    def __init__(self, reader, lose) -> None:
        self.reader, self.read = reader, lose
        self.seek, self.tell, self.close = reader.seek, reader.tell, reader.close


def test_many_tables(bucket: Bucket, caplog) -> None:
    """They come in the order of the keys; a damaged one is left out and reported, one that is gone is left out."""
    for number in range(40):
        parquet.write(TABLE.slice(number, 1), f"{number:02}.parquet", bucket)
    bucket.put("07.parquet", b"nothing")
    wanted = [f"{number:02}.parquet" for number in range(41)]
    damaged: list[str] = []
    found = dict(parquet.read_all(wanted, bucket, columns=["size"], damaged=damaged))
    assert list(found) == [key for key in wanted if key not in ("07.parquet", "40.parquet")]
    assert all(table["size"].to_pylist() == [int(key[:2])] for key, table in found.items())
    [message] = damaged
    assert bucket.url("07.parquet") in message
    assert message in caplog.text


def test_readers_of_other_programs_need_nothing_of_ours(tmp_path) -> None:
    """Such as pandas and DuckDB, by way of Arrow's own reader."""
    bucket = open_bucket(str(tmp_path))
    parquet.write(TABLE, "a.parquet", bucket)
    assert pq.read_table(tmp_path / "a.parquet").equals(TABLE)

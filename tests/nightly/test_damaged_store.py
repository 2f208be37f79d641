"""Nights in a store where one object is damaged: the next night captions what is new, or names the object."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.nightly import captions
from pipeline.storage import layout
from tests.support import toy
from tests.support.nights import counts, night, rows_in

OTHER_TABLE = pa.BufferOutputStream()
pq.write_table(
    pa.table(
        {
            "image_key": [b"\xff"],
            "image_etag": [1],
            "attempt": ["first"],
            "status": [None],
            "error": [None],
            "captioned_at": ["x"],
        }
    ),
    OTHER_TABLE,
)

DAMAGE = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "foreign": lambda _: b"<html>not found</html>",
    "other documents": lambda data: (
        OTHER_TABLE.getvalue().to_pybytes() if data.startswith(b"PAR1") else b'{"seconds": {}, "profile": {"a": 1}}'
    ),
}
"""What is left of an object, or what another program may have written in its place."""

REPLACEABLE = ("captions/", "features/", "shards/", "runs/")
"""Folders whose objects a night can make again, or do without."""


@pytest.fixture
def used(store, inbox, monkeypatch):
    """The store after a night, another whose last task died, and one photograph more in the inbox."""
    night("n1", inbox, store)
    inbox.put("late.jpg", toy.picture("red", 31))
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.nights.write", lambda *_, **__: None)
        with pytest.raises(PipelineError, match="accounted for"):
            night("n2", inbox, store)
    inbox.put("new red.jpg", toy.picture("red", 32))
    return store


def captioned(store):
    """The keys of all images that have a caption in a table that can be read."""
    return {row["image_key"] for row in rows_in(store) if row["status"] == "ok"}


def is_table(key, store):
    """Whether it is a table of captions."""
    damaged = []
    captions.read([key], store, damaged=damaged)
    return not damaged


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_object_stops_no_night(used, inbox, damage):
    """Whichever object of the work of earlier nights is damaged, all photographs have captions afterwards."""
    everything = {item.key: used.get(item.key) for item in used.list()}
    keys = [key for key in everything if key.startswith(REPLACEABLE)]
    assert {key.split("/")[0] + "/" for key in keys} == set(REPLACEABLE)
    for number, key in enumerate(keys):
        data = everything[key]
        used.put(key, DAMAGE[damage](data))
        record = night(f"m{number}", inbox, used)
        assert (record.status, record.listed) == ("succeeded", 9), key
        if key.startswith(layout.CAPTIONS) and not is_table(key, used):  # the same images make the same shard again
            [warning] = [warning for warning in record.warnings if key in warning]
            assert "Delete it" in warning
            used.delete(key)
        assert captioned(used) >= {"red.jpg", "late.jpg", "new red.jpg"}, key
        for item in list(used.list()):
            if item.key not in everything:
                used.delete(item.key)
        for each, before in everything.items():
            used.put(each, before)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("prefix", [layout.CHAMPION, "models/*/metadata.json"])
def test_what_nothing_can_replace_is_named(used, inbox, prefix):
    """The error names the damaged object and says what to do; once it is there again, the night succeeds."""
    pattern = re.compile(re.escape(prefix).replace(r"\*", "[^/]+"))
    key = next(item.key for item in used.list() if pattern.match(item.key))
    data = used.get(key)
    used.put(key, b"{")
    with pytest.raises(PipelineError, match=re.escape(key)):
        night("n3", inbox, used)
    used.put(key, data)
    assert night("n4", inbox, used).status == "succeeded"


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_foreign_objects_stop_no_night(used, inbox):
    """Such as those that Spark, a browser or a person leaves in the folders of the store."""
    folders = {item.key.rpartition("/")[0] for item in used.list()} | {layout.OPEN_SHARDS.rstrip("/"), "runs"}
    for folder in folders:
        for name in ("_SUCCESS", "notes.json", "table.parquet", "0123456789abcdef.parquet.crc"):
            used.put(f"{folder}/{name}", b"")
    assert counts(night("n3", inbox, used)) == (9, 7, 1, 2, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_lost_plan_is_made_again(used, inbox):
    """If the plans of a night that died are deleted, its images are pending again."""
    for item in list(used.list(layout.SHARDS)):
        if item.key.endswith(".parquet"):
            used.delete(item.key)
    assert counts(night("n3", inbox, used)) == (9, 7, 1, 2, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_damaged_result_of_an_open_shard_is_written_again(store, inbox):
    """Even if the same images make the same shard, under the same name."""
    night("n1", inbox, store)
    before = {item.key: store.get(item.key) for item in store.list(layout.FEATURES)}
    for key in before:
        store.put(key, b"")
    record = night("n2", inbox, store)
    assert record.status == "succeeded"
    # Nothing needed the features, because all captions are there.
    assert all(store.get(key) == b"" for key in before)
    for item in list(store.list(layout.CAPTIONS)):
        store.delete(item.key)
    assert counts(night("n3", inbox, store)) == (7, 0, 7, 6, 1)

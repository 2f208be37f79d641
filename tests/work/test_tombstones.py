"""Tombstones: they tell what was forgotten to those who know it, and nothing to others."""

import threading

import pyarrow as pa
import pytest

from pipeline.storage import DamagedObjectError, layout
from pipeline.work import tombstones
from pipeline.work.tombstones import Tombstones

MARKED = Tombstones().adding(
    [("key", "a b/c.jpg"), ("content", "0f"), ("place", "s", "k"), ("version", "v", "1"), ("name", "a b/c.jpg")]
)


def test_facts(bucket):
    """Only what was added is known; other kinds, parts and salts are not."""
    assert not tombstones.read(bucket).has("key", "a")
    tombstones.add([], bucket)
    assert not bucket.exists(layout.TOMBSTONES)
    marked = tombstones.add([("key", "a"), ("version", "k", "e")], bucket)
    assert tombstones.read(bucket) == marked
    assert marked.has("key", "a")
    assert marked.has("version", "k", "e")
    assert not any([marked.has("key", "b"), marked.has("name", "a"), marked.has("version", "k", None)])
    assert tombstones.add([("key", "a")], bucket) == marked
    assert tombstones.add([("key", "b")], bucket).has("key", "a")
    assert b'"a"' not in bucket.get(layout.TOMBSTONES)
    others = {Tombstones().adding([("key", "a")]).hashes for _ in range(3)}
    assert len(others) == 3


def test_many_at_once(bucket):
    """None is lost."""
    threads = [threading.Thread(target=tombstones.add, args=([("key", str(n))], bucket)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tombstones.read(bucket).has("key", str(n)) for n in range(5))


def test_damaged_ones_are_an_error(bucket):
    """Without them, what was forgotten would come back."""
    bucket.put(layout.TOMBSTONES, b"{")
    with pytest.raises(DamagedObjectError, match="Restore it from a backup"):
        tombstones.read(bucket)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image_key": ["a b/c.jpg", "d", None]}, [True, False, False]),
        ({"image_key": ["v", "v"], "image_etag": ["1", "2"]}, [True, False]),
        ({"image_key": ["pictures/0f.jpg", "x"], "image_etag": ["0f", "0f"]}, [True, False]),
        ({"image_key": [None, None], "picture": ["pictures/0f.jpg", "pictures/0e.jpg"]}, [True, False]),
        # A dataset has keys of its own.
        (
            {
                "image_id": ["1", "2", "3", "4"],
                "source": ["s", "t", "s", "s"],
                "image_key": ["k", "k", "a b/c.jpg", "z"],
                "content_hash": [None, None, None, "0f"],
            },
            [True, False, False, True],
        ),
    ],
)
def test_rows(columns, expected):
    """A row is recognized by whatever its table says about the photograph."""
    table = pa.table(columns)
    assert MARKED.mask(table).to_pylist() == expected
    assert len(MARKED.drop(table)) == expected.count(False)
    assert Tombstones().drop(table) is table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 failed (x.jpg, a b/c.jpg, …)", True),
        ("a b/c.jpg,a dog", True),
        ("s3://inbox/a b/c.jpg is odd.", True),
        ("file:///inbox/a%20b/c.jpg was gone", True),
        ("see “a b/c.jpg”.", True),
        ("a b/c.jpg.", True),
        ("a b/c.jpgs, ba b/c.jpg, c.jpg", False),
        ("", False),
    ],
)
def test_texts(text, expected):
    """A name is found wherever it stands by itself."""
    assert MARKED.mentioned_in(text) is expected

"""The captions of an image: the one that counts, and those by all models."""

import hashlib
from datetime import UTC, datetime

import pyarrow as pa

from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.ops.image_captions import image_captions
from pipeline.storage import layout, open_bucket, parquet
from pipeline.storage.s3 import TAIL
from tests.support.caption_tables import correct, row, write


def long_text(number):
    """A text that hardly compresses."""
    return hashlib.sha512(b"%d" % number).hexdigest()


def test_a_picture_reads_the_shards_that_may_hold_it(s3_bucket_name):
    """Of all others it reads the end alone, which says what keys they hold."""
    store = open_bucket(f"s3://{s3_bucket_name}/wide")
    for night in range(1, 9):
        rows = [row(f"{night}/{number:05}", long_text(number)) for number in range(6000)]
        write(store, rows, night=f"2026-01-{night:02}", shard="s")
    sizes = [item.size for item in store.list(layout.CAPTIONS)]
    received = []
    store.client.meta.events.register(
        "after-call.s3", lambda parsed, **_: received.append(parsed.get("ContentLength", 0))
    )
    [found] = image_captions("3/00042", store=store).history
    assert found["caption"] == long_text(42)
    assert max(received) < sizes[0]
    assert sum(received) < sum(sizes) / 2
    received.clear()
    assert image_captions("unknown", store=store).counting is None
    assert max(received) <= TAIL


def test_the_caption_of_a_picture_that_counts(bucket):
    """A person's, or else that of the current captions, or else the newest; the history has all those by models."""
    write(bucket, [row("a"), row("b", "old", confidence=0.75)], night="2026-01-01", shard="s")
    later = datetime(2026, 1, 2, tzinfo=UTC)
    write(
        bucket,
        [{**row("b", "new", confidence=0.5, novel=True), "captioned_at": later}],
        night="2026-01-02",
        shard="t",
        version="m2",
    )

    def counting(key):
        found = image_captions(key, store=bucket)
        assert len(found.history) == {"a": 1, "b": 2, "z": 0}[key]
        return found.counting

    new = counting("b")
    assert (new.caption, new.model_version, new.confidence, new.novel, new.said) == ("new", "m2", 0.5, True, None)
    # The champion of the last night was the older model, whose caption it keeps; it knows an image that waits, too.
    none = dict.fromkeys(current.SCHEMA.names)
    table = [
        {**none, "image_key": "b", "image_etag": "e", "caption": "old", "source": "model", "model_version": "m1"},
        {**none, "image_key": "z", "image_etag": "e"},
    ]
    parquet.write(pa.Table.from_pylist(table, schema=current.SCHEMA), layout.CURRENT_CAPTIONS, bucket)
    old, waiting = counting("b"), counting("z")
    assert (old.caption, old.model_caption, old.model_version, old.confidence) == ("old", "old", "m1", 0.75)
    assert (waiting.caption, waiting.error, waiting.model_version) == (None, None, "")
    correct(bucket, "b", "better", model_caption="new", model_version="m2")
    better = counting("b")
    assert (better.caption, better.said.corrected_by, better.model_caption) == ("better", "ann", "new")
    assert (new.seen, better.seen) == ("", corrections.read(bucket)["name"][-1].as_py())
    assert counting("a").caption == "a dog"
    # A damaged table is named, and the history does.
    bucket.put(layout.CURRENT_CAPTIONS, b"{")
    found = image_captions("a", store=bucket)
    assert (found.counting.caption, len(found.damaged)) == ("a dog", 1)


def test_all_that_was_said_of_a_picture(tmp_path):
    """Rows of all models and nights, the newest first."""
    store = open_bucket(str(tmp_path))
    write(
        store,
        [row("a"), {**row("b", "a cat"), "captioned_at": datetime(2026, 1, 1, tzinfo=UTC)}],
        night="2026-01-01",
        shard="s",
    )
    write(
        store,
        [{**row("b", "two cats"), "captioned_at": datetime(2026, 1, 2, tzinfo=UTC)}],
        night="2026-01-02",
        shard="s",
        version="m2",
    )
    assert [each["caption"] for each in image_captions("b", store=store).history] == ["two cats", "a cat"]
    assert image_captions("c", store=store).counting is None


def test_a_picture_of_long_ago(tmp_path, monkeypatch):
    """The night in its link leads to it at once, however many nights have come since."""
    monkeypatch.setattr("pipeline.ops.image_captions.SHARDS", 3)
    store = open_bucket(str(tmp_path))
    for night in range(1, 29):
        write(store, [row(f"{night}.jpg")], night=f"2026-01-{night:02}", shard="s")
    found = image_captions("2.jpg", store=store)
    assert (found.history, found.searched_to) == ([], "2026-01-26")
    found = image_captions("2.jpg", store=store, night="2026-01-02")
    assert [each["night"] for each in found.history] == ["2026-01-02"]
    # One that is in both is shown once.
    assert len(image_captions("28.jpg", store=store, night="2026-01-28").history) == 1

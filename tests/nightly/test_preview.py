"""The preview of a night: how many images are captioned, failed and pending, and how long the night would take."""

from datetime import UTC, datetime

import pytest

from pipeline.captioner.registry import promote
from pipeline.nightly.night import NightOptions
from pipeline.nightly.preview import preview
from pipeline.storage import open_bucket
from pipeline.work import runs
from pipeline.work.outcomes import GONE
from tests.support.caption_tables import row, write
from tests.support.models import write_model

EARLIER, LATER = (datetime(2026, 1, day, tzinfo=UTC) for day in (2, 3))


@pytest.fixture
def inbox(tmp_path):
    """An inbox with four photographs and another file."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    for key in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "notes.txt"):
        inbox.put(key, key.encode())
    return inbox


def at(time, inbox, key, *, error=None, **changes):
    """A row of captions of an image in the inbox, written at a time."""
    return {**row(key, error=error), "image_etag": inbox.etag(key), "captioned_at": time, **changes}


def show(inbox, store, version="m1", **options):
    """The preview of a night with this champion."""
    write_model(version, store)
    promote(version, store)
    return preview(inbox=inbox, store=store, options=NightOptions(**options), shard_size=2)


def found(inbox, store, version="m1"):
    """Listed, captioned, failed by error, and pending images."""
    result = show(inbox, store, version)
    return result.listed, result.done - sum(result.errors.values()), result.errors, result.pending


def test_before_the_first_night(inbox, bucket):
    """All photographs are pending; other files do not count."""
    assert found(inbox, bucket) == (4, 0, {}, 4)


def test_captioned_failed_and_pending(inbox, bucket):
    """Captions of changed and removed photographs and those of other models do not count."""
    inbox.put("removed.jpg", b"r")
    rows = [
        at(EARLIER, inbox, "a.jpg"),
        at(EARLIER, inbox, "b.jpg", error="the file is empty"),
        at(EARLIER, inbox, "c.jpg", image_etag="changed since"),
        at(EARLIER, inbox, "removed.jpg"),
    ]
    write(bucket, rows, night="2026-01-02", shard="s1")
    write(bucket, [at(EARLIER, inbox, "d.jpg")], night="2026-01-02", shard="s1", version="m2")
    inbox.delete("removed.jpg")
    assert found(inbox, bucket) == (4, 1, {"the file is empty": 1}, 2)
    assert found(inbox, bucket, "m2") == (4, 1, {}, 3)


def test_a_photograph_that_was_gone_is_pending(inbox, bucket):
    """The next night tries it again, so it has not failed."""
    write(bucket, [at(EARLIER, inbox, "a.jpg", error=GONE)], night="2026-01-02", shard="s1")
    assert found(inbox, bucket) == (4, 0, {}, 4)
    # A photograph that failed for good before remains failed only by its newest attempt.
    write(bucket, [at(EARLIER, inbox, "b.jpg", error="old")], night="2026-01-02", shard="s2")
    write(bucket, [at(LATER, inbox, "b.jpg", error=GONE)], night="2026-01-03", shard="s3")
    assert found(inbox, bucket) == (4, 0, {}, 4)


@pytest.mark.parametrize("names", [("s1", "s2"), ("s2", "s1")])
def test_of_several_attempts_one_counts(inbox, bucket, names):
    """A caption counts before any failure, and a newer failure before an older one, in any order of the shards."""
    first = [
        at(EARLIER, inbox, "a.jpg"),
        at(EARLIER, inbox, "b.jpg", error="the older error"),
        at(EARLIER, inbox, "c.jpg", error="the older error"),
    ]
    second = [
        at(LATER, inbox, "a.jpg", error="the newer error"),
        at(LATER, inbox, "b.jpg", error="the newer error"),
        at(LATER, inbox, "c.jpg"),
    ]
    for name, rows in zip(names, (first, second), strict=True):
        write(bucket, rows, night="2026-01-02", shard=name)
    assert found(inbox, bucket) == (4, 2, {"the newer error": 1}, 1)


def test_what_a_night_would_do(inbox, bucket):
    """Images, tasks, and hours at the pace of the largest of the last nights; nothing is written."""
    for name, captioned, pace in (("n1", 10, 0.5), ("n2", 1000, 2.0), ("n3", 20, 1.0)):
        record = runs.NightRecord(run=name, started_at=EARLIER, captioned=captioned, images_per_second=pace)
        runs.write_record(record, bucket)
    write(bucket, [at(EARLIER, inbox, "a.jpg")], night="2026-01-02", shard="s1")
    show(inbox, bucket)
    before = [item.key for item in bucket.list()]
    result = show(inbox, bucket)
    assert [item.key for item in bucket.list()] == before
    assert (result.version, result.passed_over) == ("m1", {".txt": 1})
    assert (result.listed, result.done, result.pending, result.to_extract) == (4, 1, 3, 3)
    assert result.shards == (2, 1)
    assert (result.images_per_second, result.hours) == (2.0, pytest.approx(1.5 / 3600, abs=1e-3))
    assert "4 images listed = 1 done before + 3 pending; 3 without features; 3 shards" in str(result)


def test_the_hours_of_a_first_night(inbox, bucket):
    """Nothing is known of the pace."""
    result = show(inbox, bucket)
    assert (result.images_per_second, result.hours) == (None, None)
    assert "an unknown time" in str(result)


def test_a_selection_is_pending(inbox, bucket):
    """Images that would be captioned again are pending, whatever their attempts; those without features are counted."""
    write(bucket, [at(EARLIER, inbox, "a.jpg"), at(EARLIER, inbox, "b.jpg", error="x")], night="2026-01-02", shard="s1")
    result = show(inbox, bucket, recaption="a.jpg,b.jpg,c.jpg")
    assert (result.done, result.pending, result.to_extract, result.errors) == (0, 4, 4, {})


def test_a_limited_night(inbox, bucket):
    """The newest images are captioned, the rest is postponed."""
    result = show(inbox, bucket, limit=3)
    assert (result.pending, result.postponed, result.done) == (3, 1, 0)
    assert "3 pending + 1 postponed" in str(result)

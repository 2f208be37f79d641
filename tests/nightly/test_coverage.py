"""Coverage: how many images of the inbox are captioned, failed and pending."""

from datetime import UTC, datetime

import pytest

from pipeline.nightly.coverage import coverage
from pipeline.storage import open_bucket
from pipeline.work.outcomes import GONE
from tests.support.caption_tables import row, write

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


def found(inbox, store, version="m1"):
    """The coverage as a tuple."""
    result = coverage(version, inbox=inbox.uri, store=store)
    return result.listed, result.captioned, dict(result.errors), result.pending


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

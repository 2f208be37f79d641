"""The review queue: its order, who gets which caption, and what returns."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.nightly import current
from pipeline.ops import review
from pipeline.ops.review import Queue, Subject
from pipeline.storage import layout, open_bucket, parquet
from tests.support import toy


def waiting(key, confidence=0.5, *, novel=False, caption="a dog", etag="e", review=True):
    """A row of the current captions, which a person should look at."""
    return {
        **dict.fromkeys(current.SCHEMA.names),
        "image_key": key,
        "image_etag": etag,
        "caption": caption,
        "source": "model",
        "model_version": "m1",
        "confidence": confidence,
        "novel": novel,
        "review": review,
    }


def put(store, *rows, row_group_size=2):
    """Write the current captions."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["image_key"]), schema=current.SCHEMA)
    facts = {"listed_at": "2026-01-01T00:00:00+00:00"}
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=facts, row_group_size=row_group_size)


def say(store, key, *, etag="e", seen=None, by="ann", caption="a cat"):
    """Correct a caption."""
    words = {"model_caption": "a dog", "model_version": "m1", "corrected_by": by, "image_etag": etag, "seen": seen}
    return corrections.add(toy.picture("red"), caption=caption, image_key=key, store=store, **words)


def take(store, by="ann", *, after="", queue=None):
    """The key that a reviewer gets, with a queue that has read nothing yet; None if there is none."""
    subject = (queue or Queue()).take(by, store, after=after, damaged=[]).subject
    return subject and subject.image_key


def in_order(store):
    """All keys in the order of the queue, which begins again after the last."""
    keys = [take(store)]
    while (key := take(store, after=keys[-1])) != keys[0]:
        keys.append(key)
    return keys


@pytest.mark.all_buckets
def test_the_least_sure_come_first(bucket):
    """Novel photographs before the others, whatever their confidence; only those that a person should look at."""
    put(
        bucket,
        waiting("a", 0.4),
        waiting("b", 0.9, review=False),
        waiting("c", 0.8, novel=True),
        waiting("d", 0.1),
        {**waiting("e"), "caption": None, "review": None},
        waiting("f", None, novel=True),
        waiting("g", 0.4),
    )
    assert in_order(bucket) == ["c", "f", "d", "a", "g"]
    assert Queue().count(bucket, damaged=[]) == 5
    turn = Queue().take("ann", bucket, after="f", damaged=[])
    assert turn == review.Turn(
        subject=Subject(image_key="d", image_etag="e", caption="a dog"),
        model_version="m1",
        confidence=pytest.approx(0.1),
        novel=False,
        seen="",
        left=5,
    )


def test_an_empty_queue(bucket):
    """Before the first night, and where nothing is unsure."""
    assert (take(bucket), Queue().count(bucket, damaged=[])) == (None, 0)
    put(bucket, waiting("a", review=False))
    assert (take(bucket), Queue().count(bucket, damaged=[])) == (None, 0)


def test_reviewers_get_different_pictures(bucket, monkeypatch):
    """Also from different servers; a reviewer who asks again gets the same. A lease ends after a while."""
    put(bucket, waiting("a", 0.1), waiting("b", 0.2))
    assert [take(bucket, by) for by in ("ann", "bob", "ann", "bob", "cleo")] == ["a", "b", "a", "b", None]
    assert Queue().take("cleo", bucket, damaged=[]).left == 2
    later = datetime.now(UTC) + review.LEASE + timedelta(seconds=1)
    monkeypatch.setattr(review, "datetime", type("Later", (datetime,), {"now": classmethod(lambda *_: later)}))
    assert [take(bucket, by) for by in ("cleo", "dan", "ann")] == ["a", "b", None]


def test_who_goes_on_leaves_the_picture_to_others(bucket):
    """A reviewer has one picture at a time."""
    put(bucket, waiting("a", 0.1), waiting("b", 0.2))
    assert [take(bucket, "ann"), take(bucket, "ann", after="a"), take(bucket, "bob")] == ["a", "b", "a"]
    assert take(bucket, "ann", after="b") == "b"


def test_reviewers_who_ask_at_once(bucket):
    """All get a picture of their own."""
    put(bucket, *(waiting(str(number), number / 10) for number in range(8)))
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda by: take(bucket, str(by)), range(8)))
    assert sorted(taken) == [str(number) for number in range(8)]


def test_what_is_reviewed_returns_only_after_a_change(bucket):
    """After a word of a person, until it is withdrawn or the photograph is replaced; also before the next night."""
    put(bucket, waiting("a", 0.1), waiting("b", 0.2))
    queue = Queue()
    say(bucket, "a")
    assert (take(bucket, queue=queue), queue.count(bucket, damaged=[])) == ("b", 1)
    # The next night captions both again, by another model, and is as unsure.
    put(bucket, waiting("a", 0.1, caption="a wolf"), waiting("b", 0.2))
    assert take(bucket, queue=queue) == "b"
    put(bucket, waiting("a", 0.1, etag="newer"), waiting("b", 0.2))
    assert take(bucket, queue=queue) == "a"
    say(bucket, "a", etag="newer")
    assert take(bucket, queue=queue) == "b"
    corrections.withdraw("a", "newer", by="bob", store=bucket)
    assert take(bucket, queue=queue) == "a"


def test_what_is_skipped_returns_only_after_a_change(bucket):
    """For all reviewers: until there is another caption, or another photograph."""
    put(bucket, waiting("a", 0.1), waiting("b", 0.2))
    queue = Queue()
    for key in ("a", "b", "a"):
        queue.skip(Subject(image_key=key, image_etag="e", caption="a dog"), by="ann", store=bucket)
    assert (take(bucket, "bob"), Queue().count(bucket, damaged=[])) == (None, 0)
    put(bucket, waiting("a", 0.1, caption="a wolf"), waiting("b", 0.2, etag="newer"))
    assert in_order(bucket) == ["a", "b"]
    # What is no longer in the queue is forgotten.
    put(bucket, waiting("a", 0.1), waiting("b", 0.2))
    assert in_order(bucket) == ["a", "b"]


def test_the_second_learns_what_the_first_said(bucket):
    """Two see the same picture, because a lease ended: nothing of the first is replaced unseen."""
    put(bucket, waiting("a", 0.1))
    seen = Queue().take("ann", bucket, damaged=[]).seen
    say(bucket, "a", seen=seen, by="bob", caption="a wolf")
    with pytest.raises(PipelineError, match="bob has corrected this caption meanwhile: a wolf"):
        say(bucket, "a", seen=seen)


def test_the_table_is_read_once(bucket, monkeypatch):
    """Until it changes: a step does not read it. Of row groups without such captions, one column is read."""
    put(bucket, *(waiting(key, 0.1, review=key == "c") for key in "abcdef"))
    groups_read, real, queue = [], parquet.select, Queue()
    monkeypatch.setattr(
        review.parquet, "select", lambda *args, groups=None: groups_read.append(groups) or real(*args, groups=groups)
    )
    assert [take(bucket, queue=queue) for _ in range(3)] == ["c", "c", "c"]
    assert (queue.count(bucket, damaged=[]), groups_read) == (1, [None, [1]])
    put(bucket, waiting("d"))
    assert [take(bucket, queue=queue) for _ in range(2)] == ["d", "d"]
    assert groups_read == [None, [1], None, [0]]


def test_damage(tmp_path):
    """A damaged state is made again; a damaged correction is left out and named; a damaged table is an error."""
    store = open_bucket(str(tmp_path))
    put(store, waiting("a"))
    store.put(layout.REVIEW_STATE, b"{")
    store.put(layout.correction("2026-01-01", "c"), b"{")
    damaged = []
    assert Queue().take("ann", store, damaged=damaged).subject.image_key == "a"
    assert "is damaged" in damaged[0]
    assert take(store, "bob") is None
    store.put(layout.CURRENT_CAPTIONS, b"{")
    with pytest.raises(PipelineError, match="Delete it: the next night writes it again"):
        take(store)

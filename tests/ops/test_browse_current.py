"""The current captions page by page: filtered, counted and ordered, with what people said about them."""

import hashlib
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.ops import browse_current
from pipeline.ops.browse_current import CurrentCaptions, Filters, row_filter, with_texts
from pipeline.storage import DamagedObjectError, ObjectChangedError, layout, open_bucket
from tests.support.caption_tables import correct, current_row, write_current
from tests.support.effort import random_inputs
from tests.support.memory import MemoryBucket

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def page(store, *, captions=None, order="name", number=1, size=100, **filters):
    """A page of the captions that pass the filters."""
    captions = captions or CurrentCaptions()
    return captions.page(Filters(**filters), store=store, order=order, number=number, size=size, damaged=[])


def keys(store, **options):
    """The keys of that page."""
    return [row["image_key"] for row in page(store, **options).rows]


ROWS = [
    current_row("cats/1.jpg", "a black cat", confidence=0.5, captioned_at=NOON),
    current_row("cats/2.jpg", "a cat sleeps", confidence=0.9, novel=True, review=True, captioned_at=NOON),
    current_row("dogs/1.jpg", "a Dog runs", confidence=0.1, review=True, captioned_at=NOON + timedelta(hours=1)),
    current_row("dogs/2.jpg", error="the file is empty"),
    current_row("dogs/3.jpg", None),
    current_row("dogs/4.jpg", "a dog", version="m2", captioned_at=NOON - timedelta(hours=1)),
]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"words": "cat"}, [0, 1]),
        ({"words": "dog RUNS"}, [2]),
        ({"words": "is empty"}, [3]),
        ({"words": "%"}, []),
        ({"under": "dogs/"}, [2, 3, 4, 5]),
        ({"under": "dogs/", "words": "dog", "version": "m2"}, [5]),
        ({"status": "ok"}, [0, 1, 2, 5]),
        ({"status": "failed"}, [3]),
        ({"status": "waiting"}, [4]),
        ({"version": "m2"}, [5]),
        ({"version": "m3"}, []),
        ({"source": "model"}, [0, 1, 2, 5]),
        ({"source": "person"}, []),
        ({"review": True}, [1, 2]),
        ({"unsure": 0}, [1]),
        ({"unsure": 0.2}, [1, 2]),
        ({"unsure": 1}, [0, 1, 2]),
        ({"review": True, "words": "sleeps"}, [1]),
    ],
)
def test_filters(bucket, filters, found):
    """Each excludes what it says, also where the images are in several row groups, and the rest is counted."""
    write_current(bucket, ROWS, row_group_size=2)
    shown = page(bucket, **filters)
    assert [row["image_key"] for row in shown.rows] == [ROWS[place]["image_key"] for place in found]
    assert (shown.found, shown.images, shown.pages) == (len(found), 6, 1)
    assert shown.versions == ["m2", "m1"]


def test_what_a_page_has_of_an_image(bucket):
    """Its caption, or why it has none."""
    write_current(bucket, ROWS, row_group_size=2)
    first, *_, failed, waiting, _ = page(bucket).rows
    assert first == {
        **{name: ROWS[0][name] for name in browse_current.SHOWN.names},
        "status": "ok",
        "action": None,
        "corrected_by": None,
    }
    assert [(row["status"], row["error"]) for row in (failed, waiting)] == [
        ("failed", "the file is empty"),
        ("waiting", None),
    ]


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ("name", [0, 1, 2, 3, 4, 5]),
        ("newest", [2, 0, 1, 5, 3, 4]),
        # The novel one first, then by confidence, then those without one.
        ("unsure", [1, 2, 0, 3, 4, 5]),
    ],
)
def test_orders(bucket, order, found):
    """Equal ones are in the order of their keys."""
    write_current(bucket, ROWS, row_group_size=2)
    assert keys(bucket, order=order) == [ROWS[place]["image_key"] for place in found]


def test_pages(bucket):
    """They are numbered; a number behind the last one is that of the last one."""
    write_current(bucket, ROWS, row_group_size=4)
    names = [row["image_key"] for row in ROWS]
    for number, shown, found in ((1, 1, names[:4]), (2, 2, names[4:]), (9, 2, names[4:])):
        got = page(bucket, number=number, size=4)
        assert (got.number, got.pages, [row["image_key"] for row in got.rows]) == (shown, 2, found)
    nothing = page(bucket, words="zebra", number=3)
    assert (nothing.rows, nothing.found, nothing.number, nothing.pages, nothing.images) == ([], 0, 1, 1, 6)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["a.jpg", "b/a.jpg", "b/c/a.jpg", "d/c/a.jpg", "d/c/b.jpg"], ["b/", "b/c/", "d/c/"]),
        (
            [f"2026/{day:03}/{part}/a.jpg" for day in range(200) for part in "ab"],
            [f"2026/{day:03}/" for day in range(200)],
        ),
        ([f"{day:03}/a.jpg" for day in range(400)], [f"{day:03}/" for day in range(300)]),
    ],
)
def test_folders(bucket, keys, found):
    """All of them are suggestions; of too many only the outer ones."""
    write_current(bucket, [{**ROWS[0], "image_key": key} for key in keys], row_group_size=3)
    assert page(bucket).folders == found


def test_before_the_first_night(bucket):
    """There is nothing, neither on a page nor in an export."""
    assert page(bucket) == browse_current.Page([], found=0, number=1, pages=1, images=0, versions=(), folders=())
    [table] = CurrentCaptions().tables(Filters(), store=bucket, damaged=[])
    assert table.equals(current.SCHEMA.empty_table())
    write_current(bucket, [])
    assert page(bucket).images == 0


def test_a_persons_word_counts_at_once(bucket):
    """Filters and words see it in place of the model's caption, and until it is withdrawn; others are as before."""
    captions = CurrentCaptions()
    write_current(bucket, ROWS, row_group_size=2)
    assert keys(bucket, captions=captions, words="zebra") == []
    correct(bucket, "cats/2.jpg", "a zebra")
    correct(bucket, "dogs/2.jpg", "a bird")
    correct(bucket, "dogs/4.jpg", "a dog", action="confirmed", model_version="m2", corrected_by="bob")
    correct(bucket, "cats/1.jpg", "of another version", etag="older")
    assert keys(bucket, captions=captions, words="zebra") == ["cats/2.jpg"]
    assert keys(bucket, captions=captions, words="sleeps") == []
    assert keys(bucket, captions=captions, status="failed") == []
    assert keys(bucket, captions=captions, review=True) == keys(bucket, captions=captions, unsure=0.2) == ["dogs/1.jpg"]
    assert keys(bucket, captions=captions, version="m2") == ["dogs/4.jpg"]
    rows = page(bucket, captions=captions, source="person").rows
    names = ("image_key", "caption", "status", "confidence", "action", "corrected_by")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("cats/2.jpg", "a zebra", "ok", None, "corrected", "ann"),
        ("dogs/2.jpg", "a bird", "ok", None, "corrected", "ann"),
        ("dogs/4.jpg", "a dog", "ok", None, "confirmed", "bob"),
    ]
    # What was said last is the newest.
    assert keys(bucket, captions=captions, order="newest")[:2] == ["dogs/4.jpg", "dogs/2.jpg"]
    corrections.withdraw("cats/2.jpg", "e", by="bob", store=bucket)
    assert keys(bucket, captions=captions, source="person") == ["dogs/2.jpg", "dogs/4.jpg"]
    assert keys(bucket, captions=captions, words="sleeps") == ["cats/2.jpg"]


WORDS = ["a red dog", "two cats", "a dog and a cat", "snow"]


@settings(max_examples=random_inputs(60))
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([*WORDS, None]),
            st.sampled_from([None, 0.1, 0.5, 0.9]),
            st.sampled_from([None, False, True]),
            st.integers(0, 3),
        ),
        max_size=9,
    ),
    told=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["corrected", "withdrawn"]), st.sampled_from(WORDS))),
    filters=st.builds(
        Filters,
        words=st.sampled_from(["", "dog", "cat dog", "snow"]),
        under=st.sampled_from(["", "a/", "b"]),
        status=st.sampled_from(["", "ok", "failed", "waiting"]),
        source=st.sampled_from(["", "model", "person"]),
        unsure=st.sampled_from([None, 0, 0.5]),
    ),
    size=st.integers(1, 4),
    group=st.integers(1, 5),
)
def test_pages_are_the_filtered_table(rows, told, filters, size, group):
    """However the table is cut, and whatever was said: pages, and the tables of an export, have its rows in order."""
    store = MemoryBucket("store")
    made = [
        current_row(
            f"{'ab'[place % 2]}/{place}.jpg",
            caption,
            error=None if caption or confidence else "bad",
            confidence=confidence,
            novel=novel,
            captioned_at=NOON + timedelta(hours=hour) if caption else None,
        )
        for place, (caption, confidence, novel, hour) in enumerate(rows)
    ]
    write_current(store, made, row_group_size=group)
    for number, (place, action, caption) in enumerate(told):
        if place < len(made):
            word = {"caption": None if action == "withdrawn" else caption, "model_caption": "two cats"}
            correction = corrections.Correction(
                action=action,
                picture="p",
                **word,
                image_key=made[place]["image_key"],
                image_etag="e",
                model_version="m1",
                corrected_by="ann",
                corrected_at=NOON + timedelta(days=number),
            )
            corrections._write(correction, store)
    table = current.read(store)
    expected = with_texts(table.filter(row_filter(filters)), filters)
    captions, pages = CurrentCaptions(), []
    for number in range(
        1, captions.page(filters, store=store, order="name", number=1, size=size, damaged=[]).pages + 1
    ):
        pages += captions.page(filters, store=store, order="name", number=number, size=size, damaged=[]).rows
    names = browse_current.SHOWN.names
    assert [{name: row[name] for name in names} for row in pages] == expected.select(names).to_pylist()
    exported = pa.concat_tables(captions.tables(filters, store=store, damaged=[]))
    assert exported.sort_by("image_key").to_pylist() == expected.to_pylist()
    newest = captions.page(filters, store=store, order="newest", number=1, size=99, damaged=[])
    times = [row["captioned_at"] or datetime.min.replace(tzinfo=UTC) for row in newest.rows]
    assert (len(times), times) == (len(expected), sorted(times, reverse=True))


def test_what_is_read_for_a_page(s3_bucket_name):
    """The facts are read once, then the texts of the row groups that are shown; a search reads all texts."""
    store = open_bucket(f"s3://{s3_bucket_name}/current")
    texts = [hashlib.sha512(b"%d" % number).hexdigest() for number in range(8000)]  # they hardly compress
    rows = [current_row(f"{number:05}", text, confidence=1 / (1 + number)) for number, text in enumerate(texts)]
    write_current(store, rows, row_group_size=1000)
    received = []
    store.client.meta.events.register(
        "after-call.s3.GetObject", lambda parsed, **_: received.append(parsed.get("ContentLength", 0))
    )
    captions, sizes = CurrentCaptions(), []
    for options in ({}, {"number": 2}, {"words": "zebra"}):
        received.clear()
        page(store, captions=captions, size=24, **options)
        sizes.append(sum(received))
    first, second, search = sizes
    assert second < first < search
    assert second < search / 2


def test_a_table_that_is_replaced_meanwhile(monkeypatch):
    """A page is of one version; if there is a new one all the time, it is an error."""
    store = MemoryBucket("store")
    write_current(store, ROWS)
    etags = iter([*(f"{number}" for number in range(3)), *[None] * 99])
    monkeypatch.setattr(store, "etag", lambda key: next(etags) or MemoryBucket.etag(store, key))
    assert len(keys(store)) == 6
    numbers = iter(range(99))
    monkeypatch.setattr(store, "etag", lambda _: str(next(numbers)))
    with pytest.raises(ObjectChangedError, match="try again"):
        keys(store)


def test_a_new_table_replaces_what_was_kept(bucket):
    """A night's new table is shown, and so is that of another store."""
    captions = CurrentCaptions()
    write_current(bucket, ROWS)
    assert page(bucket, captions=captions).found == 6
    write_current(bucket, ROWS[:2])
    assert page(bucket, captions=captions).found == 2
    assert page(MemoryBucket("other"), captions=captions).found == 0


def test_damaged_objects(bucket):
    """A damaged table is an error that says what to do; a damaged correction is left out and named."""
    write_current(bucket, ROWS)
    bucket.put(layout.correction("2026-01-01", "20260101T000000000000-0"), b"{")
    damaged = []
    found = CurrentCaptions().page(Filters(), store=bucket, order="name", number=1, size=9, damaged=damaged)
    assert (found.found, len(damaged)) == (6, 1)
    bucket.put(layout.CURRENT_CAPTIONS, b"{")
    with pytest.raises(DamagedObjectError, match="the next night writes it again"):
        page(bucket)

"""Outcomes of images: which attempt counts, what is settled, and what is tried again."""

import random

import pyarrow as pa
import pytest

from pipeline.errors import PipelineError
from pipeline.work import outcomes
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import (
    GONE,
    IDENTITY,
    UNAVAILABLE,
    check_failures,
    latest_outcome,
    of_images,
    pending,
)

BROKEN = "cannot be decoded"

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in IDENTITY),
        ("status", pa.string()),
        ("error", pa.string()),
        ("night", pa.int64()),
        ("shard", pa.string()),
    ]
)


def attempt(key, night, error=None, *, etag="1", shard="s"):
    """A row: a success, or a failure with its error."""
    return {
        "image_key": key,
        "image_etag": etag,
        "status": "failed" if error else "ok",
        "error": error,
        "night": night,
        "shard": shard,
    }


def attempts(*rows):
    """A table of rows."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def orders(rows):
    """The rows in some orders, as one table and as one of many chunks."""
    rng = random.Random(0)
    for _ in range(20):
        shuffled = rng.sample(rows, len(rows))
        yield attempts(*shuffled)
        yield pa.concat_tables([attempts(row) for row in shuffled])


def images(*names):
    """A listing: "a1" is version 1 of the image a."""
    return pa.table([[name[0] for name in names], [name[1:] for name in names]], schema=IMAGES)


def names(table):
    """The images of a table, as ``images`` takes them."""
    return ["".join(identity) for identity in zip(*(table[name].to_pylist() for name in IDENTITY), strict=True)]


# --- which attempt counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([attempt("a", 1)], 1),
        ([attempt("a", 1, BROKEN)], 1),
        ([attempt("a", 1), attempt("a", 2)], 2),
        ([attempt("a", 1, BROKEN), attempt("a", 2)], 2),
        ([attempt("a", 1), attempt("a", 2, BROKEN)], 1),
        ([attempt("a", 1, BROKEN), attempt("a", 2, "another"), attempt("a", 10, GONE)], 10),
        ([attempt("a", 1), attempt("a", 2), attempt("a", 3, BROKEN), attempt("a", 4, GONE)], 2),
    ],
    ids=["success", "failure", "later success", "success at last", "success before", "last failure", "all kinds"],
)
def test_a_success_counts_or_else_the_last_failure(rows, expected):
    """By the ordering column, whatever the order of the rows and their chunks is."""
    for table in orders(rows):
        [found] = latest_outcome(table, by="night").to_pylist()
        assert found == next(row for row in rows if row["night"] == expected)


def test_each_version_of_each_image_has_one_outcome():
    """The outcomes are ordered by key and etag, and keep all columns."""
    rows = [
        attempt("b", 1, BROKEN),
        attempt("b", 2, etag="2", shard="t"),
        attempt("a", 3),
        attempt("b", 4, GONE),
        attempt("a", 5, BROKEN, etag="2"),
    ]
    for table in orders(rows):
        found = latest_outcome(table, by="night")
        assert found.schema.names == SCHEMA.names
        assert found.to_pylist() == [rows[2], rows[4], rows[3], rows[1]]


def test_ties_do_not_depend_on_the_order():
    """Of failures at the same time the one with the first error counts."""
    rows = [attempt("a", 1, error) for error in ("c", "a", "b")]
    assert {latest_outcome(table, by="night")["error"][0].as_py() for table in orders(rows)} == {"a"}


@pytest.mark.parametrize("rows", [[], [attempt("a", 1)]], ids=["none", "one"])
def test_few_attempts(rows):
    """None and one are tables, too."""
    found = latest_outcome(attempts(*rows), by="night")
    assert found.to_pylist() == rows
    assert found.schema == SCHEMA


def test_the_newer_of_two_failures_counts_in_a_joined_table():
    """A join promises no order of its rows: of two failures of each of 50,000 images, all the newer ones count."""
    keys = [f"{number:06}.jpg" for number in range(50_000)]
    night_1, night_2 = (
        pa.table(
            {
                "image_key": keys,
                "image_etag": ["1"] * len(keys),
                "status": ["failed"] * len(keys),
                "error": [BROKEN] * len(keys),
                "night": pa.array([night] * len(keys), pa.int64()),
            }
        )
        for night in (1, 2)
    )
    listed = pa.table({"image_key": keys, "image_etag": ["1"] * len(keys)})
    for history in ([night_1, night_2], [night_2, night_1]):
        joined = pa.concat_tables(history).join(listed, keys=IDENTITY, join_type="inner")
        found = latest_outcome(joined, by="night")
        assert found["image_key"].to_pylist() == keys
        assert found["night"].unique().to_pylist() == [2]


# --- what is settled, and what is pending ----------------------------------------------------------------------------

OUTCOMES = attempts(attempt("a", 1), attempt("b", 1, BROKEN), attempt("c", 1, GONE), attempt("d", 1, etag="2"))


def test_pending():
    """Every listed image but those that succeeded, or failed with their bytes; a new version is another image."""
    listed = images("a1", "b1", "c1", "d1", "d2", "e1")
    assert sorted(names(pending(listed, [OUTCOMES], by="night", retry_failed=False))) == ["c1", "d1", "e1"]
    assert sorted(names(pending(listed, [OUTCOMES], by="night", retry_failed=True))) == ["b1", "c1", "d1", "e1"]
    assert pending(images(), [OUTCOMES], by="night", retry_failed=False).num_rows == 0
    assert names(pending(images("a1"), [OUTCOMES.slice(0, 0)], by="night", retry_failed=False)) == ["a1"]


def test_pending_keeps_the_columns_of_the_images():
    """Such as those that the work needs."""
    listed = images("a1", "c1").append_column("shard", pa.array(["x", "y"]))
    assert pending(listed, [OUTCOMES], by="night", retry_failed=False).to_pylist() == [
        {"image_key": "c", "image_etag": "1", "shard": "y"}
    ]


@pytest.mark.parametrize("error", sorted(UNAVAILABLE))
def test_a_retry_that_fails_again_settles_nothing_that_was_not_there(error):
    """After a failure of another kind, an image that was gone or archived before is settled; if it is again, not."""
    gone, broken = attempt("a", 1, error), attempt("a", 2, BROKEN)
    waiting = [
        names(pending(images("a1"), [attempts(*rows)], by="night", retry_failed=False))
        for rows in ([gone], [gone, broken], [gone, broken, attempt("a", 3, error)])
    ]
    assert waiting == [["a1"], [], ["a1"]]


@pytest.mark.parametrize("retry_failed", [False, True])
def test_what_is_pending_depends_on_the_attempt_that_counts(monkeypatch, retry_failed):
    """However many attempts are compared at once, and in whatever order they are."""
    rng = random.Random(0)
    errors = [None, BROKEN, *sorted(UNAVAILABLE)]
    rows = [attempt(rng.choice("abcdefgh"), night, rng.choice(errors)) for night in range(20)]
    listed = images(*(f"{key}1" for key in "abcdefghi"))
    settled = {
        row["image_key"]
        for row in latest_outcome(attempts(*rows), by="night").to_pylist()
        if row["status"] == "ok" or (not retry_failed and row["error"] not in UNAVAILABLE)
    }
    expected = sorted(f"{key}1" for key in "abcdefghi" if key not in settled)
    assert 1 < len(expected) < 9
    for compared, table in enumerate(orders(rows), 1):
        monkeypatch.setattr(outcomes, "COMPARED", compared)
        parts = (pa.Table.from_batches([batch]) for batch in table.to_batches())
        for tables in ([table], parts):
            found = pending(listed, tables, by="night", retry_failed=retry_failed)
            assert sorted(names(found)) == expected


def test_attempts_of_images(monkeypatch):
    """However many attempts are compared at once, those of other images and of other versions are left out."""
    parts = [
        attempts(attempt("a", 1), attempt("b", 1)),
        attempts(),
        attempts(attempt("a", 2), attempt("a", 3, etag="2")),
    ]
    for compared in (1, 2, 100):
        monkeypatch.setattr(outcomes, "COMPARED", compared)
        found = pa.concat_tables(of_images(images("a1", "c1"), parts)).to_pylist()
        assert [(row["image_key"], row["night"]) for row in found] == [("a", 1), ("a", 2)]
    assert list(of_images(images("a1"), [])) == []


# --- how many may fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failed", "total", "fine"), [(1, 3, True), (2, 3, False), (5, 100, True), (6, 100, False)])
def test_the_allowed_number_of_failures(failed, total, fine):
    """One bad picture is never too many; beyond the allowed share the error lists the most frequent kinds with keys."""
    errors = [*((f"{i}.jpg", "the file is empty") for i in range(failed - 1)), ("last.jpg", "another")]
    if fine:
        check_failures(errors, total, allowed_fraction=0.05)
    else:
        worst = rf"{failed} of {total} images failed.* {failed - 1} × the file is empty \(0\.jpg.*1 × another"
        with pytest.raises(PipelineError, match=worst):
            check_failures(errors, total, allowed_fraction=0.05)

"""When a retraining is due: after enough corrections or enough drifting nights since the last one began."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.data import corrections
from pipeline.nightly.retraining import retraining_due
from pipeline.work import runs
from tests.support.memory import MemoryBucket

START = datetime(2026, 1, 1, tzinfo=UTC)


def hours(number):
    """A time so many hours after the start."""
    return START + timedelta(hours=number)


@pytest.fixture
def store():
    """An empty store."""
    return MemoryBucket("store")


@pytest.fixture
def correct(monkeypatch):
    """Make corrections at these hours all that there are."""

    def correct(*at, **changes):
        rows = [
            {
                "action": "corrected",
                "image_key": f"{hour}.jpg",
                "image_etag": "1",
                "corrected_at": hours(hour),
                **{name: values.get(hour, "corrected") for name, values in changes.items()},
            }
            for hour in at
        ]
        table = pa.Table.from_pylist(rows, schema=corrections.LOG)
        monkeypatch.setattr(corrections, "read", lambda store, damaged: table)

    return correct


def retraining(store, at, status="succeeded"):
    """The record of a retraining that began at an hour."""
    record = runs.RetrainingRecord(run=f"r{at}", started_at=hours(at), status=status)
    runs.write_record(record, store)


def night(store, at, *, drifted=False, version="v1", status="succeeded"):
    """The record of a night that began at an hour, which is the last that was written."""
    record = runs.NightRecord(
        run=f"n{at}",
        started_at=hours(at),
        version=version,
        status=status,
        drift={"earlier nights": {"features": 0.7 if drifted else 0.1}},
        drifted=drifted,
    )
    runs.write_record(record, store)
    return record


def due(record, store, *, corrections=0, drift=0):
    """Why a retraining is due with these settings."""
    return retraining_due(record, after_corrections=corrections, after_drift=drift, store=store)


def test_enough_corrections(store, correct):
    """All count if there was no retraining yet; one fewer is not enough."""
    record = night(store, 9)
    correct(1, 2, 3)
    assert due(record, store, corrections=3) == "3 corrections since the last retraining"
    assert due(record, store, corrections=4) == ""


def test_corrections_before_the_last_retraining_do_not_count(store, correct):
    """Those that were made while it ran do, however it ended."""
    retraining(store, 5)
    retraining(store, 2, status="failed")
    record = night(store, 9)
    correct(1, 3, 5, 6, 7)
    assert due(record, store, corrections=2) == "2 corrections since the last retraining"
    assert due(record, store, corrections=3) == ""


def test_only_better_captions_that_count(store, correct):
    """Not those that were withdrawn, nor confirmed ones; an image counts once."""
    record = night(store, 9)
    images = {1: "a", 2: "b", 3: "b", 4: "c", 5: "d", 6: "d"}
    correct(*images, image_key=images, action={4: "confirmed", 6: "withdrawn"})
    assert due(record, store, corrections=2) == "2 corrections since the last retraining"
    assert due(record, store, corrections=3) == ""


def test_nothing_is_due_by_default(store, monkeypatch):
    """Nothing is even read."""
    monkeypatch.setattr(store, "list", None)
    assert due(runs.NightRecord(run="n1", started_at=START, drifted=True), store) == ""


@pytest.mark.parametrize("later", [False, True], ids=["the last", "before the last"])
def test_nothing_is_due_while_a_retraining_runs(store, correct, later):
    """Or waits for an approval, for which its record says running, too."""
    retraining(store, 1, status="running")
    if later:
        retraining(store, 2)
    correct(3, 4, 5)
    night(store, 6, drifted=True)
    record = night(store, 7, drifted=True)
    assert due(record, store, corrections=1, drift=1) == ""
    retraining(store, 1)
    assert due(record, store, corrections=1, drift=2) == (
        "3 corrections since the last retraining and warnings of drift in the last 2 nights"
    )


def test_nights_that_drift_one_after_the_other(store):
    """Nights that failed or captioned nothing say nothing; more nights than enough are enough."""
    night(store, 1, drifted=True)
    night(store, 2, drifted=True, status="failed")
    runs.write_record(runs.NightRecord(run="quiet", started_at=hours(3), version="v1", status="succeeded"), store)
    record = night(store, 4, drifted=True)
    assert due(record, store, drift=3) == ""
    assert due(record, store, drift=2) == "warnings of drift in the last 2 nights"
    assert due(record, store, drift=1)


@pytest.mark.parametrize(
    "between",
    [
        lambda store: night(store, 2),
        lambda store: night(store, 2, drifted=True, version="v2"),
        lambda store: retraining(store, 1.5),
    ],
    ids=["a night without drift", "a night of another model", "a retraining"],
)
def test_what_breaks_the_row(store, between):
    """Nights before it do not count."""
    night(store, 1, drifted=True)
    between(store)
    record = night(store, 3, drifted=True)
    assert due(record, store, drift=2) == ""
    assert due(record, store, drift=1)

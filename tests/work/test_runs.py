"""Records of runs: how they begin, how they end, and the shards that a run works on."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.errors import PipelineError
from pipeline.storage import ObjectNotFoundError, layout
from pipeline.work import runs, shards
from pipeline.work.outcomes import IDENTITY
from tests.support.memory import MemoryBucket

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

RUN = "scheduled__2026-01-02T03:04:05+00:00"
"""A run id of Airflow."""


@pytest.fixture
def store():
    """An empty bucket."""
    return MemoryBucket("store")


def night(run=RUN, *, hours=0, **fields):
    """The record of a night that began some hours later than others."""
    return runs.NightRecord(run=run, started_at=START + timedelta(hours=hours), **fields)


def retraining(run=RUN, *, hours=0, **fields):
    """The record of a retraining."""
    return runs.RetrainingRecord(run=run, started_at=START + timedelta(hours=hours), **fields)


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        night(),
        night(
            status="succeeded",
            finished_at=START,
            version="m1",
            listed=3,
            captioned=2,
            failed=1,
            errors={"the file is empty": 1},
            drift={"earlier nights": {"length": 0.2}},
            seconds={"read": 1.5},
        ),
        retraining(dataset="toy/0123456789abcdef", encoder="random"),
        retraining(status="failed", message="no space", finished_at=START, scores={"CIDEr": 0.9}),
    ],
    ids=lambda record: f"{record.kind} {record.status}",
)
def test_a_record_is_read_as_it_was_written(store, record):
    """With its type, in an object whose name has no characters that tools reject."""
    runs.write_record(record, store)
    assert runs.read_record(record.kind, RUN, store) == record
    assert list(store.objects) == [f"runs/{record.kind}/scheduled__2026-01-02T03-04-05-00-00.json"]


def test_a_new_record_is_running(store):
    """Until its run ends, it has neither a message nor an end."""
    record = night()
    assert (record.status, record.message, record.finished_at) == ("running", "", None)


@pytest.mark.parametrize("fields", [{"status": "done"}, {"listed": "many"}, {"finished_at": datetime(2026, 1, 2)}])
def test_invalid_fields_are_refused(fields):
    """Such as an unknown status, or a time without a zone."""
    with pytest.raises(ValidationError, match=next(iter(fields))):
        night(**fields)


def test_a_missing_record_is_an_error(store):
    """The error names its object."""
    with pytest.raises(ObjectNotFoundError, match=r"runs/night/n1\.json"):
        runs.read_record(runs.NIGHT, "n1", store)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "Invalid JSON"), (b"{", "Invalid JSON"), (b"\xff", "Invalid JSON"), (b'{"run": "n1"}', "started_at")],
)
def test_a_damaged_record_is_an_error(store, data, message):
    """The error names its object and what is wrong."""
    store.put(layout.run_record("night", "n1"), data)
    with pytest.raises(PipelineError, match=rf"runs/night/n1\.json is damaged, .*{message}.* Delete it"):
        runs.read_record(runs.NIGHT, "n1", store)


def test_the_last_written_record_is_the_first(store):
    """Not by the name of its run, those that are still running among them; each kind by itself."""
    records = [night("b", status="succeeded"), night("c", status="failed", message="no space"), night("a")]
    for record in records:
        runs.write_record(record, store)
    runs.write_record(retraining("r"), store)
    assert list(runs.list_records(runs.NIGHT, store)) == records[::-1]
    assert list(runs.list_records(runs.RETRAINING, store)) == [retraining("r")]


def test_only_the_records_that_are_asked_for_are_read(store, monkeypatch):
    """A store with the records of years shows the last ones at once."""
    for number in range(50):
        runs.write_record(night(f"n{number}"), store)
    read = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, **kwargs: read.append(key) or get(key, **kwargs))
    assert [record.run for record in islice(runs.list_records(runs.NIGHT, store), 3)] == ["n49", "n48", "n47"]
    assert len(read) <= runs.BATCH


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\x00" * 9, b'{"run": "n1"}'])
def test_a_damaged_record_is_left_out(store, data, caplog):
    """All others are listed; the log, and whoever asks, learn which object is damaged, and what to do."""
    runs.write_record(night("n0"), store)
    store.put(layout.run_record("night", "n1"), data)
    damaged = []
    assert list(runs.list_records(runs.NIGHT, store, damaged=damaged)) == [night("n0")]
    [message] = damaged
    assert "runs/night/n1.json is damaged" in message
    assert "Delete it" in message
    assert message in caplog.text


def test_a_damaged_record_is_written_again(store):
    """The end of its run does not need what it said."""
    store.put(layout.run_record("night", RUN), b"{")
    assert runs.end_run(runs.NIGHT, RUN, "no space", store)
    assert runs.read_record(runs.NIGHT, RUN, store).message == "no space"


def test_other_objects_of_runs_are_no_records(store):
    """The listing, the shards and the profile of a run are elsewhere."""
    runs.write_record(night("n1"), store)
    runs.record_shards("n1", runs.CAPTIONS, ["s"], store)
    store.put(layout.run_listing("n1"), b"")
    store.put(layout.run_profile("n1"), b"{}")
    assert list(runs.list_records(runs.NIGHT, store)) == [night("n1")]


def test_there_are_no_records(store):
    """An empty store has none."""
    assert list(runs.list_records(runs.NIGHT, store)) == []


def test_a_night_in_one_line():
    """The numbers of the record."""
    record = night(version="m1", listed=1200, captioned=1000, failed=20, already_done=180, extracted=1020)
    text = "1,200 images listed = 1,000 captioned + 20 failed + 180 done before; features of 1,020 extracted; model m1"
    assert str(record) == text
    assert str(record.model_copy(update={"warnings": ["a", "b"]})) == f"{text}; warnings: 2"


# --- the end of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [night(listed=7), retraining(dataset="toy")], ids=["night", "retraining"])
def test_a_running_run_ends_as_failed(store, record):
    """With the message and the time; everything else stays as it was."""
    runs.write_record(record, store)
    before = datetime.now(UTC)
    assert runs.end_run(record.kind, RUN, "killed", store)
    found = runs.read_record(record.kind, RUN, store)
    assert found == record.model_copy(
        update={"status": "failed", "message": "killed", "finished_at": found.finished_at}
    )
    assert before <= found.finished_at <= datetime.now(UTC)


@pytest.mark.parametrize("status", ["succeeded", "failed"])
@pytest.mark.parametrize("make", [night, retraining])
def test_a_run_that_has_ended_stays_as_it_is(store, make, status):
    """Without an error, a record that says how the run ended is not written again."""
    record = make(status=status, message="first", finished_at=START)
    runs.write_record(record, store)
    before = dict(store.objects)
    assert not runs.end_run(record.kind, RUN, None, store)
    assert store.objects == before


@pytest.mark.parametrize("status", ["running", "succeeded", "failed"])
@pytest.mark.parametrize("make", [night, retraining])
def test_an_error_ends_a_run_whatever_its_record_says(store, make, status):
    """A run that was repeated in part and failed is failed, with the new message; the rest of its record stays."""
    record = make(status=status, message="first", finished_at=START)
    runs.write_record(record, store)
    assert runs.end_run(record.kind, RUN, "killed", store)
    found = runs.read_record(record.kind, RUN, store)
    assert (found.status, found.message) == ("failed", "killed")
    assert found.finished_at > START
    unchanged = {"status", "message", "finished_at"}
    assert found.model_dump(exclude=unchanged) == record.model_dump(exclude=unchanged)


@pytest.mark.parametrize("kind", [runs.NIGHT, runs.RETRAINING])
def test_a_run_without_a_record_gets_one(store, kind):
    """It failed before its first step wrote one."""
    assert runs.end_run(kind, RUN, None, store)
    [found] = runs.list_records(kind, store)
    assert (found.run, found.kind, found.status) == (RUN, kind, "failed")
    assert found.message == "The run ended before its last step."
    assert found.started_at <= found.finished_at


def test_a_record_that_is_written_in_the_meantime_counts(store, monkeypatch):
    """The last step ends while the run is ended from outside: its record is not overwritten."""
    runs.write_record(night(), store)
    put, ended = store.put, night(status="succeeded", finished_at=START)

    def put_later(key, data, **condition):
        monkeypatch.setattr(store, "put", put)
        runs.write_record(ended, store)
        return put(key, data, **condition)

    monkeypatch.setattr(store, "put", put_later)
    assert not runs.end_run(runs.NIGHT, RUN, None, store)
    assert runs.read_record(runs.NIGHT, RUN, store) == ended


def test_a_message_does_not_hold_the_address_of_the_store(store):
    """A copy of the store works elsewhere, and its records do not point back."""
    runs.end_run(runs.NIGHT, RUN, f"There is no object {store.url('models/m')}: check the URI.", store)
    assert runs.read_record(runs.NIGHT, RUN, store).message == "There is no object the store/models/m: check the URI."


# --- the shards of a run ---------------------------------------------------------------------------------------------


def test_shards_are_recorded_by_stage(store):
    """Further ones are added, each once, in their order; a stage that starts again has none."""
    runs.record_shards(RUN, runs.EXTRACTION, ["b", "a"], store)
    runs.record_shards(RUN, runs.EXTRACTION, ["a", "c"], store)
    runs.record_shards(RUN, runs.CAPTIONS, ["d"], store)
    assert runs.recorded_shards(RUN, runs.EXTRACTION, store) == ["b", "a", "c"]
    assert runs.recorded_shards(RUN, runs.CAPTIONS, store) == ["d"]
    assert runs.recorded_shards("another", runs.CAPTIONS, store) == []
    runs.forget_shards(RUN, runs.EXTRACTION, store)
    assert runs.recorded_shards(RUN, runs.EXTRACTION, store) == []
    assert runs.recorded_shards(RUN, runs.CAPTIONS, store) == ["d"]


def test_images_and_seconds_of_an_extraction(store):
    """Summed over the shards; one whose process died before it wrote its statistics counts with its images."""
    names = shards.claim(
        lambda: pa.table([list("abcde"), ["1"] * 5], names=IDENTITY),
        {"folder": "features/e"},
        product="features-e",
        order=["image_key"],
        store=store,
        shard_size=2,
    )
    runs.record_shards(RUN, runs.EXTRACTION, names, store)
    for name in names[:2]:
        shards.write_stats(name, shards.ShardStats(seconds={"read": 1.0, name: 2.0}), store)
    assert runs.extraction_stats(RUN, store) == (5, {"read": 2.0, names[0]: 2.0, names[1]: 2.0})
    assert runs.extraction_stats("another", store) == (0, {})

"""The end of a night: its counts, its record, and its differences from other nights."""

import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.captioner.registry import promote
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.nightly import captions
from pipeline.nightly import night as nights
from pipeline.nightly.reconcile import NIGHTS
from pipeline.storage import layout, parquet
from pipeline.work import runs
from tests.support import toy
from tests.support.models import write_model
from tests.support.nights import counts, extract, night, reconciled, rows_in, write


def test_an_image_unaccounted_for_fails_the_night(inbox, store):
    """If a listed image has no row, the night fails with the sum and the image's name, and so says the record."""
    night("n1", inbox, store)
    key = layout.run_listing("n1")
    listing = parquet.read(key, store)
    lost = {**listing.to_pylist()[0], "image_key": "lost.jpg"}
    with_lost = pa.Table.from_pylist([*listing.to_pylist(), lost], schema=nights.NIGHT_LISTING)
    parquet.write(with_lost, key, store, metadata=parquet.metadata(listing))
    message = r"8 images were listed .* only 7 are accounted for .*6 captioned \+ 1 failed.*such as lost\.jpg"
    with pytest.raises(PipelineError, match=message) as caught:
        reconciled("n1", store)
    [record] = runs.list_records(runs.NIGHT, store)
    assert counts(record) == (8, 0, 7, 6, 1)
    assert (record.status, record.message) == ("failed", str(caught.value))
    assert record.finished_at > record.started_at


def test_too_many_failures_fail_the_night(inbox, store):
    """The record says failed and counts the errors by kind; the other images keep their captions."""
    for number in range(3):
        inbox.put(f"empty-{number}.jpg", b"")
    message = r"4 of 10 images failed, more than the allowed 20%.*empty-\d\.jpg"
    with pytest.raises(PipelineError, match=message) as caught:
        night("n1", inbox, store)
    [record] = runs.list_records(runs.NIGHT, store)
    assert counts(record) == (10, 0, 10, 6, 4)
    assert record.errors["the file is empty"] == 3
    assert (record.status, record.message) == ("failed", str(caught.value))
    assert sum(row["status"] == "ok" for row in rows_in(store)) == 6
    # A repetition that allows more failures succeeds.
    assert reconciled("n1", store, max_failed_fraction=0.5).status == "succeeded"
    record = runs.read_record(runs.NIGHT, "n1", store)
    assert (record.status, record.message) == ("succeeded", "")


def test_a_lost_shard_fails_the_night(inbox, store):
    """If a shard of captions is not there, the error names its images, and the record says so, too."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    extract("n1", store)
    write("n1", store)
    lost = [item.key for item in store.list("captions/")][1]
    keys = sorted(parquet.read(lost, store)["image_key"].to_pylist())
    store.delete(lost)
    with pytest.raises(PipelineError, match=rf"only {7 - len(keys)} are accounted for.*such as {re.escape(keys[0])}"):
        reconciled("n1", store)
    record = runs.read_record(runs.NIGHT, "n1", store)
    assert (record.status, record.listed) == ("failed", 7)
    assert keys[0] in record.message


def attempts(store, run, shards):
    """Record shards of captions for a run: by name, rows of key, etag, error (none for a caption) and time."""
    folder = layout.captions_folder("v1", "2026-01-02")
    for name, rows in shards.items():
        table = pa.Table.from_pylist(
            [
                {
                    "image_key": key,
                    "image_etag": etag,
                    "caption": None if error else "a dog",
                    "status": "failed" if error else "ok",
                    "error": error,
                    "model_version": "v1",
                    "encoder_id": "encoder-1",
                    "captioned_at": time,
                }
                for key, etag, error, time in rows
            ],
            schema=captions.SCHEMA,
        )
        images = table.select(["image_key", "image_etag"])
        parquet.write(images, layout.shard(name), store, metadata={"folder": folder})
        parquet.write(table, layout.shard_result(folder, name), store)
    runs.record_shards(run, runs.CAPTIONS, [*shards], store)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("newer_first", [True, False])
def test_of_two_failures_the_newer_counts(new_bucket, newer_first):
    """Of two failures at an image the later one counts, in any order of the rows; a success counts before both."""
    inbox, store = new_bucket(), new_bucket()
    write_model("v1", store)
    promote("v1", store)
    for number in range(400):
        inbox.put(f"{number:03}.jpg", b"%d" % number)
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    earlier, later = (datetime(2026, 1, 2, hour, tzinfo=UTC) for hour in (3, 4))
    images = [(item.key, item.etag) for item in inbox.list()]
    first = [(*image, "the older error", earlier) for image in images[:300]]
    first += [(*image, None, earlier) for image in images[300:]]
    second = [(*image, "the newer error", later) for image in reversed(images)]
    attempts(store, "n1", {"a": second, "b": first} if newer_first else {"a": first, "b": second})
    record = reconciled("n1", store, max_failed_fraction=1)
    assert record.errors == {"the newer error": 300}
    assert counts(record) == (400, 0, 0, 100, 300)


def coloured(bucket, count=10, name=""):
    """Put pictures of each colour into a bucket."""
    for colour in toy.COLOURS:
        for seed in range(count):
            bucket.put(f"{name}{colour}-{seed}.jpg", toy.picture(colour, seed))
    return bucket


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_an_unusual_night_causes_warnings(new_bucket, store, trained, caplog):
    """Nights are compared with the model's test and with each other; black pictures are noticed and recorded."""
    toy.copy(trained.store, store, "features/", "datasets/")
    decoding = DecodingConfig(beam_width=2)
    evaluate_model(trained.model.version, store=store, decoding=decoding, max_failed_fraction=0.2)
    record = night("n1", coloured(new_bucket()), store)
    assert record.drift.keys() == {"the model's test"}
    assert (record.warnings, record.drifted) == ([], False)
    black = new_bucket()
    for number in range(40):
        black.put(f"{number}.png", toy.png(0, 0, number))
    record = night("n2", black, store)
    assert record.drift.keys() == {"the model's test", "earlier nights"}
    assert record.drift["earlier nights"]["features"] > 1
    assert any(text.startswith("features: ") and "earlier nights" in text for text in record.warnings)
    assert record.warnings[0] in caplog.text
    assert record.drifted
    assert runs.read_record(runs.NIGHT, "n2", store) == record


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_only_nights_that_succeeded_are_a_baseline(new_bucket, store):
    """A failed night, and one that runs again, are not compared with; a night that succeeded is."""
    failing = coloured(new_bucket(), 3)
    for number in range(12):
        failing.put(f"empty-{number}.jpg", b"")
    with pytest.raises(PipelineError, match="12 of 24 images failed"):
        night("failed", failing, store)
    assert store.exists(layout.run_profile("failed"))
    assert night("n1", coloured(new_bucket(), 3, "a/"), store).drift == {}

    # The first night begins anew: it is no baseline until it has succeeded again.
    again = coloured(new_bucket(), 3, "b/")
    nights.list_inbox("n1", inbox=again, store=store, options=nights.NightOptions())
    assert store.exists(layout.run_profile("n1"))
    assert night("n2", coloured(new_bucket(), 3, "c/"), store).drift == {}

    # However many fail, the last that succeeded is compared with.
    for number in range(NIGHTS + 1):
        runs.write_record(
            runs.NightRecord(run=f"failed-{number}", status="failed", started_at=datetime.now(UTC)), store
        )
    assert night("n3", coloured(new_bucket(), 3, "d/"), store).drift.keys() == {"earlier nights"}

"""The measures of a run that has ended, which become metrics."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.captioner import registry
from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.ops import measures
from pipeline.storage import layout, parquet
from pipeline.work.runs import NightRecord, RetrainingRecord
from tests.support import toy
from tests.support.models import write_evaluation, write_model

BEGAN = datetime(2026, 1, 2, 2, tzinfo=UTC)
ENDED = BEGAN + timedelta(hours=1.5)

NIGHT = NightRecord(
    run="n1",
    status="succeeded",
    started_at=BEGAN,
    finished_at=ENDED,
    extracted=40,
    seconds={"decode": 12.5, "encode": 30.0},
    listed=100,
    passed_over={"videos": 3, "hidden": 2},
    already_done=50,
    postponed=5,
    requested=1,
    captioned=42,
    novel=4,
    failed=2,
    gone=1,
    images_per_second=0.75,
    drifted=True,
)

COUNTED = {
    "night.extracted": 40,
    "night.duration": 5400,
    "night.seconds.decode": 12.5,
    "night.seconds.encode": 30,
    "night.listed": 100,
    "night.passed_over": 5,
    "night.already_done": 50,
    "night.postponed": 5,
    "night.requested": 1,
    "night.captioned": 42,
    "night.novel": 4,
    "night.failed": 2,
    "night.gone": 1,
    "night.images_per_second": 0.75,
    "night.drifted": 1,
}


def test_a_night_that_succeeded():
    """Its counts, its seconds, and when it ended."""
    assert measures.of_run(NIGHT) == {"night.succeeded": 1, "night.succeeded_at": ENDED.timestamp(), **COUNTED}


def test_a_night_that_failed_after_it_was_counted():
    """As one with too many failed pictures: it has counts, but no time of success."""
    assert measures.of_run(NIGHT.model_copy(update={"status": "failed"})) == {"night.succeeded": 0, **COUNTED}


def test_a_night_that_failed_before_it_was_counted():
    """No count says that nothing was captioned."""
    failed = NightRecord(run="n1", status="failed", started_at=BEGAN, finished_at=ENDED, listed=100, postponed=5)
    assert measures.of_run(failed) == {"night.succeeded": 0, "night.extracted": 0, "night.duration": 5400}


def test_a_night_without_anything_to_do():
    """Its zeros are counts."""
    idle = NightRecord(run="n1", status="succeeded", started_at=BEGAN, finished_at=ENDED)
    found = measures.of_run(idle)
    assert (found["night.succeeded"], found["night.listed"], found["night.captioned"]) == (1, 0, 0)


def test_a_retraining():
    """Whether it succeeded and its model was promoted."""
    record = RetrainingRecord(
        run="r1",
        status="succeeded",
        started_at=BEGAN,
        finished_at=ENDED,
        extracted=9,
        seconds={"read": 1},
        promoted=True,
    )
    assert measures.of_run(record) == {
        "retraining.succeeded": 1,
        "retraining.succeeded_at": ENDED.timestamp(),
        "retraining.duration": 5400,
        "retraining.extracted": 9,
        "retraining.seconds.read": 1,
        "retraining.promoted": 1,
    }
    failed = measures.of_run(RetrainingRecord(run="r1", status="failed", started_at=BEGAN, finished_at=ENDED))
    assert (failed["retraining.succeeded"], failed["retraining.promoted"]) == (0, 0)
    assert "retraining.succeeded_at" not in failed


def write_captions(store, *rows):
    """Write the current captions, from who wrote each, when, and why there is none."""
    table = [
        {
            **dict.fromkeys(current.SCHEMA.names),
            "image_key": f"{number}.jpg",
            "image_etag": "e",
            "caption": source and "a dog",
            "source": source,
            "review": source and source == current.MODEL,
            "captioned_at": at,
            "error": error,
        }
        for number, (source, at, error) in enumerate(rows)
    ]
    facts = {"listed_at": BEGAN.isoformat()}
    parquet.write(pa.Table.from_pylist(table, current.SCHEMA), layout.CURRENT_CAPTIONS, store, metadata=facts)


def judge(store, key, action, *, version="m1", etag="e"):
    """Say something about a caption."""
    said = {"caption": "a dog" if action == "confirmed" else "a cat", "action": action, "corrected_by": "ann"}
    subject = {"image_key": key, "image_etag": etag, "model_version": version, "model_caption": "a dog"}
    corrections.add(toy.picture("red"), store=store, **said, **subject)


def test_an_empty_store(bucket):
    """Without a night and a champion there is nothing to measure."""
    assert measures.of_store(bucket) == {}


def test_the_current_captions(bucket):
    """The newest caption is the newest by a model: a person's word says nothing about nights."""
    write_captions(
        bucket,
        ("model", BEGAN, None),
        ("model", ENDED, None),
        ("person", ENDED + timedelta(days=1), None),
        (None, None, "the file is empty"),
        (None, None, None),
    )
    assert measures.of_store(bucket) == {
        "captions.images": 5,
        "captions.captioned": 3,
        "captions.waiting": 1,
        "captions.to_review": 2,
        "captions.newest_at": ENDED.timestamp(),
    }
    judge(bucket, "1.jpg", "confirmed")
    assert measures.of_store(bucket)["captions.to_review"] == 1


def test_captions_of_which_none_is_a_model_s(bucket):
    """They have no newest one."""
    write_captions(bucket, ("person", BEGAN, None), (None, None, None))
    assert "captions.newest_at" not in measures.of_store(bucket)


def test_the_champion(bucket):
    """Its scores by the chosen decoding, and people's judgement of its captions alone."""
    for version in ("m0", "m1"):
        write_model(version, bucket)
    registry.promote("m1", bucket)
    assert measures.of_store(bucket) == {"champion.judged": 0}
    write_evaluation("m1", bucket, cider=0.75)
    write_evaluation("m0", bucket, cider=0.5)
    judge(bucket, "a.jpg", "confirmed")
    judge(bucket, "b.jpg", "corrected")
    judge(bucket, "c.jpg", "corrected", version="m0")
    assert measures.of_store(bucket) == {
        "champion.bleu_4": 0.2,
        "champion.cider": 0.75,
        "champion.judged": 2,
        "champion.acceptance": 0.5,
    }


@pytest.mark.parametrize(
    ("key", "lost"), [(layout.CURRENT_CAPTIONS, "captions."), (layout.model_metadata("m1"), "champion.")]
)
def test_a_damaged_object(bucket, caplog, key, lost):
    """The measures that need it are missing, the others are there, and the log says why."""
    write_captions(bucket, ("model", BEGAN, None))
    write_model("m1", bucket)
    registry.promote("m1", bucket)
    complete = measures.of_store(bucket)
    bucket.put(key, b"damaged")
    assert measures.of_store(bucket) == {name: value for name, value in complete.items() if not name.startswith(lost)}
    assert len(complete) > len(measures.of_store(bucket)) > 0
    assert f"some measures are missing: {bucket.url(key)}" in caplog.text

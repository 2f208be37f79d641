"""The output of ``captioning status``."""

from datetime import UTC, datetime

import pytest

from pipeline.captioner import registry
from pipeline.config import DecodingConfig
from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.promotion_gate import GateConfig, run_gate
from pipeline.nightly import current
from pipeline.ops import status
from pipeline.storage import json, layout, open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.caption_tables import row, shard_key, write
from tests.support.loading import load_once
from tests.support.long_history import write_history
from tests.support.models import write_model
from tests.support.nights import night

BEAM = DecodingConfig(beam_width=2)


@pytest.fixture
def shown(capsys):
    """Show a store, and return the output."""

    def show(store, limit=0, under=""):
        status.show(store, limit=limit, under=under)
        return capsys.readouterr().out

    return show


def test_an_empty_store(bucket, shown):
    """The status says how to begin, and where captions will be."""
    text = shown(bucket, limit=5)
    assert "No model has been promoted" in text
    assert "trigger a retraining" in text
    assert f"captions:    {bucket.url('current/captions.parquet')}" in text.splitlines()


def test_a_used_store(bucket, shown, trained, tmp_path, monkeypatch):
    """The champion, every model with its scores, the runs with their counts, errors by kind, and the captions."""
    load_once(monkeypatch)
    version = trained.model.version
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/", "datasets/")
    metrics = evaluate_model(version, store=bucket, decoding=BEAM, max_failed_fraction=0)
    run_gate(version, run="r1", decoding=BEAM, config=GateConfig(), store=bucket)
    other = trained.model.model_copy(update={"version": "not-evaluated-yet"})
    json.write(other, layout.model_metadata(other.version), bucket)
    inbox = open_bucket(str(tmp_path / "inbox"))
    for number, colour in enumerate(toy.COLOURS):
        inbox.put(f"garden/{colour}.jpg", toy.picture(colour, number))
    for name in ("house/a.jpg", "house/b.jpg"):
        inbox.put(name, b"")
    for run in ("n1", "n2"):
        night(run, inbox, bucket, max_failed_fraction=0.5)

    lines = shown(bucket, limit=3).splitlines()
    [row] = [line for line in lines if line.startswith("│") and version in line]
    assert "champion" in row
    assert f"{metrics.cider:.3f}" in row
    # A score is worth what it is measured on, and with which decoding.
    assert metrics.dataset in row
    assert "beam 2" in row
    [row] = [line for line in lines if line.startswith("│") and other.version in line]
    assert "not evaluated" in row
    assert "champion" not in row
    [retraining] = [line for line in lines if line.startswith("retraining r1:")]
    assert "the first champion" in retraining
    nights = [line for line in lines if line.startswith("night ")]
    assert [line.partition(":")[0] for line in nights] == ["night n2", "night n1"]
    assert "6 images listed = 0 captioned + 0 failed + 6 done before; features of 0 extracted" in nights[0]
    assert "6 images listed = 4 captioned + 2 failed + 0 done before; features of 6 extracted" in nights[1]
    assert lines.count("    2 × the file is empty") == 1
    shown_keys = [line.split("│")[1].strip() for line in lines if ".jpg" in line]
    assert len(set(shown_keys)) == 3
    report = layout.evaluation(version, metrics.dataset, BEAM).report
    assert f"report:      {bucket.url(report)}" in lines
    assert "captioning night preview" in lines[-1]

    shown_keys = [line for line in shown(bucket, limit=9).splitlines() if ".jpg" in line]
    assert len(shown_keys) == 6
    listed = current.read(bucket).to_pylist()[0]
    identity = {"image_key": listed["image_key"], "image_etag": listed["image_etag"]}
    words = {"model_caption": listed["caption"], "model_version": version, "corrected_by": "ann"}
    corrections.add(inbox.get(listed["image_key"]), caption="a nice square", store=bucket, **words, **identity)
    text = shown(bucket, limit=9)
    assert "a nice square (corrected by ann)" in text
    assert "coverage:    6 images = 4 captioned (0 by a person) + 2 failed + 0 waiting, as of 20" in text
    current.fold(bucket, place="none", damaged=[])
    assert "4 captioned (1 by a person)" in shown(bucket)
    [row] = [line for line in text.splitlines() if line.startswith("│") and version in line and "champion" in line]
    assert "0 % of 1" in row
    [row, _] = [line for line in shown(bucket, limit=9, under="house/").splitlines() if ".jpg" in line]
    assert "failed: the file is empty" in row
    assert ".jpg" not in shown(bucket)


def test_failed_and_running_runs(trained, shown, tmp_path):
    """A failed run is shown with its message, a failed night with its errors, too; a run that has begun is running."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    inbox.put("red.jpg", toy.picture("red"))
    for name in ("a.jpg", "b.jpg"):
        inbox.put(name, b"")
    with pytest.raises(PipelineError, match="2 of 3 images failed"):
        night("n1", inbox, store)
    begun = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    runs.write_record(runs.NightRecord(run="n2", started_at=begun, listed=5), store)
    runs.write_record(runs.RetrainingRecord(run="r1", started_at=begun), store)
    runs.end_run(runs.RETRAINING, "r2", "train: the disk is full", store)
    lines = shown(store).splitlines()
    [failed] = [line for line in lines if line.startswith("night n1:")]
    assert failed.startswith("night n1: failed: 2 of 3 images failed, more than the allowed 20%")
    assert "    2 × the file is empty" in lines[lines.index(failed) :]
    assert "night n2: running since 2026-01-02 03:04 UTC" in lines
    assert "retraining r1: running since 2026-01-02 03:04 UTC" in lines
    assert "retraining r2: failed: train: the disk is full" in lines


def test_corrections_are_counted(bucket, shown):
    """Where there are corrections, a line says how many, and where they are."""
    assert "corrections:" not in shown(bucket)
    for caption in ("a red square", "a nice red square"):
        corrections.add(
            toy.picture("red"),
            caption=caption,
            model_caption="a dog",
            model_version="v",
            corrected_by="a",
            store=bucket,
        )
    assert f"corrections: 2 in {bucket.url('corrections/')}" in shown(bucket).splitlines()


def test_square_brackets_in_a_key(trained, shown, tmp_path):
    """A key that looks like the markup of a terminal is shown as it is; one with a line break is on one line."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    for name in ("a[red]b.jpg", "x[/].jpg", "y\nnight n9: failed.jpg"):
        inbox.put(name, toy.picture("red"))
    night("n", inbox, store)
    text = shown(store, limit=5)
    assert "a[red]b.jpg" in text
    assert "x[/].jpg" in text
    assert r"y\nnight n9: failed.jpg" in text


def test_a_store_of_years_is_shown_at_once(shown):
    """What is read does not grow with the number of nights."""
    store = write_history()
    lines = shown(store, limit=15).splitlines()
    assert sum(line.startswith("night n") for line in lines) == 5
    assert sum(".jpg" in line for line in lines) == 15
    assert store.requests <= 55


def test_captions_under_a_folder(shown, bucket):
    """Captions with the same words are no obstacle; a damaged shard is named."""
    write_model("m1", bucket)
    registry.promote("m1", bucket)
    write(bucket, [row("a/1.jpg"), row("b/a.jpg", "a dog a day"), row("a/2.jpg")], night="2026-01-01", shard="s")
    write(bucket, [row(f"b/{number}.jpg", "a a/") for number in range(5)], night="2026-01-02", shard="t")
    bucket.put(shard_key("2026-01-03", "u"), b"")
    text = shown(bucket, limit=2, under="a")
    assert [line.split("│")[1].strip() for line in text.splitlines() if ".jpg" in line] == ["a/1.jpg", "a/2.jpg"]
    assert f"{bucket.url(shard_key('2026-01-03', 'u'))} is damaged" in text


def test_damaged_objects_are_named(shown, bucket):
    """All that can be read is shown, and what can't is named with what to do."""
    runs.write_record(runs.NightRecord(run="n1", started_at=datetime(2026, 1, 2, tzinfo=UTC)), bucket)
    bucket.put(layout.run_record("night", "n2"), b"{")
    bucket.put(layout.model_metadata("m1"), b"")
    bucket.put(layout.CHAMPION, b"[]")
    bucket.put(layout.CURRENT_CAPTIONS, b"{")
    text = shown(bucket)
    assert "night n1: running since" in text
    for key in (
        layout.run_record("night", "n2"),
        layout.model_metadata("m1"),
        layout.CHAMPION,
        layout.CURRENT_CAPTIONS,
    ):
        assert f"{bucket.url(key)} is damaged" in text
    assert "captioning promote VERSION" in text

"""What `status` shows."""

import pytest
import toy

from pipeline import captions, evaluation, features, marks, registry, status
from pipeline import night as nights
from pipeline.recipe import Search
from pipeline.storage import open_bucket


@pytest.fixture
def shown(capsys):
    """Show a store, and return what was printed."""

    def show(store, limit=0, under="", inbox=None):
        status.show(store, inbox=(inbox or store).uri, limit=limit, under=under)
        return capsys.readouterr().out

    return show


def consider(version, store, run):
    """Evaluate a model and let the gate decide on it."""
    evaluation.evaluate(version, store=store, search=Search(beam_width=2), max_failed_fraction=0)
    registry.consider(
        version,
        run=run,
        policy=registry.Policy.AUTO,
        tolerance=0.015,
        floor=0.1,
        store=store,
        max_failed_fraction=0,
    )


def night(run, inbox, store):
    """All five steps of a night."""
    nights.list_inbox(run, inbox=inbox.uri, store=store)
    for shard in nights.plan_extraction(run, store=store, shard_size=100):
        features.extract(shard, store=store)
    for shard in nights.plan_captions(run, store=store, date="2026-01-02", shard_size=100):
        captions.caption(shard, store=store, search=Search(beam_width=2), sidecars=False)
    nights.publish(run, store=store, max_failed_fraction=0.5, drift_limit=0.5)


def test_an_empty_store(bucket, shown):
    """Where there is nothing yet, the status says how to begin and where captions will be."""
    text = shown(bucket, limit=5)
    assert "No model has been promoted" in text
    assert "trigger retrain_captioner" in text
    assert f"captions: {bucket.url('captions')}" in text


def test_a_used_store(bucket, shown, trained, tmp_path, monkeypatch):
    """The champion, every model with its scores, the runs with their counts, errors by kind, and the captions."""
    monkeypatch.setattr("pipeline.java.available", lambda: False)
    version = trained.model.version
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/")
    consider(version, bucket, "r1")
    other = trained.model.model_copy(update={"version": "not-evaluated-yet"})
    bucket.put(f"models/{other.version}/metadata.json", other.model_dump_json().encode())
    inbox = open_bucket(str(tmp_path / "inbox"))
    for number, colour in enumerate(toy.COLOURS):
        inbox.put(f"garden/{colour}.jpg", toy.picture(colour, number))
    for name in ("house/a.jpg", "house/b.jpg"):
        inbox.put(name, b"")
    night("n1", inbox, bucket)
    night("n2", inbox, bucket)

    inbox.put("house/c.jpg", toy.picture("red", 9))
    lines = shown(bucket, limit=3, inbox=inbox).splitlines()
    [row] = [line for line in lines if line.startswith("│") and version in line]
    assert "champion" in row
    assert f"{evaluation.load_metrics(version, bucket).cider:.3f}" in row
    [row] = [line for line in lines if line.startswith("│") and other.version in line]
    assert "not evaluated" in row
    assert "champion" not in row
    [retraining] = [line for line in lines if line.startswith("retraining r1:")]
    assert "the first champion" in retraining
    nights = [line for line in lines if line.startswith("night ")]
    assert [line.partition(":")[0] for line in nights] == ["night n2", "night n1"]
    assert "6 images listed = 0 captioned + 0 failed + 6 done before; features of 0 extracted" in nights[0]
    assert "6 images listed = 4 captioned + 2 failed + 0 done before; features of 6 extracted" in nights[1]
    assert lines.count("    2 × the file is empty") == 2
    assert f"{inbox.uri}: 7 images = 4 captioned by the champion + 2 failed + 1 pending" in lines
    shown_keys = [line.split("│")[1].strip() for line in lines if ".jpg" in line]
    assert shown_keys == ["garden/blue.jpg", "garden/green.jpg", "garden/red.jpg"]
    assert lines[-1] == f"report:   {bucket.url(evaluation.report_key(version))}"

    [row, _] = [line for line in shown(bucket, limit=9, under="house/").splitlines() if ".jpg" in line]
    assert "failed: the file is empty" in row
    assert ".jpg" not in shown(bucket)


def test_marks_are_counted(bucket, shown):
    """Where people have marked captions, a line says how often, and where the marks are."""
    assert "marks:" not in shown(bucket)
    for caption in ("a red square", "a nice red square"):
        marks.mark(
            toy.picture("red"), caption=caption, wrong_caption="a dog", model_version="v", marked_by="a", store=bucket
        )
    assert f"marks:    2 better captions in {bucket.url('marks')}" in shown(bucket).splitlines()


def test_square_brackets_in_a_key(trained, shown, tmp_path):
    """A key that looks like the markup of a terminal is shown as it is."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    for name in ("a[red]b.jpg", "x[/].jpg"):
        inbox.put(name, toy.picture("red"))
    night("n", inbox, store)
    text = shown(store, limit=5)
    assert "a[red]b.jpg" in text
    assert "x[/].jpg" in text

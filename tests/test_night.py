"""The nightly job: every image of the inbox ends in one row, once, whatever happens on the way."""

import ast
import contextlib
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
import toy

from pipeline import captions, encoder, evaluation, features, registry, runs, tables
from pipeline import night as nights
from pipeline.captioner import load, load_metadata
from pipeline.errors import PipelineError
from pipeline.images import is_image
from pipeline.recipe import Search
from pipeline.storage import ObjectNotFoundError

DATE = "2026-01-02"

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def loaded(trained):
    """The toy world's captioner and encoder."""
    return load(trained.model.version, trained.store)[0], encoder.load(trained.inputs.encoder_id, trained.store)


@pytest.fixture(autouse=True)
def loaded_once(loaded, monkeypatch):
    """Load the two once and not for each shard, which takes most of a small night; the command line's tests do."""
    monkeypatch.setattr(captions, "load", lambda version, store: (loaded[0], load_metadata(version, store)))
    monkeypatch.setattr(encoder, "load", lambda encoder_id, store: loaded[1])


@pytest.fixture
def store(new_bucket, trained):
    """A store with the toy world's model as champion, and no features."""
    store = new_bucket()
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    return store


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Captions are planned in shards as small as those of extraction, so that a few pictures make several."""
    monkeypatch.setattr(nights, "SHARDS", 1)


@pytest.fixture
def inbox(new_bucket):
    """Seven photographs, one of them damaged and one with a difficult name, and two files that are none."""
    inbox = new_bucket()
    for seed, key in enumerate(("red.jpg", "green.JPG", "blue.jpeg", "more/yellow.jpg", "more/red again.jpg")):
        inbox.put(key, toy.picture(colour_in(key), seed))
    inbox.put("déjà vu/100% blue + #1?.jpg", toy.picture("blue", 9))
    inbox.put("broken.jpg", toy.picture("green")[:50])
    inbox.put("notes.txt", b"not a picture")
    inbox.put("more/red.jpg.json", b"{}")
    return inbox


def colour_in(text):
    """The one colour that a text names."""
    [colour] = [colour for colour in toy.COLOURS if colour in text]
    return colour


def extract(run, store):
    """Plan the extraction of a night and do it."""
    for shard in nights.plan_extraction(run, store=store, shard_size=3):
        features.extract(shard, store=store)


def write(run, store, *, sidecars=False, date=DATE):
    """Plan the captions of a night and write them."""
    for shard in nights.plan_captions(run, store=store, date=date, shard_size=3):
        captions.caption(shard, store=store, search=Search(beam_width=2), sidecars=sidecars)


def publish(run, store, *, max_failed_fraction=0.2):
    """Count a night; the record."""
    return nights.publish(run, store=store, max_failed_fraction=max_failed_fraction, drift_limit=0.5)


def night(run, inbox, store, *, max_failed_fraction=0.2, archive=nights.Archive.ALL, retry_failed=False, **kwargs):
    """All five steps; the record."""
    nights.list_inbox(run, inbox=inbox.uri, store=store, archive=archive, retry_failed=retry_failed)
    extract(run, store)
    write(run, store, **kwargs)
    return publish(run, store, max_failed_fraction=max_failed_fraction)


@contextlib.contextmanager
def away(inbox, key):
    """The inbox without an object, which comes back as it was: with the same etag."""
    if inbox.uri.startswith("file:"):
        hidden = inbox.root / ".hidden"
        (inbox.root / key).rename(hidden)
        yield
        hidden.rename(inbox.root / key)
    else:
        data = inbox.get(key)
        inbox.delete(key)
        yield
        inbox.put(key, data)


def rows_in(store):
    """Every row of captions."""
    return [row for item in store.list("captions/") for row in tables.read(item.key, store).to_pylist()]


def identities(rows):
    """How many rows each version of an image has from each model."""
    return Counter((row["image_key"], row["image_etag"], row["model_version"]) for row in rows)


def photographs(inbox, version):
    """What ``identities`` must be after a night: one row for each photograph."""
    return Counter((item.key, item.etag, version) for item in inbox.list() if is_image(item.key))


def counts(record):
    """The numbers of a record."""
    return tuple(record[name] for name in ("listed", "already_done", "extracted", "captioned", "failed"))


def test_every_photograph_ends_in_one_row(inbox, store, trained):
    """After a night each photograph has a true caption or an error, other files have nothing, and the counts agree."""
    before = datetime.now(UTC)
    record = night("scheduled__2026-01-02T02:00:00+00:00", inbox, store)
    rows = rows_in(store)
    assert identities(rows) == photographs(inbox, trained.model.version)
    assert len(rows) == 7
    for row in rows:
        assert row["encoder_id"] == trained.model.encoder_id
        assert before <= row["captioned_at"] <= datetime.now(UTC)
        if row["image_key"] == "broken.jpg":
            assert (row["status"], row["caption"], row["log_prob"]) == ("failed", None, None)
            assert "cannot be decoded" in row["error"]
        else:
            assert (row["status"], row["error"]) == ("ok", None)
            assert colour_in(row["caption"]) == colour_in(row["image_key"])
            assert -5 < row["log_prob"] < 0

    assert counts(record) == (7, 0, 7, 6, 1)
    [(error, count)] = record["errors"].items()
    assert (count, "cannot be decoded" in error) == (1, True)
    assert (record["version"], record["inbox"]) == (trained.model.version, inbox.uri)
    assert set(record["seconds"]) == {"load", "read", "decode", "encode", "caption", "write"}
    assert record["seconds"]["caption"] > 0
    assert record["images_per_second"] > 0
    assert datetime.fromisoformat(record["started_at"]) - before < timedelta(minutes=5)
    [written] = runs.finished(nights.KIND, store)
    assert written == {"run": "scheduled__2026-01-02T02:00:00+00:00", **record}


def test_the_table_is_as_documented(inbox, store, trained):
    """Shards lie in the partition of their model and date, and have the documented columns and types."""
    night("n1", inbox, store, date="2026-02-03")
    shards = [item.key for item in store.list("captions/")]
    assert len(shards) == 3
    for key in shards:
        assert key.startswith(f"captions/model={trained.model.version}/date=2026-02-03/")
        assert tables.read(key, store).schema == captions.SCHEMA


def test_without_a_champion(inbox, bucket):
    """A night without a champion fails at its first step and says what to do."""
    with pytest.raises(PipelineError, match=r"No model has been promoted.*trigger retrain_captioner"):
        nights.list_inbox("n1", inbox=inbox.uri, store=bucket)
    assert list(bucket.list()) == []


def test_the_second_night_does_nothing(inbox, store):
    """With nothing new, nothing is extracted or captioned, no object changes, and one bad picture fails only once."""
    night("n1", inbox, store)
    before = toy.etags(store, "features/", "captions/", "plans/")
    record = night("n2", inbox, store, date="2026-01-03", max_failed_fraction=0)
    assert counts(record) == (7, 7, 0, 0, 0)
    assert toy.etags(store, "features/", "captions/", "plans/") == before


def test_only_what_is_new_or_changed_is_captioned(inbox, store, trained):
    """The next night captions the new photograph and the changed one; a removed one keeps its row."""
    night("n1", inbox, store)
    before = toy.etags(store, "captions/")
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    inbox.put("red.jpg", toy.picture("red", 77))
    inbox.delete("blue.jpeg")
    record = night("n2", inbox, store, date="2026-01-03")
    assert counts(record) == (7, 5, 2, 2, 0)
    after = toy.etags(store, "captions/")
    assert {key: after.get(key) for key in before} == before
    [new] = after.keys() - before.keys()
    assert new.startswith(f"captions/model={trained.model.version}/date=2026-01-03/")
    assert sorted(row["image_key"] for row in tables.read(new, store).to_pylist()) == ["red.jpg", "yellow, new.jpg"]
    assert len(rows_in(store)) == 9
    assert max(identities(rows_in(store)).values()) == 1


def crown(version, store):
    """Make the champion's model, under another version, the champion."""
    folder = f"models/{registry.champion(store).version}"
    for item in list(store.list(f"{folder}/")):
        store.put(f"models/{version}/{item.key.rpartition('/')[2]}", store.get(item.key))
    metadata = load_metadata(folder.removeprefix("models/"), store).model_copy(update={"version": version})
    store.put(f"models/{version}/metadata.json", metadata.model_dump_json().encode())
    registry.promote(version, store)


def test_a_new_champion_captions_the_archive_from_stored_features(inbox, store, trained):
    """All is captioned again by the new champion, although the pictures can't be read any more."""
    night("n1", inbox, store)
    crown("v2", store)
    expected = photographs(inbox, trained.model.version) + photographs(inbox, "v2")
    nights.list_inbox("n2", inbox=inbox.uri, store=store)
    for item in list(inbox.list()):
        inbox.delete(item.key)
    extract("n2", store)
    write("n2", store)
    assert counts(publish("n2", store)) == (7, 0, 0, 6, 1)
    rows = rows_in(store)
    assert identities(rows) == expected
    texts = {
        version: {row["image_key"]: row["caption"] for row in rows if row["model_version"] == version}
        for version in (trained.model.version, "v2")
    }
    assert texts["v2"] == texts[trained.model.version]


def test_the_champion_is_fixed_for_the_night(inbox, store, trained):
    """A model promoted while the night runs captions the next night, not the rest of this one."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    extract("n1", store)
    crown("v2", store)
    write("n1", store)
    assert publish("n1", store)["version"] == trained.model.version
    assert {row["model_version"] for row in rows_in(store)} == {trained.model.version}


def test_a_photograph_removed_during_the_night_is_accounted_for(inbox, store):
    """What was listed but can't be read any more gets a failed row that says so."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    inbox.delete("red.jpg")
    extract("n1", store)
    write("n1", store)
    record = publish("n1", store)
    assert counts(record) == (7, 0, 7, 5, 2)
    assert record["errors"]["removed or replaced since it was listed"] == 1
    [row] = [row for row in rows_in(store) if row["image_key"] == "red.jpg"]
    assert (row["status"], row["caption"]) == ("failed", None)


def test_what_was_gone_and_comes_back_as_it_was_is_captioned(inbox, store, trained):
    """Put back with the same etag, as S3 gives to the same bytes, a photograph that was gone is tried again."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    with away(inbox, "red.jpg"):
        extract("n1", store)
    write("n1", store)
    assert counts(publish("n1", store)) == (7, 0, 7, 5, 2)
    assert counts(night("n2", inbox, store, date="2026-01-03")) == (7, 6, 1, 1, 0)
    statuses = [row["status"] for row in rows_in(store) if row["image_key"] == "red.jpg"]
    assert sorted(statuses) == ["failed", "ok"]
    assert counts(night("n3", inbox, store)) == (7, 7, 0, 0, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_failed_pictures_are_tried_again_when_asked(inbox, store, monkeypatch):
    """A failed picture is left alone, night after night, until a night is asked to try it again; each try has a row."""
    night("n1", inbox, store)
    assert counts(night("n2", inbox, store)) == (7, 7, 0, 0, 0)
    assert counts(night("n3", inbox, store, retry_failed=True)) == (7, 6, 1, 0, 1)
    with monkeypatch.context() as patch:
        # As if this version of the pipeline could read what the one before could not.
        green = np.full((8, 8, 3), (40, 180, 40), np.uint8)
        patch.setattr(features, "read_picture", lambda *_, **__: green)
        assert counts(night("n4", inbox, store, retry_failed=True)) == (7, 6, 1, 1, 0)
    rows = [row for row in rows_in(store) if row["image_key"] == "broken.jpg"]
    assert [row["status"] for row in sorted(rows, key=lambda row: row["captioned_at"])] == ["failed", "failed", "ok"]
    assert counts(night("n5", inbox, store, retry_failed=True)) == (7, 7, 0, 0, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_new_champion_captions_only_what_is_new_where_that_is_asked(inbox, store, trained):
    """With the archive left to the models before, neither features nor captions are made of what one has captioned."""
    night("n1", inbox, store)
    crown("v2", store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    assert counts(night("n2", inbox, store, archive=nights.Archive.NEW)) == (8, 7, 1, 1, 0)
    assert [row["image_key"] for row in rows_in(store) if row["model_version"] == "v2"] == ["yellow, new.jpg"]
    assert counts(night("n3", inbox, store)) == (8, 1, 0, 6, 1)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("step", ["extraction", "captions"])
def test_two_nights_at_once_caption_nothing_twice(inbox, store, trained, step):
    """Of two nights whose listings differ, the second takes over what the first has claimed, and claims the rest."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    nights.list_inbox("n2", inbox=inbox.uri, store=store)
    if step == "captions":
        extract("n1", store)
    for run in ("n1", "n2"):
        nights.plan_extraction(run, store=store, shard_size=3)
    if step == "captions":
        extract("n2", store)
        for run in ("n1", "n2"):
            nights.plan_captions(run, store=store, date=DATE, shard_size=3)
    for run in ("n2", "n1"):
        extract(run, store)
        write(run, store)
        publish(run, store)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)
    rows = features.index(trained.model.encoder_id, store)
    assert len(rows) == len(rows.group_by("key").aggregate([])) == 8
    for record in runs.finished(nights.KIND, store):
        assert record["listed"] == {"n1": 7, "n2": 8}[record["run"]]
        assert record["captioned"] + record["failed"] + record["already_done"] == record["listed"]


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_night_unlike_the_others_warns(new_bucket, store, trained, caplog):
    """Nights are compared with the model's test and with each other; one of black pictures is noticed, and recorded."""
    toy.copy(trained.store, store, "features/")
    evaluation.evaluate(trained.model.version, store=store, search=Search(beam_width=2), max_failed_fraction=0.2)
    usual, black = new_bucket(), new_bucket()
    for colour in toy.COLOURS:
        for seed in range(10):
            usual.put(f"{colour}-{seed}.jpg", toy.picture(colour, seed))
    record = night("n1", usual, store)
    assert record["drift"].keys() == {"the model's test"}
    assert record["warnings"] == []
    for number in range(40):
        black.put(f"{number}.png", toy.png(0, 0, number))
    record = night("n2", black, store)
    assert record["drift"].keys() == {"the model's test", "earlier nights"}
    assert record["drift"]["earlier nights"]["features"] > 1
    assert any(text.startswith("features: ") and "earlier nights" in text for text in record["warnings"])
    assert record["warnings"][0] in caplog.text


def test_a_step_repeated_after_it_was_done_changes_nothing(inbox, store):
    """Whichever step is done again, features and captions stay as they are, and so do the counts of the record."""
    record = night("n1", inbox, store)
    before = toy.etags(store, "features/", "captions/")
    for shard in runs.planned_shards("n1", "extraction", store):
        assert features.extract(shard, store=store).images == 0
    shards = runs.planned_shards("n1", "captions", store)
    for shard in shards:
        assert captions.caption(shard, store=store, search=Search(beam_width=2), sidecars=False) == {
            "shard": shard,
            "images": 0,
            "summary": "done before",
        }
    # On another day, too, the run goes on in the partition that it began.
    write("n1", store, date="2026-01-03")
    assert runs.planned_shards("n1", "captions", store) == shards
    again = publish("n1", store)
    by_the_clock = {"finished_at": "", "images_per_second": 0}
    assert again | by_the_clock == record | by_the_clock
    with pytest.raises(PipelineError, match="1 of 7 images failed, more than the allowed 0%"):
        publish("n1", store, max_failed_fraction=0)
    assert toy.etags(store, "features/", "captions/") == before


def test_a_run_repeated_from_its_start_looks_anew(inbox, store, trained):
    """Cleared as a whole, a run lists again, finds what has come since, and leaves what is done."""
    night("n1", inbox, store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    assert counts(night("n1", inbox, store)) == (8, 7, 1, 1, 0)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


STEPS = ("listed", "extraction planned", "partly extracted", "extracted", "captions planned", "partly captioned")


def interrupted(run, inbox, store, last):
    """A night that gets as far as ``last`` of ``STEPS``."""
    reached = STEPS[: STEPS.index(last) + 1]
    nights.list_inbox(run, inbox=inbox.uri, store=store)
    if "extraction planned" in reached:
        shards = nights.plan_extraction(run, store=store, shard_size=3)
        for shard in shards if "extracted" in reached else shards[:1] if "partly extracted" in reached else []:
            features.extract(shard, store=store)
    if "captions planned" in reached:
        shards = nights.plan_captions(run, store=store, date=DATE, shard_size=3)
        if "partly captioned" in reached:
            captions.caption(shards[1], store=store, search=Search(beam_width=2), sidecars=False)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("run", ["n1", "n2"], ids=["same run", "next run"])
@pytest.mark.parametrize("last", STEPS)
def test_an_interrupted_night_is_made_up_for(inbox, store, trained, last, run):
    """Wherever a night broke off, the same run repeated, or the next one, leaves one row for each photograph."""
    interrupted("n1", inbox, store, last)
    before = toy.etags(store, "features/", "captions/")
    assert list(runs.finished(nights.KIND, store)) == []
    record = night(run, inbox, store)
    assert record["already_done"] == (3 if last == "partly captioned" else 0)
    assert record["captioned"] + record["failed"] + record["already_done"] == record["listed"] == 7
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)
    after = toy.etags(store, "features/", "captions/")
    assert {key: after.get(key) for key in before} == before


def test_a_night_goes_on_where_it_broke_off(inbox, store, trained):
    """With its captions planned again and the rest written, a run counts what it wrote before as its own."""
    interrupted("n1", inbox, store, "partly captioned")
    write("n1", store, date="2026-01-03")
    assert counts(publish("n1", store)) == (7, 0, 7, 6, 1)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


def test_a_crash_before_the_shard_is_written_leaves_no_row(inbox, store, trained, monkeypatch):
    """The shard is written last: where that fails, sidecars or not, the images are captioned by the retry."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    extract("n1", store)
    [shard] = nights.plan_captions("n1", store=store, date=DATE, shard_size=10)

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write", fail)
        with pytest.raises(OSError, match="disk full"):
            captions.caption(shard, store=store, search=Search(beam_width=2), sidecars=True)
    assert rows_in(store) == []
    with pytest.raises(ObjectNotFoundError, match=shard):
        publish("n1", store)
    assert list(runs.finished(nights.KIND, store)) == []
    done = captions.caption(shard, store=store, search=Search(beam_width=2), sidecars=True)
    assert done == {"shard": shard, "images": 7, "captioned": 6, "failed": 1, "summary": "7 images, 1 failed"}
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


def test_sidecars(inbox, store):
    """Where wanted, each row is written as JSON under its image's name too; otherwise nothing is."""
    night("n1", inbox, store)
    assert list(store.list("sidecars/")) == []
    crown("v2", store)
    night("n2", inbox, store, sidecars=True)
    rows = {row["image_key"]: row for row in rows_in(store) if row["model_version"] == "v2"}
    sidecars = {item.key: json.loads(store.get(item.key)) for item in store.list("sidecars/")}
    assert sidecars.keys() == {f"sidecars/{key}.json" for key in rows}
    for key, row in rows.items():
        sidecar = sidecars[f"sidecars/{key}.json"]
        assert datetime.fromisoformat(sidecar.pop("captioned_at")) == row.pop("captioned_at")
        assert sidecar == row


def test_an_image_unaccounted_for_fails_the_night(inbox, store):
    """Where a listed image has no row, the record is written and the night fails with the sum and the image's name."""
    night("n1", inbox, store)
    listing = tables.read(nights._listing_key("n1"), store)
    lost = pa.table([["lost.jpg"], ["e"]], schema=features.IMAGES)
    about = tables.about(listing)
    with_lost = pa.concat_tables([listing.replace_schema_metadata(None), lost])
    tables.write(with_lost, nights._listing_key("n1"), store, about=about)
    with pytest.raises(
        PipelineError, match=r"8 images were listed .* 6 captioned \+ 1 failed \+ 0 .* are 7: lost\.jpg"
    ):
        publish("n1", store)
    assert counts(next(runs.finished(nights.KIND, store))) == (8, 0, 7, 6, 1)


def test_a_lost_shard_fails_the_night(inbox, store):
    """A shard of captions that is not there is named, and no record claims that the night has ended."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    extract("n1", store)
    write("n1", store)
    lost = [item.key for item in store.list("captions/")][1]
    store.delete(lost)
    with pytest.raises(ObjectNotFoundError, match=lost.rpartition("/")[2]):
        publish("n1", store)
    assert list(runs.finished(nights.KIND, store)) == []


def test_captions_can_t_be_planned_before_the_features_are_there(inbox, store):
    """The error says how many images lack features."""
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    with pytest.raises(PipelineError, match="7 of 7 images have no features"):
        nights.plan_captions("n1", store=store, date=DATE, shard_size=3)


def test_too_many_failures_fail_the_night(inbox, store):
    """The night fails after its record is written, which counts the errors by kind, and the good ones keep captions."""
    for number in range(3):
        inbox.put(f"empty-{number}.jpg", b"")
    with pytest.raises(PipelineError, match=r"4 of 10 images failed, more than the allowed 20%.*empty-\d\.jpg"):
        night("n1", inbox, store)
    [record] = runs.finished(nights.KIND, store)
    assert counts(record) == (10, 0, 10, 6, 4)
    assert record["errors"]["the file is empty"] == 3
    assert sum(row["status"] == "ok" for row in rows_in(store)) == 6


def test_a_night_of_broken_pictures_only(new_bucket, store):
    """Where no picture at all can be read, each still gets its row."""
    inbox = new_bucket()
    inbox.put("broken.jpg", b"")
    assert counts(night("n1", inbox, store)) == (1, 0, 1, 0, 1)
    assert [row["status"] for row in rows_in(store)] == ["failed"]


def test_an_empty_inbox(new_bucket, store):
    """A night with nothing in the inbox is a good night."""
    assert counts(night("n1", new_bucket(), store)) == (0, 0, 0, 0, 0)
    assert rows_in(store) == []


@pytest.fixture
def archive(inbox, store):
    """A store after nights with a failed picture, a changed one, a new champion and one more photograph."""
    night("n1", inbox, store)
    inbox.put("red.jpg", toy.picture("green", 77))
    night("n2", inbox, store, date="2026-01-03", retry_failed=True)
    crown("v2", store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    night("n3", inbox, store, date="2026-01-04")
    return store


def snippets():
    """The README's ways to read the newest captions."""
    [chapter] = re.findall(r"## Read the captions\n(.*?)\n## ", (PROJECT / "README.md").read_text(), re.DOTALL)
    return re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("snippet", snippets(), ids=["duckdb", "pandas", "pyarrow"])
def test_the_newest_captions_are_read_as_the_readme_says(archive, inbox, snippet):
    """DuckDB, pandas and pyarrow alone find exactly one newest caption of each photograph that could be read."""
    code = ast.parse(snippet.replace("data/store", str(archive.root)))
    last = ast.Expression(code.body.pop().value)
    names = {"duckdb": duckdb, "pd": pd, "pyarrow": pa}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the README's own lines
    found = eval(compile(last, "README.md", "eval"), names)  # noqa: S307
    frame = (
        found if isinstance(found, pd.DataFrame) else found.to_df() if hasattr(found, "to_df") else found.to_pandas()
    )
    frame = frame.rename(columns=lambda name: name.removesuffix("_first"))
    expected = {item.key for item in inbox.list() if is_image(item.key)} - {"broken.jpg"}
    assert sorted(frame["image_key"]) == sorted(expected)
    assert set(frame["model"].astype(str)) == {"v2"}
    colours = {key: colour_in(text) for key, text in zip(frame["image_key"], frame["caption"], strict=True)}
    assert colours == {key: "green" if key == "red.jpg" else colour_in(key) for key in expected}


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_partitions_are_columns(archive, trained):
    """Model and date stand in the folders' names; a reader that knows of them finds both, and times in UTC."""
    frame = pd.read_parquet(archive.root / "captions")
    assert list(frame.columns) == [*captions.SCHEMA.names, "model", "date"]
    by_night = Counter(zip(frame["model"].astype(str), frame["date"].astype(str), strict=True))
    first = trained.model.version
    assert by_night == {(first, DATE): 7, (first, "2026-01-03"): 2, ("v2", "2026-01-04"): 8}
    assert str(frame["captioned_at"].dt.tz) == "UTC"


def test_shards_of_captions_are_larger(inbox, store, monkeypatch):
    """One process captions what several have extracted, up to five times as many images."""
    monkeypatch.setattr(nights, "SHARDS", 5)
    nights.list_inbox("n1", inbox=inbox.uri, store=store)
    extract("n1", store)
    assert len(runs.planned_shards("n1", "extraction", store)) == 3
    assert len(nights.plan_captions("n1", store=store, date=DATE, shard_size=1)) == 2

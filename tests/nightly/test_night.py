"""The nightly run: every image of the inbox ends in one row, once, whatever happens during the night."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline.captioner.registry import promote
from pipeline.config import DecodingConfig
from pipeline.data.images import Picture
from pipeline.errors import PipelineError
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.nightly import captions
from pipeline.nightly import night as nights
from pipeline.storage import open_bucket, parquet
from pipeline.work import runs
from pipeline.work.outcomes import GONE
from tests.support import toy
from tests.support.models import write_model
from tests.support.nights import (
    DATE,
    colour_in,
    counts,
    extract,
    identities,
    night,
    photographs,
    promote_copy,
    reconciled,
    removed,
    rows_in,
    write,
)

BEAM = DecodingConfig(beam_width=2)


def test_every_photograph_ends_in_one_row(inbox, store, trained):
    """After a night each photograph has a true caption or an error, other files have nothing, and the counts agree."""
    inbox.put("more/yellow.jpg", toy.picture("yellow", 3, size=(30, 10)))
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
            assert (row["width"], row["height"]) == (None, None)
            assert "cannot be decoded" in row["error"]
        else:
            assert (row["status"], row["error"]) == ("ok", None)
            assert colour_in(row["caption"]) == colour_in(row["image_key"])
            assert -5 < row["log_prob"] < 0
            assert (row["width"], row["height"]) == ((30, 10) if row["image_key"] == "more/yellow.jpg" else (8, 8))

    assert counts(record) == (7, 0, 7, 6, 1)
    [(error, count)] = record.errors.items()
    assert (count, "cannot be decoded" in error) == (1, True)
    assert (record.status, record.message) == ("succeeded", "")
    assert (record.version, record.encoder_id) == (trained.model.version, trained.model.encoder_id)
    assert (record.inbox, record.archive, record.retry_failed) == (inbox.uri, "all", False)
    assert set(record.seconds) == {"load", "read", "decode", "encode", "caption", "write"}
    assert record.seconds["caption"] > 0
    assert record.images_per_second > 0
    assert before <= record.started_at <= record.finished_at <= datetime.now(UTC)
    assert record.started_at - before < timedelta(minutes=5)
    assert record.run == "scheduled__2026-01-02T02:00:00+00:00"
    assert list(runs.list_records(runs.NIGHT, store)) == [record]


def test_without_a_champion(new_bucket):
    """A night without a champion fails at its first step, says what to do, and leaves nothing."""
    store = new_bucket()
    with pytest.raises(PipelineError, match=r"No model has been promoted.*trigger a retraining"):
        nights.list_inbox("n1", inbox=new_bucket(), store=store, options=nights.NightOptions())
    assert list(store.list()) == []


def test_a_night_that_begins_is_running(inbox, store, trained):
    """Its record says so as soon as the inbox is listed, and until it is reconciled."""
    before = datetime.now(UTC)
    options = nights.NightOptions(archive=nights.Archive.NEW, retry_failed=True)
    nights.list_inbox("n1", inbox=inbox, store=store, options=options)
    record = runs.read_record(runs.NIGHT, "n1", store)
    assert (record.status, record.message, record.finished_at) == ("running", "", None)
    assert before <= record.started_at <= datetime.now(UTC)
    assert (record.version, record.inbox, record.listed) == (trained.model.version, inbox.uri, 7)
    assert (record.archive, record.retry_failed) == ("new", True)
    extract("n1", store)
    write("n1", store)
    assert runs.read_record(runs.NIGHT, "n1", store) == record
    assert reconciled("n1", store).status == "succeeded"
    # A run that is repeated from its start runs again.
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    assert runs.read_record(runs.NIGHT, "n1", store).status == "running"


def test_the_second_night_does_nothing(inbox, store):
    """With nothing new, nothing is extracted or captioned, no object changes, and one bad picture fails only once."""
    night("n1", inbox, store)
    before = toy.etags(store, "features/", "captions/", "shards/")
    record = night("n2", inbox, store, date="2026-01-03", max_failed_fraction=0)
    assert counts(record) == (7, 7, 0, 0, 0)
    assert toy.etags(store, "features/", "captions/", "shards/") == before


def test_only_new_and_changed_photographs_are_captioned(inbox, store, trained):
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
    assert sorted(row["image_key"] for row in parquet.read(new, store).to_pylist()) == ["red.jpg", "yellow, new.jpg"]
    assert len(rows_in(store)) == 9
    assert max(identities(rows_in(store)).values()) == 1


def test_a_new_champion_captions_the_archive_from_stored_features(inbox, store, trained):
    """The new champion captions all images again, although the pictures can't be read any more."""
    night("n1", inbox, store)
    promote_copy("v2", store)
    expected = photographs(inbox, trained.model.version) + photographs(inbox, "v2")
    nights.list_inbox("n2", inbox=inbox, store=store, options=nights.NightOptions())
    for item in list(inbox.list()):
        inbox.delete(item.key)
    extract("n2", store)
    write("n2", store)
    assert counts(reconciled("n2", store)) == (7, 0, 0, 6, 1)
    rows = rows_in(store)
    assert identities(rows) == expected
    texts = {
        version: {row["image_key"]: row["caption"] for row in rows if row["model_version"] == version}
        for version in (trained.model.version, "v2")
    }
    assert texts["v2"] == texts[trained.model.version]


def test_the_champion_is_fixed_for_the_night(inbox, store, trained):
    """A model promoted during the night captions the next night, not the rest of this one."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    extract("n1", store)
    promote_copy("v2", store)
    write("n1", store)
    assert reconciled("n1", store).version == trained.model.version
    assert {row["model_version"] for row in rows_in(store)} == {trained.model.version}


def test_a_photograph_removed_during_the_night_is_accounted_for(inbox, store):
    """An image that was listed but can't be read any more gets a failed row that says so."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    inbox.delete("red.jpg")
    extract("n1", store)
    write("n1", store)
    record = reconciled("n1", store)
    assert (counts(record), record.gone) == ((7, 0, 7, 5, 1), 1)
    assert GONE not in record.errors
    [row] = [row for row in rows_in(store) if row["image_key"] == "red.jpg"]
    assert (row["status"], row["caption"]) == ("failed", None)


def test_a_photograph_that_comes_back_is_captioned(inbox, store):
    """A photograph that was gone is tried again if it comes back with the same etag, as S3 gives to the same bytes."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    with removed(inbox, "red.jpg"):
        extract("n1", store)
    write("n1", store)
    record = reconciled("n1", store)
    assert (counts(record), record.gone) == ((7, 0, 7, 5, 1), 1)
    assert counts(night("n2", inbox, store, date="2026-01-03")) == (7, 6, 1, 1, 0)
    statuses = [row["status"] for row in rows_in(store) if row["image_key"] == "red.jpg"]
    assert sorted(statuses) == ["failed", "ok"]
    assert counts(night("n3", inbox, store)) == (7, 7, 0, 0, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_failed_pictures_are_tried_again_on_request(inbox, store, monkeypatch):
    """A failed picture is left alone every night until a night is asked to try it again; each attempt has a row."""
    night("n1", inbox, store)
    assert counts(night("n2", inbox, store)) == (7, 7, 0, 0, 0)
    assert counts(night("n3", inbox, store, options=nights.NightOptions(retry_failed=True))) == (7, 6, 1, 0, 1)
    with monkeypatch.context() as patch:
        # As if this version of the pipeline could read what an earlier one could not.
        green = Picture(np.full((8, 8, 3), (40, 180, 40), np.uint8), 8, 8)
        patch.setattr(extraction, "read_picture", lambda *_, **__: green)
        assert counts(night("n4", inbox, store, options=nights.NightOptions(retry_failed=True))) == (7, 6, 1, 1, 0)
    rows = [row for row in rows_in(store) if row["image_key"] == "broken.jpg"]
    assert [row["status"] for row in sorted(rows, key=lambda row: row["captioned_at"])] == ["failed", "failed", "ok"]
    assert counts(night("n5", inbox, store, options=nights.NightOptions(retry_failed=True))) == (7, 7, 0, 0, 0)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_new_champion_captions_only_new_images_on_request(inbox, store):
    """With ``Archive.NEW`` neither features nor captions are made of images that an earlier champion has captioned."""
    night("n1", inbox, store)
    promote_copy("v2", store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    assert counts(night("n2", inbox, store, options=nights.NightOptions(archive=nights.Archive.NEW))) == (8, 7, 1, 1, 0)
    assert [row["image_key"] for row in rows_in(store) if row["model_version"] == "v2"] == ["yellow, new.jpg"]
    assert counts(night("n3", inbox, store)) == (8, 1, 0, 6, 1)


AGAIN = nights.NightOptions(recaption="more/*, broken.jpg")
"""Of the inbox, two photographs and the damaged one."""


def attempts_at(store):
    """The statuses of the attempts at each image, by key, the oldest first."""
    found = {}
    for row in sorted(rows_in(store), key=lambda row: row["captioned_at"]):
        found.setdefault(row["image_key"], []).append(row["status"])
    return found


def test_a_selection_is_captioned_again(inbox, store):
    """From stored features, whatever its captions; failed images are tried again. Later nights leave it alone."""
    night("n1", inbox, store)
    before = toy.etags(store, "captions/")
    record = night("n2", inbox, store, options=AGAIN, date=DATE)
    assert (counts(record), record.requested) == ((7, 4, 1, 2, 1), 3)
    after = toy.etags(store, "captions/")
    assert {key: after.get(key) for key in before} == before
    expected = {
        key: 2 if key == "broken.jpg" or key.startswith("more/") else 1 for key, _, _ in identities(rows_in(store))
    }
    assert {key: len(found) for key, found in attempts_at(store).items()} == expected
    assert counts(night("n3", inbox, store)) == (7, 7, 0, 0, 0)
    # Another run is another request.
    assert counts(night("n4", inbox, store, options=AGAIN, date=DATE)) == (7, 4, 1, 2, 1)


def test_a_repeated_run_captions_a_selection_once(inbox, store):
    """Whether its steps are repeated, or all of it: what it has captioned again is done."""
    night("n1", inbox, store)
    record = night("n2", inbox, store, options=AGAIN)
    before = toy.etags(store, "captions/", "features/")
    extract("n2", store)
    write("n2", store, date="2026-01-03")
    assert counts(reconciled("n2", store)) == counts(record)
    assert counts(night("n2", inbox, store, options=AGAIN)) == (7, 7, 0, 0, 0)
    assert toy.etags(store, "captions/", "features/") == before


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_new_images_of_a_selection_are_captioned_once(inbox, store):
    """An image that had no caption gets one, though it is selected; the others are captioned as every night."""
    record = night("n1", inbox, store, options=nights.NightOptions(recaption="*.jpg"))
    assert (counts(record), record.requested) == ((7, 0, 7, 6, 1), 5)
    assert max(map(len, attempts_at(store).values())) == 1


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_selection_that_was_not_captioned_again(inbox, store):
    """An earlier caption does not fulfil the request: the night fails, and names the images."""
    night("n1", inbox, store)
    nights.list_inbox("n2", inbox=inbox, store=store, options=AGAIN)
    message = r"7 images were listed .* only 4 are accounted for .*no row since .*broken\.jpg, more/red again\.jpg"
    with pytest.raises(PipelineError, match=message):
        reconciled("n2", store)
    assert runs.read_record(runs.NIGHT, "n2", store).status == "failed"
    write("n2", store)
    assert counts(reconciled("n2", store)) == (7, 4, 0, 2, 1)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_two_requests_at_once(inbox, store):
    """The second run takes over the open shards of the first: they are captioned after its request, too."""
    night("n1", inbox, store)
    for run in ("n2", "n3"):
        nights.list_inbox(run, inbox=inbox, store=store, options=nights.NightOptions(recaption="more/*"))
    for run in ("n2", "n3"):
        nights.plan_captions(run, store=store, date=DATE, shard_size=3)
    for run in ("n3", "n2"):
        write(run, store)
        assert counts(reconciled(run, store)) == (7, 5, 0, 2, 0)
    assert [len(attempts_at(store)[key]) for key in ("more/yellow.jpg", "more/red again.jpg")] == [2, 2]


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_a_selection_by_keys(inbox, store, caplog):
    """Whole keys, with any characters; those that are not in the inbox are named."""
    night("n1", inbox, store)
    keys = frozenset({"déjà vu/100% blue + #1?.jpg", "typo.jpg"})
    record = night("n2", inbox, store, options=nights.NightOptions(recaption_keys=keys))
    assert (counts(record), record.requested) == ((7, 6, 0, 1, 0), 1)
    assert "can't be captioned again" in caplog.text
    assert "1, ['typo.jpg']" in caplog.text


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("selection", [{"recaption": "less/*"}, {"recaption_keys": frozenset({"more"})}])
def test_a_selection_of_nothing(inbox, store, selection):
    """It is an error, which shows the selection; nothing is written."""
    before = toy.etags(store, "")
    with pytest.raises(PipelineError, match=r"None of the 7 photographs in .* Received: '?\[?'?(less/\*|more)'"):
        nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions(**selection))
    assert toy.etags(store, "") == before


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("step", ["extraction", "captions"])
def test_two_concurrent_nights_caption_nothing_twice(inbox, store, trained, step):
    """Of two nights whose listings differ, the second takes over the shards of the first, and claims the rest."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    nights.list_inbox("n2", inbox=inbox, store=store, options=nights.NightOptions())
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
        reconciled(run, store)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)
    rows = feature_store.index(trained.model.encoder_id, store)
    assert len(rows) == len(rows.group_by("image_key").aggregate([])) == 8
    for record in runs.list_records(runs.NIGHT, store):
        assert record.listed == {"n1": 7, "n2": 8}[record.run]
        assert record.captioned + record.failed + record.already_done == record.listed


def test_a_repeated_step_changes_nothing(inbox, store):
    """Any step can be repeated: features, captions and the counts of the record stay as they are."""
    record = night("n1", inbox, store)
    before = toy.etags(store, "features/", "captions/")
    for shard in runs.recorded_shards("n1", runs.EXTRACTION, store):
        assert extraction.extract(shard, store=store).images == 0
    shards = runs.recorded_shards("n1", runs.CAPTIONS, store)
    for shard in shards:
        done = captions.caption_shard(shard, store=store, decoding=BEAM, review_below=0.5)
        assert (done["shard"], done["images"], done["summary"]) == (shard, 0, "done before")
    # On another day, too, the run continues in the partition that it began.
    write("n1", store, date="2026-01-03")
    assert runs.recorded_shards("n1", runs.CAPTIONS, store) == shards
    again = reconciled("n1", store)
    by_the_clock = {"finished_at", "images_per_second"}
    assert again.model_dump(exclude=by_the_clock) == record.model_dump(exclude=by_the_clock)
    with pytest.raises(PipelineError, match="1 of 7 images failed, more than the allowed 0%"):
        reconciled("n1", store, max_failed_fraction=0)
    assert toy.etags(store, "features/", "captions/") == before


def test_a_run_repeated_from_its_start_lists_again(inbox, store, trained):
    """A run that was cleared as a whole finds the images that have come since, and leaves those that are done."""
    night("n1", inbox, store)
    inbox.put("yellow, new.jpg", toy.picture("yellow", 3))
    assert counts(night("n1", inbox, store)) == (8, 7, 1, 1, 0)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


STEPS = ("listed", "extraction planned", "partly extracted", "extracted", "captions planned", "partly captioned")


def interrupted(run, inbox, store, last):
    """A night that is interrupted after ``last``, one of ``STEPS``."""
    reached = STEPS[: STEPS.index(last) + 1]
    nights.list_inbox(run, inbox=inbox, store=store, options=nights.NightOptions())
    if "extraction planned" in reached:
        shards = nights.plan_extraction(run, store=store, shard_size=3)
        for shard in shards if "extracted" in reached else shards[:1] if "partly extracted" in reached else []:
            extraction.extract(shard, store=store)
    if "captions planned" in reached:
        shards = nights.plan_captions(run, store=store, date=DATE, shard_size=3)
        if "partly captioned" in reached:
            captions.caption_shard(shards[1], store=store, decoding=BEAM, review_below=0.5)


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
@pytest.mark.parametrize("run", ["n1", "n2"], ids=["same run", "next run"])
@pytest.mark.parametrize("last", STEPS)
def test_an_interrupted_night_is_completed(inbox, store, trained, last, run):
    """Wherever a night was interrupted, the same run, repeated, or the next one leaves one row for each photograph."""
    interrupted("n1", inbox, store, last)
    before = toy.etags(store, "features/", "captions/")
    assert [record.status for record in runs.list_records(runs.NIGHT, store)] == ["running"]
    record = night(run, inbox, store)
    assert record.already_done == (3 if last == "partly captioned" else 0)
    assert record.captioned + record.failed + record.already_done == record.listed == 7
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)
    after = toy.etags(store, "features/", "captions/")
    assert {key: after.get(key) for key in before} == before


def test_a_resumed_night_counts_its_earlier_captions(inbox, store, trained):
    """When a run plans its captions again and writes the rest, those that it wrote before still count as its own."""
    interrupted("n1", inbox, store, "partly captioned")
    write("n1", store, date="2026-01-03")
    assert counts(reconciled("n1", store)) == (7, 0, 7, 6, 1)
    assert identities(rows_in(store)) == photographs(inbox, trained.model.version)


def test_captions_can_t_be_planned_without_features(inbox, store):
    """The error says how many images lack features."""
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    with pytest.raises(PipelineError, match="7 of 7 images have no features"):
        nights.plan_captions("n1", store=store, date=DATE, shard_size=3)


def test_a_night_of_broken_pictures_only(new_bucket, store):
    """Where no picture at all can be read, each still gets its row."""
    inbox = new_bucket()
    inbox.put("broken.jpg", b"")
    assert counts(night("n1", inbox, store)) == (1, 0, 1, 0, 1)
    assert [row["status"] for row in rows_in(store)] == ["failed"]


def test_shards_of_captions_are_larger(inbox, store, monkeypatch):
    """A shard of captions has up to five times as many images as a shard of features."""
    monkeypatch.setattr(nights, "SHARD_FACTOR", 5)
    nights.list_inbox("n1", inbox=inbox, store=store, options=nights.NightOptions())
    extract("n1", store)
    assert len(runs.recorded_shards("n1", runs.EXTRACTION, store)) == 3
    assert len(nights.plan_captions("n1", store=store, date=DATE, shard_size=1)) == 2


def test_an_inbox_in_the_store_is_recorded_without_its_address(new_bucket):
    """A copy of the store, with the inbox in it, works elsewhere."""
    store = new_bucket()
    write_model("m1", store)
    promote("m1", store)
    store.put("inbox/a.jpg", b"bytes")
    listed = nights.list_inbox("n1", inbox=open_bucket(store.url("inbox")), store=store, options=nights.NightOptions())
    assert listed["listed"] == 1
    _, found = nights.read_listing("n1", store)
    assert found.inbox == runs.read_record(runs.NIGHT, "n1", store).inbox == "store:inbox"

"""Pruning: objects that no recent champion needs are removed, and nothing else."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.captioner import registry
from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.nightly import captions
from pipeline.ops import prune
from pipeline.storage import layout, parquet
from pipeline.work import runs, shards
from pipeline.work.outcomes import IDENTITY
from tests.support import toy
from tests.support.caption_tables import shard_key
from tests.support.memory import CrashError, MemoryBucket
from tests.support.models import BEAM, DATASET, write_evaluation, write_model

LATER = datetime.now(UTC) + timedelta(days=1)
"""A time before which everything in these tests was written."""


def model(version, store, *, encoder_id="e-1", promoted=True):
    """Write the files and an evaluation of a model, its encoder and features; promote it unless told otherwise."""
    for name in ("model-0.keras", "vocabulary.json", "card.md"):
        store.put(f"{layout.model_folder(version)}/{name}", b"x")
    write_model(version, store, encoder_id=encoder_id)
    write_evaluation(version, store, cider=0.4)
    store.put(layout.evaluation(version, DATASET, BEAM).report, b"x")
    for key in (
        layout.encoder_files(encoder_id),
        f"{layout.encoder_folder(encoder_id)}/0.xml",
        f"{layout.features_folder(encoder_id)}/s.parquet",
    ):
        store.put(key, b"x")
    if promoted:
        registry.promote(version, store)


def caption(version, name, images, store, *, status="ok"):
    """Write a shard of captions; its key."""
    rows = [{"image_key": key, "image_etag": "e", "caption": "a dog", "status": status} for key in images]
    table = pa.Table.from_pylist(rows, schema=captions.SCHEMA)
    key = shard_key("2026-01-01", name, version=version)
    parquet.write(table, key, store)
    return key


@pytest.fixture
def store():
    """A store with four champions, the first two with another encoder, and their files."""
    store = MemoryBucket("store")
    for version, encoder_id in (("v1", "e-0"), ("v2", "e-0"), ("v3", "e-1"), ("v4", "e-1")):
        model(version, store, encoder_id=encoder_id)
    return store


def find(store, *, keep=2, before=LATER, records_before=LATER):
    """What can be removed."""
    return prune.find(store, keep=keep, before=before, records_before=records_before)


def removed(store, **options):
    """Prune with the options of ``find``, and return the keys of the removed objects."""
    everything = set(store.objects)
    prune.remove(find(store, **options), before=options.get("before", LATER), store=store)
    return everything - set(store.objects)


def models_of(keys):
    """The versions of the models to which keys belong."""
    return {key.split("/")[1] for key in keys if key.startswith(layout.MODELS)}


def test_the_last_champions_stay(store):
    """The models, encoders and features of earlier champions are removed completely, and nothing more."""
    gone = removed(store)
    assert models_of(gone) == {"v1", "v2"}
    assert {key for key in gone if not key.startswith("models/")} == {
        "encoders/e-0/0.xml",
        "encoders/e-0/files.json",
        "features/e-0/s.parquet",
    }
    assert [key for key in store.objects if key.startswith(("models/v1", "models/v2"))] == []
    assert registry.roll_back(store).version == "v3"
    with pytest.raises(PipelineError, match="There is no model 'v2'"):
        registry.roll_back(store)


def test_a_champion_counts_once(store):
    """A model that was promoted twice is one champion."""
    registry.promote("v3", store)
    assert models_of(removed(store)) == {"v1", "v2"}


def test_candidates_that_may_be_promoted_stay(store):
    """A model trained after the last promotion stays; an earlier one that was not promoted is removed."""
    model("v5", store, encoder_id="e-2", promoted=False)
    rejected = store.get(layout.model_metadata("v1"))
    store.put(layout.model_metadata("rejected"), rejected.replace(b'"v1"', b'"rejected"'))
    gone = removed(store)
    assert layout.model_metadata("rejected") in gone
    assert [key for key in gone if "v5" in key or "e-2" in key] == []


def test_the_only_caption_of_an_image_stays(store):
    """Captions by a removed model are removed where a model that stays has captioned all images of the shard."""
    redundant = caption("v1", "redundant", "ab", store)
    caption("v1", "precious", "bc", store)
    failed = caption("v2", "failed", "d", store, status="failed")
    caption("v4", "new", "ab", store)
    caption("v4", "failed", "c", store, status="failed")
    assert {key for key in removed(store) if key.startswith("captions/")} == {redundant, failed}


def test_damaged_captions_stay(store):
    """What a damaged shard holds is not known: it is not removed, and no other is removed because of it."""
    unknown = caption("v1", "damaged", "ab", store)
    caption("v1", "precious", "c", store)
    caption("v4", "new", "ab", store)
    store.put(unknown, b"x")
    store.put(caption("v4", "lost", "c", store), b"x")
    assert {key for key in removed(store) if key.startswith("captions/")} == set()


def test_a_damaged_model_stops_the_pruning(store):
    """It might be one to keep: its metadata can't say which encoder and features it needs."""
    store.put(layout.model_metadata("v4"), b"{")
    with pytest.raises(PipelineError, match=r"models/v4/metadata\.json is damaged"):
        removed(store)


def test_corrections_stay(store):
    """Corrections and the copies of their pictures are never removed."""
    corrections.add(
        toy.picture("red"),
        caption="a red square",
        model_caption="a dog",
        model_version="v1",
        corrected_by="a",
        store=store,
    )
    assert [key for key in removed(store, keep=1) if key.startswith(layout.CORRECTIONS)] == []
    assert len(corrections.read(store)) == 1
    assert len([key for key in store.objects if key.startswith("corrections/pictures/")]) == 1


def test_unfinished_work_stays(store):
    """Finished shards are removed, of runs all but their records and profiles, and the checkpoints."""
    images = pa.table([["a"], ["e"]], names=IDENTITY)
    claimed = {}
    for folder, product in (("done", "captions-v4"), ("open", "features-e-1")):
        [claimed[folder]] = shards.claim(
            lambda: images, {"folder": folder}, product=product, order=["image_key"], store=store, shard_size=1
        )
        shards.write_stats(claimed[folder], shards.ShardStats(seconds={"read": 1}), store)
        store.put(layout.shard_slow_images(claimed[folder]), b"{}")
    parquet.write(images, shards.read(claimed["done"], store).result_key, store)
    runs.record_shards("n1", runs.CAPTIONS, [claimed["done"]], store)
    for key in (layout.run_listing("n1"), layout.run_profile("n1"), layout.checkpoint("0123")):
        store.put(key, b"x")
    runs.write_record(runs.NightRecord(run="n1", started_at=datetime.now(UTC)), store)
    done = claimed["done"]
    assert removed(store, keep=4) == {
        f"shards/{done}.parquet",
        f"shards/{done}.stats.json",
        f"shards/{done}.slow.json",
        "runs/steps/n1/listing.parquet",
        "runs/steps/n1/captions.json",
        "training/0123.npz",
    }


def test_claims_of_models_that_are_gone(store):
    """Shards that nobody will ever finish are removed with the lists of them; others are still known as open."""
    images = pa.table([["a"], ["e"]], names=IDENTITY)
    claimed = {}
    for product in ("captions-v1", "features-e-0", "captions-v3", "features-e-1"):
        spec = {"folder": product}
        [claimed[product]] = shards.claim(
            lambda: images, spec, product=product, order=["image_key"], store=store, shard_size=1
        )
    gone = {key for key in removed(store) if key.startswith(layout.SHARDS)}
    assert gone == {
        layout.shard(claimed["captions-v1"]),
        layout.shard(claimed["features-e-0"]),
        layout.open_shards("captions-v1"),
        layout.open_shards("features-e-0"),
    }
    assert shards.open_shards(store) == {claimed["captions-v3"], claimed["features-e-1"]}


def test_old_records_are_removed_but_the_newest(store, monkeypatch):
    """Of each kind the newest stay, however old; a profile goes with the record of its night, and no other does."""
    monkeypatch.setattr(prune, "RECORDS", 2)
    start = datetime(2020, 1, 1, tzinfo=UTC)
    for day in range(5):
        for record in (
            runs.NightRecord(run=f"r{day}", started_at=start),
            runs.RetrainingRecord(run=f"r{day}", started_at=start),
        ):
            runs.write_record(record, store)
            store.times[layout.run_record(record.kind, record.run)] = start + timedelta(days=day)
        store.put(layout.run_profile(f"r{day}"), b"{}")
        store.times[layout.run_profile(f"r{day}")] = start + timedelta(days=day)
    runs.write_record(runs.NightRecord(run="r1", started_at=start), store)  # written again: now the newest
    assert removed(store, keep=4, records_before=start) == set()
    gone = {layout.run_record("night", run) for run in ("r0", "r2", "r3")}
    gone |= {layout.run_profile(run) for run in ("r0", "r2", "r3")}
    gone |= {layout.run_record("retraining", run) for run in ("r0", "r1", "r2")}
    assert removed(store, keep=4, records_before=start + timedelta(days=9)) == gone
    assert [record.run for record in runs.list_records("night", store)] == ["r1", "r4"]


def test_young_objects_stay(store):
    """Objects that were written after the given time are not removed."""
    assert removed(store, before=datetime.now(UTC) - timedelta(days=1)) == set()


def test_other_objects_stay(store):
    """Datasets, sidecars, the champion and the records of runs are never removed."""
    keys = {
        layout.dataset_table(DATASET),
        layout.ingest_report(DATASET),
        layout.vocabulary(DATASET, 1),
        layout.human_baseline(DATASET, "ptb"),
        layout.sidecar("a.jpg"),
        layout.run_record("night", "n1"),
    }
    for key in keys:
        store.put(key, b"{}")
    assert not removed(store, keep=1) & keys
    assert store.exists(layout.CHAMPION)


def test_nothing_is_removed_without_a_champion():
    """In a store without a champion it is unknown what is needed: pruning is an error, and all objects stay."""
    store = MemoryBucket("store")
    model("v1", store, promoted=False)
    with pytest.raises(PipelineError, match="No model has been promoted"):
        find(store, keep=1)


def test_finding_removes_nothing(store):
    """Removable objects are found without any change, with their sizes."""
    before = dict(store.objects)
    found = find(store)
    assert store.objects == before
    assert {(removable.kind, removable.name) for removable in found} == {
        ("models", "v1"),
        ("models", "v2"),
        ("features", "e-0"),
        ("encoders", "e-0"),
    }
    assert sum(removable.size for removable in found) == sum(
        len(data) for key, data in before.items() if key.startswith(("models/v1", "models/v2")) or "e-0" in key
    )


@pytest.mark.parametrize("deletion", range(1, 20))
def test_interrupted_pruning_leaves_no_incomplete_model(store, deletion):
    """Wherever it is interrupted, a model or an encoder is complete or none; repeated, it has the same result."""
    found = find(store)
    assert sum(len(removable.objects) for removable in found) == 19
    store.crash_in = deletion
    with pytest.raises(CrashError):
        prune.remove(found, before=LATER, store=store)
    store.crash_in = None
    for version in ("v1", "v2"):
        left = [key for key in store.objects if key.startswith(f"models/{version}/")]
        assert len(left) in (0, 8) or layout.model_metadata(version) not in left
    removed(store)
    assert find(store) == []

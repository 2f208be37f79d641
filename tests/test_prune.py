"""Pruning: what no champion of late needs goes, and nothing else."""

from datetime import UTC, datetime, timedelta

import pytest
import toy
from memory import CrashError, MemoryBucket

from pipeline import captions, marks, plans, prune, registry, runs, tables
from pipeline.captioner import Metadata
from pipeline.errors import PipelineError

LATER = datetime.now(UTC) + timedelta(days=1)
"""A time before which everything in these tests was written."""


def model(version, store, *, encoder_id="e-1", promoted=True):
    """A model's folder, its encoder and features; promoted unless told otherwise."""
    metadata = Metadata(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset="d",
        max_length=5,
        recipe=toy.RECIPE,
        members=[],
        files={},
    )
    for name in ("model-0.keras", "vocabulary.json", "metrics.json", "profile.json", "report.html"):
        store.put(f"models/{version}/{name}", b"x")
    store.put(f"models/{version}/metadata.json", metadata.model_dump_json().encode())
    for key in (
        f"encoders/{encoder_id}/files.json",
        f"encoders/{encoder_id}/0.xml",
        f"features/{encoder_id}/s.parquet",
    ):
        store.put(key, b"x")
    if promoted:
        registry.promote(version, store)


def caption(version, name, images, store, *, status="ok"):
    """A shard of captions."""
    rows = [{"image_key": key, "image_etag": "e", "caption": "a dog", "status": status} for key in images]
    table = tables.pa.Table.from_pylist(rows, schema=captions.SCHEMA)
    tables.write(table, f"captions/model={version}/date=2026-01-01/{name}.parquet", store)


@pytest.fixture
def store():
    """A store with four champions, the first two by another encoder, and what they left."""
    store = MemoryBucket("store")
    for version, encoder_id in (("v1", "e-0"), ("v2", "e-0"), ("v3", "e-1"), ("v4", "e-1")):
        model(version, store, encoder_id=encoder_id)
    return store


def removed(store, *, keep=2, before=LATER):
    """Prune; the keys that have gone."""
    everything = set(store.objects)
    prune.remove(prune.find(store, keep=keep, before=before), before=before, store=store)
    return everything - set(store.objects)


def test_the_last_champions_stay(store):
    """The models, encoders and features of those before them go, whole; nothing more."""
    gone = removed(store)
    assert {key.split("/")[1] for key in gone if key.startswith("models/")} == {"v1", "v2"}
    assert {key for key in gone if not key.startswith("models/")} == {
        "encoders/e-0/0.xml",
        "encoders/e-0/files.json",
        "features/e-0/s.parquet",
    }
    assert [key for key in store.objects if key.startswith(("models/v1", "models/v2"))] == []
    assert registry.roll_back(store).version == "v3"
    with pytest.raises(PipelineError, match="There is no model 'v2'"):
        registry.roll_back(store)


def test_a_champion_twice_counts_once(store):
    """A model that was promoted again is one champion, not two."""
    registry.promote("v3", store)
    assert {key.split("/")[1] for key in removed(store) if key.startswith("models/")} == {"v1", "v2"}


def test_candidates_that_may_still_win_stay(store):
    """A model made after the last promotion waits for its chance; one that lost goes."""
    model("v5", store, encoder_id="e-2", promoted=False)
    lost = store.get("models/v1/metadata.json")
    store.put("models/lost/metadata.json", lost.replace(b'"v1"', b'"lost"'))
    gone = removed(store)
    assert "models/lost/metadata.json" in gone
    assert [key for key in gone if "v5" in key or "e-2" in key] == []


def test_an_image_s_only_caption_stays(store):
    """Captions of a model that goes are removed only where a model that stays has captioned all the same images."""
    caption("v1", "redundant", "ab", store)
    caption("v1", "precious", "bc", store)
    caption("v2", "failed", "d", store, status="failed")
    caption("v4", "new", "ab", store)
    caption("v4", "failed", "c", store, status="failed")
    assert {key for key in removed(store) if key.startswith("captions/")} == {
        "captions/model=v1/date=2026-01-01/redundant.parquet",
        "captions/model=v2/date=2026-01-01/failed.parquet",
    }


def test_marks_stay(store):
    """What people have written, and the pictures that it is of, is never removed."""
    marks.mark(
        toy.picture("red"),
        caption="a red square",
        wrong_caption="a dog",
        model_version="v1",
        marked_by="a",
        store=store,
    )
    assert [key for key in removed(store) if key.startswith("marks/")] == []
    assert len(marks.read(store)) == 1


def test_what_is_on_its_way_stays(store):
    """Of plans only those of shards that are done go, of runs all but their record and profile; checkpoints go."""
    images = tables.pa.table([["a"], ["e"]], names=plans.IDENTITY)
    claimed = {}
    for folder in ("done", "open"):
        [claimed[folder]] = plans.claim(
            lambda: images, {"folder": folder}, product=folder, order=["key"], store=store, shard_size=1
        )
        plans.write_note(claimed[folder], {}, store)
    tables.write(images, plans.read(claimed["done"], store).result, store)
    runs.note_shards("n1", "captions", [claimed["done"]], store)
    for key in ("runs/n1/listing.parquet", "runs/n1/profile.json", "training/0123.npz"):
        store.put(key, b"x")
    runs.finish("n1", {"kind": "k"}, store)
    gone = removed(store, keep=4)
    done = claimed["done"]
    assert gone == {
        f"plans/{done}.parquet",
        f"plans/{done}.note.json",
        "runs/n1/listing.parquet",
        "runs/n1/captions.json",
        "training/0123.npz",
    }


def test_what_is_young_stays(store):
    """Nothing is touched that was written after the time given."""
    assert removed(store, before=datetime.now(UTC) - timedelta(days=1)) == set()


def test_other_things_stay(store):
    """Datasets, sidecars, the champion and the records of runs are never pruned."""
    for key in ("datasets/d/1/dataset.parquet", "sidecars/a.jpg.json", "runs/n1.json"):
        store.put(key, b"{}")
    assert not removed(store, keep=1) & {"datasets/d/1/dataset.parquet", "sidecars/a.jpg.json", "runs/n1.json"}
    assert store.exists(registry.CHAMPION)


def test_nothing_is_removed_without_a_champion():
    """In a store where nothing was promoted there is nothing to go by: an error, and all stays."""
    store = MemoryBucket("store")
    model("v1", store, promoted=False)
    with pytest.raises(PipelineError, match="No model has been promoted"):
        prune.find(store, keep=1, before=LATER)


def test_looking_removes_nothing(store):
    """What may go is found without a change, with its sizes."""
    before = dict(store.objects)
    found = prune.find(store, keep=2, before=LATER)
    assert store.objects == before
    assert {(each.kind, each.name) for each in found} == {
        ("models", "v1"),
        ("models", "v2"),
        ("features", "e-0"),
        ("encoders", "e-0"),
    }
    assert sum(each.size for each in found) == sum(
        len(data) for key, data in before.items() if key.startswith(("models/v1", "models/v2")) or "e-0" in key
    )


@pytest.mark.parametrize("deletion", range(1, 16))
def test_broken_off_it_leaves_no_half_model(store, deletion):
    """Wherever it dies, a model or an encoder is whole or is none; done again, it comes to the same end."""
    found = prune.find(store, keep=2, before=LATER)
    store.crash_in = deletion
    with pytest.raises(CrashError):
        prune.remove(found, before=LATER, store=store)
    store.crash_in = None
    for version in ("v1", "v2"):
        left = [key for key in store.objects if key.startswith(f"models/{version}/")]
        assert len(left) in (0, 6) or f"models/{version}/metadata.json" not in left
    removed(store)
    assert prune.find(store, keep=2, before=LATER) == []

"""Photographs like one, by the features in the store."""

import pytest

from pipeline.captioner import registry
from pipeline.errors import PipelineError
from pipeline.ops import similar
from pipeline.ops.similar import find_similar
from pipeline.storage import layout
from tests.support.caption_tables import current_row, write_current
from tests.support.features import write_features
from tests.support.memory import MemoryBucket
from tests.support.models import write_model

VECTORS = {
    "a.jpg": [1, 0, 0],
    "copy of a.jpg": [10, 0.5, 0],
    "b.jpg": [1, 1, 0],
    "c.jpg": [1, 2, 0],
    "d.jpg": [0, 0, 1],
    "training.jpg": [1, 0.1, 0],
    "failed.jpg": None,
}
"""A vector for each photograph; one of them is not in the inbox, and one can't be read."""


def fill(store):
    """Write a champion, two files of features of its encoder, and the current captions."""
    write_model("m1", store)
    registry.promote("m1", store)
    names = list(VECTORS)
    write_features(store, {name: VECTORS[name] for name in names[:3]}, 1)
    write_features(store, {name: VECTORS[name] for name in names[3:]}, 2)
    write_current(store, [current_row(name, f"caption of {name}") for name in names if name != "training.jpg"])
    return store


@pytest.fixture
def store(bucket):
    """A store with these."""
    return fill(bucket)


def test_the_nearest_photographs_of_the_inbox(store):
    """By the cosine, whatever the length of the vectors; neither the photograph itself, nor one that is elsewhere."""
    found = find_similar("a.jpg", "e", store=store, count=3)
    assert (found.known, found.compared, found.complete) == (True, 6, True)
    assert [each.image_key for each in found.photographs] == ["copy of a.jpg", "b.jpg", "c.jpg"]
    copy, other, _ = found.photographs
    assert (copy.is_near_duplicate, other.is_near_duplicate) == (True, False)
    assert other.cosine == pytest.approx(2**-0.5, abs=1e-3)
    assert (other.image_etag, other.caption) == ("e", "caption of b.jpg")


def test_the_mean_of_crops(store):
    """Where an encoder gives a vector per crop, their mean is compared."""
    write_model("m2", store, encoder_id="encoder-2")
    registry.promote("m2", store)
    crops = {"a.jpg": [[1, 0], [1, 2]], "b.jpg": [[0, 0], [3, 3]], "c.jpg": [[1, 0], [1, 0]]}
    write_features(store, crops, 3, encoder_id="encoder-2")
    found = find_similar("a.jpg", "e", store=store, count=2)
    assert [(each.image_key, round(each.cosine, 2)) for each in found.photographs] == [("b.jpg", 1), ("c.jpg", 0.71)]


@pytest.mark.parametrize(("key", "etag"), [("failed.jpg", "e"), ("a.jpg", "older"), ("unknown.jpg", "e")])
def test_a_photograph_without_features(store, key, etag):
    """Nothing is found for one that failed, of which another version was encoded, or that is not known."""
    found = find_similar(key, etag, store=store, count=3)
    assert (found.known, found.photographs, found.compared) == (False, [], 0)


def test_a_search_that_takes_too_long(monkeypatch):
    """It says with how many it has compared; the newest files come first."""
    monkeypatch.setattr(similar, "BATCH", 1)
    store = fill(MemoryBucket("store"))
    found = find_similar("c.jpg", "e", store=store, count=9, seconds=0)
    assert (found.known, found.compared, found.complete) == (True, 3, False)
    assert [each.image_key for each in found.photographs] == ["d.jpg"]
    assert find_similar("a.jpg", "e", store=store, count=9, seconds=0).known is False


def test_damaged_features_are_passed_over(store):
    """The others are compared; without current captions there is nothing to show, and without a champion an error."""
    store.put(layout.shard_result(layout.features_folder("encoder-1"), f"{9:016x}"), b"{")
    assert find_similar("a.jpg", "e", store=store, count=1).photographs[0].image_key == "copy of a.jpg"
    store.delete(layout.CURRENT_CAPTIONS)
    assert find_similar("a.jpg", "e", store=store, count=1).photographs == []
    store.delete(layout.CHAMPION)
    with pytest.raises(PipelineError, match="No model has been promoted"):
        find_similar("a.jpg", "e", store=store, count=1)

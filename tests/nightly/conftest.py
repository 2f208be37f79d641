"""A store with a champion, and an inbox."""

import pytest

from pipeline.captioner import registry
from pipeline.nightly import night as nights
from tests.support import toy
from tests.support.loading import load_once
from tests.support.nights import colour_in


@pytest.fixture
def store(new_bucket, trained, monkeypatch):
    """A store with the model of the toy world as champion, and no features."""
    load_once(monkeypatch)
    store = new_bucket()
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    return store


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Make shards of captions as small as those of extraction, so that a few pictures make several."""
    monkeypatch.setattr(nights, "SHARD_FACTOR", 1)


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

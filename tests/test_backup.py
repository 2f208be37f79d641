"""A store is copied, wiped and restored."""

import pytest
import toy

from pipeline import backup, captioner, captions, encoder, features, night, registry
from pipeline.errors import PipelineError
from pipeline.recipe import Search
from pipeline.storage import LocalBucket


def caption_all(run, inbox, store):
    """A night, from the listing to the record."""
    night.list_inbox(run, inbox=inbox.uri, store=store)
    for shard in night.plan_extraction(run, store=store, shard_size=4):
        features.extract(shard, store=store)
    for shard in night.plan_captions(run, store=store, date="2026-01-01", shard_size=1):
        captions.caption(shard, store=store, search=Search(), sidecars=True)
    return night.publish(run, store=store, max_failed_fraction=0, drift_limit=9)


@pytest.fixture
def worked_on(trained, new_bucket):
    """A store with a champion that has captioned eight photographs of an inbox."""
    store, inbox = new_bucket(), new_bucket()
    toy.copy(trained.store, store, "")
    registry.promote(trained.model.version, store)
    for number in range(8):
        inbox.put(f"{number}.jpg", toy.picture("red", number))
    caption_all("n1", inbox, store)
    return store, inbox


def contents(store):
    """All that is in a store."""
    return {item.key: store.get(item.key) for item in store.list()}


def test_a_store_that_was_wiped_is_restored(worked_on, new_bucket):
    """It holds the same, the champion captions, and nothing is captioned again."""
    store, inbox = worked_on
    kept, before = new_bucket(), contents(store)
    assert backup.copy(store, kept).copied == len(before)
    for key in before:
        store.delete(key)
    assert contents(store) == {}
    backup.copy(kept, store)
    assert contents(store) == before
    record = caption_all("n2", inbox, store)
    assert (record["already_done"], record["captioned"], record["extracted"]) == (8, 0, 0)
    inbox.put("new.jpg", toy.picture("blue", 99))
    assert caption_all("n3", inbox, store)["captioned"] == 1


def test_a_second_copy_takes_what_is_new(worked_on, new_bucket):
    """What is there already is not read again, and what was written anew is as it is now."""
    store, inbox = worked_on
    kept = new_bucket()
    first = backup.copy(store, kept)
    inbox.put("new.jpg", toy.picture("blue", 99))
    caption_all("n2", inbox, store)
    second = backup.copy(store, kept)
    assert second.objects > first.objects
    assert second.copied < first.copied / 2
    assert contents(kept) == contents(store)


def test_a_copy_of_a_store_that_is_worked_on_is_whole(worked_on, new_bucket, monkeypatch):
    """Whatever is written while it is made, its champion can be loaded, with its encoder; the rest comes next time."""
    store, _ = worked_on
    kept, champion = new_bucket(), registry.champion(store).version
    listing = type(store).list

    def list_late(self, prefix=""):
        found = list(listing(self, prefix))
        if self is store and not prefix:
            # When the whole store has been listed, another champion appears.
            store.put("models/newer/metadata.json", b"{}")
            store.put(registry.CHAMPION, b'{"version": "newer", "history": []}')
        return iter(found)

    monkeypatch.setattr(type(store), "list", list_late)
    backup.copy(store, kept)
    monkeypatch.undo()
    assert registry.champion(kept).version == champion
    _, metadata = captioner.load(champion, kept)
    encoder.load(metadata.encoder_id, kept)
    assert not kept.exists("models/newer/metadata.json")
    assert backup.copy(store, kept).copied
    assert kept.exists("models/newer/metadata.json")


def test_an_interrupted_copy_goes_on(worked_on, new_bucket, monkeypatch):
    """What points to others comes last: a copy that broke off has no champion, and the next one completes it."""
    store, _ = worked_on
    kept, put, left = new_bucket(), type(store).put, [10]

    def put_some(self, key, data, **options):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("gone")
        return put(self, key, data, **options)

    monkeypatch.setattr(type(store), "put", put_some)
    with pytest.raises(ConnectionError):
        backup.copy(store, kept)
    monkeypatch.undo()
    assert not kept.exists(registry.CHAMPION)
    backup.copy(store, kept)
    assert contents(kept) == contents(store)


def test_a_copy_lies_elsewhere(tmp_path):
    """Neither in itself nor around it."""
    store = LocalBucket(tmp_path / "store")
    for place in ("store", "store/backup", ""):
        with pytest.raises(PipelineError, match="can't lie in the same place"):
            backup.copy(store, LocalBucket(tmp_path / place))
    assert backup.copy(store, LocalBucket(tmp_path / "store-2")).objects == 0

"""Backups: a store is copied, wiped and restored, in its place or elsewhere."""

import io
import os

import pyarrow.parquet as pq
import pytest

from pipeline.captioner import bundle, registry
from pipeline.config import GREEDY
from pipeline.data import corrections
from pipeline.data import dataset as datasets
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.evaluation import card
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.promotion_gate import GateConfig, run_gate
from pipeline.features import encoder
from pipeline.features.extraction import extract_missing
from pipeline.features.splits import read_split
from pipeline.ops import backup, forget
from pipeline.storage import LocalBucket, layout, open_bucket
from pipeline.training import inputs
from tests.support import toy
from tests.support.loading import load_once
from tests.support.models import write_evaluation
from tests.support.nights import night
from tests.support.training import short


@pytest.fixture
def worked_on(trained, new_bucket, monkeypatch):
    """A store with a champion that has captioned eight photographs of an inbox, and the inbox."""
    load_once(monkeypatch)
    store, inbox = new_bucket(), new_bucket()
    toy.copy(trained.store, store, "")
    registry.promote(trained.model.version, store)
    for number in range(8):
        inbox.put(f"{number}-red.jpg", toy.picture("red", number))
    night("n1", inbox, store, max_failed_fraction=0)
    return store, inbox


def contents(store):
    """All objects of a store, by key."""
    return {item.key: store.get(item.key) for item in store.list()}


def wipe(store):
    """Delete all objects."""
    for key in [item.key for item in store.list()]:
        store.delete(key)
    assert contents(store) == {}


def test_a_wiped_store_is_restored(worked_on, new_bucket):
    """It holds the same objects, the champion captions, and nothing is captioned again."""
    store, inbox = worked_on
    copy, before = new_bucket(), contents(store)
    assert backup.back_up(store, copy).copied == len(before)
    wipe(store)
    backup.back_up(copy, store)
    assert contents(store) == before
    record = night("n2", inbox, store)
    assert (record.already_done, record.captioned, record.extracted) == (8, 0, 0)
    inbox.put("new-blue.jpg", toy.picture("blue", 99))
    assert night("n3", inbox, store).captioned == 1


def correct(store, inbox):
    """Store a correction of a photograph, and the dataset that has it; return the id of the dataset."""
    version = registry.read_champion(store).version
    data = inbox.get("0-red.jpg")
    etag = inbox.etag("0-red.jpg")
    corrections.add(
        data,
        caption="a very red square",
        model_caption="a red square",
        model_version=version,
        corrected_by="ada",
        image_key="0-red.jpg",
        image_etag=etag,
        store=store,
    )
    dataset_id = bundle.load_metadata(version, store).dataset
    return ingest([dataset_id], store, corrections=True).dataset


def extract_all(dataset_id, encoder_id, store, run):
    """Extract the missing features of a dataset, those of the corrected pictures among them."""
    for source, images in datasets.listings_by_source(datasets.load(dataset_id, store).table).items():
        extract_missing(images, run=run, source=source, encoder_id=encoder_id, store=store)


def retrain(run, dataset_id, store, source):
    """A retraining on a dataset with corrections, from its inputs to the gate; its record."""
    found = inputs.resolve(
        run, dataset=dataset_id, encoder="", default_dataset="none", default_encoder="none", store=store
    )
    extract_all(found.dataset, found.encoder, store, run)
    vocabulary, _ = datasets.build_vocabulary(found.dataset, store, min_count=1)
    model = toy.train(toy.Inputs(source, found.dataset, vocabulary, found.encoder), store, short())
    for version in (model.version, registry.read_champion(store).version):
        evaluate_model(version, store=store, decoding=GREEDY, max_failed_fraction=0, dataset_id=found.dataset)
    return run_gate(model.version, run=run, decoding=GREEDY, config=GateConfig(), store=store)


def test_a_backup_works_at_another_address(worked_on, new_bucket, trained):
    """Restored elsewhere, with the old store gone, a model is evaluated, a night runs, and a model is trained."""
    store, inbox = worked_on
    corrected = correct(store, inbox)
    extract_all(corrected, trained.inputs.encoder_id, store, "r0")
    copy, elsewhere = new_bucket(), new_bucket()
    backup.back_up(store, copy)
    wipe(store)
    backup.back_up(copy, elsewhere)

    record = night("n2", inbox, elsewhere, max_failed_fraction=0)
    assert (record.already_done, record.captioned, record.extracted) == (8, 0, 0)
    assert record.status == "succeeded"
    features = toy.etags(elsewhere, "features/")
    record = retrain("r1", corrected, elsewhere, trained.inputs.source)
    assert (record.status, record.dataset, record.extracted) == ("succeeded", corrected, 0)
    assert toy.etags(elsewhere, "features/") == features

    # The copies of corrected pictures may have other etags here; ingested again, they can be read.
    again = ingest([corrected], elsewhere, corrections=True).dataset
    extract_all(again, trained.inputs.encoder_id, elsewhere, "r2")
    dataset = datasets.load(again, elsewhere)
    train = read_split(dataset, "train", encoder_id=trained.inputs.encoder_id, store=elsewhere, max_failed_fraction=0)
    assert len(train.table) == 17
    assert sum(captions == ["a very red square"] for captions in train.references.values()) == 1
    assert contents(store) == {}


def texts(key, data):
    """An object as texts: its bytes and, of a table, the metadata and all values of text."""
    yield data.decode("latin-1")
    if key.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        yield str(table.schema.metadata)
        for column in table.columns:
            if str(column.type) in ("string", "large_string", "list<element: string>", "list<item: string>"):
                yield str(column.to_pylist())


def test_nothing_in_the_store_holds_its_address(worked_on, trained):
    """No JSON, no table, no report and no model has the URI or the path of the store that it was written to."""
    store, inbox = worked_on
    record = retrain("r1", correct(store, inbox), store, trained.inputs.source)
    assert record.extracted == 1
    inbox.put("1-blue.jpg", toy.picture("blue", 5))
    night("n2", inbox, store, max_failed_fraction=0)

    addresses = {store.uri, store.url("")}
    if isinstance(store, LocalBucket):
        addresses.add(str(store.root))
    else:
        addresses.add(store.uri.rpartition("/")[2])
    objects = contents(store)
    suffixes = {key.rpartition(".")[2] for key in objects}
    assert suffixes >= {"json", "parquet", "html", "md", "keras", "npz", "version", "xml"}
    found = [
        key for key, data in objects.items() for text in texts(key, data) for address in addresses if address in text
    ]
    assert found == []
    # The inbox and the source are other buckets, which records and datasets name.
    table = layout.dataset_table(trained.inputs.dataset)
    for key, other in ((layout.run_record("night", "n2"), inbox), (table, trained.inputs.source)):
        assert any(other.uri in text for text in texts(key, objects[key]))


def test_a_second_backup_copies_new_objects(worked_on, new_bucket):
    """Objects that the target has are not read again, and mutable ones are as they are now."""
    store, inbox = worked_on
    copy = new_bucket()
    first = backup.back_up(store, copy)
    inbox.put("new-blue.jpg", toy.picture("blue", 99))
    night("n2", inbox, store)
    second = backup.back_up(store, copy)
    assert second.objects > first.objects
    assert second.copied < first.copied / 2
    assert contents(copy) == contents(store)


def test_a_backup_of_a_store_in_use_is_consistent(worked_on, new_bucket, monkeypatch):
    """Whatever is written meanwhile, its champion can be loaded, with its encoder; the rest is copied next time."""
    store, _ = worked_on
    copy, champion = new_bucket(), registry.read_champion(store).version
    model_card = store.get(layout.model_card(champion))
    listing = type(store).list

    def list_late(self, prefix=""):
        found = list(listing(self, prefix))
        if self is store and not prefix:
            # When the whole store has been listed, an evaluation ends, and another model becomes the champion.
            metadata = bundle.load_metadata(champion, store)
            write_evaluation(champion, store, cider=0.4, dataset=metadata.dataset)
            card.write(metadata, store)
            store.put(layout.model_metadata("newer"), b"{}")
            store.put(layout.CHAMPION, b'{"version": "newer", "history": []}')
        return iter(found)

    monkeypatch.setattr(type(store), "list", list_late)
    backup.back_up(store, copy)
    monkeypatch.undo()
    assert registry.read_champion(copy).version == champion
    assert copy.get(layout.model_card(champion)) == model_card != store.get(layout.model_card(champion))
    _, metadata = bundle.load(champion, copy)
    encoder.load(metadata.encoder_id, copy)
    assert not copy.exists(layout.model_metadata("newer"))
    assert backup.back_up(store, copy).copied
    assert copy.exists(layout.model_metadata("newer"))
    assert contents(copy) == contents(store)


def test_what_is_completed_meanwhile_is_not_half_copied(tmp_path, monkeypatch):
    """A model that is finished between two listings is not complete in the backup, because a part may be missing."""
    store, target = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "backup"))
    store.put("models/m0/ensemble", b"")
    listing, listed = type(store).list, []

    def list_late(self, prefix=""):
        found = list(listing(self, prefix))
        listed.append(prefix)
        # The first of these listings is for what is mutable.
        if self is store and prefix == layout.MODELS and listed.count(prefix) == 2:
            store.put("models/m1/ensemble", b"")
            store.put(layout.model_metadata("m1"), b"{}")
        return iter(found)

    monkeypatch.setattr(type(store), "list", list_late)
    backup.back_up(store, target)
    assert [item.key for item in listing(target)] == ["models/m0/ensemble", "models/m1/ensemble"]
    backup.back_up(store, target)
    assert target.exists(layout.model_metadata("m1"))


def test_a_clock_that_was_set_back(worked_on, new_bucket):
    """What was written in its future is copied, too: the champion needs it."""
    store, _ = worked_on
    for item in store.list(layout.MODELS):
        os.utime(store.root / item.key, (2e9, 2e9))
    copy = new_bucket()
    backup.back_up(store, copy)
    bundle.load(registry.read_champion(copy).version, copy)


def test_an_interrupted_backup_is_completed(worked_on, new_bucket, monkeypatch):
    """Mutable objects are copied last: an interrupted backup has no champion, and the next one completes it."""
    store, _ = worked_on
    copy, put, left = new_bucket(), type(store).put, [10]

    def put_some(self, key, data, **options):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("gone")
        return put(self, key, data, **options)

    monkeypatch.setattr(type(store), "put", put_some)
    with pytest.raises(ConnectionError):
        backup.back_up(store, copy)
    monkeypatch.undo()
    assert not copy.exists(layout.CHAMPION)
    backup.back_up(store, copy)
    assert contents(copy) == contents(store)


def test_an_empty_store_is_no_backup(worked_on, new_bucket, tmp_path):
    """A wrong address, or a disk that is not mounted, is an error; the backup stays as it is."""
    store, _ = worked_on
    copy = new_bucket()
    backup.back_up(store, copy)
    for empty in (new_bucket(), LocalBucket(tmp_path / "typo")):
        with pytest.raises(PipelineError, match=r"is empty, so there is nothing to back up\. Check CAPTION_STORE"):
            backup.back_up(empty, copy)
    assert contents(copy) == contents(store)


def test_a_backup_is_in_another_place(tmp_path):
    """It can be neither inside the store nor around it."""
    store = LocalBucket(tmp_path / "store")
    store.put("x", b"")
    for place in ("store", "store/backup", ""):
        with pytest.raises(PipelineError, match="must not be in the same place, or inside it"):
            backup.back_up(store, LocalBucket(tmp_path / place))
    assert backup.back_up(store, LocalBucket(tmp_path / "store-2")).objects == 1


def test_a_backup_is_read_back(worked_on, new_bucket):
    """What was copied, the champion and the current captions; a second backup reads back only what it has copied."""
    store, _ = worked_on
    copy = new_bucket()
    first = backup.back_up(store, copy, check=True)
    version = registry.read_champion(store).version
    assert first.checked == backup.Checked(objects=first.objects, read_back=first.objects, champion=version, captions=8)
    second = backup.back_up(store, copy, check=True)
    assert second.checked == first.checked.model_copy(update={"read_back": second.copied})
    assert second.copied < first.copied


@pytest.mark.parametrize("change", ["lost", "other bytes", "empty"])
def test_a_copy_that_is_not_what_was_copied(worked_on, new_bucket, monkeypatch, change):
    """Whatever the target has made of an object, the error names it."""
    store, _ = worked_on
    copy = new_bucket()
    victim = next(item.key for item in store.list(layout.CAPTIONS))
    put = type(copy).put

    def write(bucket, key, data, **kwargs):
        if key != victim or bucket.uri != copy.uri:
            return put(bucket, key, data, **kwargs)
        if change == "other bytes":
            return put(bucket, key, data[:-1] + b"x", **kwargs)
        return put(bucket, key, b"", **kwargs) if change == "empty" else ""

    monkeypatch.setattr(type(copy), "put", write)
    with pytest.raises(PipelineError, match=victim):
        backup.back_up(store, copy, check=True)


def test_a_backup_that_has_rotted(worked_on, new_bucket):
    """Damage since an earlier backup is noticed where a restored store needs it first."""
    store, _ = worked_on
    copy = new_bucket()
    backup.back_up(store, copy)
    metadata = bundle.load_metadata(registry.read_champion(store).version, store)
    [vocabulary] = [item.key for item in copy.list(layout.model_folder(metadata.version)) if "vocabulary" in item.key]
    copy.put(vocabulary, bytes(len(copy.get(vocabulary))))
    with pytest.raises(PipelineError, match=rf"{vocabulary} is not the file that was saved"):
        backup.back_up(store, copy, check=True)


def test_a_checked_backup_of_a_store_that_has_forgotten(worked_on, new_bucket):
    """What the sweep of the backup has written again is not taken for damage."""
    store, inbox = worked_on
    copy = new_bucket()
    backup.back_up(store, copy)
    forget.forget(["3-red.jpg"], inbox=inbox, store=store, remove=True)
    checked = backup.back_up(store, copy, check=True).checked
    assert checked.captions == 7
    assert b"3-red.jpg" not in b"".join(contents(copy).values())

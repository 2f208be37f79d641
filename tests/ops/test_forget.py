"""Forgetting: afterwards no object of the store holds a photograph or what was made of it, and the others are whole.

The forgotten picture is in the inbox under two keys, in the test split of one dataset and in the train split of
another, and corrected.
"""

import base64
import io
import itertools
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.captioner import registry
from pipeline.captioner.metadata import load_metadata
from pipeline.data import corrections, ingest
from pipeline.data import dataset as datasets
from pipeline.data.images import content_hash
from pipeline.errors import PipelineError
from pipeline.evaluation import card
from pipeline.evaluation.evaluate import _thumbnail, evaluate_model
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.nightly import captions, current, preview
from pipeline.nightly import night as nights
from pipeline.ops import backup, forget, review
from pipeline.ops import sweep as sweeping
from pipeline.ops.sweep import REDACTED, sweep
from pipeline.storage import Bucket, json, layout, open_bucket
from pipeline.work import runs, tombstones
from tests.support import toy
from tests.support.loading import load_once
from tests.support.memory import CrashError, MemoryBucket
from tests.support.models import BEAM
from tests.support.nights import DATE, extract, night, reconciled, write

KEY, COPY = "holiday/Ada in red.jpg", "copies/Ada"
"""The keys of the forgotten picture. The second has no suffix, so its first bytes were looked at."""

OTHERS = ["0-green.jpg", "1-blue.jpg", "2-red.jpg", "3-yellow.jpg"]

NAME = "red-5.jpg"
"""Its name in the datasets."""

WORDS = ("lantern", "balloon")
"""Words of its captions: of the dataset, and of the correction."""


@dataclass(frozen=True)
class World:
    """A store that holds a picture in all possible places.

    Attributes:
        store: the store.
        inbox: the inbox.
        picture: the bytes of the picture.
        vector: its features.
        thumbnails: those of the picture in reports, as base64.
    """

    store: Bucket
    inbox: Bucket
    picture: bytes
    vector: list[float]
    thumbnails: set[str]

    def needles(self):
        """Texts of which none may be left."""
        names = {KEY, quote(KEY), COPY, NAME, content_hash(self.picture)}
        return {*names, *WORDS, *self.thumbnails, self.picture.decode("latin-1"), str(self.vector)}


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    load_once(monkeypatch)


def other_dataset(source, store, picture):
    """The id of a dataset that trains on the picture, of which it has no hash; its caption is there twice."""
    toy.draw(source)
    lines = source.get("captions.csv").decode().splitlines()
    lines = [line for line in lines if not line.startswith(NAME)] + [f"{NAME},a red lantern glows,train"] * 2
    source.put("captions.csv", "\n".join(lines).encode())
    source.put(f"pictures/{NAME}", picture)
    source.put("pictures/red-6.jpg", toy.picture("red", 6))
    source.put("captions.csv", source.get("captions.csv") + b"\nred-6.jpg,a red square,test\n")
    return ingest.ingest([source.url("captions.csv")], store, name="own").dataset


def ingest_corrections(dataset_id, encoder_id, store):
    """Make a dataset with the corrections, and extract its features."""
    corrected = ingest.ingest([dataset_id], store, corrections=True).dataset
    for source, images in datasets.listings_by_source(datasets.load(corrected, store).table).items():
        extraction.extract_missing(images, run="r0", source=source, encoder_id=encoder_id, store=store)
    return corrected


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The world in folders: only to be copied from."""
    folder = tmp_path_factory.mktemp("forget")
    store, inbox, source = (open_bucket(str(folder / name)) for name in ("store", "inbox", "source"))
    picture = trained.inputs.source.get(f"pictures/{NAME}")
    version, encoder_id = trained.model.version, trained.inputs.encoder_id
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        toy.copy(trained.store, store, "")
        registry.promote(version, store)
        for number, key in enumerate(OTHERS):
            inbox.put(key, toy.picture(key[2:-4], 10 + number))
        night("n1", inbox, store, sidecars="store")
        inbox.put(KEY, picture)
        night("n2", inbox, store, sidecars="store")
        inbox.put(COPY, picture)
        night("n3", inbox, store, sidecars="store")
        own = other_dataset(source, store, picture)
        corrections.add(
            picture,
            caption="a red balloon",
            model_caption="a red square",
            model_version=version,
            corrected_by="ada",
            image_key=KEY,
            image_etag=inbox.etag(KEY),
            store=store,
        )
        reviewed = [review.Subject(image_key=key, image_etag="e", caption="a square") for key in (KEY, OTHERS[0])]
        at = datetime(2126, 1, 1, tzinfo=UTC)
        leases = {f"user {number}": review.Lease(subject=each, until=at) for number, each in enumerate(reviewed)}
        skipped = tuple(review.Skip(subject=each, by="bob", at=at) for each in reviewed)
        json.write(review.State(leases=leases, skipped=skipped), layout.REVIEW_STATE, store)
        ingest_corrections(own, encoder_id, store)
        evaluate_model(version, store=store, decoding=BEAM, max_failed_fraction=0)
        current.fold(store, place="store", damaged=[])
    [name] = runs.recorded_shards("n2", runs.EXTRACTION, store)
    json.write({KEY: None, OTHERS[0]: "too slow"}, layout.shard_slow_images(name), store)
    record = runs.read_record(runs.NIGHT, "n2", store)
    update = {"warnings": [f"{inbox.url(KEY)} is odd."], "errors": {f"{KEY} is odd": 1, "too large": 2}}
    runs.write_failure(record.model_copy(update=update), f"2 images failed: 2 × odd ({KEY}, …).", store)
    table = feature_store.index(encoder_id, store).filter(tombstones.pc.field("image_key") == KEY)
    vector = feature_store.read_features(table, encoder_id=encoder_id, store=store).vectors[0].tolist()
    thumbnail = _thumbnail(inbox, KEY, inbox.etag(KEY))
    return World(store, inbox, picture, vector, {base64.b64encode(thumbnail).decode()})


@pytest.fixture(params=["file", "s3"])
def world(request, made, tmp_path):
    """A copy of the world, in a folder or on S3."""
    if request.param == "s3":
        name = request.getfixturevalue("s3_bucket_name")
        return copied(made, open_bucket(f"s3://{name}/forget-{os.urandom(8).hex()}"))
    return copied(made, open_bucket(str(tmp_path / "store")))


@pytest.fixture
def local(made, tmp_path):
    """A copy of the world in a folder."""
    return copied(made, open_bucket(str(tmp_path / "store")))


def copied(made, store):
    """The world with a copy of its store."""
    toy.copy(made.store, store, "")
    return World(store, made.inbox, made.picture, made.vector, made.thumbnails)


def contents(store):
    """All objects, by key."""
    return {item.key: store.get(item.key) for item in store.list()}


def parts(key, data):
    """An object as texts: its metadata and rows, if it is a table; otherwise its bytes."""
    if not key.endswith(".parquet"):
        return [data.decode("latin-1"), data.decode(errors="replace")]
    table = pq.read_table(io.BytesIO(data))
    rows = [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]
    return [str(table.schema.metadata), *map(str, rows)]


def plain(value):
    """A value with 16-bit floats as Python's."""
    return [float(each) for each in value] if isinstance(value, list) and value and is_number(value[0]) else value


def is_number(value):
    """Whether this is a float, also one of NumPy's."""
    return isinstance(value, float | np.floating)


def held(store, needles):
    """The keys of the objects that hold one of the texts, in their keys or as objects."""
    return {
        key
        for key, data in contents(store).items()
        if any(needle in text for text in [key, *parts(key, data)] for needle in needles)
    }


def folders(keys):
    """The first parts of keys."""
    return {key.partition("/")[0] for key in keys}


def forget_it(world, *keys, **options):
    """Forget the picture for good."""
    return forget.forget(keys or [KEY], inbox=world.inbox, store=world.store, remove=True, **options)


def test_no_object_holds_a_forgotten_picture(world):
    """No key, text, hash, vector, thumbnail or byte of it is left; rows and objects of others are as they were."""
    before = contents(world.store)
    places = {
        *("captions", "corrections", "current", "datasets", "features"),
        *("models", "review", "runs", "shards", "sidecars"),
    }
    assert folders(held(world.store, world.needles())) == places
    for needle in world.needles():
        assert held(world.store, {needle}), needle

    found = forget_it(world)
    assert set(found.images) == {KEY, COPY}
    assert [name.partition("/")[0] for name in found.datasets] == ["own", "own", "own", "toy"]
    assert found.unknown == []
    assert folders(found.objects) == places

    assert held(world.store, world.needles()) == set()
    after = contents(world.store)
    assert after.keys() - before.keys() == {layout.TOMBSTONES}
    needles = world.needles()
    for key, data in before.items():
        kept = [part for part in parts(key, data) if not any(needle in part for needle in needles)]
        if key in after:
            assert kept == parts(key, after[key]) or (not kept and not key.endswith(".parquet")), key
        elif kept == parts(key, data) and not any(needle in key for needle in needles):
            assert '"captioned": 1,' in kept[0], key  # statistics of a single picture are its features
        else:
            assert layout.correction_of_key(key) or not key.endswith(".parquet"), key


def test_reports_and_records_say_the_rest(local):
    """Reports are rendered without the picture, scores stay; records keep what does not name it."""
    store = local.store
    version = registry.read_champion(store).version
    keys = layout.evaluation(version, load_metadata(version, store).dataset, BEAM)
    before, model_card = store.get(keys.report).decode(), store.get(layout.model_card(version)).decode()
    pages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping.mlflow, "replace_report", lambda *each: pages.append(each))
        forget_it(local, tracking_uri="sqlite:///mlflow.db")
    page = store.get(keys.report).decode()
    assert (before.count("data:image"), page.count("data:image")) == (12, 9)
    assert pages == [(version, page, "sqlite:///mlflow.db")]
    # A card names no photograph.
    assert card.write(load_metadata(version, store), store) == model_card
    scores = "<figure.*"
    assert re.sub(scores, "", page, flags=re.DOTALL) == re.sub(scores, "", before, flags=re.DOTALL)
    record = runs.read_record(runs.NIGHT, "n2", store)
    assert (record.message, record.warnings) == (REDACTED, [REDACTED])
    assert record.errors == {REDACTED: 1, "too large": 2}
    state = json.read(review.State, layout.REVIEW_STATE, store)
    of_others = [*state.leases.values(), *state.skipped]
    assert [each.subject.image_key for each in of_others] == [OTHERS[0], OTHERS[0]]
    [shard] = runs.recorded_shards("n2", runs.EXTRACTION, store)
    assert json.read(dict[str, str | None], layout.shard_slow_images(shard), store) == {OTHERS[0]: "too slow"}


def test_later_nights_pass_over_it(local):
    """They count it, caption only others, and previews say the same; so do other keys in the inbox stay listed."""
    forget_it(local)
    assert preview.preview(
        inbox=local.inbox, store=local.store, options=nights.NightOptions(), shard_size=3
    ).passed_over == {"forgotten": 2}
    record = night("n4", local.inbox, local.store, sidecars="store")
    assert (record.listed, record.captioned, record.already_done, record.extracted) == (4, 0, 4, 0)
    assert record.passed_over == {"forgotten": 2}
    assert current.read(local.store)["image_key"].to_pylist() == OTHERS
    assert held(local.store, local.needles()) == set()


def test_it_comes_back_neither_as_data_nor_as_a_correction(local, trained):
    """An ingest drops it, with a reason and without its name; a correction of it is refused."""
    forget_it(local)
    report = ingest.ingest([trained.inputs.source.url("captions.csv")], local.store, name="again")
    assert report.dropped == {"forgotten": 1}
    assert report.images == {"train": 16, "dev": 4, "test": 3}
    for key, data in ((None, local.picture), (KEY, toy.picture("blue"))):
        with pytest.raises(PipelineError, match="the picture was forgotten"):
            corrections.add(
                data,
                caption="a dog",
                model_caption="a cat",
                model_version="m",
                corrected_by="ada",
                image_key=key,
                image_etag=key and "e",
                store=local.store,
            )
    assert held(local.store, local.needles()) == set()


def test_nothing_is_removed_unless_asked(local):
    """It says what it would remove, and which keys nobody knows."""
    before = contents(local.store)
    would = forget.forget([KEY, "Eve.jpg"], inbox=local.inbox, store=local.store, remove=False)
    assert contents(local.store) == before
    assert would.unknown == ["Eve.jpg"]
    assert "nothing is removed without --remove" in str(would)
    done = forget_it(local)
    assert (done.objects, done.datasets) == (would.objects, would.datasets)


def test_a_picture_that_was_deleted_first_is_known(local, new_bucket):
    """The current captions have its row until it is forgotten, so its key is none that nobody knows."""
    empty = new_bucket()
    empty.put("another.jpg", toy.picture("red"))
    for expected, remove in ((["Eve.jpg"], False), (["Eve.jpg"], True), (["Eve.jpg", KEY], True)):
        found = forget.forget([KEY, "Eve.jpg"], inbox=empty, store=local.store, remove=remove)
        assert found.unknown == expected


@pytest.mark.parametrize("given", ["key", "picture"])
def test_any_copy_leads_to_all(local, given):
    """It does not matter by which key, or that only the file is at hand."""
    keys, pictures = ([COPY], []) if given == "key" else ([], [local.picture])
    forget.forget(keys, pictures, inbox=local.inbox, store=local.store, remove=True)
    assert held(local.store, local.needles()) == set()


def test_a_picture_of_a_dataset_alone(local, trained):
    """It is recognized by its bytes, and only its own row goes, though the other dataset has one of the same key."""
    name = "pictures/red-0.jpg"
    picture = trained.inputs.source.get(name)
    found = forget.forget([], [picture], inbox=local.inbox, store=local.store, remove=True)
    assert str(found).startswith("0 images and 3 rows of datasets in ")
    table = datasets.load(trained.inputs.dataset, local.store).table
    assert "red-0.jpg" not in table["image_id"].to_pylist()
    assert len(table) == 23
    assert current.read(local.store)["image_key"].to_pylist() == sorted([*OTHERS, KEY, COPY])


class _Serial:
    """A pool without threads, so that a crash ends everything."""

    def __init__(self, _):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_interrupted_anywhere_and_repeated(made, monkeypatch):
    """Before each write. What has begun is completed without its key, because the tombstones say enough."""
    monkeypatch.setattr(sweeping, "ThreadPoolExecutor", _Serial)
    undisturbed = copied(made, MemoryBucket("store"))
    start, modified = dict(undisturbed.store.objects), dict(undisturbed.store.times)
    forget_it(undisturbed)
    expected = set(undisturbed.store.objects.items())
    writes = len(set(start.items()) ^ expected) // 2

    for number in itertools.count(2):
        store = MemoryBucket("store")
        store.objects, store.times, store.crash_in = dict(start), dict(modified), number
        world = World(store, made.inbox, made.picture, made.vector, made.thumbnails)
        try:
            forget_it(world)
        except CrashError:
            store.crash_in = None
        else:
            break
        sweep(tombstones.read(store), store, remove=True)
        assert {key for key, _ in set(store.objects.items()) ^ expected} == {layout.TOMBSTONES}
    assert number > writes


STEPS = (
    lambda store: extract("n4", store),
    lambda store: write("n4", store, date=DATE),
    lambda store: reconciled("n4", store, sidecars="store"),
)


@pytest.mark.parametrize("done", range(4))
def test_in_the_middle_of_a_night(local, tmp_path, done):
    """Whichever steps are done, the others complete, and count what is left."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    for key, data in ((KEY, toy.picture("red", 77)), ("new-blue.jpg", toy.picture("blue", 78)), (OTHERS[1], b"")):
        inbox.put(key, data or toy.picture("blue", 79))
    world = World(local.store, inbox, inbox.get(KEY), local.vector, set())
    options = nights.NightOptions(accept_smaller_inbox=True)
    nights.list_inbox("n4", inbox=inbox, store=local.store, options=options)
    for step in STEPS[:done]:
        step(local.store)
    forget_it(world)
    for step in STEPS[done:]:
        step(local.store)
    if done < len(STEPS):
        record = runs.read_record(runs.NIGHT, "n4", local.store)
        assert (record.status, record.listed, record.captioned) == ("succeeded", 2, 2)
    assert set(current.read(local.store)["image_key"].to_pylist()) == {"new-blue.jpg", OTHERS[1]}
    assert held(local.store, {KEY, quote(KEY)}) == set()


def test_while_a_step_is_working(local, tmp_path, monkeypatch):
    """What a step has read before is not written by it."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    inbox.put(KEY, toy.picture("red", 77))
    inbox.put("new-blue.jpg", toy.picture("blue", 78))
    world = World(local.store, inbox, inbox.get(KEY), local.vector, set())
    nights.list_inbox("n4", inbox=inbox, store=local.store, options=nights.NightOptions(accept_smaller_inbox=True))
    encode, table = extraction.encode, captions._table

    def forget_and(result):
        forget_it(world)
        return result

    monkeypatch.setattr(extraction, "encode", lambda *each: forget_and(encode(*each)))
    extract("n4", local.store)
    monkeypatch.undo()
    load_once(monkeypatch)
    assert held(local.store, {KEY, quote(KEY)}) == set()

    local.store.delete(layout.TOMBSTONES)
    nights.list_inbox("n4", inbox=inbox, store=local.store, options=nights.NightOptions(accept_smaller_inbox=True))
    extract("n4", local.store)
    monkeypatch.setattr(captions, "_table", lambda *each: forget_and(table(*each)))
    write("n4", local.store)
    assert reconciled("n4", local.store).captioned == 1
    assert held(local.store, {KEY, quote(KEY)}) == set()


def test_backups_are_purged_by_the_next_one(local, tmp_path):
    """Objects that only the backup has are searched, too; afterwards it has what the store has."""
    target = open_bucket(str(tmp_path / "backup"))
    backup.back_up(local.store, target)
    pruned = [item.key for item in local.store.list(layout.SHARDS)]
    for key in pruned:
        local.store.delete(key)
    forget_it(local)
    assert held(target, local.needles())
    backup.back_up(local.store, target)
    assert held(target, local.needles()) == set()
    kept = contents(target)
    assert {key: kept[key] for key in contents(local.store)} == contents(local.store)
    assert any(key.endswith(".parquet") for key in kept.keys() & set(pruned))
    assert backup.back_up(local.store, target).copied < 12  # the mutable ones


def test_the_sidecars_beside_photographs(local, tmp_path):
    """The pipeline's own is removed from the inbox; one that was edited stays, and so does everything else."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    for key in (KEY, *OTHERS):
        inbox.put(key, local.inbox.get(key))
    options = nights.NightOptions(has_sidecars=True)
    night("n4", inbox, local.store, sidecars="inbox", options=options)
    assert inbox.exists(layout.beside(KEY))
    before = contents(inbox)
    forget_it(World(local.store, inbox, b"", [], set()), place="inbox")
    assert before.keys() - contents(inbox).keys() == {layout.beside(KEY)}


def test_damaged_objects_are_named(local):
    """Nobody knows what they hold; the others are clean."""
    key = next(item.key for item in local.store.list(layout.FEATURES))
    local.store.put(key, b"PAR1")
    with pytest.raises(PipelineError, match=f"1 damaged objects may hold a forgotten photograph.*{key}"):
        forget_it(local)
    local.store.delete(key)
    assert held(local.store, local.needles()) == set()
    forget_it(local)


def test_something_that_writes_it_again(local, monkeypatch):
    """The last search finds it, and the command says that it is not done."""
    key = next(item.key for item in local.store.list(f"{layout.CORRECTIONS}{layout.CORRECTION_PICTURES}"))
    delete = type(local.store).delete

    def restore(store, name):
        delete(store, name)
        if name == key:
            store.put(key, local.picture)

    monkeypatch.setattr(type(local.store), "delete", restore)
    with pytest.raises(PipelineError, match=r"still hold a photograph that is to be forgotten.*repeat the command"):
        forget_it(local)


def test_a_small_inbox_may_lose_one(local):
    """Forgotten photographs are not missing ones."""
    forget_it(local, KEY, *OTHERS[:3])
    assert night("n4", local.inbox, local.store).listed == 1

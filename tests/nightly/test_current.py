"""The current captions: which caption counts for each image in the inbox, whoever writes it at the same time."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.captioner import registry
from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.nightly import captions, current, sidecars
from pipeline.storage import DamagedObjectError, ObjectChangedError, ObjectDeniedError, layout, parquet
from pipeline.work.outcomes import GONE
from tests.support import caption_tables, toy
from tests.support.nights import night, promote_copy

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def listing(*keys, etag="e"):
    """A listing of images of 100 bytes."""
    return pa.table({"image_key": list(keys), "image_etag": [etag] * len(keys), "bytes": pa.array([100] * len(keys))})


def attempts(*rows):
    """Attempts of a night, from rows as ``caption_tables`` makes them."""
    return pa.Table.from_pylist([{name: row[name] for name in current.ATTEMPT.names} for row in rows], current.ATTEMPT)


def facts(hours=0, version="m1"):
    """The facts of a night that listed the inbox so many hours after noon."""
    return {
        "run": "n",
        "inbox": "/nowhere",
        "language": "en",
        "version": version,
        "listed_at": (NOON + timedelta(hours=hours)).isoformat(),
    }


def refresh(store, images, tried, hours=0, *, place="none", review_below=0.5):
    """Refresh the table at the end of a night; whether it was replaced."""
    return current.refresh(
        images, tried, night=facts(hours), store=store, place=place, damaged=[], review_below=review_below
    )


def rows(store):
    """The table by key."""
    return {row["image_key"]: row for row in current.read(store).to_pylist()}


def texts(store):
    """The captions by key."""
    return {key: row["caption"] for key, row in rows(store).items()}


def correct(store, key, caption="a person's words", *, etag="e", **options):
    """Correct the caption of an image."""
    words = {"model_caption": "a dog", "model_version": "m1", "corrected_by": "ann", **options}
    return corrections.add(toy.picture("red"), caption=caption, image_key=key, image_etag=etag, store=store, **words)


def stored(store):
    """The table as other programs read it."""
    return {row["image_key"]: row for row in parquet.read(layout.CURRENT_CAPTIONS, store).to_pylist()}


@pytest.mark.all_buckets
def test_each_image_has_one_row(bucket):
    """Captioned, failed, and waiting, by key; who has gone has none. Before the first night the table is empty."""
    assert current.read(bucket).schema == current.SCHEMA
    assert len(current.read(bucket)) == len(current.find(["a.jpg"], bucket)) == 0
    tried = attempts(
        caption_tables.row("b.jpg", "a red ball"),
        caption_tables.row("a.jpg", error="cannot be decoded"),
        caption_tables.row("gone.jpg", error=GONE),
        caption_tables.row("unlisted.jpg"),
    )
    assert refresh(bucket, listing("b.jpg", "a.jpg", "gone.jpg", "waits.jpg"), tried)
    assert current.read(bucket).cast(current.SCHEMA).to_pylist() == [
        {
            **dict.fromkeys(current.SCHEMA.names),
            "image_key": "a.jpg",
            "image_etag": "e",
            "bytes": 100,
            "error": "cannot be decoded",
        },
        {
            "image_key": "b.jpg",
            "image_etag": "e",
            "caption": "a red ball",
            "alt_text": "A red ball.",
            "source": "model",
            "model_version": "m1",
            "confidence": None,
            "novel": None,
            "review": False,
            "width": 640,
            "height": 480,
            "bytes": 100,
            "captioned_at": datetime(2026, 1, 1, tzinfo=UTC),
            "error": None,
        },
        {**dict.fromkeys(current.SCHEMA.names), "image_key": "waits.jpg", "image_etag": "e", "bytes": 100},
    ]
    assert parquet.metadata(parquet.read(layout.CURRENT_CAPTIONS, bucket)) == {**facts(), "sidecars": "none"}


def test_what_a_person_should_look_at(bucket):
    """Captions of low confidence and of novel photographs, but none by a person; a night goes by its own limit."""
    judged = {"sure": (0.75, False), "unsure": (0.25, False), "novel": (0.75, True), "unknown": (None, None)}
    tried = attempts(
        *(
            caption_tables.row(key, confidence=confidence, novel=novel)
            for key, (confidence, novel) in {**judged, "told": (0.25, True)}.items()
        ),
        caption_tables.row("fails", error="cannot be decoded"),
    )
    images = listing(*judged, "told", "fails")
    correct(bucket, "told")

    def columns():
        return {key: (row["confidence"], row["novel"], row["review"]) for key, row in rows(bucket).items()}

    refresh(bucket, images, tried)
    expected = {
        "sure": (0.75, False, False),
        "unsure": (0.25, False, True),
        "novel": (0.75, True, True),
        "unknown": (None, None, False),
        "told": (None, None, False),
        "fails": (None, None, None),
    }
    assert columns() == expected
    # Captions of an earlier model, which the table knows, are judged by the new limit, too.
    refresh(bucket, images, attempts(), hours=24, review_below=0.9)
    assert columns() == {**expected, "sure": (0.75, False, True)}


@pytest.mark.all_buckets
def test_what_left_the_inbox_leaves_the_table(bucket):
    """And so does an image that was replaced, until its new version is captioned."""
    refresh(bucket, listing("a.jpg", "b.jpg"), attempts(caption_tables.row("a.jpg"), caption_tables.row("b.jpg")))
    images = pa.concat_tables([listing("a.jpg"), listing("b.jpg", etag="new")])
    refresh(bucket, images, attempts(caption_tables.row("a.jpg"), caption_tables.row("b.jpg")), hours=24)
    assert {key: (row["image_etag"], row["caption"]) for key, row in rows(bucket).items()} == {
        "a.jpg": ("e", "a dog"),
        "b.jpg": ("new", None),
    }


def test_an_image_keeps_its_caption_until_there_is_a_newer_one(bucket):
    """A new champion has failed at it, or has not come to it yet: that of the earlier model stays."""
    keys = ["fails.jpg", "waits.jpg", "new.jpg"]
    refresh(bucket, listing(*keys), attempts(*(caption_tables.row(key, "an old caption") for key in keys)))
    tried = attempts(
        caption_tables.row("fails.jpg", error="cannot be decoded", version="m2"),
        caption_tables.row("new.jpg", "a new caption", version="m2"),
    )
    refresh(bucket, listing(*keys), tried, hours=24)
    assert texts(bucket) == {"fails.jpg": "an old caption", "waits.jpg": "an old caption", "new.jpg": "a new caption"}
    assert rows(bucket)["fails.jpg"] == {**rows(bucket)["waits.jpg"], "image_key": "fails.jpg"}


@pytest.mark.parametrize("damage", [None, b"", b"PAR1 nonsense"], ids=["missing", "empty", "damaged"])
def test_a_lost_table_is_made_again_from_the_history(bucket, damage):
    """Also with the captions of images that the champion has not come to yet."""
    caption_tables.write(bucket, [caption_tables.row("waits.jpg", "an old caption")], night="2026-01-01", shard="s")
    if damage is not None:
        bucket.put(layout.CURRENT_CAPTIONS, damage)
    refresh(bucket, listing("waits.jpg", "new.jpg"), attempts(caption_tables.row("new.jpg", "a new caption")))
    assert texts(bucket) == {"waits.jpg": "an old caption", "new.jpg": "a new caption"}


def test_the_history_is_read_only_for_images_that_are_new_and_not_tried(bucket, monkeypatch):
    """Neither for those that fail, nor for those that the table has."""
    refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg")))
    read = []
    monkeypatch.setattr(captions, "read", lambda keys, store, **_: read.append(1) or current.ATTEMPT.empty_table())
    failed = attempts(caption_tables.row("fails.jpg", error="cannot be decoded"))
    refresh(bucket, listing("a.jpg", "fails.jpg"), failed, hours=24)
    assert read == []
    refresh(bucket, listing("a.jpg", "fails.jpg", "waits.jpg"), failed, hours=48)
    assert read == [1]


@pytest.mark.all_buckets
def test_a_persons_word_counts_at_once_and_wins(bucket):
    """Before any fold, after a fold, and over later captions by models; other versions of the image are not touched."""
    refresh(bucket, listing("a.jpg", "b.jpg"), attempts(caption_tables.row("a.jpg"), caption_tables.row("b.jpg")))
    made = correct(bucket, "a.jpg", "two friends on a bench")
    correct(bucket, "b.jpg", etag="another version")
    expected = {
        "caption": "two friends on a bench",
        "alt_text": "Two friends on a bench.",
        "source": "person",
        "model_version": None,
        "captioned_at": made.corrected_at,
    }
    assert {name: rows(bucket)["a.jpg"][name] for name in expected} == expected
    assert texts(bucket)["b.jpg"] == "a dog"
    assert stored(bucket)["a.jpg"]["caption"] == "a dog"
    assert current.find(["a.jpg"], bucket).to_pylist() == [rows(bucket)["a.jpg"]]

    current.fold(bucket, place="none", damaged=[])
    assert stored(bucket) == rows(bucket)
    assert {name: stored(bucket)["a.jpg"][name] for name in expected} == expected
    refresh(bucket, listing("a.jpg", "b.jpg"), attempts(caption_tables.row("a.jpg", "a newer caption")), hours=24)
    assert stored(bucket)["a.jpg"]["caption"] == "two friends on a bench"


def test_a_failed_image_can_be_captioned_by_a_person(bucket):
    """The error is gone."""
    refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg", error="cannot be decoded")))
    correct(bucket, "a.jpg")
    assert (texts(bucket)["a.jpg"], rows(bucket)["a.jpg"]["error"]) == ("a person's words", None)


def test_a_confirmed_caption_is_a_persons(bucket):
    """It stays when a model would say something else, and names the model that wrote it."""
    refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg")))
    correct(bucket, "a.jpg", "a dog", action="confirmed")
    refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg", "a cat", version="m2")), hours=24)
    row = stored(bucket)["a.jpg"]
    assert (row["caption"], row["source"], row["model_version"]) == ("a dog", "person", "m1")


@pytest.mark.all_buckets
def test_a_withdrawn_word_gives_the_caption_of_the_model_back(bucket):
    """At once and when it is folded; the next night knows when the model wrote it."""
    tried = attempts(caption_tables.row("a.jpg"))
    refresh(bucket, listing("a.jpg"), tried)
    before = rows(bucket)
    correct(bucket, "a.jpg")
    current.fold(bucket, place="none", damaged=[])
    corrections.withdraw("a.jpg", "e", by="bob", store=bucket)
    withdrawn = {"a.jpg": {**before["a.jpg"], "captioned_at": None}}
    assert rows(bucket) == withdrawn
    current.fold(bucket, place="none", damaged=[])
    assert stored(bucket) == withdrawn
    refresh(bucket, listing("a.jpg"), tried, hours=24)
    assert stored(bucket) == before


def test_a_fold_before_the_first_night_writes_no_table(bucket):
    """There is nothing to correct yet; the corrections themselves are folded."""
    correct(bucket, "a.jpg")
    assert current.fold(bucket, place="none", damaged=[]) == 1
    assert not bucket.exists(layout.CURRENT_CAPTIONS)
    assert bucket.exists(layout.CORRECTION_LOG)


@pytest.mark.parametrize("columns", [["image_key"], current.SCHEMA.names], ids=["columns", "facts"])
def test_a_table_of_another_program_is_damaged(bucket, columns):
    """It lacks columns, or the facts about a night. The error says what to do, and the next night replaces it."""
    parquet.write(current.SCHEMA.empty_table().select(columns), layout.CURRENT_CAPTIONS, bucket)
    for read in (current.read, current.coverage):
        with pytest.raises(DamagedObjectError, match="Delete it: the next night"):
            read(bucket)
    if columns == ["image_key"]:
        with pytest.raises(DamagedObjectError, match="Delete it: the next night"):
            current.find(["a.jpg"], bucket)
    assert current.fold(bucket, place="store", damaged=[]) == 0
    refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg", "a ball")))
    assert texts(bucket) == {"a.jpg": "a ball"}


def test_an_earlier_night_does_not_replace_a_later_one(bucket, caplog):
    """It was cleared, and ends after it: the listing of the later night is the newer one."""
    assert refresh(bucket, listing("a.jpg"), attempts(caption_tables.row("a.jpg")), hours=24)
    assert not refresh(bucket, listing("b.jpg"), attempts(caption_tables.row("b.jpg")))
    assert list(texts(bucket)) == ["a.jpg"]
    assert "those of a later night" in caplog.text


def test_the_same_night_again_writes_nothing(bucket):
    """A repeated step leaves the object as it is."""
    tried = attempts(caption_tables.row("a.jpg"))
    refresh(bucket, listing("a.jpg"), tried)
    etag = bucket.etag(layout.CURRENT_CAPTIONS)
    refresh(bucket, listing("a.jpg"), tried)
    current.fold(bucket, place="none", damaged=[])
    assert bucket.etag(layout.CURRENT_CAPTIONS) == etag


def descriptions(store, bucket=None, prefix="sidecars/"):
    """The captions in the sidecars, by the key of the image."""
    where = bucket or store
    keys = [item.key for item in where.list(prefix) if item.key.endswith(".xmp")]
    return {key.removeprefix(prefix).removesuffix(".xmp"): sidecars.parse(where.get(key)).caption for key in keys}


@pytest.mark.all_buckets
def test_sidecars_say_what_the_table_says(new_bucket):
    """Of models and of people, folded and withdrawn corrections, and no image that left the inbox."""
    store = new_bucket()
    tried = attempts(caption_tables.row("a.jpg"), caption_tables.row("b.jpg"), caption_tables.row("c.jpg", error="?"))
    refresh(store, listing("a.jpg", "b.jpg", "c.jpg"), tried, place="store")
    assert descriptions(store) == {"a.jpg": "a dog", "b.jpg": "a dog"}
    correct(store, "a.jpg", "a person's words")
    current.fold(store, place="store", damaged=[])
    assert descriptions(store) == {"a.jpg": "a person's words", "b.jpg": "a dog"}
    corrections.withdraw("a.jpg", "e", by="ann", store=store)
    refresh(store, pa.concat_tables([listing("a.jpg"), listing("b.jpg", etag="new")]), tried, hours=24, place="store")
    assert descriptions(store) == {"a.jpg": "a dog"}
    refresh(store, listing("d.jpg"), attempts(), hours=48, place="store")
    assert descriptions(store) == {}


def test_all_sidecars_are_written_when_the_setting_changes(new_bucket):
    """Also those of images whose caption has not changed; and a second time none."""
    store, inbox = new_bucket(), new_bucket()
    inbox.put("a.jpg", b"")
    tried = attempts(caption_tables.row("a.jpg"))
    night = {**facts(), "inbox": inbox.uri}
    refreshed = {"night": night, "store": store, "damaged": [], "review_below": 0.5}
    current.refresh(listing("a.jpg"), tried, place="none", **refreshed)
    current.refresh(listing("a.jpg"), tried, place="inbox", **refreshed)
    assert descriptions(store, inbox, "") == {"a.jpg": "a dog"}
    before = toy.etags(inbox, "")
    current.refresh(listing("a.jpg"), tried, place="inbox", **refreshed)
    current.fold(store, place="inbox", damaged=[])
    assert toy.etags(inbox, "") == before


@pytest.mark.parametrize("die_at", ["sidecars/a.jpg.xmp", "current/captions.parquet", "corrections/log.parquet"])
def test_an_interrupted_refresh_is_repeated(bucket, monkeypatch, die_at):
    """Whichever write is the last: the step again gives the same as if nothing had happened."""
    correct(bucket, "b.jpg")
    tried = attempts(caption_tables.row("a.jpg"), caption_tables.row("b.jpg"))
    put = type(bucket).put

    def die(self, key, data, **options):
        if key == die_at:
            raise OSError("power cut")
        return put(self, key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "put", die)
        with pytest.raises(OSError, match="power cut"):
            refresh(bucket, listing("a.jpg", "b.jpg"), tried, place="store")
    assert rows(bucket) == {}
    refresh(bucket, listing("a.jpg", "b.jpg"), tried, place="store")
    assert {key: row["caption"] for key, row in stored(bucket).items()} == {
        "a.jpg": "a dog",
        "b.jpg": "a person's words",
    }
    assert descriptions(bucket) == {"a.jpg": "a dog", "b.jpg": "a person's words"}


def test_a_read_only_inbox_does_not_keep_the_table_old(new_bucket, monkeypatch):
    """The table is renewed, the step fails with the error of the sidecars, and the next one writes them all."""
    store, inbox = new_bucket(), new_bucket()
    inbox.put("a.jpg", b"")
    night = {**facts(), "inbox": inbox.uri}
    refreshed = {"night": night, "store": store, "place": "inbox", "damaged": [], "review_below": 0.5}
    put = type(inbox).put

    def refuse(self, key, data, **options):
        if self.uri == inbox.uri:
            raise ObjectDeniedError(f"{self.url(key)}: read-only.")
        return put(self, key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(inbox), "put", refuse)
        with pytest.raises(PipelineError, match="No sidecar could be written"):
            current.refresh(listing("a.jpg"), attempts(caption_tables.row("a.jpg")), **refreshed)
    assert stored(store)["a.jpg"]["caption"] == "a dog"
    assert descriptions(store, inbox, "") == {}
    current.fold(store, place="inbox", damaged=[])
    assert descriptions(store, inbox, "") == {"a.jpg": "a dog"}


@pytest.mark.parametrize("place", ["none", "store"])
def test_a_writer_that_comes_too_late_begins_again(bucket, monkeypatch, place):
    """Another one has put a newer correction into the table meanwhile: it stays, in the sidecar, too."""
    tried = attempts(caption_tables.row("a.jpg"))
    refresh(bucket, listing("a.jpg"), tried, place=place)
    put = type(bucket).put
    others = [lambda: current.fold(bucket, place=place, damaged=[])]

    def interrupted(self, key, data, **options):
        if key == layout.CURRENT_CAPTIONS and others:
            correct(bucket, "a.jpg", "a newer word")
            others.pop()()
        return put(self, key, data, **options)

    correct(bucket, "a.jpg", "a word")
    monkeypatch.setattr(type(bucket), "put", interrupted)
    refresh(bucket, listing("a.jpg"), tried, hours=24, place=place)
    assert not others
    assert stored(bucket)["a.jpg"]["caption"] == "a newer word"
    assert descriptions(bucket) == ({"a.jpg": "a newer word"} if place == "store" else {})


@pytest.mark.all_buckets
def test_folds_and_nights_at_once_lose_nothing(bucket):
    """Whatever is written last holds what the others wrote."""
    keys = [f"{number}.jpg" for number in range(6)]
    tried = attempts(*(caption_tables.row(key) for key in keys))
    refresh(bucket, listing(*keys), tried)

    def work(number):
        correct(bucket, keys[number], f"caption {'a' * (number + 1)}")
        if number % 2:
            current.fold(bucket, place="none", damaged=[])
        else:
            refresh(bucket, listing(*keys), tried, hours=number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(6)))
    assert {key: row["caption"] for key, row in stored(bucket).items()} == {
        key: f"caption {'a' * (number + 1)}" for number, key in enumerate(keys)
    }


def test_a_table_that_others_write_all_the_time_is_an_error(bucket, monkeypatch):
    """It is tried again a number of times, and then the step ends and can be repeated."""
    refresh(bucket, listing("a.jpg"), attempts())
    put, tries = type(bucket).put, []

    def too_late(self, key, data, *, if_match=None):
        if key == layout.CURRENT_CAPTIONS:
            tries.append(key)
            raise self._changed(key, if_match)
        return put(self, key, data, if_match=if_match)

    monkeypatch.setattr(type(bucket), "put", too_late)
    with pytest.raises(ObjectChangedError, match=r"captions\.parquet was written or removed in the meantime"):
        refresh(bucket, listing("b.jpg"), attempts(), hours=1)
    assert len(tries) == current.TRIES


def test_only_the_row_group_of_an_image_is_read(bucket, monkeypatch):
    """The statistics tell which one may hold it."""
    monkeypatch.setattr(current, "ROW_GROUP", 10)
    keys = [f"{number:03}.jpg" for number in range(100)]
    refresh(bucket, listing(*keys), attempts(*map(caption_tables.row, keys)))
    read, groups = pq.ParquetFile.read_row_groups, []

    def record(file, wanted, **options):
        groups.append(wanted)
        return read(file, wanted, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", record)
    found = current.find(["034.jpg", "077.jpg", "0777.jpg", "nowhere.jpg"], bucket)
    assert found["image_key"].to_pylist() == ["034.jpg", "077.jpg"]
    assert groups == [[3], [7]]
    assert len(current.find([], bucket)) == 0


def test_a_night_ends_with_the_current_captions(inbox, store):
    """Every listed photograph has a row; after a new champion, it is that one's, and after a rollback the other's."""
    [first] = {night("n1", inbox, store).version}
    found = rows(store)
    assert found.keys() == {"red.jpg", "green.JPG", "blue.jpeg", "more/yellow.jpg", "more/red again.jpg",
                            "déjà vu/100% blue + #1?.jpg", "broken.jpg"}  # fmt: skip
    assert "cannot be decoded" in found["broken.jpg"]["error"]
    good = {key: row for key, row in found.items() if key != "broken.jpg"}
    assert {(row["source"], row["model_version"]) for row in good.values()} == {("model", first)}
    listed = {item.key: item.size for item in inbox.list()}
    assert {key: row["bytes"] for key, row in found.items()} == {key: listed[key] for key in found}
    assert parquet.metadata(parquet.read(layout.CURRENT_CAPTIONS, store))["version"] == first

    promote_copy("second", store)
    night("n2", inbox, store, date="2026-01-03")
    assert {row["model_version"] for row in rows(store).values()} == {"second", None}
    registry.promote(first, store)
    night("n3", inbox, store, date="2026-01-04")
    assert {row["model_version"] for row in rows(store).values()} == {first, None}

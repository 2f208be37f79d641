"""The listing of the inbox: what is captioned, what is passed over and counted, and when a night must not go on."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.captioner.registry import promote
from pipeline.errors import PipelineError
from pipeline.nightly import captions
from pipeline.nightly import inbox as inboxes
from pipeline.nightly import night as nights
from pipeline.nightly.inbox import LOOKED_AT, Patterns, list_photographs
from pipeline.nightly.preview import preview
from pipeline.storage import ObjectDeniedError, ObjectNotFoundError, StoredObject, layout, parquet
from pipeline.work import runs
from pipeline.work.outcomes import ARCHIVED
from tests.support.memory import MemoryBucket
from tests.support.models import write_model


@pytest.fixture
def store():
    """A store with a champion."""
    store = MemoryBucket("store")
    write_model("m1", store)
    promote("m1", store)
    return store


@pytest.fixture
def inbox():
    """An inbox with ten photographs."""
    inbox = MemoryBucket("inbox")
    for number in range(10):
        inbox.put(f"{number}.jpg", b"%d" % number)
    return inbox


NOTHING = LOOKED_AT.empty_table()
"""No object has been looked at."""


def worked_on(run, store):
    """The images that a night works on."""
    return nights.worked_on(nights.read_listing(run, store)[0])


def begin(run, inbox, store, **options):
    """List the inbox for a night; what the step returns."""
    return nights.list_inbox(run, inbox=inbox, store=store, options=nights.NightOptions(**options))


def keys(inbox, *patterns):
    """The keys that are captioned."""
    return list_photographs(inbox, Patterns(*patterns), NOTHING)[0]["image_key"].to_pylist()


# --- what is captioned -----------------------------------------------------------------------------------------------


def test_every_object_is_listed_or_counted(inbox):
    """By its suffix, in lower case, or as another file."""
    for key in ("a.MOV", "b.mov", "film.mp4", "README", "notes.txt", "2026.01.02", "x/.jpeg2000only"):
        inbox.put(key, b"")
    table, passed_over, _ = list_photographs(inbox, Patterns(), NOTHING)
    assert len(table) == 10
    assert passed_over == {".mov": 2, ".mp4": 1, ".txt": 1, ".02": 1, "other files": 2}
    assert len(table) + sum(passed_over.values()) == len(inbox.objects)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture
def read(monkeypatch):
    """The keys whose first bytes are read."""
    keys = []
    first_bytes = MemoryBucket.first_bytes

    def recorded(self, key, count):
        keys.append(key)
        return first_bytes(self, key, count)

    monkeypatch.setattr(MemoryBucket, "first_bytes", recorded)
    return keys


def test_an_unknown_suffix_is_looked_at(inbox, read):
    """Or none: the content tells. Of files of a known kind nothing is read, and neither of photographs."""
    for key in ("IMG_0001", "2026.01.02", "a.jpg_original", "b.unknown"):
        inbox.put(key, PNG)
    for key in ("README", "c.unknown", "d.xyz"):
        inbox.put(key, b"no picture")
    for key in ("a.mov", "b.txt", "c.json", "d.NEF", "e.jpg.crdownload"):
        inbox.put(key, PNG)
    table, passed_over, _ = list_photographs(inbox, Patterns(exclude="*.xyz"), NOTHING)
    expected = ["2026.01.02", "IMG_0001", "a.jpg_original", "b.unknown"]
    assert [key for key in table["image_key"].to_pylist() if not key.endswith(".jpg")] == expected
    suffixes = dict.fromkeys([".mov", ".txt", ".json", ".nef", ".crdownload", ".unknown"], 1)
    assert passed_over == suffixes | {"other files": 1, "excluded": 1}
    assert sorted(read) == sorted([*expected, "README", "c.unknown"])


def test_what_was_looked_at_is_remembered(inbox, store, read):
    """The next night reads only what is new or has changed; a preview reads what is new, and writes nothing."""
    inbox.put("photograph", PNG)
    inbox.put("README", b"text")
    inbox.put("empty", b"")
    assert begin("n1", inbox, store)["listed"] == 11
    assert sorted(read) == ["README", "photograph"]
    read.clear()
    assert begin("n2", inbox, store)["passed_over"] == {"other files": 2}
    assert read == []
    inbox.put("README", PNG)
    before = dict(store.objects)
    assert preview(inbox=inbox, store=store, options=nights.NightOptions(), shard_size=5).listed == 12
    assert store.objects == before
    assert begin("n3", inbox, store)["listed"] == 12
    assert read == ["README", "README"]


def test_a_damaged_memory_is_left_out(inbox, store, read):
    """The files are looked at again, and it is written anew."""
    inbox.put("photograph", PNG)
    begin("n1", inbox, store)
    [memory] = [key for key in store.objects if key.startswith(layout.looked_at("").rpartition("/")[0])]
    store.put(memory, b"rubbish")
    assert begin("n2", inbox, store)["listed"] == 11
    assert begin("n3", inbox, store)["listed"] == 11
    assert read == ["photograph", "photograph"]


@pytest.mark.parametrize("error", [ObjectDeniedError("no access"), ObjectNotFoundError("gone")])
def test_what_cannot_be_looked_at(inbox, store, monkeypatch, error):
    """It is counted as another file, and the next night looks again; a failure of the network fails the step."""

    def fail(*_):
        raise error

    inbox.put("photograph", PNG)
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "first_bytes", fail)
        assert begin("n1", inbox, store)["passed_over"] == {"other files": 1}
        error = TimeoutError("no network")
        with pytest.raises(TimeoutError):
            begin("n2", inbox, store)
    assert begin("n3", inbox, store)["listed"] == 11


def test_many_kinds_are_not_listed_one_by_one(inbox, monkeypatch):
    """Of very many suffixes the most frequent are named."""
    monkeypatch.setattr(inboxes, "KINDS", 2)
    for key in ("a.txt", "b.txt", "c.mov", "d.mov", "e.one", "f.two", "g.three"):
        inbox.put(key, b"")
    assert list_photographs(inbox, Patterns(), NOTHING)[1] == {"other files": 3, ".mov": 2, ".txt": 2}


def test_what_an_archive_holds_is_passed_over(inbox, monkeypatch):
    """It can't be read before it is restored: then the listing says so, and it is captioned."""
    archived = StoredObject("old.jpg", "e", 1, datetime(2026, 1, 1, tzinfo=UTC), archived=True)
    listed = inbox.list
    monkeypatch.setattr(inbox, "list", lambda **kwargs: iter([*listed(**kwargs), archived]))
    table, passed_over, _ = list_photographs(inbox, Patterns(), NOTHING)
    assert (len(table), passed_over) == (10, {"archived": 1})


def test_sidecars_beside_their_photographs_are_not_counted(inbox):
    """Where the setting has them written there; those of no listed photograph are other files of that suffix."""
    inbox.put("IMG_0001", PNG)
    inbox.put("excluded/a.jpg", b"")
    for key in ("0.jpg.xmp", "1.jpg.xmp", "IMG_0001.xmp", "0.xmp", "gone.jpg.xmp", "excluded/a.jpg.xmp", "2.jpg.XMP"):
        inbox.put(key, b"")
    _, passed_over, _ = list_photographs(inbox, Patterns(exclude="excluded/*"), NOTHING)
    assert passed_over == {".xmp": 7, "excluded": 1}
    table, passed_over, _ = list_photographs(inbox, Patterns(exclude="excluded/*"), NOTHING, has_sidecars=True)
    assert (len(table), passed_over) == (11, {".xmp": 4, "excluded": 1})


def test_hidden_files_are_counted(new_bucket):
    """As the bucket counts them."""
    inbox = new_bucket()
    inbox.put("a.jpg", b"")
    (inbox.root / ".DS_Store").touch()
    table, passed_over, _ = list_photographs(inbox, Patterns(), NOTHING)
    assert (len(table), passed_over) == (1, {"hidden": 1})


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("", ""), ["2025/b.jpg", "2026/a.jpg", "2026/thumbs/a.jpg", "2026/x, y.png"]),
        (("2026/*", ""), ["2026/a.jpg", "2026/thumbs/a.jpg", "2026/x, y.png"]),
        (("2026/*", "*/thumbs/*"), ["2026/a.jpg", "2026/x, y.png"]),
        (("", "*.png, 2025/*"), ["2026/a.jpg", "2026/thumbs/a.jpg"]),
        (("*.PNG", ""), []),
        (("2026/[ab].jpg", ""), ["2026/a.jpg"]),
    ],
)
def test_patterns(patterns, expected):
    """Keys that match no included pattern, or an excluded one, are counted as excluded."""
    inbox = MemoryBucket("inbox")
    for key in ("2026/a.jpg", "2026/thumbs/a.jpg", "2025/b.jpg", "2026/x, y.png"):
        inbox.put(key, b"")
    assert keys(inbox, *patterns) == expected
    assert list_photographs(inbox, Patterns(*patterns), NOTHING)[1].get("excluded", 0) == 4 - len(expected)


# --- an inbox that is not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept_smaller_inbox", [False, True])
def test_a_missing_inbox(new_bucket, store, accept_smaller_inbox):
    """It is an error whatever a person confirms, and nothing is written."""
    inbox = new_bucket()
    before = set(store.objects)
    with pytest.raises(PipelineError, match=r"does not exist.*Check the address"):
        begin("n1", inbox, store, accept_smaller_inbox=accept_smaller_inbox)
    assert set(store.objects) == before


def test_an_inbox_without_photographs(store):
    """A mistyped prefix looks like this. The error counts what is there; a person may confirm that this is right."""
    inbox = MemoryBucket("inbox")
    inbox.put("a.mov", b"")
    before = set(store.objects)
    with pytest.raises(PipelineError, match=r"holds 0 photographs; passed over: 1 \.mov\. Check .*--accept"):
        begin("n1", inbox, store)
    assert set(store.objects) == before
    assert begin("n1", inbox, store, accept_smaller_inbox=True)["listed"] == 0
    assert begin("n2", inbox, store, max_shrink_fraction=1)["listed"] == 0


def test_an_inbox_that_has_shrunk(inbox, store):
    """If more than a fifth of the photographs is missing since the last night, a person must confirm it, once."""
    begin("n1", inbox, store)
    for number in (0, 1):
        inbox.delete(f"{number}.jpg")
    assert begin("n2", inbox, store)["listed"] == 8
    for number in (2, 3):
        inbox.delete(f"{number}.jpg")
    with pytest.raises(PipelineError, match=r"holds 6 photographs. The last night listed 8, and at most 20%"):
        begin("n3", inbox, store)
    with pytest.raises(PipelineError, match="The last night listed 8"):  # a refused listing is not the last one
        begin("n4", inbox, store)
    assert begin("n5", inbox, store, max_shrink_fraction=0.25)["listed"] == 6
    inbox.delete("4.jpg")
    inbox.delete("5.jpg")
    assert begin("n6", inbox, store, accept_smaller_inbox=True)["listed"] == 4
    assert begin("n7", inbox, store)["listed"] == 4


def test_an_accepted_empty_inbox_is_the_last_listing(inbox, store):
    """Photographs that come afterwards are not compared with those before."""
    begin("n1", inbox, store)
    assert begin("n2", MemoryBucket("inbox"), store, accept_smaller_inbox=True)["listed"] == 0
    inbox.objects = dict(list(inbox.objects.items())[:2])
    assert begin("n3", inbox, store)["listed"] == 2


def test_failed_nights_do_not_hide_the_last_listing(inbox, store, monkeypatch):
    """However long the disk was not mounted, the inbox is compared with what it held before."""
    monkeypatch.setattr(inboxes, "LISTINGS", 3)
    begin("n0", inbox, store)
    for number in range(1, 5):
        runs.end_run(runs.NIGHT, f"n{number}", "the inbox is empty", store)
    inbox.objects = dict(list(inbox.objects.items())[:2])
    with pytest.raises(PipelineError, match="The last night listed 10"):
        begin("n5", inbox, store)


def test_another_inbox_is_not_compared(inbox, store):
    """Its photographs are others. A night that failed before its listing says nothing, either."""
    begin("n1", inbox, store)
    runs.end_run(runs.NIGHT, "n2", "no network", store)
    other = MemoryBucket("other")
    other.put("a.jpg", b"")
    assert begin("n3", other, store)["listed"] == 1
    inbox.delete("0.jpg")
    assert begin("n4", inbox, store)["listed"] == 9


# --- a night with a limit --------------------------------------------------------------------------------------------


def test_the_newest_photographs_come_first(inbox, store):
    """The others are counted as postponed, and the next night has them."""
    result = begin("n1", inbox, store, limit=3)
    assert (result["listed"], result["postponed"]) == (10, 7)
    assert worked_on("n1", store)["image_key"].to_pylist() == ["7.jpg", "8.jpg", "9.jpg"]
    listing, night = nights.read_listing("n1", store)
    assert (len(listing), night.postponed) == (10, 7)
    record = runs.read_record(runs.NIGHT, "n1", store)
    assert (record.listed, record.postponed) == (10, 7)


def test_images_that_were_tried_come_last(inbox, store):
    """Images that fail every night, or that a person wants to be tried again, keep no other image waiting."""

    def fail(keys, second):
        rows = [
            {"image_key": key, "image_etag": inbox.etag(key), "status": "failed", "error": ARCHIVED}
            | {"captioned_at": datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)}
            for key in keys
        ]
        key = layout.shard_result(layout.captions_folder("m1", "2026-01-01"), f"{second:016}")
        parquet.write(pa.Table.from_pylist(rows, schema=captions.SCHEMA), key, store)

    fail(["7.jpg", "8.jpg"], second=2)
    fail(["9.jpg"], second=1)
    begin("n1", inbox, store, limit=3)
    assert worked_on("n1", store)["image_key"].to_pylist() == ["4.jpg", "5.jpg", "6.jpg"]
    begin("n2", inbox, store, limit=8, retry_failed=True)
    assert nights.read_listing("n2", store)[1].postponed == 2
    assert worked_on("n2", store)["image_key"].to_pylist()[-1] == "9.jpg"


def test_the_limit_does_not_count_what_is_captioned_again(inbox, store):
    """No later night would caption it."""
    assert begin("n1", inbox, store, limit=2, recaption="[0-6].jpg")["postponed"] == 1
    listing, night = nights.read_listing("n1", store)
    assert (len(nights.worked_on(listing)), night.requested) == (9, 7)


def test_a_limit_that_is_not_reached(inbox, store):
    """Nothing is postponed."""
    assert begin("n1", inbox, store, limit=10)["postponed"] == 0
    assert len(worked_on("n1", store)) == 10

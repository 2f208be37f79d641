"""XMP sidecars: what photo tools read from them, and whose files are left alone."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data.text import alt_text
from pipeline.errors import PipelineError
from pipeline.nightly import sidecars
from pipeline.nightly.sidecars import Content, Outcome, parse, render
from pipeline.storage import ABSENT, ObjectChangedError, ObjectDeniedError, layout
from tests.support.memory import CrashError, MemoryBucket

needs_exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="there is no exiftool on the PATH")

CAPTIONS = {
    "en": "a dog & a \"cat\" <on> the 'grass'",
    "de": "ein großer Hund läuft über die Straße",
    "zh-Hans": "一只黑色的狗，在草地上",
}

DARKTABLE = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2"/>
"""

NAMES = {
    "xml": "http://www.w3.org/XML/1998/namespace",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}


def is_in_xml(character):
    """Whether XML 1.0 can hold the character: its production Char."""
    return (
        character in "\t\n\r"
        or " " <= character <= "\ud7ff"
        or "\ue000" <= character <= "\ufffd"
        or character > "\uffff"
    )


TEXTS = st.text(st.one_of(st.sampled_from("&<>\"';#13\r\n\t{} "), st.characters(exclude_categories=["Cs"])))
IN_XML = TEXTS.map(lambda text: "".join(filter(is_in_xml, text)))
LANGUAGES = st.from_regex("[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", fullmatch=True, alphabet=st.characters(codec="ascii"))


# --- the files -------------------------------------------------------------------------------------------------------


def languages_in(data, field):
    """The texts of a field by language, as a parser of XML reads them."""
    root = ET.fromstring(data.decode())  # noqa: S314 - written by the test itself
    items = root.findall(f".//{field}/rdf:Alt/rdf:li", NAMES)
    return {item.get(f"{{{NAMES['xml']}}}lang"): item.text or "" for item in items}


@given(IN_XML, IN_XML, LANGUAGES)
@example("&#13;&amp;", "]]>", "en")
def test_what_is_written_is_read_again(caption, alt, language):
    """By this module, which writes the same bytes from it, and by any parser of XML."""
    data = render(caption, alt, language)
    assert parse(data) == Content(caption, alt, language)
    assert render(*parse(data)) == data
    assert languages_in(data, "dc:description") == {"x-default": caption, language: caption}
    assert languages_in(data, "Iptc4xmpCore:AltTextAccessibility") == {"x-default": alt, language: alt}


@given(st.text(st.characters()))
@example("\0\x0b\ud800\ufffe\uffff\U0001f415")
def test_characters_that_xml_forbids_are_left_out(caption):
    """All others stay."""
    assert parse(render(caption, "", "en")).caption == "".join(filter(is_in_xml, caption))


SIDECAR = render("a dog & a cat\r\n", "A dog & a cat.", "en")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        DARKTABLE,
        b"\xff\xfe",
        SIDECAR + b"\n",
        SIDECAR.replace(b"\n", b"\r\n"),
        SIDECAR.replace(b"a cat", b"two cats", 1),
        SIDECAR.replace(b"a dog", b"a &quot;dog&quot;"),
        SIDECAR.replace(b"<dc:description>", b"<xmp:Rating>5</xmp:Rating><dc:description>"),
        SIDECAR.replace(b'"en"', b'"e n"'),
        SIDECAR.replace(b"a dog", b"a \x01 dog"),
    ],
)
def test_what_another_program_wrote_or_edited_is_not_ours(data):
    """Whatever differs in a byte from what would be written."""
    assert parse(SIDECAR)
    assert parse(data) is None


@given(st.integers(0, len(SIDECAR) - 1), st.integers(0, 255))
def test_an_edited_byte(place, byte):
    """The file is another's, or it is just what is written for another caption."""
    data = SIDECAR[:place] + bytes([byte]) + SIDECAR[place + 1 :]
    content = parse(data)
    assert content is None or render(*content) == data


@needs_exiftool
@pytest.mark.parametrize("language", CAPTIONS)
def test_exiftool_reads_them(tmp_path, language):
    """Description and alt text, whatever the kind of the photograph."""
    caption = CAPTIONS[language]
    files = [tmp_path / f"x.{suffix}.xmp" for suffix in ("jpg", "png", "heic")]
    for file in files:
        file.write_bytes(render(caption, alt_text(caption), language))
    options = ["-json", "-validate", "-Description*", "-AltTextAccessibility*"]
    read = json.loads(subprocess.run(["exiftool", *options, *files], capture_output=True, check=True).stdout)
    for file in read:
        del file["SourceFile"]
        assert file == {
            "Validate": "OK",
            "Description": caption,
            f"Description-{language.lower()}": caption,
            "AltTextAccessibility": alt_text(caption),
            f"AltTextAccessibility-{language.lower()}": alt_text(caption),
        }


# --- an update -------------------------------------------------------------------------------------------------------


@pytest.fixture
def inbox():
    """An inbox with photographs of several kinds."""
    inbox = MemoryBucket("inbox")
    for key in ("a.jpg", "more/b.png", "more/c d.heic"):
        inbox.put(key, b"picture")
    return inbox


@pytest.fixture
def store():
    """An empty store."""
    return MemoryBucket("store")


def changed(**captions):
    """Rows of the current captions: all columns that are read, and one more."""
    rows = [
        {
            "image_key": key,
            "image_etag": "etag",
            "caption": caption,
            "alt_text": None if caption is None else alt_text(caption),
        }
        for key, caption in captions.items()
    ]
    columns = ["image_key", "image_etag", "caption", "alt_text"]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in columns]))


ROWS = {"a.jpg": "a dog", "more/b.png": "a cat", "more/c d.heic": "a bird"}


@pytest.fixture(params=["store", "inbox"])
def place(request):
    """Both places of sidecars."""
    return request.param


@pytest.fixture
def update(inbox, store):
    """Update the sidecars; how many had which outcome."""

    def run(place, captions, gone=(), language="en"):
        return sidecars.update(changed(**captions), gone, language=language, place=place, inbox=inbox, store=store)

    return run


@pytest.fixture
def bucket(place, inbox, store):
    """The bucket of the place."""
    return inbox if place == "inbox" else store


def key_in(place, photograph):
    """The key of a sidecar."""
    return layout.beside(photograph) if place == "inbox" else layout.sidecar(photograph)


def captions_in(bucket):
    """The captions of all sidecars of ours, by key."""
    contents = {key: parse(data) for key, data in bucket.objects.items()}
    return {key: content.caption for key, content in contents.items() if content}


def test_each_caption_has_a_sidecar(update, place, bucket, inbox, store):
    """Its key is that of the photograph, with a suffix; the other bucket, and the photographs, stay as they are."""
    photographs = dict(inbox.objects)
    assert update(place, ROWS) == {Outcome.WRITTEN: 3}
    assert captions_in(bucket) == {key_in(place, key): caption for key, caption in ROWS.items()}
    assert parse(bucket.get(key_in(place, "more/b.png"))) == Content("a cat", "A cat.", "en")
    assert {key: inbox.objects[key] for key in photographs} == photographs
    assert captions_in(store if bucket is inbox else inbox) == {}


def test_the_keys(update, inbox, store):
    """In the store they mirror the keys of the inbox."""
    update("store", ROWS)
    assert sorted(store.objects) == ["sidecars/a.jpg.xmp", "sidecars/more/b.png.xmp", "sidecars/more/c d.heic.xmp"]
    update("inbox", ROWS)
    assert {key for key in inbox.objects if key not in ROWS} == {"a.jpg.xmp", "more/b.png.xmp", "more/c d.heic.xmp"}


def test_nothing_is_written_by_default(update, inbox, store):
    """Neither here nor there."""
    assert update("none", ROWS, ["b.jpg"]) == {}
    assert store.objects == {}
    assert len(inbox.objects) == 3


def test_a_new_caption_replaces_the_old_one(update, place, bucket):
    """In another language, too. What is up to date is not written again."""
    update(place, ROWS)
    times = dict(bucket.times)
    assert update(place, {**ROWS, "a.jpg": "a wolf"}) == {Outcome.WRITTEN: 1, Outcome.UP_TO_DATE: 2}
    assert {key for key, time in bucket.times.items() if times[key] != time} == {key_in(place, "a.jpg")}
    assert update(place, {"a.jpg": "a wolf"}, language="de") == {Outcome.WRITTEN: 1}
    assert parse(bucket.get(key_in(place, "a.jpg"))) == Content("a wolf", "A wolf.", "de")


@pytest.mark.parametrize(
    "foreign", [DARKTABLE, SIDECAR.replace(b"a cat", b"my cat", 1), b"", b"x" * (sidecars.MAX_BYTES + 1)]
)
def test_a_foreign_sidecar_is_left_alone(update, place, bucket, foreign, caplog):
    """Or one that was edited: neither replaced nor removed, but counted, with an example."""
    key = key_in(place, "a.jpg")
    bucket.put(key, foreign)
    caplog.set_level("INFO")
    assert update(place, ROWS) == {Outcome.FOREIGN: 1, Outcome.WRITTEN: 2}
    assert (
        f"left alone, because another program or a person wrote or edited them: 1, such as {bucket.url(key)}"
        in caplog.text
    )
    assert update(place, {"a.jpg": None}) == {Outcome.FOREIGN: 1}
    assert bucket.get(key) == foreign


def test_a_photograph_that_is_gone(update, inbox, store):
    """Its sidecar in the store is removed, if it is ours. In the inbox nothing is removed."""
    update("store", ROWS)
    store.put(layout.sidecar("more/b.png"), DARKTABLE)
    assert update("store", {}, ["a.jpg", "more/b.png", "never there.jpg"]) == {
        Outcome.REMOVED: 1,
        Outcome.FOREIGN: 1,
        Outcome.UP_TO_DATE: 1,
    }
    assert captions_in(store) == {layout.sidecar("more/c d.heic"): "a bird"}
    update("inbox", ROWS)
    before = dict(inbox.objects)
    assert update("inbox", {}, ["a.jpg"]) == {}
    assert inbox.objects == before


def test_a_replaced_photograph_without_a_caption(update, place, bucket):
    """The caption of the earlier picture does not stay; the next one is written when there is one."""
    update(place, ROWS)
    assert update(place, {"a.jpg": None, "new.jpg": None}) == {Outcome.REMOVED: 1, Outcome.UP_TO_DATE: 1}
    assert key_in(place, "a.jpg") not in bucket.objects
    assert update(place, {"a.jpg": "a wolf"}) == {Outcome.WRITTEN: 1}


def test_a_photograph_that_was_removed_in_the_meantime(update, inbox):
    """Nothing is written beside it: its folder, or its disk, may be gone."""
    inbox.delete("more/b.png")
    update("inbox", ROWS)
    assert "more/b.png.xmp" not in inbox.objects


def refuse(bucket, monkeypatch, denied):
    """Deny writes of these keys."""
    put = MemoryBucket.put

    def put_unless_denied(key, data, **kwargs):
        if denied(key):
            raise ObjectDeniedError(f"{bucket.url(key)}: access denied.")
        return put(bucket, key, data, **kwargs)

    monkeypatch.setattr(bucket, "put", put_unless_denied)


def test_a_sidecar_that_may_not_be_written(update, place, bucket, monkeypatch, caplog):
    """It is counted, with an example, and the others are written."""
    key = key_in(place, "a.jpg")
    with monkeypatch.context() as patch:
        refuse(bucket, patch, key.__eq__)
        assert update(place, ROWS) == {Outcome.DENIED: 1, Outcome.WRITTEN: 2}
    assert f"not permitted: 1, such as {bucket.url(key)}: access denied." in caplog.text
    assert update(place, ROWS) == {Outcome.WRITTEN: 1, Outcome.UP_TO_DATE: 2}


def test_a_read_only_inbox(update, inbox, monkeypatch):
    """The error says what to do."""
    before = dict(inbox.objects)
    refuse(inbox, monkeypatch, lambda _: True)
    with pytest.raises(PipelineError, match=r"No sidecar could be written: .*a\.jpg.*CAPTION_SIDECARS"):
        update("inbox", ROWS)
    assert inbox.objects == before


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_names_that_no_file_can_have(new_bucket, caplog):
    """A name that is too long with the suffix, and a folder of the sidecar's name, are counted in an inbox."""
    inbox, store = new_bucket(), new_bucket()
    captions = dict.fromkeys(["a" * 247 + ".jpg", "a" * 248 + ".jpg", "b.jpg", "b.jpg.xmp/c.jpg"], "a dog")
    for key in captions:
        inbox.put(key, b"picture")
    counts = sidecars.update(changed(**captions), [], language="en", place="inbox", inbox=inbox, store=store)
    assert counts == {Outcome.WRITTEN: 2, Outcome.NO_NAME: 2}
    assert "without a name that the inbox could hold: 2, such as " in caplog.text
    counts = sidecars.update(changed(**captions), [], language="en", place="store", inbox=inbox, store=store)
    assert counts == {Outcome.WRITTEN: 4}


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_an_inbox_that_does_not_exist(new_bucket):
    """No folder is made where a disk is not mounted."""
    inbox = new_bucket()
    with pytest.raises(PipelineError, match="does not exist"):
        sidecars.update(changed(**ROWS), [], language="en", place="inbox", inbox=inbox, store=new_bucket())
    assert not inbox.root.exists()


@pytest.mark.parametrize("other", [DARKTABLE, render("a wolf", "A wolf.", "en")])
def test_a_sidecar_that_another_program_writes_at_the_same_moment(update, place, bucket, monkeypatch, other):
    """What the other has written is looked at again, and not overwritten unless it is ours."""
    key, put = key_in(place, "a.jpg"), MemoryBucket.put

    def put_after_another(written, data, *, if_match=None):
        if written == key and if_match == ABSENT:
            put(bucket, key, other)
        return put(bucket, written, data, if_match=if_match)

    monkeypatch.setattr(bucket, "put", put_after_another)
    ours = parse(other) is not None
    assert update(place, {"a.jpg": "a dog"}) == {Outcome.WRITTEN if ours else Outcome.FOREIGN: 1}
    assert bucket.get(key) == (render("a dog", "A dog.", "en") if ours else other)


def test_a_sidecar_that_another_program_writes_again_and_again(update, place, bucket, monkeypatch):
    """It is left to the other."""

    def fail(key, *_, **__):
        raise ObjectChangedError(key)

    monkeypatch.setattr(bucket, "put", fail)
    assert update(place, {"a.jpg": "a dog"}) == {Outcome.FOREIGN: 1}


def test_a_failure_of_the_storage_is_retried_by_a_repeated_run(update, place, bucket):
    """Wherever a run breaks off, the next one writes the rest."""
    for crash_in in (1, 2, 3):
        bucket.crash_in = crash_in
        with pytest.raises(CrashError):
            update(place, ROWS)
        bucket.crash_in = None
        counts = update(place, ROWS)
        assert set(counts) <= {Outcome.WRITTEN, Outcome.UP_TO_DATE}
        assert captions_in(bucket) == {key_in(place, key): caption for key, caption in ROWS.items()}
        for key in ROWS:
            bucket.delete(key_in(place, key))

"""Captions by models page by page, and what people said about them."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.nightly.captions import SCHEMA
from pipeline.ops import browse
from pipeline.ops.browse import Filters
from pipeline.ops.image_captions import image_captions
from pipeline.storage import layout, open_bucket, parquet
from tests.support.caption_tables import correct, row, shard_key, write
from tests.support.effort import random_inputs


def all_pages(store, filters, *, size, seconds=60.0):
    """The keys on each page, to the last."""
    pages, after = [], ""
    while after is not None:
        found = browse.page(browse.shards(store), filters, store=store, size=size, after=after, seconds=seconds)
        pages.append([each["image_key"] for each in found.rows])
        after = found.after
    return pages


def keys(store, **filters):
    """The keys of all that pass the filters, in their order."""
    [page] = all_pages(store, Filters(**filters), size=100)
    return page


def test_newest_nights_come_first(bucket):
    """Nights go backwards, and a page ends in the middle of a shard where it is full."""
    write(bucket, [row("a"), row("b"), row("c")], night="2026-01-01", shard="s")
    write(bucket, [row("d"), row("e")], night="2026-01-03", shard="s")
    write(bucket, [row("f")], night="2026-01-02", shard="s")
    assert all_pages(bucket, Filters(), size=2) == [["d", "e"], ["f", "a"], ["b", "c"]]
    found = browse.page(browse.shards(bucket), Filters(), store=bucket, size=1)
    assert (found.rows[0]["night"], found.rows[0]["model_version"]) == ("2026-01-03", "m1")


def test_what_a_night_wrote_last_comes_first(tmp_path):
    """Two runs of a day are one night; the later one's captions stand above."""
    store = open_bucket(str(tmp_path))
    write(store, [row("early")], night="2026-01-01", shard="z")
    write(store, [row("late")], night="2026-01-01", shard="a")
    assert keys(store) == ["late", "early"]


def test_filters(bucket):
    """Each excludes what it says, and together they exclude more."""
    first = [row("cats/1.jpg", "a black cat", confidence=0.5), row("dogs/1.jpg", "a Dog runs", confidence=0.05)]
    write(bucket, first, night="2026-01-01", shard="s")
    write(bucket, [row("dogs/2.jpg", error="the file is empty")], night="2026-01-02", shard="s")
    write(bucket, [row("dogs/1.jpg", "a brown dog")], night="2026-01-02", shard="t", version="m2")
    assert keys(bucket, version="m2") == ["dogs/1.jpg"]
    assert keys(bucket, night="2026-01-01") == ["cats/1.jpg", "dogs/1.jpg"]
    assert keys(bucket, status="failed") == ["dogs/2.jpg"]
    assert keys(bucket, unsure=0.1) == ["dogs/1.jpg"]
    assert keys(bucket, unsure=1) == ["cats/1.jpg", "dogs/1.jpg"]
    assert keys(bucket, words="dog RUNS") == ["dogs/1.jpg"]
    assert keys(bucket, words="1 RUNS") == ["dogs/1.jpg"]
    assert keys(bucket, words="cats") == keys(bucket, words='"dogs"') == keys(bucket, words='1 "cats"') == []
    assert keys(bucket, words="cats/") == keys(bucket, words='"cats/1.jpg"') == ["cats/1.jpg"]
    assert keys(bucket, words="is empty") == ["dogs/2.jpg"]
    assert keys(bucket, words="dog", night="2026-01-02", status="ok") == ["dogs/1.jpg"]
    assert keys(bucket, words="%") == keys(bucket, words=".*") == keys(bucket, version="m3") == []
    assert keys(bucket, image="cats/1.jpg") == ["cats/1.jpg"]


def test_a_novel_photograph_is_never_sure(bucket):
    """Whatever its confidence, it is among the unsure ones; a caption without a confidence is not."""
    rows = [row("a", confidence=0.9, novel=True), row("b", confidence=0.9, novel=False), row("c")]
    write(bucket, rows, night="2026-01-01", shard="s")
    assert keys(bucket, unsure=0.1) == keys(bucket, unsure=0) == ["a"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cat", {"a cat.", "Cat's", "my_cat.jpg"}),
        ("CAT a", {"a cat."}),
        ('"a cat"', {"a cat."}),
        ("“a  cat”", {"a cat."}),
        ('"cat a"', set()),
        ('"a cat', {"a cat."}),
        ('"" "a"cat', {"a cat."}),
        ("cat.", {"a cat.", "my_cat.jpg"}),
        ("trunc", {"a dog, truncated"}),
        ('"trunc"', set()),
        ("chat", set()),
        ("CHÂTEAU", {"le château"}),
        ("teau", set()),
        ("собака", {"рыжая собака"}),
        ("соба", {"рыжая собака"}),
        ('"соба"', set()),
        ("猫", {"黑猫在睡觉"}),
        ("睡觉", {"黑猫在睡觉"}),
        ("コーヒ", {"コーヒーを飲む"}),
        ("ーを", {"コーヒーを飲む"}),
        ("แมว", {"มีแมวตัวหนึ่ง"}),
        ("(.*)", set()),
    ],
)
def test_words_and_phrases(bucket, words, found):
    """A word finds those that begin with it, in any script, and a phrase whole words.

    Where words have no spaces between them, any text is found.
    """
    captions = ["a cat.", "a dog, truncated", "Cat's", "un châtchat", "le château", "рыжая собака", "黑猫在睡觉"]
    captions += ["コーヒーを飲む", "มีแมวตัวหนึ่ง"]
    rows = [row(f"{number}.jpg", caption) for number, caption in enumerate(captions)] + [row("my_cat.jpg", "it")]
    write(bucket, rows, night="2026-01-01", shard="s")
    shown = browse.page(browse.shards(bucket), Filters(words=words), store=bucket, size=99).rows
    assert {each["caption"] if each["caption"] != "it" else each["image_key"] for each in shown} == found


@settings(max_examples=random_inputs(60))
@given(
    shards=st.lists(st.tuples(st.integers(1, 3), st.lists(st.booleans(), max_size=6)), max_size=6),
    size=st.integers(1, 5),
    failed=st.booleans(),
    hurried=st.booleans(),
)
def test_pages_together_are_everything(tmp_path_factory, shards, size, failed, hurried):
    """However the shards are cut, the pages hold each caption that passes once, also where the time is always up."""
    store = open_bucket(str(tmp_path_factory.mktemp("pages")))
    expected = []
    for number, (night, oks) in enumerate(shards):
        names = [(f"{number}-{place}", ok) for place, ok in enumerate(oks)]
        write(
            store,
            [row(name, error=None if ok else "bad") for name, ok in names],
            night=f"2026-01-0{night}",
            shard=f"s{number}",
        )
        expected += [name for name, ok in names if not (failed and ok)]
    filters = Filters(status="failed" if failed else "")
    pages = all_pages(store, filters, size=size, seconds=0.0 if hurried else 60.0)
    assert sorted(itertools.chain(*pages)) == sorted(expected)
    if not hurried:
        assert all(len(page) == size for page in pages[:-1])


def test_a_long_search_says_how_far_it_came(tmp_path):
    """Where nothing is found in time, the page is empty and says from where to go on."""
    store = open_bucket(str(tmp_path))
    for night in range(1, 6):
        write(store, [row("a")], night=f"2026-01-0{night}", shard="s")
    found = browse.page(browse.shards(store), Filters(words="zebra"), store=store, size=3, seconds=0.0)
    assert (found.rows, found.searched_to) == ([], "2026-01-05")
    assert found.after == f"{shard_key('2026-01-04', 's')}:0"


def test_a_page_reads_what_it_shows(s3_bucket_name):
    """A first page costs S3 one shard, a later one begins at its own shard, a search takes each once."""
    store = open_bucket(f"s3://{s3_bucket_name}/archive")
    for night in range(1, 29):
        write(store, [row(f"{night}-{number}") for number in range(5)], night=f"2026-01-{night:02}", shard="s")
    requests = []
    store.client.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.url))

    def ask(filters, after="", seconds=60.0):
        requests.clear()
        found = browse.page(browse.shards(store), filters, store=store, size=3, after=after, seconds=seconds)
        # Besides the shards: their listing, the table of corrections, and the listing of newer ones.
        return [each["image_key"] for each in found.rows], len(requests) - 3

    assert ask(Filters()) == (["28-0", "28-1", "28-2"], 1)
    assert ask(Filters(), f"{shard_key('2026-01-03', 's')}:1") == (["3-1", "3-2", "3-3"], 1)
    assert ask(Filters(night="2026-01-05")) == (["5-0", "5-1", "5-2"], 1)
    assert ask(Filters(words="zebra")) == ([], 28)
    assert ask(Filters(words="zebra"), seconds=0.0) == ([], 1)


def test_shards_that_go_meanwhile(bucket):
    """A shard that is pruned after it was listed is passed over, and hides nothing of the shard that follows it."""
    for night in (1, 2, 3):
        write(bucket, [row(f"{night}-{number}") for number in range(3)], night=f"2026-01-0{night}", shard="s")
    listed = browse.shards(bucket)
    bucket.delete(listed[1].key)
    for after, expected in (("", ["3-0", "3-1", "3-2", "1-0"]), (f"{listed[1].key}:2", ["1-0", "1-1", "1-2"])):
        found = browse.page(listed, Filters(), store=bucket, size=4, after=after)
        assert [each["image_key"] for each in found.rows] == expected


def test_other_filters_from_the_same_place(tmp_path):
    """Where the shard at which the page before ended does not pass, the next that does is shown from its first row."""
    store = open_bucket(str(tmp_path))
    write(store, [row("a"), row("b")], night="2026-01-02", shard="s", version="m2")
    write(store, [row("c"), row("d", error="bad")], night="2026-01-01", shard="s")
    listed = browse.shards(store)
    after = browse.page(listed, Filters(), store=store, size=1).after
    for filters, expected in (
        ({}, ["b", "c", "d"]),
        ({"version": "m1"}, ["c", "d"]),
        ({"night": "2026-01-01"}, ["c", "d"]),
        ({"status": "failed"}, ["d"]),
        ({"version": "m2"}, ["b"]),
        ({"night": "2026-01-03"}, []),
    ):
        found = browse.page(listed, Filters(**filters), store=store, size=9, after=after)
        assert ([each["image_key"] for each in found.rows], found.after) == (expected, None)


@pytest.mark.parametrize("data", [b"", b"nothing"])
def test_a_shard_that_can_not_be_read(bucket, data):
    """The captions of all others are shown, and a note names it: none is missing silently."""
    for night in (1, 2, 3):
        write(bucket, [row(str(night))], night=f"2026-01-0{night}", shard="s")
    key = shard_key("2026-01-02", "s")
    bucket.put(key, data)
    bucket.put("captions/model=m1/date=2026-01-02/_SUCCESS", b"")
    found = browse.page(browse.shards(bucket), Filters(), store=bucket, size=9)
    assert [each["image_key"] for each in found.rows] == ["3", "1"]
    [message] = found.damaged
    assert f"{bucket.url(key)} is damaged" in message
    assert "Delete it" in message


def test_a_shard_with_flipped_bytes(bucket):
    """The checksum of a page tells that its bytes are not those that were written."""
    write(bucket, [row("a"), row("b")], night="2026-01-01", shard="s")
    key = shard_key("2026-01-01", "s")
    data = bytearray(bucket.get(key))
    with parquet.opened(key, bucket) as file:
        captions = file.metadata.row_group(0).column(SCHEMA.get_field_index("caption"))
    data[captions.data_page_offset + captions.total_compressed_size // 2] ^= 1
    bucket.put(key, bytes(data))
    found = browse.page(browse.shards(bucket), Filters(), store=bucket, size=9)
    assert (found.rows, len(found.damaged)) == ([], 1)


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_limits_that_are_no_probability(limit):
    """They are refused."""
    with pytest.raises(ValidationError, match="unsure"):
        Filters(unsure=limit)


@pytest.mark.parametrize(
    "after", ["nothing", "a:1", "../../etc/passwd:0", "captions/model=m1/date=2026-01-01/s.parquet:x"]
)
def test_a_page_that_is_no_more(tmp_path, after):
    """A place that names no shard is refused, and nothing is read."""
    store = open_bucket(str(tmp_path))
    write(store, [row("a")], night="2026-01-01", shard="s")
    with pytest.raises(PipelineError, match="no longer exists"):
        browse.page(browse.shards(store), Filters(), store=store, size=1, after=after)


def test_a_persons_word_is_what_filters_see(bucket):
    """It replaces the caption of each model, at once: words find it, and it is never unsure, failed or a model's."""
    rows = [row("a", novel=True), row("b", confidence=0.5), row("c", error="slow"), row("d", confidence=0.5)]
    write(bucket, rows, night="2026-01-01", shard="s")
    write(bucket, [row("a", "a cat")], night="2026-01-02", shard="t", version="m2")
    correct(bucket, "a", "a horse", corrected_by="bob")
    correct(bucket, "a", "a zebra")
    correct(bucket, "b", "a dog", action="confirmed")
    correct(bucket, "c", "a bird")
    correct(bucket, "d", "of another version", etag="older")
    assert keys(bucket, words="zebra") == ["a", "a"]
    assert keys(bucket, words="cat") == keys(bucket, words="horse") == keys(bucket, words="slow") == []
    assert keys(bucket, status="failed") == []
    assert keys(bucket, unsure=0.9) == keys(bucket, source="model") == ["d"]
    assert keys(bucket, source="person") == ["a", "a", "b", "c"]
    [_, first, second, third, fourth] = browse.page(browse.shards(bucket), Filters(), store=bucket, size=9).rows
    names = ("caption", "confidence", "novel", "status", "error", "source", "action", "corrected_by", "model_version")
    assert [[each[name] for name in names] for each in (first, second, third, fourth)] == [
        ["a zebra", None, None, "ok", None, "person", "corrected", "ann", "m1"],
        ["a dog", None, None, "ok", None, "person", "confirmed", "ann", "m1"],
        ["a bird", None, None, "ok", None, "person", "corrected", "ann", "m1"],
        ["a dog", 0.5, None, "ok", None, "model", None, None, "m1"],
    ]
    corrections.withdraw("a", "e", by="bob", store=bucket)
    assert keys(bucket, words="cat") == ["a"]
    assert keys(bucket, words="zebra") == []


def test_a_damaged_correction_is_left_out(bucket):
    """The others count, and a note names it: on pages of captions and on the picture's own."""
    write(bucket, [row("a"), row("b")], night="2026-01-01", shard="s")
    correct(bucket, "a", "a zebra")
    damaged = layout.correction("2026-01-01", "20260101T000000000000-0")
    bucket.put(damaged, b"{")
    page, image = browse.page(browse.shards(bucket), Filters(), store=bucket, size=9), image_captions("b", store=bucket)
    assert [each["caption"] for each in page.rows] == ["a zebra", "a dog"]
    for [message] in (page.damaged, image.damaged):
        assert f"{bucket.url(damaged)} is damaged" in message

"""Corrections: better captions that people wrote, stored with their pictures, and learned from."""

import glob
import io
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pillow_heif
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.config import DecodingConfig
from pipeline.data import corrections, dataset, images
from pipeline.data.dataset import build_vocabulary, load
from pipeline.data.ingest import ingest
from pipeline.data.sources import SourceCounts
from pipeline.errors import PipelineError
from pipeline.features import encoder, extraction
from pipeline.features import store as feature_store
from pipeline.serving import on_demand
from pipeline.storage import layout, open_bucket, parquet
from tests.support import toy
from tests.support.paths import PROJECT

WORDS = {"caption": "a red square", "model_caption": "a dog", "model_version": "v1", "corrected_by": "ann"}

PURPLE = (150, 40, 170)
"""A colour that is not in the toy world."""

SOURCE = "store:corrections"
"""The name of the bucket of corrected pictures in a dataset."""


@pytest.fixture
def store(bucket):
    """An empty store, of either kind."""
    return bucket


@pytest.fixture
def source(tmp_path):
    """The toy world's pictures and captions."""
    source = open_bucket(str(tmp_path / "source"))
    toy.draw(source)
    return source


def correct(store, data=None, **changes):
    """Correct the caption of a red picture, or of another."""
    return corrections.add(toy.picture("red", 99) if data is None else data, **{**WORDS, **changes}, store=store)


pillow_heif.register_heif_opener()


def encoded(format_, mode="RGB"):
    """A small picture in a format."""
    buffer = io.BytesIO()
    Image.new(mode, (9, 7)).save(buffer, format_)
    return buffer.getvalue()


def said(store):
    """All corrections that are read, without the names of their objects."""
    return [
        {name: value for name, value in row.items() if name != "name"} for row in corrections.read(store).to_pylist()
    ]


def keys(store):
    """The keys of all objects of the store."""
    return [item.key for item in store.list()]


def picture_key(made):
    """The key in the store of the copy of a corrected picture."""
    return f"{layout.CORRECTIONS}{made.picture}"


# --- a correction ----------------------------------------------------------------------------------------------------


def test_a_correction_is_stored_with_its_picture(store):
    """It is read back as it was added, and the picture's bytes are stored where the correction says."""
    before = datetime.now(UTC)
    data = toy.picture("red")
    made = correct(store, data, caption="  a red square ", image_key="garden/a.jpg", image_etag="e")
    assert said(store) == [made.model_dump()]
    assert made.model_dump(exclude={"picture", "corrected_at"}) == {
        **WORDS,
        "action": "corrected",
        "image_key": "garden/a.jpg",
        "image_etag": "e",
    }
    assert before <= made.corrected_at <= datetime.now(UTC)
    assert store.get(f"corrections/{made.picture}") == data
    assert len(keys(store)) == 2


@pytest.mark.parametrize("format_", images.FORMATS)
def test_the_copy_has_the_suffix_of_its_format(tmp_path, format_):
    """Pillow agrees on the format, and an ingest finds the copy, although the picture had another suffix."""
    made = correct(open_bucket(str(tmp_path)), encoded(format_), image_key="lies.exe")
    assert images.is_image(made.picture)
    with Image.open(tmp_path / "corrections" / made.picture) as image:
        assert (image.format, Image.registered_extensions()[Path(made.picture).suffix]) == (format_, format_)


def test_a_picture_is_copied_once(store):
    """A second correction leaves the copy as it is: written again, it would be another version of the image."""
    first = correct(store)
    etag = store.etag(picture_key(first))
    assert correct(store, caption="another red square").picture == first.picture
    assert store.etag(picture_key(first)) == etag
    assert corrections.read(store)["caption"].to_pylist() == ["a red square", "another red square"]


@pytest.mark.parametrize(
    "caption",
    ["", "  ", "\n", "a dog\nruns", "a\tdog", "a dog\0", "a \u202egod", "a dog\ud800", "12 !?", "🐕", "a" * 301],
    ids=repr,
)
def test_an_invalid_caption_is_refused(store, caption):
    """One that is blank, too long, not one line of printable characters, or without a word: nothing is written."""
    with pytest.raises(PipelineError, match="caption: expected one line of 1 to 300 printable characters"):
        correct(store, caption=caption)
    assert keys(store) == []


@pytest.mark.parametrize("caption", ["Собака бежит.", "एक कुत्ता", "一只狗"])
def test_a_caption_may_be_in_any_script(store, caption):
    """A caption in another language than English is stored as it was written."""
    assert correct(store, caption=caption).caption == caption


@given(st.text(max_size=400) | st.text("a é日🐕.1 \n\t", max_size=10))
def test_any_text_is_stored_or_refused(caption):
    """An accepted text is stored without the white space around it, and survives Parquet."""
    try:
        made = corrections.Correction(
            **{**WORDS, "caption": caption}, action="corrected", picture="i", corrected_at=datetime.now(UTC), **NO_KEY
        )
    except ValidationError:
        return
    assert made.caption == caption.strip()
    assert 1 <= len(made.caption) <= 300
    assert made.caption.isprintable()
    assert any(letter.isalpha() for letter in made.caption)
    assert pa.Table.from_pylist([made.model_dump()], schema=corrections.SCHEMA).to_pylist() == [made.model_dump()]


NO_KEY = {"image_key": None, "image_etag": None}

HOSTILE = [
    "../../models/champion.json",
    "/etc/passwd",
    "a\nb",
    "\0",
    "=cmd()",
    "'; drop table corrections",
    "x" * 4096,
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_texts_are_only_data(store, text):
    """The names of a picture, its etag, a model or a user are stored unchanged, and become part of no key."""
    texts = dict.fromkeys(["model_caption", "image_key", "image_etag", "model_version", "corrected_by"], text)
    made = correct(store, **texts)
    assert corrections.read(store).select(list(texts)).to_pylist() == [texts]
    [row, picture] = keys(store)
    assert row.startswith(f"corrections/{made.corrected_at:%Y-%m-%d}/")
    assert picture == picture_key(made)


@pytest.mark.parametrize("text", ["x" * 4097, "\udcff"], ids=["too long", "not UTF-8"])
@pytest.mark.parametrize("name", ["model_caption", "image_key", "image_etag", "model_version", "corrected_by"])
def test_texts_that_cannot_be_stored_are_refused(tmp_path, name, text):
    """The error names the text."""
    with pytest.raises(PipelineError, match=f"The correction can't be stored: {name}: "):
        correct(open_bucket(str(tmp_path)), **{name: text})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not a picture in a known format"),
        (encoded("PPM"), "not a picture in a known format"),
        (toy.picture("red")[:-20], "cannot be decoded"),
    ],
    ids=["empty", "no picture", "unknown format", "truncated"],
)
def test_bytes_that_are_no_picture_are_refused(store, data, why):
    """The error says what is wrong with them, and nothing is written."""
    with pytest.raises(PipelineError, match=f"The picture can't be used: {why}"):
        correct(store, data)
    assert keys(store) == []


def test_no_picture_is_decoded_in_this_process(tmp_path, monkeypatch):
    """Pillow gets hostile bytes only in a process that limits itself."""

    def never(*_arguments, **_options):
        raise AssertionError("decoded here")

    monkeypatch.setattr(Image, "open", never)
    assert correct(open_bucket(str(tmp_path))).caption == "a red square"


def test_corrections_made_at_once_are_all_stored(store):
    """None of many is lost, of the same picture or of several."""
    pictures = [toy.picture("red"), toy.picture("blue")]

    def work(number):
        return correct(store, pictures[number % 2], caption=f"caption by {number * 'a'}b", corrected_by=str(number))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(16)))
    found = sorted(said(store), key=lambda row: int(row["corrected_by"]))
    assert found == [each.model_dump() for each in made]
    assert len(keys(store)) == 18
    assert corrections.count(store) == 16


def test_corrections_are_read_in_the_order_of_time(store):
    """The oldest first."""
    made = [correct(store, caption=f"caption {letter}") for letter in "cab"]
    assert said(store) == [each.model_dump() for each in made]


def test_an_interrupted_correction_is_none(store, monkeypatch):
    """A process that dies after it wrote the picture leaves no correction; the next attempt makes one."""
    put = store.put

    def die_at_the_correction(key, data, **options):
        if key.endswith(".parquet"):
            raise OSError("power cut")
        return put(key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", die_at_the_correction)
        with pytest.raises(OSError, match="power cut"):
            correct(store)
    assert (len(keys(store)), corrections.count(store), len(corrections.read(store))) == (1, 0, 0)
    made = correct(store)
    assert said(store) == [made.model_dump()]


def test_other_programs_read_corrections(tmp_path):
    """pandas, DuckDB and pyarrow read the same rows and types, also those of an upload, which has no key."""
    store = open_bucket(str(tmp_path))
    made = [correct(store, caption="a é dog's 🐕"), correct(store, image_key="b.jpg", image_etag="e")]
    pattern = str(tmp_path / "corrections/*/*.parquet")
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - as others do
    rows = [each.model_dump() for each in made]

    assert pyarrow.dataset.dataset(paths).to_table().to_pylist() == rows
    frame = pd.concat(map(pd.read_parquet, paths))
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == rows
    found = duckdb.sql(f"from read_parquet('{pattern}') order by corrected_at")
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == rows


@pytest.mark.parametrize("new_bucket", ["file"], indirect=True)
def test_the_documented_code_shows_the_corrections(store, capfd):
    """The lines of docs/data.md."""
    correct(store, corrected_by="bea")
    text = (PROJECT / "docs" / "data.md").read_text()
    [snippet] = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "corrections" in each]
    exec(snippet.replace("data/store", str(store.root)), {})  # noqa: S102 - the document's own lines
    assert "bea" in capfd.readouterr().out


# --- what counts -----------------------------------------------------------------------------------------------------


def counting(store):
    """What counts, by the version of the image."""
    return corrections.by_image(corrections.latest(corrections.read(store)))


def test_the_last_word_about_a_version_of_an_image_counts(store):
    """A correction is edited by another one; another version of the image, and an upload, have their own."""
    correct(store, image_key="a.jpg", image_etag="1")
    edited = correct(store, image_key="a.jpg", image_etag="1", caption="a lovely red square", corrected_by="bob")
    newer = correct(store, image_key="a.jpg", image_etag="2")
    upload = correct(store)
    assert counting(store) == {("a.jpg", "1"): edited, ("a.jpg", "2"): newer, ("", upload.picture): upload}
    assert len(said(store)) == 4


def test_a_confirmed_caption_counts_as_a_correction_does(store):
    """“Looks right” keeps the caption of the model, and says so."""
    made = correct(store, caption="a dog", action="confirmed", image_key="a.jpg", image_etag="1")
    assert (made.action, made.caption, made.model_caption) == ("confirmed", "a dog", "a dog")
    assert counting(store) == {("a.jpg", "1"): made}


def test_what_was_said_can_be_withdrawn_and_said_again(store):
    """Nothing is removed: the withdrawal is the last word, until there is another. An upload can be withdrawn, too."""
    first = correct(store, image_key="a.jpg", image_etag="1")
    upload = correct(store)
    withdrawn = corrections.withdraw("a.jpg", "1", by="bob", store=store)
    assert withdrawn.model_dump(exclude={"corrected_at"}) == {
        **first.model_dump(exclude={"corrected_at"}),
        "action": "withdrawn",
        "caption": None,
        "corrected_by": "bob",
    }
    assert counting(store) == {("", upload.picture): upload}
    corrections.withdraw("", upload.picture, by="bob", store=store)
    assert counting(store) == {}
    again = correct(store, image_key="a.jpg", image_etag="1")
    assert counting(store) == {("a.jpg", "1"): again}
    assert [row["action"] for row in said(store)] == ["corrected", "corrected", "withdrawn", "withdrawn", "corrected"]


def test_only_what_counts_can_be_withdrawn(store):
    """The error names the image; nothing is written for an unknown one, or twice."""
    correct(store, image_key="a.jpg", image_etag="1")
    corrections.withdraw("a.jpg", "1", by="bob", store=store)
    for key, etag in [("a.jpg", "1"), ("a.jpg", "2"), ("b.jpg", "1")]:
        with pytest.raises(PipelineError, match=rf"There is no correction of {key} to withdraw"):
            corrections.withdraw(key, etag, by="bob", store=store)
    assert len(said(store)) == 2


# --- two people at once ----------------------------------------------------------------------------------------------


def reply(store, seen, **changes):
    """Correct a picture of the inbox after what was seen."""
    return correct(store, image_key="a.jpg", image_etag="1", seen=seen, **changes)


def seen_now(store):
    """What somebody sees who looks at it now."""
    return corrections.last_said(corrections.read(store), "a.jpg", "1")


def test_the_second_who_saw_the_same_learns_what_the_first_said(store):
    """Nothing is written; whoever has seen the first one's words may replace them. Other pictures don't matter."""
    correct(store, image_key="a.jpg", image_etag="2")
    assert seen_now(store) == ""
    first = reply(store, "")
    before = keys(store)
    with pytest.raises(corrections.AlreadySaidError, match="ann has corrected this caption meanwhile: a red square"):
        reply(store, "", caption="a blue square", corrected_by="bob")
    assert keys(store) == before
    assert counting(store)["a.jpg", "1"] == first
    second = reply(store, seen_now(store), caption="a blue square", corrected_by="bob")
    assert counting(store)["a.jpg", "1"] == second
    corrections.withdraw("a.jpg", "1", by="cleo", store=store)
    with pytest.raises(corrections.AlreadySaidError, match="cleo has withdrawn a correction of this caption"):
        reply(store, "")
    assert reply(store, seen_now(store), action="confirmed", caption="a dog") == counting(store)["a.jpg", "1"]
    assert corrections.count(store) == 5


def test_of_many_at_once_one_is_the_first(store):
    """However many have seen the same: one correction is stored, and the others learn of it."""

    def work(number):
        try:
            return reply(store, "", corrected_by=str(number)).corrected_by
        except corrections.AlreadySaidError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    [row] = said(store)
    assert sorted(set(answers)) == sorted(
        [
            row["corrected_by"],
            f"Nothing was saved: {row['corrected_by']} has corrected this caption meanwhile: a red square. "
            "Reload the page before you save again.",
        ]
    )
    assert answers.count(row["corrected_by"]) == 1


def test_a_reply_comes_after_what_it_replies_to(store, monkeypatch):
    """Also where the clock of the first one's machine was ahead; and after a fold."""
    with monkeypatch.context() as patch:
        ahead = type("Ahead", (datetime,), {"now": classmethod(lambda _, zone: datetime(2126, 1, 1, tzinfo=zone))})
        patch.setattr(corrections, "datetime", ahead)
        reply(store, "")
    second = reply(store, seen_now(store), caption="a blue square")
    assert counting(store)["a.jpg", "1"] == second
    corrections.fold(store, damaged=[])
    third = reply(store, seen_now(store), caption="a green square")
    assert counting(store)["a.jpg", "1"] == third


# --- the table of all corrections ------------------------------------------------------------------------------------


def test_a_folded_correction_is_not_read_again(store, monkeypatch):
    """The table gives those before the fold; only newer ones are fetched."""
    for letter in "cab":
        correct(store, caption=f"caption {letter}")
    before = said(store)
    assert corrections.fold(store, damaged=[]).drop_columns("name").to_pylist() == before
    correct(store, caption="caption d")
    read, fetched = parquet.read, []
    monkeypatch.setattr(
        parquet, "read", lambda key, *args, **options: fetched.append(key) or read(key, *args, **options)
    )
    assert [row["caption"] for row in said(store)] == [f"caption {letter}" for letter in "cabd"]
    assert (fetched[0], len(fetched)) == (layout.CORRECTION_LOG, 2)
    assert corrections.count(store) == 4


def test_a_fold_without_anything_new_writes_nothing(store):
    """Neither without any correction, nor a second time."""
    corrections.fold(store, damaged=[])
    assert keys(store) == []
    correct(store)
    corrections.fold(store, damaged=[])
    before = toy.etags(store, "")
    corrections.fold(store, damaged=[])
    assert toy.etags(store, "") == before


def test_a_removed_correction_leaves_the_table(store):
    """The objects are the truth: what is removed is read no more, and the next fold removes it from the table."""
    correct(store, caption="a red square")
    correct(store, caption="a blue square")
    corrections.fold(store, damaged=[])
    store.delete(next(key for key in keys(store) if layout.correction_of_key(key)))
    assert [row["caption"] for row in said(store)] == ["a blue square"]
    corrections.fold(store, damaged=[])
    assert parquet.read(layout.CORRECTION_LOG, store)["caption"].to_pylist() == ["a blue square"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense"])
def test_a_damaged_table_is_made_again(store, damage):
    """It holds nothing that the objects do not."""
    made = correct(store)
    store.put(layout.CORRECTION_LOG, damage)
    assert said(store) == [made.model_dump()]
    corrections.fold(store, damaged=[])
    assert parquet.read(layout.CORRECTION_LOG, store)["caption"].to_pylist() == ["a red square"]


def test_a_damaged_correction_is_an_error_or_left_out(store):
    """An ingest names it; a night goes on without it, and says so."""
    made = correct(store)
    correct(store, caption="lost")
    damaged_key = [key for key in keys(store) if layout.correction_of_key(key)][-1]
    store.put(damaged_key, b"damaged")
    with pytest.raises(PipelineError, match=rf"{damaged_key} is damaged.* Delete it; what it says is lost"):
        corrections.read(store)
    damaged = []
    assert corrections.fold(store, damaged=damaged)["caption"].to_pylist() == [made.caption]
    assert [damaged_key in message for message in damaged] == [True]


def test_folds_at_once_lose_nothing(store):
    """While people write and others fold, too."""

    def work(number):
        correct(store, caption=f"caption {number * 'a'}b")
        return corrections.fold(store, damaged=[])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert len(corrections.fold(store, damaged=[])) == 8
    assert len(parquet.read(layout.CORRECTION_LOG, store)) == 8


# --- a dataset with corrections --------------------------------------------------------------------------------------


def captions_of(report, source_name, store):
    """The captions by image of the rows of a dataset that come from a source; all must be in train, without a hash."""
    rows = [row for row in load(report.dataset, store).table.to_pylist() if row["source"] == source_name]
    assert {(row["split"], row["content_hash"]) for row in rows} <= {("train", None)}
    return {row["image_key"]: row["captions"] for row in rows}


def ingest_toy(source, store, **options):
    """Ingest the toy world."""
    return ingest([source.url("captions.csv")], store, name="toy", **options)


def test_corrections_are_added_to_the_training_split(source, store):
    """Each picture with its better captions, the oldest first, equal ones once; without the option there are none."""
    plain = ingest_toy(source, store)
    assert ingest_toy(source, store, corrections=True) == plain
    first = correct(store, caption="a nice red square", image_key="a.jpg")
    correct(store, caption="a nice red square", image_key="copy of a.jpg", corrected_by="bob")
    correct(store, caption="a lovely red square", image_key="b.jpg")
    second = correct(store, toy.picture("blue", 98), caption="a nice blue square")

    assert ingest_toy(source, store) == plain
    report = ingest_toy(source, store, corrections=True)
    assert report.dataset != plain.dataset
    assert report.sources == {
        source.url("captions.csv"): SourceCounts(images=24, captions=48, dropped=0),
        SOURCE: SourceCounts(images=2, captions=3, dropped=1),
    }
    assert report.images == {"train": 18, "dev": 4, "test": 4}
    assert (report.captions, report.dropped) == (51, {"duplicate": 1})
    [dropped] = report.dropped_rows
    assert (dropped.file, dropped.line) == (SOURCE, 2)
    assert dropped.text == f"{first.picture}, a nice red square"
    assert captions_of(report, SOURCE, store) == {
        first.picture: ["a nice red square", "a lovely red square"],
        second.picture: ["a nice blue square"],
    }
    others = [row for row in load(report.dataset, store).table.to_pylist() if row["source"] == source.uri]
    assert others == load(plain.dataset, store).table.to_pylist()


def test_the_id_depends_on_the_corrections(source, store):
    """The same corrections give the same dataset, more give another one; an equal caption again changes no row."""
    correct(store)
    first = ingest_toy(source, store, corrections=True)
    before = toy.etags(store, layout.DATASETS)
    assert ingest_toy(source, store, corrections=True) == first
    assert toy.etags(store, layout.DATASETS) == before
    correct(store, corrected_by="bob", image_key="copy.jpg")
    assert ingest_toy(source, store, corrections=True).dataset == first.dataset
    correct(store, caption="another caption")
    assert ingest_toy(source, store, corrections=True).dataset != first.dataset


def test_a_held_out_picture_is_not_learned_from(source, store):
    """A corrected picture of dev or test is dropped by its content, whatever its name; one of train is kept."""
    pictures = [source.get(f"pictures/red-{number}.jpg") for number in (0, 4, 5)]
    learned, *held_out = [correct(store, data, image_key=f"{place}.jpg") for place, data in enumerate(pictures)]
    report = ingest_toy(source, store, corrections=True, max_dropped_fraction=0)
    assert report.images == {"train": 17, "dev": 4, "test": 4}
    assert report.dropped == {"image in dev or test": 2}
    assert [(row.file, row.line, row.text) for row in report.dropped_rows] == [
        (SOURCE, line, f"{made.picture}, a red square") for line, made in zip((2, 3), held_out, strict=True)
    ]
    assert captions_of(report, SOURCE, store) == {learned.picture: ["a red square"]}


def test_every_correction_of_a_held_out_picture_is_dropped(source, store):
    """Each has the same reason, equal captions too, and the captions of the dataset stay as they were."""
    for key, caption in [("a.jpg", "a red square"), ("b.jpg", "a red square"), ("c.jpg", "a lovely red square")]:
        correct(store, source.get("pictures/red-5.jpg"), caption=caption, image_key=key)
    plain = ingest_toy(source, store)
    report = ingest([plain.dataset], store, corrections=True)
    assert report.dropped == {"image in dev or test": 3}
    assert report.dataset == plain.dataset
    assert load(report.dataset, store).table == load(plain.dataset, store).table


def test_a_held_out_picture_is_recognized_after_its_bucket_is_gone(source, store):
    """The hashes are in the dataset, so that the pictures of dev and test are not read again."""
    plain = ingest_toy(source, store)
    correct(store, source.get("pictures/red-5.jpg"))
    for item in list(source.list()):
        source.delete(item.key)
    assert ingest([plain.dataset], store, corrections=True).dropped == {"image in dev or test": 1}


def test_a_held_out_picture_that_cannot_be_read_is_no_obstacle(source, store, monkeypatch, caplog):
    """One that vanishes during the ingest gets no hash, and the log says so; its corrections can't be recognized."""
    made = correct(store, source.get("pictures/red-5.jpg"))
    get = type(source).get

    def gone(bucket, key, **options):
        if key == "pictures/red-5.jpg":
            raise bucket._not_found(key)
        return get(bucket, key, **options)

    monkeypatch.setattr(type(source), "get", gone)
    report = ingest_toy(source, store, corrections=True)
    assert list(captions_of(report, SOURCE, store)) == [made.picture]
    rows = load(report.dataset, store).table.to_pylist()
    assert [row["image_id"] for row in rows if row["split"] != "train" and not row["content_hash"]] == ["red-5.jpg"]
    assert "pictures/red-5.jpg can't be read, so corrections of it can't be recognized" in caplog.text


def test_a_correction_without_its_picture_is_listed(source, store):
    """It is dropped with a reason, as a caption of any other missing image."""
    store.delete(picture_key(correct(store)))
    report = ingest_toy(source, store, corrections=True)
    assert report.dropped == {"image missing": 1}
    assert report.sources[SOURCE] == SourceCounts(images=0, captions=0, dropped=1)


def test_a_dataset_is_a_source(source, store):
    """Its id gives its own report, and nothing is written; corrections in the store change nothing."""
    source.put("captions.csv", source.get("captions.csv") + b"\nnowhere.jpg,a dog,train")
    report = ingest_toy(source, store)
    assert report.dropped == {"image missing": 1}
    correct(store)
    before = toy.etags(store, "")
    assert ingest([report.dataset], store) == report
    assert toy.etags(store, "") == before

    corrected = ingest_toy(source, store, corrections=True)
    correct(store, caption="another caption")
    assert ingest([corrected.dataset], store) == corrected


def test_corrections_are_added_to_a_dataset(source, store):
    """The result is as if it had been made with them, whether or not it has some already."""
    plain = ingest_toy(source, store)
    correct(store, image_key="a.jpg")
    correct(store, image_key="b.jpg")
    corrected = ingest_toy(source, store, corrections=True)
    assert ingest([plain.dataset], store, corrections=True) == corrected
    assert ingest([corrected.dataset], store, corrections=True) == corrected
    correct(store, caption="another caption")
    with_more = ingest_toy(source, store, corrections=True)
    assert with_more != corrected
    assert ingest([corrected.dataset], store, corrections=True) == with_more


def test_a_dataset_gets_another_name(source, store):
    """The same rows under a new name are another dataset of the same fingerprint."""
    report = ingest_toy(source, store)
    renamed = ingest([report.dataset], store, name="other")
    assert renamed.dataset == report.dataset.replace("toy/", "other/")
    assert load(renamed.dataset, store).name == "other"
    assert load(renamed.dataset, store).table == load(report.dataset, store).table


def test_a_dataset_without_its_report_is_refused(source, store):
    """The table alone does not say what was dropped: the error names the missing object."""
    report = ingest_toy(source, store)
    store.delete(layout.ingest_report(report.dataset))
    with pytest.raises(PipelineError, match=rf"There is no object .*{report.dataset}/ingest\.json"):
        ingest([report.dataset], store)


# --- a copied store --------------------------------------------------------------------------------------------------


def extract_all(dataset_id, encoder_id, store):
    """Extract the features of a dataset; how many images have each status."""
    for name, listing in dataset.listings_by_source(load(dataset_id, store).table).items():
        extraction.extract_missing(listing, run="r", source=name, encoder_id=encoder_id, store=store)
    return Counter(feature_store.index(encoder_id, store)["status"].to_pylist())


def test_a_copied_store_works_elsewhere(source, new_bucket, toy_encoder):
    """The copy has the same dataset, and a new encoder extracts all its images, the corrected picture among them."""
    here, there = new_bucket(), new_bucket()
    plain = ingest_toy(source, here)
    correct(here)
    report = ingest([plain.dataset], here, corrections=True)
    toy.copy(here, there, "")
    for item in list(here.list()):
        here.delete(item.key)

    assert ingest([report.dataset], there) == report
    assert ingest([plain.dataset], there, corrections=True) == report
    assert extract_all(report.dataset, encoder.register(str(toy_encoder), there), there) == {"ok": 25}


def test_the_store_does_not_hold_its_own_address(source, store, toy_encoder):
    """Neither a document nor a table contains the URI of the store."""
    correct(store)
    report = ingest_toy(source, store, corrections=True)
    build_vocabulary(report.dataset, store, min_count=1)
    extract_all(report.dataset, encoder.register(str(toy_encoder), store), store)
    for item in store.list():
        data = store.get(item.key)
        if item.key.endswith(".parquet"):
            table = parquet.read(item.key, store)
            data += repr((parquet.metadata(table), table.to_pydict())).encode()
        assert store.uri.encode() not in data, item.key


# --- a training with corrections -------------------------------------------------------------------------------------


def test_a_training_learns_from_corrections(source, store, toy_encoder, tmp_path):
    """From corrections alone, whose pictures are in the store, it learns the name of a colour."""
    for number in range(4):
        data = toy.png(*(channel + 5 * number for channel in PURPLE))
        for caption in ("a purple square", "the whole picture is purple"):
            correct(store, data, caption=caption)
    report = ingest_toy(source, store, corrections=True)
    vocabulary, words = build_vocabulary(report.dataset, store, min_count=1)
    assert "purple" in words.words
    encoder_id = encoder.register(str(toy_encoder), store)
    assert extract_all(report.dataset, encoder_id, store) == {"ok": 28}

    model = toy.train(toy.Inputs(source, report.dataset, vocabulary, encoder_id), store)
    (tmp_path / "new.png").write_bytes(toy.png(152, 43, 175))
    found = on_demand.caption(
        [str(tmp_path / "new.png")],
        version=model.version,
        decoding=DecodingConfig(beam_width=2),
        alternatives=0,
        store=store,
    )
    assert "purple" in found[0].captions[0].text

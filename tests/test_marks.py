"""Marks: better captions that people have written, kept with their pictures, and learned from."""

import glob
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline import dataset, encoder, features, images, marks, on_demand, tables
from pipeline.dataset import ingest, load
from pipeline.errors import PipelineError
from pipeline.examples import count_words
from pipeline.recipe import Search
from pipeline.storage import open_bucket

WORDS = {"caption": "a red square", "wrong_caption": "a dog", "model_version": "v1", "marked_by": "ann"}

PURPLE = (150, 40, 170)
"""A colour of which the toy world knows nothing."""


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


def mark(store, data=None, **changes):
    """Mark a red picture, or another."""
    return marks.mark(toy.picture("red", 99) if data is None else data, **{**WORDS, **changes}, store=store)


def encoded(format_, mode="RGB"):
    """A small picture in a format."""
    buffer = io.BytesIO()
    Image.new(mode, (9, 7)).save(buffer, format_)
    return buffer.getvalue()


def keys(store):
    """Of all objects of the store."""
    return [item.key for item in store.list()]


# --- a mark ----------------------------------------------------------------------------------------------------------


def test_a_mark_is_kept_with_its_picture(store):
    """What was said of it can be read back, and the picture's bytes lie where the mark says."""
    before = datetime.now(UTC)
    data = toy.picture("red")
    made = mark(store, data, caption="  a red square ", image_key="garden/a.jpg", image_etag="e")
    assert marks.read(store).to_pylist() == [made.model_dump()]
    assert made.model_dump(exclude={"image", "marked_at"}) == {**WORDS, "image_key": "garden/a.jpg", "image_etag": "e"}
    assert before <= made.marked_at <= datetime.now(UTC)
    assert store.get(f"marks/{made.image}") == data
    assert len(keys(store)) == 2


@pytest.mark.parametrize("format_", images.FORMATS)
def test_a_copy_is_named_by_what_it_is(tmp_path, format_):
    """Whatever the picture was called, its copy has a suffix by which it is found, and Pillow agrees on the format."""
    made = mark(open_bucket(str(tmp_path)), encoded(format_), image_key="lies.exe")
    assert images.is_image(made.image)
    with Image.open(tmp_path / "marks" / made.image) as image:
        assert (image.format, Image.registered_extensions()[Path(made.image).suffix]) == (format_, format_)


def test_a_picture_is_copied_once(store):
    """Marked again, its copy stays as it is: written anew, it would be another version of the image."""
    image = mark(store).image
    etag = store.etag(f"marks/{image}")
    assert mark(store, caption="another red square").image == image
    assert store.etag(f"marks/{image}") == etag
    assert marks.read(store)["caption"].to_pylist() == ["a red square", "another red square"]


@pytest.mark.parametrize(
    "caption",
    ["", "  ", "\n", "a dog\nruns", "a\tdog", "a dog\0", "a \u202egod", "a dog\ud800", "12 !?", "собака", "a" * 301],
    ids=repr,
)
def test_what_is_no_caption_is_refused(store, caption):
    """A caption that is blank, too long, not one line of printable characters, or without a word leaves nothing."""
    with pytest.raises(PipelineError, match="caption: expected one line of 1 to 300 printable characters"):
        mark(store, caption=caption)
    assert keys(store) == []


@given(st.text(max_size=400) | st.text("a é日🐕.1 \n\t", max_size=10))
def test_any_text_is_kept_or_refused(caption):
    """What is accepted is the text itself without white space around it, and survives Parquet."""
    try:
        made = marks.Mark(**{**WORDS, "caption": caption}, image="i", marked_at=datetime.now(UTC), **NO_KEY)
    except ValidationError:
        return
    assert made.caption == caption.strip()
    assert 1 <= len(made.caption) <= 300
    assert made.caption.isprintable()
    assert any(letter.isalpha() for letter in made.caption)
    assert pa.Table.from_pylist([made.model_dump()], schema=marks.SCHEMA).to_pylist() == [made.model_dump()]


NO_KEY = {"image_key": None, "image_etag": None}

HOSTILE = [
    "../../models/champion.json",
    "/etc/passwd",
    "a\nb",
    "\0",
    "=cmd()",
    "'; drop table marks",
    "x" * 4096,
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_names_are_only_data(store, text):
    """Whatever a picture, its etag, a model or a person is called, it is kept as it is and names no object."""
    texts = dict.fromkeys(["wrong_caption", "image_key", "image_etag", "model_version", "marked_by"], text)
    made = mark(store, **texts)
    assert marks.read(store).select(list(texts)).to_pylist() == [texts]
    [row, picture] = keys(store)
    assert row.startswith(f"marks/{made.marked_at:%Y-%m-%d}/")
    assert picture == f"marks/{made.image}"


@pytest.mark.parametrize("text", ["x" * 4097, "\udcff"], ids=["too long", "not UTF-8"])
@pytest.mark.parametrize("name", ["wrong_caption", "image_key", "image_etag", "model_version", "marked_by"])
def test_texts_that_parquet_or_people_could_not_bear_are_refused(tmp_path, name, text):
    """The error names the text."""
    with pytest.raises(PipelineError, match=f"This mark can't be kept: {name}: "):
        mark(open_bucket(str(tmp_path)), **{name: text})
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
def test_what_is_no_picture_is_refused(store, data, why):
    """The error says what is wrong with it, and nothing is written."""
    with pytest.raises(PipelineError, match=f"This picture can't be marked: {why}"):
        mark(store, data)
    assert keys(store) == []


def test_no_picture_is_decoded_in_this_process(tmp_path, monkeypatch):
    """Hostile bytes reach Pillow only in a process that limits itself."""

    def never(*_arguments, **_options):
        raise AssertionError("decoded here")

    monkeypatch.setattr(Image, "open", never)
    assert mark(open_bucket(str(tmp_path))).caption == "a red square"


def test_people_who_mark_at_once_lose_nothing(store):
    """Each of many marks is there, of one picture or of several."""
    pictures = [toy.picture("red"), toy.picture("blue")]

    def work(number):
        return mark(store, pictures[number % 2], caption=f"caption by {number * 'a'}b", marked_by=str(number))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(16)))
    found = sorted(marks.read(store).to_pylist(), key=lambda row: int(row["marked_by"]))
    assert found == [each.model_dump() for each in made]
    assert len(keys(store)) == 18


def test_marks_are_read_in_the_order_in_which_they_were_made(store):
    """Oldest first."""
    made = [mark(store, caption=f"caption {letter}") for letter in "cab"]
    assert marks.read(store).to_pylist() == [each.model_dump() for each in made]


def test_an_interrupted_mark_is_none(store, monkeypatch):
    """Who dies after the picture leaves no mark, and marks again."""
    put = store.put

    def die_at_the_mark(key, data, **options):
        if key.endswith(".parquet"):
            raise OSError("power cut")
        return put(key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", die_at_the_mark)
        with pytest.raises(OSError, match="power cut"):
            mark(store)
    assert (len(keys(store)), marks.count(store), len(marks.read(store))) == (1, 0, 0)
    made = mark(store)
    assert marks.read(store).to_pylist() == [made.model_dump()]


def test_others_read_marks_with_nothing_of_ours(tmp_path):
    """pandas, DuckDB and pyarrow read the same rows and types, those of an upload (without a key) among them."""
    store = open_bucket(str(tmp_path))
    made = [mark(store, caption="a é dog's 🐕"), mark(store, image_key="b.jpg", image_etag="e")]
    pattern = str(tmp_path / "marks/*/*.parquet")
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - as others do
    rows = [each.model_dump() for each in made]

    assert pyarrow.dataset.dataset(paths).to_table().to_pylist() == rows
    frame = pd.concat(map(pd.read_parquet, paths))
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == rows
    found = duckdb.sql(f"from read_parquet('{pattern}') order by marked_at")
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == rows


# --- a dataset with marks --------------------------------------------------------------------------------------------


def captions_of(report, source_uri):
    """The captions by image of those of a dataset's rows that come from a source; all must be in train."""
    rows = [row for row in load(report.dataset).table.to_pylist() if row["source"] == source_uri]
    assert {row["split"] for row in rows} <= {"train"}
    return {row["image_key"]: row["captions"] for row in rows}


def ingest_toy(source, store, **options):
    """Ingest the toy world."""
    return ingest(source.url("captions.csv"), store, name="toy", **options)


def test_marked_pictures_are_learned_from(source, store):
    """Each with its better captions, oldest first, one that was written twice once; without being asked, none."""
    plain = ingest_toy(source, store)
    assert ingest_toy(source, store, marks=True) == plain
    first = mark(store, caption="a nice red square")
    mark(store, caption="a nice red square", marked_by="bob")
    mark(store, caption="a lovely red square")
    second = mark(store, toy.picture("blue", 98), caption="a nice blue square")

    assert ingest_toy(source, store) == plain
    report = ingest_toy(source, store, marks=True)
    assert report.fingerprint != plain.fingerprint
    assert report.sources == {source.uri: 24, store.url("marks"): 2}
    assert report.images == {"train": 18, "dev": 4, "test": 4}
    assert (report.captions, report.dropped) == (51, {"duplicate": 1})
    [dropped] = report.dropped_rows
    assert (dropped.file, dropped.line) == (store.url("marks"), 2)
    assert dropped.text == f"{first.image}, a nice red square"
    assert captions_of(report, store.url("marks")) == {
        first.image: ["a nice red square", "a lovely red square"],
        second.image: ["a nice blue square"],
    }
    others = [row for row in load(report.dataset).table.to_pylist() if row["source"] == source.uri]
    assert others == load(plain.dataset).table.to_pylist()


def test_the_fingerprint_depends_on_the_marks(source, store):
    """The same marks give the same dataset, a further one another; one more of the same caption changes no row."""
    mark(store)
    first = ingest_toy(source, store, marks=True)
    before = toy.etags(store, "datasets/")
    assert ingest_toy(source, store, marks=True) == first
    assert toy.etags(store, "datasets/") == before
    mark(store, marked_by="bob")
    assert ingest_toy(source, store, marks=True).fingerprint == first.fingerprint
    mark(store, caption="another caption")
    assert ingest_toy(source, store, marks=True).fingerprint != first.fingerprint


def test_a_picture_to_judge_by_is_not_learned_from(source, store):
    """Marked pictures of dev and test are left out, whatever they are called; one of train is learned from."""
    pictures = [source.get(f"pictures/red-{number}.jpg") for number in (0, 4, 5)]
    learned, *_ = [mark(store, data, image_key="elsewhere.jpg") for data in pictures]
    report = ingest_toy(source, store, marks=True, max_dropped_fraction=0)
    assert report.images == {"train": 17, "dev": 4, "test": 4}
    assert report.dropped == {"image in two splits": 2}
    assert [(row.file, row.line) for row in report.dropped_rows] == [(store.url("marks"), 2), (store.url("marks"), 3)]
    assert list(captions_of(report, store.url("marks"))) == [learned.image]


def test_a_picture_to_judge_by_that_cannot_be_read_holds_nothing_up(source, store, monkeypatch):
    """One that goes away while it is compared is not what was marked."""
    made = mark(store, source.get("pictures/red-5.jpg"))
    get = type(source).get

    def gone(bucket, key, **options):
        if key == "pictures/red-5.jpg":
            raise bucket._not_found(key)
        return get(bucket, key, **options)

    monkeypatch.setattr(type(source), "get", gone)
    assert list(captions_of(ingest_toy(source, store, marks=True), store.url("marks"))) == [made.image]


def test_a_mark_whose_picture_has_gone_is_listed(source, store):
    """It is dropped with a reason, as a caption of any other missing image."""
    store.delete(f"marks/{mark(store).image}")
    report = ingest_toy(source, store, marks=True)
    assert report.dropped == {"image missing": 1}
    assert report.sources == {source.uri: 24}


def test_a_dataset_is_taken_as_it_is(source, store):
    """Its own URI gives its own report, and nothing is written; the marks of the store are no matter."""
    source.put("captions.csv", source.get("captions.csv") + b"\nnowhere.jpg,a dog,train")
    report = ingest_toy(source, store)
    assert report.dropped == {"image missing": 1}
    mark(store)
    before = toy.etags(store, "")
    assert ingest(report.dataset, store) == report
    assert toy.etags(store, "") == before

    with_marks = ingest_toy(source, store, marks=True)
    mark(store, caption="another caption")
    assert ingest(with_marks.dataset, store) == with_marks


def test_marks_are_added_to_a_dataset(source, store):
    """As if it had been made with them, whether or not it has some already."""
    plain = ingest_toy(source, store)
    mark(store)
    mark(store)
    with_marks = ingest_toy(source, store, marks=True)
    assert ingest(plain.dataset, store, marks=True) == with_marks
    assert ingest(with_marks.dataset, store, marks=True) == with_marks
    mark(store, caption="another caption")
    with_more = ingest_toy(source, store, marks=True)
    assert with_more != with_marks
    assert ingest(with_marks.dataset, store, marks=True) == with_more


def test_a_dataset_of_another_store_is_copied(source, new_bucket):
    """With all its rows, under its name or a new one; the pictures stay where they are."""
    there, here = new_bucket(), new_bucket()
    report = ingest_toy(source, there)
    copy = ingest(report.dataset, here)
    assert copy == report.model_copy(update={"dataset": report.dataset.replace(there.uri, here.uri)})
    assert load(copy.dataset).table == load(report.dataset).table
    assert load(ingest(report.dataset, here, name="other").dataset).name == "other"


def test_a_dataset_without_its_report_is_refused(source, store):
    """A copy of the table alone says nothing of what was dropped: the error names what is missing."""
    table = load(ingest_toy(source, store).dataset).table
    tables.write(table, "copy/dataset.parquet", store, about={"name": "toy", "fingerprint": "0"})
    with pytest.raises(PipelineError, match=r"There is no object .*copy/ingest\.json"):
        ingest(store.url("copy/dataset.parquet"), store)


# --- a training with marks -------------------------------------------------------------------------------------------


def test_a_training_learns_what_people_have_said(source, store, toy_encoder, tmp_path):
    """From marks alone, whose pictures lie in the store, it knows a colour by its name."""
    for number in range(4):
        data = toy.png(*(channel + 5 * number for channel in PURPLE))
        for caption in ("a purple square", "the whole picture is purple"):
            mark(store, data, caption=caption)
    report = ingest_toy(source, store, marks=True)
    data = load(report.dataset)
    vocabulary, words = count_words(report.dataset, min_count=1)
    assert "purple" in words.words
    encoder_id = encoder.publish(str(toy_encoder), store)
    for uri, listing in dataset.images_by_source(data.table).items():
        features.complete(listing, run="r", source=uri, encoder_id=encoder_id, store=store)
    assert set(features.index(encoder_id, store)["status"].to_pylist()) == {"ok"}

    model = toy.train(toy.Inputs(source, report.dataset, vocabulary, encoder_id), store)
    (tmp_path / "new.png").write_bytes(toy.png(152, 43, 175))
    found = on_demand.caption(
        [str(tmp_path / "new.png")], version=model.version, search=Search(beam_width=2), alternatives=0, store=store
    )
    assert "purple" in found[0].captions[0].text

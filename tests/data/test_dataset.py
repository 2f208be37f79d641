"""Ingest: the rows that are kept or dropped, and the report, for each format and each kind of bucket."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import corrections
from pipeline.data.annotation_formats.flickr8k import SPLIT_FILES, TOKEN_FILE
from pipeline.data.dataset import Dataset, build_vocabulary, list_datasets, load
from pipeline.data.images import content_hash
from pipeline.data.ingest import IngestReport, ingest
from pipeline.data.sources import SourceCounts
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, ObjectDeniedError, ObjectNotFoundError, layout, parquet
from tests.support import toy
from tests.support.effort import random_inputs
from tests.support.paths import PROJECT

NewBucket = Callable[[], Bucket]

IMAGES = [f"{name}.jpg" for name in "abcde"]
SPLITS = {"train": ["a.jpg", "b.jpg", "c.jpg"], "dev": ["d.jpg"], "test": ["e.jpg"]}


def token_lines() -> list[str]:
    """Two captions for each image."""
    return [f"{image}#{number}\tCaption {number} of {image} ." for image in IMAGES for number in range(2)]


def put_flickr8k(
    source: Bucket,
    lines: list[str] | list[bytes] | None = None,
    splits: dict[str, list[str]] | None = None,
    images: list[str] | None = None,
    folder: str = "images/",
) -> None:
    """Put a source in the Flickr8k layout; the images need not be decodable to be ingested."""
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines or token_lines()]
    source.put(TOKEN_FILE, b"\n".join(encoded) + b"\n")
    for split, names in (splits or SPLITS).items():
        source.put(SPLIT_FILES[split], "".join(f"{name}\n" for name in names).encode())
    for image in images or IMAGES:
        source.put(f"{folder}{image}", b"bytes of " + image.encode())


def put_csv(source: Bucket, rows: list[list[str]], header: tuple[str, ...] = ("image", "caption", "split")) -> str:
    """Put a CSV table and the images, and return the table's URI."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    source.put("table.csv", text.getvalue().encode())
    put_images(source)
    return source.url("table.csv")


def put_parquet(source: Bucket, columns: dict[str, list[object]]) -> str:
    """Put a Parquet table and the images, and return the table's URI."""
    parquet.write(pa.table(columns), "table.parquet", source)
    put_images(source)
    return source.url("table.parquet")


def put_images(source: Bucket) -> None:
    """Put the images below the table's folder."""
    for image in IMAGES:
        source.put(f"photos/{image}", b"bytes of " + image.encode())


def table_rows() -> list[list[str]]:
    """The captions and splits of ``put_flickr8k`` as rows of a table."""
    split_of = {image: split for split, images in SPLITS.items() for image in images}
    return [[image, f"Caption {number} of {image} .", split_of[image]] for image in IMAGES for number in range(2)]


@pytest.fixture
def source(tmp_path: Path) -> LocalBucket:
    """An empty local source."""
    return LocalBucket(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> LocalBucket:
    """An empty local store."""
    return LocalBucket(tmp_path / "store")


def ingest_all(source: Bucket | str, store: Bucket) -> IngestReport:
    """Ingest however much is dropped."""
    uri = source if isinstance(source, str) else source.uri
    return ingest([uri], store, name="photos", max_dropped_fraction=1)


def dropped(report: IngestReport) -> list[tuple[str, int, str]]:
    """File, line and reason of each dropped row."""
    return [(row.file, row.line, row.reason) for row in report.dropped_rows]


def captions_of(data: Dataset) -> dict[str, list[str]]:
    """The captions by image."""
    return dict(zip(data.table["image_id"].to_pylist(), data.table["captions"].to_pylist(), strict=True))


# --- rows that are kept ----------------------------------------------------------------------------------------------


def check_ingested(report: IngestReport, source: Bucket, store: Bucket, folder: str) -> None:
    """Check the table that all sources of these tests give."""
    data = load(report.dataset, store)
    etags = {item.key: item.etag for item in source.list()}
    assert data.table.to_pylist() == [
        {
            "image_id": image,
            "source": source.uri,
            "image_key": f"{folder}/{image}",
            "image_etag": etags[f"{folder}/{image}"],
            "content_hash": None if split == "train" else content_hash(b"bytes of " + image.encode()),
            "split": split,
            "captions": [f"Caption {number} of {image} ." for number in range(2)],
        }
        for split, images in SPLITS.items()
        for image in images
    ]
    assert (data.id, data.name) == (report.dataset, "photos")
    assert re.fullmatch("photos/[0-9a-f]{16}", report.dataset)
    assert store.exists(f"datasets/{report.dataset}/dataset.parquet")
    assert list(report.sources.values()) == [SourceCounts(images=5, captions=10, dropped=0)]
    assert report.images == {"train": 3, "dev": 1, "test": 1}
    assert (report.captions, report.dropped, report.dropped_rows) == (10, {}, ())


def test_the_flickr8k_layout_is_read(new_bucket: NewBucket) -> None:
    """Token file, split lists and images give one row an image, in a store of either kind."""
    source, store = new_bucket(), new_bucket()
    put_flickr8k(source)
    check_ingested(ingest([source.uri], store, name="photos"), source, store, "images")


def test_a_csv_table_is_read(new_bucket: NewBucket) -> None:
    """One row a caption gives one row an image, in a store of either kind."""
    source, store = new_bucket(), new_bucket()
    check_ingested(ingest([put_csv(source, table_rows())], store, name="photos"), source, store, "photos")


def test_a_parquet_table_is_read(new_bucket: NewBucket) -> None:
    """The same from Parquet; further columns are ignored."""
    source, store = new_bucket(), new_bucket()
    image, caption, split = map(list, zip(*table_rows(), strict=True))
    uri = put_parquet(source, {"id": list(range(10)), "caption": caption, "image": image, "split": split})
    check_ingested(ingest([uri], store, name="photos"), source, store, "photos")


def test_a_parquet_table_of_pandas_is_read(source: LocalBucket, store: LocalBucket) -> None:
    """A table with an index and categories, as pandas writes them, is read."""
    frame = pd.DataFrame(table_rows(), columns=["image", "caption", "split"]).astype({"split": "category"})
    frame.index += 7
    file = io.BytesIO()
    frame.to_parquet(file)
    source.put("table.parquet", file.getvalue())
    put_images(source)
    check_ingested(ingest([source.url("table.parquet")], store, name="photos"), source, store, "photos")


@pytest.mark.parametrize("folder", ["", "Flicker8k_Dataset/", "Flickr_Data/Images/"])
def test_images_may_be_in_any_folder(source: LocalBucket, store: LocalBucket, folder: str) -> None:
    """The official folder name is misspelt, and mirrors use others: images are found by their names."""
    put_flickr8k(source, folder=folder)
    keys = load(ingest_all(source, store).dataset, store).table["image_key"].to_pylist()
    assert keys == [f"{folder}{image}" for image in IMAGES]


def test_text_files_may_be_in_any_folder(source: LocalBucket, store: LocalBucket) -> None:
    """Mirrors put the text files into a folder of their own."""
    put_flickr8k(source)
    for name in (TOKEN_FILE, *SPLIT_FILES.values()):
        (source.root / "Flickr_TextData").mkdir(exist_ok=True)
        (source.root / name).rename(source.root / "Flickr_TextData" / name)
    assert ingest_all(source, store).captions == 10


def test_captions_are_ordered_by_their_number(source: LocalBucket, store: LocalBucket) -> None:
    """The order in the table is that of the numbers, not of the lines."""
    lines = token_lines()
    put_flickr8k(source, ["a.jpg#10\tTen .", *reversed(lines)])
    assert captions_of(load(ingest_all(source, store).dataset, store))["a.jpg"] == [
        "Caption 0 of a.jpg .",
        "Caption 1 of a.jpg .",
        "Ten .",
    ]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("  spaces around \t", "spaces around"),
        ("a\ttab inside", "a\ttab inside"),
        ("it 's #2\u2028 “quoted” 🐕", "it 's #2\u2028 “quoted” 🐕"),
        ('a "quotation mark', 'a "quotation mark'),
        ("b.jpg#1\tfollows", "b.jpg#1\tfollows"),
    ],
)
def test_captions_are_kept_raw(source: LocalBucket, store: LocalBucket, raw: str, kept: str) -> None:
    """Only the white space around a caption is removed."""
    put_flickr8k(source, [f"a.jpg#2\t{raw}", *token_lines()])
    assert captions_of(load(ingest_all(source, store).dataset, store))["a.jpg"][-1] == kept


def test_windows_line_ends_and_byte_order_marks_are_ignored(source: LocalBucket, store: LocalBucket) -> None:
    """Text files that went through a Windows editor read the same."""
    put_flickr8k(source)
    for name in (TOKEN_FILE, *SPLIT_FILES.values()):
        source.put(name, b"\xef\xbb\xbf" + source.get(name).replace(b"\n", b"\r\n") + b"\r\n")
    check_ingested(ingest_all(source, store), source, store, "images")


def test_csv_captions_may_hold_commas_quotes_and_line_ends(source: LocalBucket, store: LocalBucket) -> None:
    """The quoting of CSV is supported."""
    caption = 'A dog,\nsaid "Rex",\nruns'
    report = ingest_all(put_csv(source, [["a.jpg", caption, "train"], *table_rows()]), store)
    assert captions_of(load(report.dataset, store))["a.jpg"][0] == caption
    assert report.dropped == {}


def test_a_table_may_name_images_by_path(source: LocalBucket, store: LocalBucket) -> None:
    """A path relative to the table's folder is enough, even if other folders hold an image of that name."""
    source.put("other/a.jpg", b"")
    rows = [[f"photos/{image}", caption, split] for image, caption, split in table_rows()]
    check_ingested(ingest_all(put_csv(source, rows), store), source, store, "photos")


@pytest.mark.parametrize("dev", ["dev", "val", "valid", "validation", "VAL", " dev "])
def test_dev_has_several_names(source: LocalBucket, store: LocalBucket, dev: str) -> None:
    """The usual names of the validation split are accepted."""
    rows = [[image, caption, dev if split == "dev" else split] for image, caption, split in table_rows()]
    assert ingest_all(put_csv(source, rows), store).images == {"train": 3, "dev": 1, "test": 1}


def test_images_without_split_are_assigned_by_their_bytes(source: LocalBucket, store: LocalBucket) -> None:
    """About 80/10/10; an image's split depends on its bytes only, so that copies of a picture are in one split."""
    names = [f"{number}.jpg" for number in range(1000)]
    for name in names:
        source.put(f"photos/{name}", name.encode())
    for name in names[::10]:
        source.put(f"copies/copy-{name}", name.encode())

    def splits(names: list[str]) -> dict[str, str]:
        report = ingest([put_csv(source, [[n, "a dog"] for n in names], ("image", "caption"))], store, name="photos")
        assert report.split_by_hash == len(names)
        assert f"; a hash of the bytes chose the split of {len(names):,})" in str(report)
        assert ingest([report.dataset], store).split_by_hash == len(names)
        table = load(report.dataset, store).table
        contents = [content_hash(source.get(key)) for key in table["image_key"].to_pylist()]
        assert table["content_hash"].to_pylist() == contents
        return dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))

    everything = splits([*names, *(f"copy-{name}" for name in names[::10])])
    counts = Counter(everything[name] for name in names)
    assert 750 < counts["train"] < 850
    assert 70 < counts["dev"] < 130
    assert 70 < counts["test"] < 130
    assert all(everything[f"copy-{name}"] == everything[name] for name in names[::10])
    (source.root / "photos").rename(source.root / "moved")
    some = splits(names[::-3])
    assert some == {name: everything[name] for name in names[::-3]}


def test_given_splits_are_not_those_of_a_hash(source: LocalBucket, store: LocalBucket) -> None:
    """The report then counts none, and says nothing of a hash."""
    report = ingest_all(put_csv(source, table_rows()), store)
    assert (report.split_by_hash, "hash" in str(report)) == (0, False)


def test_an_image_that_cannot_be_read_gets_no_split_by_hash(
    source: LocalBucket, store: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its captions are dropped and listed: its split depends on its bytes."""
    names = [f"{number}.jpg" for number in range(60)]
    for name in names:
        source.put(f"photos/{name}", name.encode())
    uri = put_csv(source, [[name, "a dog"] for name in names], ("image", "caption"))
    get = LocalBucket.get

    def deny(self: LocalBucket, key: str, **options: object) -> bytes:
        if key == "photos/7.jpg":
            raise ObjectDeniedError("denied")
        return get(self, key, **options)

    monkeypatch.setattr(LocalBucket, "get", deny)
    report = ingest_all(uri, store)
    assert dropped(report) == [("table.csv", 9, "image can't be read")]
    assert report.split_by_hash == 59


def test_a_split_is_a_part_of_the_table(source: LocalBucket, store: LocalBucket) -> None:
    """``split`` gives the rows of one split, and refuses others."""
    put_flickr8k(source)
    data = load(ingest_all(source, store).dataset, store)
    assert {split: data.split(split)["image_id"].to_pylist() for split in SPLITS} == SPLITS
    with pytest.raises(ValueError, match="Received: 'val'"):
        data.split("val")


# --- rows that are dropped -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("z.jpg#0\tNo such image .", "image missing"),
        ("a.jpg.1#0\tA name that the official release has .", "image missing"),
        ("a.jpg#5\t   ", "empty caption"),
        ("a.jpg#5\t", "empty caption"),
        ("a.jpg#5 no tab", "malformed"),
        ("a.jpg\tno number", "malformed"),
        ("a.jpg#x\tno digit", "malformed"),
        (f"a.jpg#{'9' * 5000}\ttoo many digits", "malformed"),
        ("#0\tno name", "malformed"),
        ("caption only", "malformed"),
        (b"a.jpg#5\tcaf\xe9", "not UTF-8"),
        ("a.jpg#0\tAnother with this number .", "duplicate"),
    ],
)
def test_an_unusable_line_is_listed(source: LocalBucket, store: LocalBucket, line: str | bytes, reason: str) -> None:
    """Only this line of the token file is dropped, and it is listed with its number."""
    encoded = [line.encode() for line in token_lines()]
    bad = line.encode() if isinstance(line, str) else line
    put_flickr8k(source, [*encoded[:4], b"", bad, *encoded[4:]])
    report = ingest_all(source, store)
    assert dropped(report) == [(TOKEN_FILE, 6, reason)]
    assert report.dropped == {reason: 1}
    assert report.dropped_rows[0].text[:99] == bad.decode(errors="replace")[:99]
    assert report.captions == 10


def test_an_image_in_no_split_is_listed(source: LocalBucket, store: LocalBucket) -> None:
    """The captions of an image that no split names are dropped, each with its line."""
    put_flickr8k(source, splits=SPLITS | {"train": ["a.jpg", "c.jpg"]})
    report = ingest_all(source, store)
    assert dropped(report) == [(TOKEN_FILE, 3, "image in no split"), (TOKEN_FILE, 4, "image in no split")]
    assert "b.jpg" not in captions_of(load(report.dataset, store))


def test_an_image_in_two_splits_is_in_neither(source: LocalBucket, store: LocalBucket) -> None:
    """It would be trained and tested on, so it is dropped; its line in the second list and its captions are listed."""
    put_flickr8k(source, splits=SPLITS | {"test": ["e.jpg", "b.jpg"]})
    report = ingest_all(source, store)
    assert dropped(report) == [
        (TOKEN_FILE, 3, "image in two splits"),
        (TOKEN_FILE, 4, "image in two splits"),
        (SPLIT_FILES["test"], 2, "image in two splits"),
    ]
    assert "b.jpg" not in captions_of(load(report.dataset, store))


def test_a_split_of_unknown_images_is_listed(source: LocalBucket, store: LocalBucket) -> None:
    """Names in a split without image file or without captions are listed with their lines."""
    put_flickr8k(
        source, splits=SPLITS | {"dev": ["z.jpg", "d.jpg", "uncaptioned.jpg"]}, images=[*IMAGES, "uncaptioned.jpg"]
    )
    report = ingest_all(source, store)
    assert dropped(report) == [
        (SPLIT_FILES["dev"], 1, "split names a missing image"),
        (SPLIT_FILES["dev"], 3, "split names an image without captions"),
    ]
    assert report.captions == 10


def test_a_split_line_that_is_not_utf8_is_listed(source: LocalBucket, store: LocalBucket) -> None:
    """The lists of the splits are checked as the captions are."""
    put_flickr8k(source)
    source.put(SPLIT_FILES["train"], b"caf\xe9.jpg\n" + source.get(SPLIT_FILES["train"]))
    assert dropped(ingest_all(source, store)) == [(SPLIT_FILES["train"], 1, "not UTF-8")]


def test_an_image_named_twice_in_its_split_is_in_it(source: LocalBucket, store: LocalBucket) -> None:
    """A repeated name in a list drops nothing."""
    put_flickr8k(source, splits=SPLITS | {"dev": ["d.jpg", "d.jpg"]})
    check_ingested(ingest_all(source, store), source, store, "images")


def test_an_image_without_usable_captions_is_not_in_the_table(source: LocalBucket, store: LocalBucket) -> None:
    """An image whose captions were all dropped is dropped with them."""
    put_flickr8k(source, ["a.jpg#0\t", "a.jpg#1\t ", *token_lines()[2:]])
    report = ingest_all(source, store)
    assert "a.jpg" not in captions_of(load(report.dataset, store))
    assert (report.images["train"], report.dropped) == (2, {"empty caption": 2})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"z.jpg,No such image,train", "image missing"),
        (b"elsewhere/a.jpg,A wrong path,train", "image missing"),
        (b",No name,train", "image missing"),
        (b"a.jpg,  ,train", "empty caption"),
        (b"a.jpg,Caf\xe9,train", "not UTF-8"),
        (b"a.jpg,A dog, running,train", "malformed"),
        (b"a.jpg,A dog", "malformed"),
        (b"a.jpg,A dog,holdout", "unknown split"),
    ],
)
def test_an_unusable_csv_row_is_listed(source: LocalBucket, store: LocalBucket, row: bytes, reason: str) -> None:
    """Only this row is dropped, and it is listed with the line on which it begins."""
    uri = put_csv(source, [["a.jpg", "two\nlines", "train"], *table_rows()])
    lines = source.get("table.csv").split(b"\r\n")
    source.put("table.csv", b"\r\n".join([*lines[:2], b"", row, *lines[2:]]))
    report = ingest_all(uri, store)
    assert dropped(report) == [("table.csv", 5, reason)]
    assert report.captions == 11


def test_an_unusable_parquet_row_is_listed(source: LocalBucket, store: LocalBucket) -> None:
    """Missing values in a Parquet table are empty texts, and rows are numbered from 1."""
    rows = [*table_rows(), ["a.jpg", None, "train"], [None, "A dog", "train"]]
    image, caption, split = map(list, zip(*rows, strict=True))
    report = ingest_all(put_parquet(source, {"image": image, "caption": caption, "split": split}), store)
    assert dropped(report) == [("table.parquet", 11, "empty caption"), ("table.parquet", 12, "image missing")]


def test_table_rows_that_contradict_each_other_are_listed(source: LocalBucket, store: LocalBucket) -> None:
    """An image that a table puts into two splits, under whichever of its names, is in neither."""
    report = ingest_all(put_csv(source, [*table_rows(), ["photos/a.jpg", "A third", "test"]]), store)
    assert dropped(report) == [("table.csv", line, "image in two splits") for line in (2, 3, 12)]
    assert "a.jpg" not in captions_of(load(report.dataset, store))


def test_a_table_row_without_split_follows_its_image(source: LocalBucket, store: LocalBucket) -> None:
    """A blank split is that of the other rows of the image; where all are blank, the captions are dropped."""
    rows = [[image, caption, "" if image == "a.jpg" else split] for image, caption, split in table_rows()]
    report = ingest_all(put_csv(source, [*rows, ["b.jpg", "A third", ""]]), store)
    assert dropped(report) == [("table.csv", line, "image in no split") for line in (2, 3)]
    assert captions_of(load(report.dataset, store))["b.jpg"][2] == "A third"


def test_a_long_text_is_shortened(source: LocalBucket, store: LocalBucket) -> None:
    """The report shows the beginning of a long line."""
    put_flickr8k(source, ["x" * 5000, *token_lines()])
    (row,) = ingest_all(source, store).dropped_rows
    assert row.text == "x" * 99 + "…"


# --- too many dropped rows, and unreadable sources -------------------------------------------------------------------


def test_too_many_dropped_captions_are_an_error(source: LocalBucket, store: LocalBucket) -> None:
    """The error has the share, the counts by reason, the first of them, and what to do; nothing is written."""
    put_flickr8k(source, [*token_lines(), *[f"z.jpg#{number}\tGone ." for number in range(9)], "a.jpg#7\t"])
    with pytest.raises(PipelineError) as error:
        ingest([source.uri], store, name="photos", max_dropped_fraction=0.25)
    message = str(error.value)
    assert f"10 of the 20 captions in {source.url(TOKEN_FILE)}" in message
    assert "can't be used (50.0%, allowed 25.0%)" in message
    assert "image missing 9, empty caption 1" in message
    assert "line 11, image missing: z.jpg#0\tGone ." in message
    assert "line 15" in message
    assert "line 16" not in message
    assert f"put the missing image files into {source.uri}" in message
    assert "--max-dropped-fraction" in message
    assert list(store.list()) == []


def test_the_budget_is_inclusive(source: LocalBucket, store: LocalBucket) -> None:
    """Exactly the allowed share passes; the split lists' lines do not count."""
    put_flickr8k(
        source, [*token_lines(), "z.jpg#0\tGone .", "z.jpg#1\tGone ."], splits=SPLITS | {"dev": ["d.jpg", "z.jpg"]}
    )
    assert ingest([source.uri], store, name="photos", max_dropped_fraction=2 / 12).dropped == {
        "image missing": 2,
        "split names a missing image": 1,
    }
    with pytest.raises(PipelineError, match="2 of the 12"):
        ingest([source.uri], store, name="photos", max_dropped_fraction=0.16)


def test_by_default_a_twentieth_may_be_dropped(source: LocalBucket, store: LocalBucket) -> None:
    """One caption of twenty passes, one of nineteen does not."""
    more = [f"b.jpg#{number}\tMore ." for number in range(2, 11)]
    put_flickr8k(source, [*token_lines(), *more, "z.jpg#0\tGone ."])
    assert ingest([source.uri], store, name="photos").dropped == {"image missing": 1}
    put_flickr8k(source, [*token_lines(), *more[1:], "z.jpg#0\tGone ."])
    with pytest.raises(PipelineError, match="1 of the 19"):
        ingest([source.uri], store, name="photos")


def test_the_summary_has_the_reasons(source: LocalBucket, store: LocalBucket) -> None:
    """It counts the dropped rows by reason, the most frequent first."""
    put_flickr8k(source, [*token_lines(), "a.jpg#7\t", "z.jpg#0\tGone .", "z.jpg#1\tGone ."])
    assert str(ingest_all(source, store)).endswith(" captions, 3 dropped (image missing 2, empty caption 1)")


@pytest.mark.parametrize("missing", SPLIT_FILES.values())
def test_a_missing_list_of_a_split_is_named(source: LocalBucket, store: LocalBucket, missing: str) -> None:
    """The error says which file is missing, and what else can be passed."""
    put_flickr8k(source)
    (source.root / missing).unlink()
    with pytest.raises(PipelineError, match=rf"has {TOKEN_FILE}, but not {missing}\. Add the lists of the splits"):
        ingest([source.uri], store, name="photos")


def test_an_empty_source_is_refused(bucket: Bucket, store: LocalBucket) -> None:
    """A folder that is missing, as the local one is, or a prefix without objects is no dataset."""
    message = "does not exist. Check" if isinstance(bucket, LocalBucket) else "holds 0 files"
    with pytest.raises(PipelineError, match=message):
        ingest([bucket.uri], store, name="photos")


def test_a_missing_table_is_named(bucket: Bucket, store: LocalBucket) -> None:
    """The error for a missing table has its URI."""
    for name in ("table.csv", "table.parquet"):
        with pytest.raises(ObjectNotFoundError, match=name):
            ingest([bucket.url(name)], store, name="photos")


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_an_empty_split_is_refused(source: LocalBucket, store: LocalBucket, split: str) -> None:
    """Each split must have images, and the error says where to assign them."""
    names = SPLITS[split]
    lines = [line for line in token_lines() if line.partition("#")[0] not in names]
    put_flickr8k(source, lines, splits=SPLITS | {split: []})
    with pytest.raises(PipelineError, match=rf"the split {split} has no image with captions .*{SPLIT_FILES[split]}"):
        ingest([source.uri], store, name="photos")


def test_no_captions_are_refused(source: LocalBucket, store: LocalBucket) -> None:
    """A token file of blank lines and a table of only a header hold no captions."""
    put_flickr8k(source, ["", " "])
    other = LocalBucket(store.root / "other")
    for uri in (source.uri, put_csv(other, []), put_parquet(other, {"image": [], "caption": []})):
        with pytest.raises(PipelineError, match="holds no captions"):
            ingest([uri], store, name="photos")


def test_two_image_files_of_one_name_are_refused(source: LocalBucket, store: LocalBucket) -> None:
    """The pipeline does not guess which of two files a name means."""
    put_flickr8k(source)
    source.put("thumbnails/b.jpg", b"")
    with pytest.raises(PipelineError, match=r"2 files are named b\.jpg: images/b\.jpg, thumbnails/b\.jpg\. Rename"):
        ingest([source.uri], store, name="photos")


def test_unused_files_may_share_a_name(source: LocalBucket, store: LocalBucket) -> None:
    """Only names that are used must be unique."""
    put_flickr8k(source, images=[*IMAGES, "one/unused.jpg", "two/unused.jpg"])
    check_ingested(ingest_all(source, store), source, store, "images")


def test_two_token_files_are_refused(source: LocalBucket, store: LocalBucket) -> None:
    """Nor does it guess which of two token files is meant."""
    put_flickr8k(source)
    source.put(f"old/{TOKEN_FILE}", b"")
    with pytest.raises(PipelineError, match=rf"2 files are named {TOKEN_FILE}"):
        ingest([source.uri], store, name="photos")


def test_images_of_one_name_have_their_keys_as_ids(source: LocalBucket, store: LocalBucket) -> None:
    """Where names repeat in several folders, the id is the key; all other ids are names."""
    source.put("other/a.jpg", b"")
    rows = [["photos/a.jpg", "A dog", "train"], ["other/a.jpg", "A cat", "train"], *table_rows()[2:]]
    report = ingest_all(put_csv(source, rows), store)
    assert load(report.dataset, store).table["image_id"].to_pylist() == [
        *("b.jpg", "c.jpg", "d.jpg", "e.jpg", "other/a.jpg", "photos/a.jpg")
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("who", "caption", "split"), "no column image. Expected image (or image_name, "),
        (("image", "what", "split"), "no column caption"),
        (("who/what/split",), "no column image and no column caption"),
    ],
)
def test_missing_columns_are_named(
    source: LocalBucket, store: LocalBucket, header: tuple[str, ...], message: str
) -> None:
    """The error says which columns there are, in CSV and in Parquet."""
    uris = [put_csv(source, table_rows(), header), put_parquet(source, {name: ["a"] for name in header})]
    for uri in uris:
        with pytest.raises(PipelineError) as error:
            ingest([uri], store, name="photos")
        assert message in str(error.value)
        assert f"Received: {', '.join(header)}" in str(error.value)


@pytest.mark.parametrize("data", [b"", "image,caption\na.jpg,A dog\n".encode("utf-16-le")], ids=["empty", "UTF-16"])
def test_a_file_that_is_no_csv_table_is_refused(source: LocalBucket, store: LocalBucket, data: bytes) -> None:
    """An empty file and one of UTF-16 without its mark have no such columns, and the error can be printed."""
    source.put("table.csv", data)
    with pytest.raises(PipelineError, match="no column image") as error:
        ingest([source.url("table.csv")], store, name="photos")
    str(error.value).encode()


def test_a_file_that_is_no_parquet_table_is_refused(source: LocalBucket, store: LocalBucket) -> None:
    """A file with the suffix but another content is refused with its URI."""
    source.put("table.parquet", b"image,caption\n")
    with pytest.raises(PipelineError, match=r"table\.parquet is damaged"):
        ingest([source.url("table.parquet")], store, name="photos")


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", ".hidden", "é"])
def test_a_name_that_is_no_folder_name_is_refused(source: LocalBucket, store: LocalBucket, name: str) -> None:
    """The name of a dataset is part of keys."""
    put_flickr8k(source)
    with pytest.raises(PipelineError, match="Not the name of a dataset") as error:
        ingest([source.uri], store, name=name)
    assert repr(name) in str(error.value)


# --- objects that are written ----------------------------------------------------------------------------------------


def test_the_same_data_is_not_written_again(new_bucket: NewBucket) -> None:
    """A second ingest gives the same id and leaves the objects as they are."""
    source, store = new_bucket(), new_bucket()
    put_flickr8k(source)
    first = ingest([source.uri], store, name="photos")
    before = list(store.list())
    assert ingest([source.uri], store, name="photos") == first
    assert list(store.list()) == before


def test_the_order_of_lines_does_not_matter(source: LocalBucket, store: LocalBucket) -> None:
    """Shuffled files give the same dataset."""
    put_flickr8k(source)
    first = ingest_all(source, store)
    source.put(TOKEN_FILE, "\n".join(reversed(token_lines())).encode())
    source.put(SPLIT_FILES["train"], b"c.jpg\nb.jpg\na.jpg\n")
    assert ingest_all(source, store).dataset == first.dataset


def _add_a_caption(source: Bucket) -> None:
    source.put(TOKEN_FILE, "\n".join([*token_lines(), "a.jpg#2\tA third ."]).encode())


def _move_an_image(source: Bucket) -> None:
    source.put(SPLIT_FILES["train"], b"a.jpg\nb.jpg\n")
    source.put(SPLIT_FILES["dev"], b"c.jpg\nd.jpg\n")


def _replace_an_image(source: Bucket) -> None:
    source.put("images/a.jpg", b"other bytes")


@pytest.mark.parametrize("change", [_add_a_caption, _move_an_image, _replace_an_image])
def test_other_data_gives_another_dataset(
    source: LocalBucket, store: LocalBucket, change: Callable[[Bucket], None]
) -> None:
    """A changed caption, split or photograph gives another id, and the former dataset stays."""
    put_flickr8k(source)
    first = ingest_all(source, store)
    former = load(first.dataset, store).table
    change(source)
    second = ingest_all(source, store)
    assert second.dataset != first.dataset
    assert load(second.dataset, store).table != former
    assert load(first.dataset, store).table == former


def test_the_report_is_beside_the_table(source: LocalBucket, store: LocalBucket) -> None:
    """``ingest.json`` is the report that was returned."""
    put_flickr8k(source, ["z.jpg#0\tGone .", *token_lines()])
    report = ingest_all(source, store)
    written = store.get(f"datasets/{report.dataset}/ingest.json")
    assert IngestReport.model_validate_json(written) == report
    assert json.loads(written)["dropped"] == {"image missing": 1}


def test_the_table_is_written_last(source: LocalBucket, store: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted ingest leaves no table, and the next one completes it."""
    put_flickr8k(source)
    put = store.put

    def die_at_the_table(key: str, *arguments: object, **options: object) -> str:
        if key.endswith("dataset.parquet"):
            raise OSError("power cut")
        return put(key, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", die_at_the_table)
        with pytest.raises(OSError, match="power cut"):
            ingest_all(source, store)
    assert [item.key.rpartition("/")[2] for item in store.list()] == ["ingest.json"]
    check_ingested(ingest_all(source, store), source, store, "images")


def test_any_reader_of_parquet_reads_the_table(source: LocalBucket, store: LocalBucket) -> None:
    """It has the documented columns and types."""
    put_flickr8k(source)
    with store.open(f"datasets/{ingest_all(source, store).dataset}/dataset.parquet") as file:
        schema = pq.read_schema(file)
    types = {field.name: str(field.type) for field in schema}
    assert types == {
        **dict.fromkeys(["image_id", "source", "image_key", "image_etag", "content_hash", "split"], "string"),
        "captions": "list<element: string>",
    }


def test_dev_and_test_have_the_hashes_of_their_images(source: LocalBucket, store: LocalBucket) -> None:
    """By these, corrections of them are recognized; an image of train needs none, and is not read."""
    put_flickr8k(source)
    rows = load(ingest_all(source, store).dataset, store).table.to_pylist()
    assert {row["image_id"]: row["content_hash"] for row in rows} == {
        "a.jpg": None,
        "b.jpg": None,
        "c.jpg": None,
        "d.jpg": content_hash(b"bytes of d.jpg"),
        "e.jpg": content_hash(b"bytes of e.jpg"),
    }


# --- the check of the table ------------------------------------------------------------------------------------------


def valid() -> dict[str, list[object]]:
    """The columns of a valid dataset of one image."""
    return {
        "image_id": ["a.jpg"],
        "source": ["file:///photos"],
        "image_key": ["a.jpg"],
        "image_etag": ["1"],
        "content_hash": ["0f"],
        "split": ["test"],
        "captions": [["A dog"]],
    }


BY_HAND = f"photos/{'0' * 16}"
"""The id of a dataset whose table no ingest wrote."""


def put_dataset(columns: dict[str, list[object]], store: Bucket) -> None:
    """Put a table, which need not be valid, and a report, as those of a dataset."""
    parquet.write(pa.table(columns), layout.dataset_table(BY_HAND), store)
    report = IngestReport(
        dataset=BY_HAND, sources={}, merged=0, images={}, captions=0, split_by_hash=0, dropped={}, dropped_rows=()
    )
    store.put(layout.ingest_report(BY_HAND), report.model_dump_json().encode())


def test_the_language_belongs_to_the_dataset(tmp_path: Path) -> None:
    """It is English unless given, is part of the id, and is kept where the dataset is ingested by its id."""
    store, table = LocalBucket(tmp_path / "store"), toy.draw(LocalBucket(tmp_path / "source"))
    english, german = ingest([table], store, name="toy"), ingest([table], store, name="toy", language="de")
    assert (english.language, german.language) == ("en", "de")
    assert (load(english.dataset, store).language, load(german.dataset, store).language) == ("en", "de")
    assert english.dataset != german.dataset
    assert ingest([german.dataset], store) == german
    assert ingest([german.dataset], store, language="en") == english
    languages = [build_vocabulary(each.dataset, store, min_count=1)[1].language for each in (english, german)]
    assert languages == ["en", "de"]


def test_a_vocabulary_of_neutral_captions(source: LocalBucket, store: LocalBucket) -> None:
    """It has the neutral words, beside the vocabulary of the raw captions; in another language it is refused."""
    texts = {"a.jpg": ["A man .", "A woman ."], "b.jpg": ["A girl .", "His girl ."]}
    rows = [[image, text, "train"] for image in texts for text in texts[image]]
    table = put_csv(source, [*rows, *(row for row in table_rows() if row[0] not in texts)])
    dataset_id = ingest([table], store, name="photos").dataset
    raw, neutral = (build_vocabulary(dataset_id, store, min_count=1, neutral_wording=each) for each in (False, True))
    assert raw[0] == f"datasets/{dataset_id}/vocabulary-1.json"
    assert neutral[0] == f"datasets/{dataset_id}/vocabulary-1-neutral.json"
    assert {*raw[1].words} - {*neutral[1].words} == {"man", "woman"}
    assert {*neutral[1].words} - {*raw[1].words} == {"person"}
    assert (raw[1].neutral_wording, neutral[1].neutral_wording) == (False, True)
    german = ingest([table], store, name="photos", language="de").dataset
    with pytest.raises(PipelineError, match=rf"captions in English, but the language of {german} is de: train without"):
        build_vocabulary(german, store, min_count=1, neutral_wording=True)


def test_the_licence_is_in_the_report(tmp_path: Path) -> None:
    """On one line; stated later or anew, it replaces the one in the report, and nothing else changes."""
    store, table = LocalBucket(tmp_path / "store"), toy.draw(LocalBucket(tmp_path / "source"))
    first = ingest([table], store, name="toy")
    stored = layout.ingest_report(first.dataset)
    assert first.licence == IngestReport.model_validate_json(store.get(stored)).licence == ""
    stated = ingest([table], store, name="toy", licence=" CC BY 4.0\n(captions) ")
    assert stated == first.model_copy(update={"licence": "CC BY 4.0 (captions)"})
    assert IngestReport.model_validate_json(store.get(stored)) == stated
    before = store.etag(stored)
    assert ingest([table], store, name="toy") == ingest([first.dataset], store) == stated
    assert store.etag(stored) == before


def test_the_licence_goes_with_a_dataset(tmp_path: Path) -> None:
    """A dataset made from another has its licence; one of several sources only if all have the same."""
    store = LocalBucket(tmp_path / "store")
    tables = [toy.draw(LocalBucket(tmp_path / name), seed=seed) for seed, name in enumerate("abc")]
    one, two, other = (
        ingest([table], store, licence=licence).dataset
        for table, licence in zip(tables, ("CC0", "CC0", "CC BY 4.0"), strict=True)
    )
    assert ingest([one], store, name="renamed").licence == "CC0"
    assert ingest([one, two], store).licence == "CC0"
    assert ingest([one, other], store).licence == ingest([two, tables[2]], store).licence == ""
    assert ingest([one, other], store, licence="CC0 and CC BY 4.0").licence == "CC0 and CC BY 4.0"


@pytest.mark.parametrize("language", ["German", "d", "de_DE", "de-", "../x"])
def test_a_language_is_a_code(tmp_path: Path, language: str) -> None:
    """Anything else is refused, with examples of codes."""
    table = toy.draw(LocalBucket(tmp_path / "source"))
    with pytest.raises(PipelineError, match=r"Not the code of a language: expected .* en, de"):
        ingest([table], LocalBucket(tmp_path / "store"), language=language)


def test_ingest_accepts_a_valid_table(bucket: Bucket) -> None:
    """It becomes a dataset with these rows."""
    put_dataset(valid(), bucket)
    report = ingest([BY_HAND], bucket)
    assert report.images == {"train": 0, "dev": 0, "test": 1}
    assert load(report.dataset, bucket).table.to_pydict() == valid()


@pytest.mark.parametrize(
    "change",
    [
        {"split": ["holdout"]},
        {"split": [None]},
        {"captions": [[]]},
        {"captions": [[""]]},
        {"captions": [None]},
        {"captions": ["A dog"]},
        {"image_etag": [""]},
        {"image_etag": [7]},
        {"content_hash": [""]},
        {"content_hash": [7]},
        {"source": [""]},
        {name: [value, value] for name, (value,) in valid().items()},
        {"extra": [1]},
    ],
    ids=str,
)
def test_ingest_refuses_an_invalid_table(store: LocalBucket, change: dict[str, list[object]]) -> None:
    """The error names the column, and no further dataset is written."""
    put_dataset(valid() | change, store)
    message = f"{BY_HAND} does not give a valid dataset.*(?s:.*){next(iter(change))}"
    with pytest.raises(PipelineError, match=message):
        ingest([BY_HAND], store)
    assert list_datasets(store, limit=10) == [BY_HAND]


def test_ingest_refuses_a_table_without_a_column(store: LocalBucket) -> None:
    """The error names the missing column."""
    columns = valid()
    del columns["image_etag"]
    put_dataset(columns, store)
    with pytest.raises(PipelineError, match="image_etag"):
        ingest([BY_HAND], store)


# --- load and list ---------------------------------------------------------------------------------------------------


def test_loading_does_not_check_the_table_again(source: LocalBucket, store: LocalBucket) -> None:
    """It was checked when it was made: a process that loads it imports neither pandas nor pandera."""
    put_flickr8k(source)
    script = """
import sys
from pipeline.data import dataset
from pipeline.storage import open_bucket

print(len(dataset.load(sys.argv[1], open_bucket(sys.argv[2])).table))
print([name for name in ("pandas", "pandera") if name in sys.modules])
"""
    assert in_a_new_process(script, ingest_all(source, store).dataset, store.uri) == "5\n[]\n"


@pytest.mark.parametrize(
    "dataset_id",
    [
        "photos",
        "photos/0123",
        "photos/0123456789ABCDEF",
        "../0123456789abcdef",
        "a/b/0123456789abcdef",
        "/0123456789abcdef",
        "photos/0123456789abcdef/dataset.parquet",
        "file:///store/datasets/photos/0123456789abcdef/dataset.parquet",
        "",
    ],
)
def test_load_refuses_what_is_no_id(bucket: Bucket, dataset_id: str) -> None:
    """The error says what an id looks like, and how to find one."""
    with pytest.raises(PipelineError, match=r"expected name/fingerprint.* `captioning datasets` lists") as error:
        load(dataset_id, bucket)
    assert f"Received: {dataset_id!r}" in str(error.value)


def test_load_says_that_there_is_no_such_dataset(bucket: Bucket) -> None:
    """The error names the id and the store, and how to find or make a dataset."""
    with pytest.raises(PipelineError) as error:
        load(BY_HAND, bucket)
    message = str(error.value)
    assert message.startswith(f"There is no dataset {BY_HAND} in {bucket.uri}: ")
    assert "`captioning datasets` lists the datasets, and `captioning ingest` makes one" in message


def test_load_refuses_other_files(bucket: Bucket) -> None:
    """Text under the key of a dataset is none."""
    bucket.put(layout.dataset_table(BY_HAND), b"image,caption")
    with pytest.raises(PipelineError, match=r"dataset\.parquet is damaged"):
        load(BY_HAND, bucket)


def test_an_id_without_a_dataset_is_refused(store: LocalBucket) -> None:
    """A source that looks like an id, and is neither a dataset of the store nor a folder, is a mistyped id."""
    with pytest.raises(PipelineError, match=f"There is no dataset {BY_HAND} in .*: `captioning datasets` lists"):
        ingest([BY_HAND], store)


def test_a_folder_that_looks_like_an_id_is_read(store: LocalBucket, tmp_path: Path, monkeypatch) -> None:
    """A relative path of this form is a path, if there is such a folder."""
    monkeypatch.chdir(tmp_path)
    put_flickr8k(LocalBucket(tmp_path / BY_HAND))
    assert ingest([BY_HAND], store).dataset.startswith("0000000000000000/")


def test_whether_an_image_can_be_read_does_not_change_the_dataset(source: LocalBucket, store: LocalBucket) -> None:
    """A held-out image that is denied has no hash, which is added as soon as the image can be read."""
    put_flickr8k(source)
    source.put(f"images/{SPLITS['dev'][0]}", toy.png(1, 2, 3))
    readable = ingest([source.uri], store, name="a")
    held_out = next(row for row in load(readable.dataset, store).table.to_pylist() if row["split"] == "dev")
    get = LocalBucket.get

    def deny(self, key, **options):
        if key == held_out["image_key"]:
            raise ObjectDeniedError("denied")
        return get(self, key, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBucket, "get", deny)
        denied = ingest([source.uri], store, name="b")
    assert denied.dataset.partition("/")[2] == readable.dataset.partition("/")[2]
    hashes = {row["image_id"]: row["content_hash"] for row in load(denied.dataset, store).table.to_pylist()}
    assert hashes[held_out["image_id"]] is None

    # A correction of that image is still recognized, once the image can be read.
    corrections.add(
        source.get(held_out["image_key"]),
        caption="a better caption",
        model_caption="",
        model_version="m",
        corrected_by="somebody",
        store=store,
    )
    assert ingest([denied.dataset], store, corrections=True).dropped == {**denied.dropped, "image in dev or test": 1}


def test_a_correction_of_a_training_image_that_a_hash_chose(source: LocalBucket, store: LocalBucket) -> None:
    """Its hash is known, as those of dev and test are; but only a correction of one of these is dropped."""
    names = [f"{number}.png" for number in range(60)]
    for number, name in enumerate(names):
        source.put(f"photos/{name}", toy.png(number, 2, 3))
    plain = ingest([put_csv(source, [[name, "a dog"] for name in names], ("image", "caption"))], store)
    rows = load(plain.dataset, store).table.to_pylist()
    for split in ("train", "test"):
        corrections.add(
            source.get(next(row["image_key"] for row in rows if row["split"] == split)),
            caption="a better caption",
            model_caption="",
            model_version="m",
            corrected_by="somebody",
            store=store,
        )
    report = ingest([plain.dataset], store, corrections=True)
    assert (report.captions, report.dropped) == (61, {"image in dev or test": 1})
    assert report.split_by_hash == 60


def test_datasets_are_listed_from_the_newest(source: LocalBucket, store: LocalBucket) -> None:
    """By the time of their tables; the other objects beside these are not listed."""
    assert list_datasets(store, limit=5) == []
    put_flickr8k(source)
    ids = [ingest([source.uri], store, name=name).dataset for name in ("b", "a", "c")]
    for age, dataset_id in enumerate(ids):
        os.utime(store.root / layout.dataset_table(dataset_id), (1e9 - age, 1e9 - age))
    store.put(layout.vocabulary(ids[0], 5), b"")
    assert list_datasets(store, limit=5) == ids
    assert list_datasets(store, limit=2) == ids[:2]


# --- any content -----------------------------------------------------------------------------------------------------

token_line = st.one_of(
    st.binary(max_size=30).filter(lambda line: b"\n" not in line),
    st.builds(
        lambda image, number, caption: f"{image}#{number}\t{caption}".encode(),
        st.sampled_from([*IMAGES, "z.jpg"]),
        st.integers(0, 4),
        st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=10),
    ),
)


@given(st.lists(token_line, max_size=20), st.lists(st.sampled_from([*IMAGES, "z.jpg"]), max_size=4))
@settings(max_examples=random_inputs(60))
def test_every_line_is_kept_or_listed(lines: list[bytes], more_in_test: list[str]) -> None:
    """Captions kept and lines dropped are together all lines of the token file that are not blank."""
    # One image is left alone, so that no split is empty whatever the lines say.
    sure = [f"{split}.jpg#0\tA dog .".encode() for split in SPLITS]
    splits = {split: [*images, f"{split}.jpg"] for split, images in SPLITS.items()}
    splits["test"] = [*splits["test"], *more_in_test]
    with tempfile.TemporaryDirectory() as folder:
        source, store = LocalBucket(Path(folder, "source")), LocalBucket(Path(folder, "store"))
        put_flickr8k(source, [*sure, *lines], splits, [*IMAGES, *(f"{split}.jpg" for split in SPLITS)])
        report = ingest_all(source, store)
        data = load(report.dataset, store)
    blank = [line for line in lines if not line.decode(errors="replace").strip()]
    listed = [row.line for row in report.dropped_rows if row.file == TOKEN_FILE]
    assert report.captions + len(listed) == len(sure) + len(lines) - len(blank)
    assert len(set(listed)) == len(listed)
    assert sum(report.dropped.values()) == len(report.dropped_rows)
    kept = {line.decode().partition("\t")[2].strip() for line in [*sure, *lines] if b"\t" in line and _utf8(line)}
    assert {caption for captions in captions_of(data).values() for caption in captions} <= kept
    assert len(data.table) == sum(report.images.values())


def _utf8(line: bytes) -> bool:
    return "\ufffd" not in line.decode(errors="replace") or line.decode(errors="ignore").encode() == line


@given(
    st.lists(
        st.tuples(st.sampled_from(IMAGES), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)),
        max_size=15,
    )
)
@settings(max_examples=random_inputs(40))
def test_captions_survive_csv_and_parquet(rows: list[tuple[str, str]]) -> None:
    """Any text that has a letter comes back from both kinds of table, in the order of the rows."""
    split_of = {image: split for split, images in SPLITS.items() for image in images}
    all_rows = [*table_rows(), *([image, caption, split_of[image]] for image, caption in rows)]
    expected: dict[str, list[str]] = {image: [] for image in IMAGES}
    for image, caption, _ in all_rows:
        if any(map(str.isalpha, caption)):
            expected[image].append(caption.strip())
    image, caption, split = map(list, zip(*all_rows, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        source, store = LocalBucket(Path(folder, "source")), LocalBucket(Path(folder, "store"))
        uris = [put_csv(source, all_rows), put_parquet(source, {"image": image, "caption": caption, "split": split})]
        for uri in uris:
            assert captions_of(load(ingest_all(uri, store).dataset, store)) == expected


# --- the real Flickr8k -----------------------------------------------------------------------------------------------


def test_the_real_flickr8k_is_read(flickr8k: Path, store: LocalBucket) -> None:
    """Of the real captions only the official release's five without image are dropped."""
    report = ingest([str(flickr8k)], store, name="flickr8k")
    assert report.images == {"train": 6000, "dev": 500, "test": 500}
    assert report.captions == 35_000
    assert report.dropped == {"image missing": 5}
    assert all(row.text.startswith("2258277193_586949ec62.jpg") for row in report.dropped_rows)
    data = load(report.dataset, store)
    assert captions_of(data)["1000268201_693b08cb0e.jpg"][1] == "A girl going into a wooden building ."
    assert {len(captions) for captions in data.table["captions"].to_pylist()} == {5}


def test_importing_dataset_loads_nothing_heavy() -> None:
    """The command line's help does not wait for the libraries of an ingest."""
    heavy = ("pandas", "pandera", "pyarrow", "numpy", "PIL")
    assert (
        in_a_new_process(f"import sys, pipeline.data.dataset; print([m for m in {heavy} if m in sys.modules])")
        == "[]\n"
    )


def in_a_new_process(script: str, *arguments: str) -> str:
    """The standard output of a script."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT).stdout

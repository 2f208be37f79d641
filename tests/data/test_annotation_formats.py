"""Each format of captions, as people have it: by folder and by file, with the names and rows that occur in it."""

import json
import re
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotation_formats import read_annotations
from pipeline.data.dataset import Dataset, load
from pipeline.data.ingest import IngestReport, ingest
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, parquet
from tests.support.effort import random_inputs

NewBucket = Callable[[], Bucket]

NAMES = [f"{number}.jpg" for number in range(60)]
"""So many that a hash of the bytes leaves no split empty."""

CAPTIONS = {name: [f"a dog , number {name}", f'the "dog" {name} runs'] for name in NAMES}


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    """Lines of the log are captured from the level of those that say what is read."""
    caplog.set_level("INFO", "pipeline.data.sources")


@pytest.fixture
def source(tmp_path: Path) -> LocalBucket:
    """An empty local source, whose folder gives no name for a dataset."""
    return LocalBucket(tmp_path / "数据")


@pytest.fixture
def store(tmp_path: Path) -> LocalBucket:
    """An empty local store."""
    return LocalBucket(tmp_path / "store")


def put_images(source: Bucket, folder: str = "Images/", names: list[str] = NAMES) -> None:
    """Put images, which need not be decodable to be ingested."""
    for name in names:
        data = b"bytes of " + name.encode()
        if isinstance(source, LocalBucket):  # without the sync to the disk of each put
            path = source.root / f"{folder}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            source.put(f"{folder}{name}", data)


def put_lines(source: Bucket, key: str, lines: list[str]) -> str:
    """Put a text and return its URI."""
    source.put(key, "".join(f"{line}\n" for line in lines).encode())
    return source.url(key)


def quoted(text: str) -> str:
    """A cell of a CSV table."""
    return '"' + text.replace('"', '""') + '"'


def csv_lines(name: str = "{}", delimiter: str = ",", header: tuple[str, str] = ("image", "caption")) -> list[str]:
    """A table of all captions; ``name`` is the form of the names of the images."""
    rows = [[name.format(image), quoted(text)] for image, texts in CAPTIONS.items() for text in texts]
    return [delimiter.join(row) for row in (list(header), *rows)]


def captions_of(report: IngestReport, store: Bucket) -> dict[str, list[str]]:
    """The captions by image."""
    table = load(report.dataset, store).table
    return dict(zip(table["image_id"].to_pylist(), table["captions"].to_pylist(), strict=True))


def check_all(uri: str, store: Bucket) -> Dataset:
    """Check that all captions are read and nothing is dropped."""
    report = ingest([uri], store)
    assert (captions_of(report, store), report.dropped) == (CAPTIONS, {})
    return load(report.dataset, store)


def split_of(data: Dataset) -> dict[str, str]:
    """The split by image."""
    return dict(zip(data.table["image_id"].to_pylist(), data.table["split"].to_pylist(), strict=True))


def test_flickr8k_by_its_file(source: LocalBucket, store: LocalBucket, caplog: pytest.LogCaptureFixture) -> None:
    """The official file of captions may itself be the source; of the folder, it takes precedence over Kaggle's."""
    put_images(source)
    lines = [f"{image}#{number}\t{text}" for image, texts in CAPTIONS.items() for number, text in enumerate(texts)]
    file = put_lines(source, "Flickr8k.token.txt", lines)
    splits = {"train": NAMES[2:], "dev": NAMES[:1], "test": NAMES[1:2]}
    for split, names in splits.items():
        put_lines(source, f"Flickr_8k.{split}Images.txt", names)
    put_lines(source, "captions.txt", csv_lines())
    for uri in (file, source.uri):
        caplog.clear()
        assert split_of(check_all(uri, store)) == {name: split for split, names in splits.items() for name in names}
        assert f"the captions are those of {file}" in caplog.messages


# --- tables ----------------------------------------------------------------------------------------------------------


def test_kaggles_flickr8k(new_bucket: NewBucket) -> None:
    """By its folder and by its file, of either kind of bucket."""
    source, store = new_bucket(), new_bucket()
    put_images(source)
    table = put_lines(source, "captions.txt", csv_lines())
    assert split_of(check_all(table, store)) == split_of(check_all(source.uri, store))


def test_flickr30k(source: LocalBucket, store: LocalBucket) -> None:
    """The bars of its table have spaces behind them; the line that lacks its second bar is dropped and listed."""
    put_images(source, "flickr30k_images/flickr30k_images/")
    rows = [f"{image}| {number}| {text}" for image, texts in CAPTIONS.items() for number, text in enumerate(texts)]
    broken = "2199200615.jpg| 4   A dog runs across the grass ."
    lines = ["image_name| comment_number| comment", *rows[:7], broken, *rows[7:]]
    table = put_lines(source, "flickr30k_images/results.csv", lines)
    for uri in (source.uri, table.rpartition("/")[0], table):
        report = ingest([uri], store)
        assert captions_of(report, store) == CAPTIONS
        assert [(row.line, row.reason, row.text) for row in report.dropped_rows] == [(9, "malformed", broken)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(source: LocalBucket, store: LocalBucket, delimiter: str, suffix: str) -> None:
    """The first line shows what separates the columns, whatever the suffix."""
    put_images(source)
    check_all(put_lines(source, f"my.{suffix}", csv_lines(delimiter=delimiter)), store)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_caption_in_the_last_column_may_hold_the_delimiter(
    source: LocalBucket, store: LocalBucket, delimiter: str
) -> None:
    """Even if it is not quoted, all that follows the other columns is the caption; before other columns it is not."""
    put_images(source)
    lines = csv_lines(delimiter=delimiter)
    bare = delimiter.join(["0.jpg", "a dog ", " a cat"])
    report = ingest([put_lines(source, "table.csv", [*lines, bare])], store)
    assert captions_of(report, store)["0.jpg"][2] == f"a dog {delimiter} a cat"
    turned = [delimiter.join(reversed(line.split(delimiter, 1))) for line in [*lines, bare]]
    report = ingest([put_lines(source, "table.csv", turned)], store)
    assert (captions_of(report, store), report.dropped) == (CAPTIONS, {"malformed": 1})


@pytest.mark.parametrize(
    "header",
    [
        ("image_name", "comment"),
        ("FileName", "Sentence"),
        ("file_name", "text"),
        ("Image Path", " Caption "),
        ("filepath", "captions"),
        ("img", "description"),
    ],
)
def test_usual_names_of_columns(source: LocalBucket, store: LocalBucket, header: tuple[str, str]) -> None:
    """In upper or lower case, with spaces, hyphens or underscores."""
    put_images(source)
    check_all(put_lines(source, "table.csv", csv_lines(header=header)), store)
    columns = {header[0]: list(CAPTIONS), header[1]: list(CAPTIONS.values())}
    parquet.write(pa.table(columns), "table.parquet", source)
    check_all(source.url("table.parquet"), store)


def test_lists_of_captions_in_a_table(source: LocalBucket, store: LocalBucket) -> None:
    """In Parquet, and as pandas and JSON write them into a CSV table; a caption may itself have brackets."""
    put_images(source)
    columns = {"image": list(CAPTIONS), "caption": list(CAPTIONS.values())}
    parquet.write(pa.table(columns), "lists.parquet", source)
    check_all(source.url("lists.parquet"), store)
    for written in (repr, json.dumps):
        rows = [f"{image},{quoted(written(texts))}" for image, texts in CAPTIONS.items()]
        check_all(put_lines(source, "lists.csv", ["image,caption", *rows]), store)
    rows = [f"{image},[dog] and [cat]" for image in CAPTIONS]
    report = ingest([put_lines(source, "lists.csv", ["image,caption", *rows])], store)
    assert captions_of(report, store) == {image: ["[dog] and [cat]"] for image in CAPTIONS}


def test_empty_captions_of_a_list(source: LocalBucket, store: LocalBucket) -> None:
    """A missing value in a list, and an empty list, are dropped as empty captions."""
    put_images(source)
    columns = {"image": [*CAPTIONS, "0.jpg", "0.jpg"], "caption": [*CAPTIONS.values(), [None, "a cat"], []]}
    parquet.write(pa.table(columns), "lists.parquet", source)
    report = ingest([source.url("lists.parquet")], store)
    assert captions_of(report, store)["0.jpg"] == [*CAPTIONS["0.jpg"], "a cat"]
    assert [(row.line, row.reason) for row in report.dropped_rows] == [(61, "empty caption"), (62, "empty caption")]


def test_pictures_inside_parquet_are_refused(source: LocalBucket, store: LocalBucket) -> None:
    """The error names the column and says what to do; so does that for numbers in the place of texts."""
    for image, message in (
        (
            [{"bytes": b"", "path": "0.jpg"}],
            r"column image is a struct \(struct<bytes: .*\), as Hugging Face.* Save the",
        ),
        ([1], "column image has the type int64. Expected text"),
    ):
        parquet.write(pa.table({"image": image, "caption": ["a dog"]}), "data.parquet", source)
        with pytest.raises(PipelineError, match=message):
            ingest([source.url("data.parquet")], store)


@pytest.mark.parametrize(
    "bad",
    [
        '0.jpg,"a "big" dog"',
        '0.jpg,"a dog',
        '0.jpg,"a dog, and another',
        '"0.jpg,a dog',
    ],
)
@pytest.mark.parametrize("place", [1, 50, 121])
def test_a_quotation_mark_costs_its_row(source: LocalBucket, store: LocalBucket, bad: str, place: int) -> None:
    """One that is not closed or not doubled drops its row, wherever it is, and no other."""
    put_images(source)
    lines = csv_lines()
    report = ingest([put_lines(source, "table.csv", [*lines[:place], bad, *lines[place:]])], store)
    assert captions_of(report, store) == CAPTIONS
    assert [(row.line, row.reason, row.text) for row in report.dropped_rows] == [(place + 1, "malformed", bad)]


def test_a_quotation_mark_that_a_later_row_closes(source: LocalBucket, store: LocalBucket) -> None:
    """What is between the two would be read as one caption; but it holds rows with images."""
    put_images(source)
    lines = [*csv_lines(), '0.jpg,"a dog', "1.jpg,a cat", '2.jpg,it is 5"']
    report = ingest([put_lines(source, "table.csv", lines)], store)
    assert [(row.line, row.text) for row in report.dropped_rows] == [(122, '0.jpg,"a dog')]
    found = captions_of(report, store)
    assert (found["0.jpg"], found["1.jpg"][2:], found["2.jpg"][2:]) == (CAPTIONS["0.jpg"], ["a cat"], ['it is 5"'])


@given(st.text(st.sampled_from('",; |ab0.jpg/\\'), max_size=12), st.integers(1, 9))
@settings(max_examples=random_inputs(400))
def test_any_line_in_a_table_costs_at_most_itself(line: str, place: int) -> None:
    """Whatever it is, and wherever, all other rows are read."""
    names = NAMES[:4]
    with tempfile.TemporaryDirectory() as folder:
        source = LocalBucket(Path(folder))
        put_images(source, names=names)
        lines = csv_lines()[: 1 + 2 * len(names)]
        Path(folder, "table.csv").write_text("\n".join([*lines[:place], line, *lines[place:]]))
        _, annotations = read_annotations(source.url("table.csv"))
    read = [(row.photograph.key, row.caption) for row in annotations.rows if row.photograph]
    for name in names:
        for caption in CAPTIONS[name]:
            assert (f"Images/{name}", caption) in read
    lost = [row.line for row in annotations.dropped]
    assert lost in ([], [place + 1])


def test_one_of_several_tables_must_be_passed(source: LocalBucket, store: LocalBucket) -> None:
    """Of tables without a known name, the only one in the folder is read; of several, the error lists them."""
    put_images(source)
    put_lines(source, "mine.csv", csv_lines())
    check_all(source.uri, store)
    put_lines(source, "yours.csv", csv_lines())
    with pytest.raises(PipelineError, match=r"holds 2 files of captions: mine\.csv, yours\.csv\. Pass the one"):
        ingest([source.uri], store)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_of_a_table(source: LocalBucket, store: LocalBucket, encoding: str, end: str) -> None:
    """Windows writes a mark in front of the text, and "Unicode" there is UTF-16."""
    put_images(source)
    lines = [*csv_lines(delimiter="\t"), '0.jpg\t"ein größeres 🐕"', ""]
    source.put("table.txt", end.join(lines).encode(encoding))
    report = ingest([source.url("table.txt")], store)
    captions = CAPTIONS | {"0.jpg": [*CAPTIONS["0.jpg"], "ein größeres 🐕"]}
    assert (captions_of(report, store), report.dropped) == (captions, {})


def test_captions_without_letters_are_dropped(source: LocalBucket, store: LocalBucket) -> None:
    """A captioner would learn from them to say nothing."""
    put_images(source)
    report = ingest([put_lines(source, "table.csv", [*csv_lines(), "0.jpg,12 0.5", "1.jpg,..."])], store)
    assert captions_of(report, store) == CAPTIONS
    assert [(row.line, row.reason, row.text) for row in report.dropped_rows] == [
        (122, "no letters", "0.jpg,12 0.5"),
        (123, "no letters", "1.jpg,..."),
    ]


# --- JSON ------------------------------------------------------------------------------------------------------------

KARPATHYS = {"0.jpg": "restval", "1.jpg": "val", "2.jpg": "test"}
"""The splits of some images; the others are in train."""


def karpathy(filepath: str | None = None, **changes: object) -> list[dict[str, object]]:
    """The images of a file of Karpathy's; ``changes`` are made to the second."""
    images: list[dict[str, object]] = [
        {
            "filename": name,
            "imgid": number,
            "split": KARPATHYS.get(name, "train"),
            "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
            **({} if filepath is None else {"filepath": filepath}),
        }
        for number, (name, texts) in enumerate(CAPTIONS.items())
    ]
    images[1] |= changes
    return images


def put_json(source: Bucket, key: str, content: object) -> str:
    """Put a JSON file and return its URI."""
    source.put(key, json.dumps(content).encode())
    return source.url(key)


def test_karpathys_splits(new_bucket: NewBucket) -> None:
    """By the folder and by the file; ``restval`` is for training."""
    source, store = new_bucket(), new_bucket()
    put_images(source)
    file = put_json(source, "dataset_flickr8k.json", {"dataset": "flickr8k", "images": karpathy()})
    for uri in (file, source.uri):
        assert split_of(check_all(uri, store)) == dict.fromkeys(NAMES, "train") | {
            "0.jpg": "train",
            "1.jpg": "dev",
            "2.jpg": "test",
        }


@pytest.mark.parametrize("folder", ["val2014/", "coco/images/val2014/", "flat/"])
def test_karpathys_folders(source: LocalBucket, store: LocalBucket, folder: str) -> None:
    """COCO's images have a ``filepath``, which tells images of one name apart; they may also be elsewhere."""
    put_images(source, folder)
    if folder != "flat/":
        put_images(source, "train2014/")
    check_all(put_json(source, "dataset_coco.json", {"images": karpathy("val2014")}), store)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"split": "holdout"}, [(3, "unknown split"), (4, "unknown split")]),
        ({"filename": "z.jpg"}, [(3, "image missing"), (4, "image missing")]),
        ({"sentences": [{"raw": " "}, {"raw": "a cat"}]}, [(3, "empty caption")]),
        ({"sentences": [{"raw": None}]}, [(3, "malformed")]),
        ({"sentences": None}, [(3, "malformed")]),
    ],
    ids=str,
)
def test_karpathys_unusable_images(
    source: LocalBucket, store: LocalBucket, change: dict[str, object], expected: list[tuple[int, str]]
) -> None:
    """They are dropped and listed by the numbers of their captions, and no others are."""
    put_images(source)
    images = karpathy(**change)
    images[5]["split"] = "val"  # so that dev is not empty without the second
    report = ingest([put_json(source, "dataset.json", {"images": images})], store)
    assert [(row.line, row.reason) for row in report.dropped_rows] == expected


def coco(names: list[str]) -> dict[str, list[dict[str, object]]]:
    """The content of a file of COCO's captions."""
    return {
        "images": [{"id": 1000 + number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 1000 + number, "caption": text}
            for number, name in enumerate(names)
            for text in CAPTIONS[name]
        ],
    }


def test_one_file_of_coco(new_bucket: NewBucket) -> None:
    """Its images are divided among all three splits by a hash of their bytes."""
    source, store = new_bucket(), new_bucket()
    put_images(source)
    splits = split_of(check_all(put_json(source, "captions_train2017.json", coco(NAMES)), store))
    assert set(splits.values()) == {"train", "dev", "test"}
    assert split_of(check_all(source.uri, store)) == splits


def test_coco_with_its_folders(new_bucket: NewBucket) -> None:
    """The images of val are divided between dev and test; each file's images are in the folder of its name."""
    source, store = new_bucket(), new_bucket()
    train, val = NAMES[:40], [*NAMES[40:], "0.jpg"]
    put_images(source, "train2017/", train)
    put_images(source, "val2017/", val)
    file = put_json(source, "annotations/captions_train2017.json", coco(train))
    put_json(source, "annotations/captions_val2017.json", coco(val))
    put_json(source, "annotations/instances_val2017.json", {})
    report = ingest([source.uri], store)
    splits = split_of(load(report.dataset, store))
    assert {name for name, split in splits.items() if split == "train"} == {*train[1:], "train2017/0.jpg"}
    assert {splits[name] for name in NAMES[40:]} == {"dev", "test"}
    assert splits["val2017/0.jpg"] in {"dev", "test"}
    assert (report.split_by_hash, report.captions, report.dropped) == (21, 122, {})
    # By a file in the folder of annotations, whose images are beside this folder.
    assert set(split_of(load(ingest([file], store).dataset, store))) == set(train)

    put_json(source, "annotations/captions_val2014.json", coco(val))
    with pytest.raises(PipelineError, match=r"holds 2 files of captions: \S+val2014\.json, \S+val2017\.json\. Pass"):
        ingest([source.uri], store)


def test_an_image_in_both_files_of_coco_is_in_neither(source: LocalBucket, store: LocalBucket) -> None:
    """It would be trained and tested on."""
    put_images(source)
    put_json(source, "captions_train2017.json", coco(NAMES[:31]))
    put_json(source, "captions_val2017.json", coco(NAMES[30:]))
    report = ingest([source.uri], store)
    assert "30.jpg" not in captions_of(report, store)
    assert report.dropped == {"image in two splits": 4}


def test_unusable_captions_of_coco(source: LocalBucket, store: LocalBucket) -> None:
    """They are dropped and listed by their number, with the names of their images."""
    put_images(source)
    content = coco(NAMES)
    content["images"] += [{"id": 7, "file_name": "z.jpg"}, {"id": 8}]
    content["annotations"] += [
        {"image_id": 7, "caption": "gone"},
        {"image_id": 8, "caption": "a cat"},
        {"image_id": 1000, "caption": None},
        {"image_id": 1000, "caption": "half a character: \ud83d"},
    ]
    report = ingest([put_json(source, "captions_val2017.json", content)], store)
    assert [(row.line, row.reason, row.text) for row in report.dropped_rows] == [
        (121, "image missing", "z.jpg, gone"),
        (122, "image missing", "image 8, a cat"),
        (123, "malformed", "{'image_id': 1000, 'caption': None}"),
        (124, "not UTF-8", "0.jpg, half a character: \ufffd"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1", r"x\.json is not a complete JSON file \(.*line 1"),
        (b"caf\xe9", r"x\.json is not a complete JSON file"),
        (b"[1]", r"x\.json holds a list, and is in neither of the known formats: Karpathy's .* and COCO"),
        (b'{"info": 1, "data": []}', r"has no list images, and is in neither .*\. Its keys: info, data"),
        (b'{"images": [], "annotations": 1}', r"has no list annotations, and .*\. Its keys: images, annotations"),
        (b'{"images": []}', r"holds no captions"),
    ],
)
def test_other_json_is_refused(source: LocalBucket, store: LocalBucket, content: bytes, message: str) -> None:
    """The error says what was looked for, and what was found."""
    source.put("x.json", content)
    with pytest.raises(PipelineError, match=message):
        ingest([source.url("x.json")], store)


# --- text files beside images ----------------------------------------------------------------------------------------


def test_text_files_beside_images(new_bucket: NewBucket, caplog: pytest.LogCaptureFixture) -> None:
    """Each line is a caption of the image of this name, in whichever folder."""
    source, store = new_bucket(), new_bucket()
    for folder, names in (("one/", NAMES[:30]), ("two/deep/", NAMES[30:])):
        put_images(source, folder, names)
        for name in names:
            put_lines(source, f"{folder}{name.removesuffix('.jpg')}.txt", ["", *CAPTIONS[name]])
    put_lines(source, "sizes.csv", ["image,width,height", "0.jpg,640,480"])
    caplog.clear()
    check_all(source.uri, store)
    assert re.match(r"the captions are those of (\S+\.txt,? ){5}and 55 more files", caplog.messages[0])


def test_unusable_text_files(source: LocalBucket, store: LocalBucket) -> None:
    """One without an image, one without a caption, and a line that is not UTF-8 are listed; other images are none."""
    put_images(source, "")
    for name in NAMES[1:]:
        put_lines(source, f"{name.removesuffix('.jpg')}.txt", CAPTIONS[name])
    put_lines(source, "1.txt", [""])
    put_lines(source, "readme.txt", ["These are", "my pictures"])
    source.put("2.txt", b"caf\xe9\na cat\n")
    report = ingest([source.uri], store)
    assert [(row.file, row.line, row.reason) for row in report.dropped_rows] == [
        ("1.txt", 1, "empty caption"),
        ("2.txt", 1, "not UTF-8"),
        ("readme.txt", 1, "image missing"),
    ]
    assert captions_of(report, store) == {name: CAPTIONS[name] for name in NAMES[3:]} | {"2.jpg": ["a cat"]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_files_of_windows(source: LocalBucket, store: LocalBucket, encoding: str) -> None:
    """As its editor saves them."""
    put_images(source, "")
    for name, texts in CAPTIONS.items():
        source.put(f"{name.removesuffix('.jpg')}.txt", "\r\n".join(texts).encode(encoding))
    check_all(source.uri, store)


def test_annotations_of_objects_are_no_captions(source: LocalBucket, store: LocalBucket) -> None:
    """YOLO's text files are beside the images, too, and hold only numbers."""
    put_images(source)
    for name in NAMES:
        put_lines(source, f"Images/{name.removesuffix('.jpg')}.txt", ["0 0.481719 0.634028 0.690625 0.713278"])
    with pytest.raises(PipelineError, match=r"no captions in a known format.* with captions and not only numbers"):
        ingest([source.uri], store)
    put_lines(source, "mine.csv", csv_lines())
    check_all(source.uri, store)


# --- names of images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["./Images/{}", "Images//{}", "Images\\{}", ".\\Images\\{}", "Images/../Images/{}", "images/{}", "{}"]
)
def test_paths_of_images(source: LocalBucket, store: LocalBucket, name: str) -> None:
    """Paths are written in several ways."""
    put_images(source)
    check_all(put_lines(source, "table.csv", csv_lines(name)), store)


@pytest.mark.parametrize("suffix", ["", ".jpg_orig", ".0001", ".txt"])
def test_images_with_an_unknown_suffix(new_bucket: NewBucket, suffix: str) -> None:
    """Or without one: their first bytes say that they are images, but that of another kind of file is believed."""
    source, store = new_bucket(), new_bucket()
    names = [f"{name.removesuffix('.jpg')}{suffix}" for name in NAMES]
    for name in names:
        source.put(f"images/{name}", b"\xff\xd8\xff" + name.encode())
    source.put("images/README", b"My pictures")
    rows = [f"images/{name},a dog" for name in names]
    table = put_lines(source, "table.csv", ["image,caption", *rows, "images/README,a text"])
    if suffix == ".txt":
        with pytest.raises(PipelineError, match="image missing 61"):
            ingest([table], store)
    else:
        report = ingest([table], store)
        assert (captions_of(report, store), report.dropped) == (
            {name: ["a dog"] for name in names},
            {"image missing": 1},
        )


def test_absolute_paths_of_images(new_bucket: NewBucket, tmp_path: Path) -> None:
    """Below the folder they are read, also through a link to it; elsewhere, the image is missing."""
    source, store = new_bucket(), new_bucket()
    put_images(source)
    roots = [source.uri]
    if isinstance(source, LocalBucket):
        (tmp_path / "link").symlink_to(source.root)
        roots = [str(source.root), str(tmp_path / "link")]
    for root in roots:
        check_all(put_lines(source, "table.csv", csv_lines(root + "/Images/{}")), store)
    report = ingest([put_lines(source, "table.csv", [*csv_lines(), "/elsewhere/0.jpg,a dog"])], store)
    assert report.dropped == {"image missing": 1}


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_of_names(source: LocalBucket, store: LocalBucket, in_table: str, on_disk: str) -> None:
    """macOS writes an accent as a character of its own."""
    put_images(source, unicodedata.normalize(on_disk, "Bilder/café-"))
    table = put_lines(source, "table.csv", csv_lines(unicodedata.normalize(in_table, "café-{}")))
    report = ingest([table], store)
    assert (report.captions, report.dropped) == (120, {})


def test_names_that_differ_in_case(source: LocalBucket, store: LocalBucket) -> None:
    """They are found where they are unique; a name that exists exactly is that image; others are ambiguous."""
    put_images(source, names=[name.upper() for name in NAMES])
    table = put_lines(source, "table.csv", csv_lines())
    assert ingest([table], store).captions == 120
    put_images(source, names=["0.jpg"])
    assert ingest([table], store).captions == 120
    put_images(source, names=["0.Jpg"])
    (source.root / "Images/0.jpg").unlink()
    with pytest.raises(PipelineError, match=r"2 files are named 0\.jpg: Images/0\.JPG, Images/0\.Jpg\. Rename"):
        ingest([table], store)


def test_names_that_repeat_in_several_folders(source: LocalBucket, store: LocalBucket) -> None:
    """Their paths tell them apart, relative to the table's folder first, and are the ids of the images."""
    for folder in ("class0", "class1", "old/class0"):
        put_images(source, f"data/{folder}/")
    lines = [*csv_lines("class0/{}"), *csv_lines("class1/{}")[1:]]
    table = put_lines(source, "data/table.csv", lines)
    for uri in (source.uri, table):
        data = load(ingest([uri], store).dataset, store)
        folder = "data/" if uri == source.uri else ""
        assert set(data.table["image_id"].to_pylist()) == {
            f"{folder}class{number}/{name}" for number in range(2) for name in NAMES
        }
        assert data.table["image_id"].to_pylist() == data.table["image_key"].to_pylist()
    with pytest.raises(PipelineError, match=r"3 files are named 0\.jpg: .* or name the one that is meant by its path"):
        ingest([put_lines(source, "data/table.csv", csv_lines())], store)


# --- sources and their names -----------------------------------------------------------------------------------------


def test_a_home_folder_is_expanded(source: LocalBucket, store: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the path of a folder and in that of a file."""
    monkeypatch.setenv("HOME", str(source.root))
    put_images(source, "mine/")
    put_lines(source, "mine/captions.txt", csv_lines())
    for uri in ("~/mine", "~/mine/captions.txt", "~"):
        check_all(uri, store)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("{}/my photos", "my-photos"),
        ("{}/Flickr8k", "Flickr8k"),
        ("{}/Фото", "photographs"),
        ("{}/数据/Captions.TXT", "Captions"),
        ("{}/数据", "photographs"),
        (".", "here"),
        ("..", "photographs"),
        ("inner/..", "here"),
        ("captions.txt", "captions"),
    ],
)
def test_a_name_is_made_for_each_source(
    tmp_path: Path, store: LocalBucket, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    """From the file or the folder, or the general name where these have no letter that serves."""
    here = tmp_path / "照片" / "here"
    (here / "inner").mkdir(parents=True)
    monkeypatch.chdir(here)
    folder = Path(path.format(tmp_path)).resolve()
    source = LocalBucket(folder.parent if folder.suffix else folder)
    put_images(source)
    put_lines(source, folder.name if folder.suffix else "captions.txt", csv_lines())
    assert ingest([path.format(tmp_path)], store).dataset.partition("/")[0] == name


def test_an_unknown_format_says_what_was_found(source: LocalBucket, store: LocalBucket) -> None:
    """And which formats there are."""
    put_images(source, names=["1.jpg", "2.png"])
    put_lines(source, "readme.md", [])
    with pytest.raises(PipelineError) as error:
        ingest([source.uri], store)
    message = str(error.value)
    assert message.startswith(f"{source.uri} holds no captions in a known format. Looked for ")
    for text in (
        "Flickr8k.token.txt",
        "captions.txt",
        "results.csv",
        ".parquet",
        "dataset_*.json",
        ".txt files beside",
    ):
        assert text in message
    assert message.endswith("Found 3 files (1 .jpg, 1 .png, 1 .md), 2 of them images.")


def test_a_source_that_is_missing_or_of_the_wrong_kind(source: LocalBucket, store: LocalBucket) -> None:
    """The error says whether it does not exist, or is a file of another kind."""
    with pytest.raises(PipelineError, match=r"does not exist\. Check the address"):
        ingest([source.uri], store)
    with pytest.raises(PipelineError, match=r"captions\.txt does not exist. Check the address"):
        ingest([source.url("captions.txt")], store)
    put_lines(source, "captions.xlsx", csv_lines())
    with pytest.raises(
        PipelineError, match=r"captions\.xlsx is a file, not a folder, and its name does not end in \.csv"
    ):
        ingest([source.url("captions.xlsx")], store)


def test_a_folder_may_have_the_name_of_a_file(new_bucket: NewBucket) -> None:
    """A folder is a folder, whatever it is called."""
    source, store = new_bucket(), new_bucket()
    put_images(source, "my.csv/")
    put_lines(source, "my.csv/captions.txt", csv_lines())
    check_all(source.url("my.csv"), store)

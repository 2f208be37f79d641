"""Several sources in one dataset: a picture is in one row and one split, wherever copies of it are."""

import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import corrections
from pipeline.data.annotations import SPLITS, split_by_hash
from pipeline.data.dataset import load
from pipeline.data.images import content_hash
from pipeline.data.ingest import IngestReport, ingest
from pipeline.data.sources import SourceCounts
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, ObjectDeniedError, layout
from tests.support import toy
from tests.support.effort import random_inputs

Picture = tuple[str, bytes, str, str]
"""Name, bytes, caption and split of a picture; without a split, a hash chooses it."""

ONE: list[Picture] = [
    ("a.jpg", b"A", "one a", "train"),
    ("b.jpg", b"B", "one b", "train"),
    ("c.jpg", b"C", "one c", "dev"),
    ("d.jpg", b"D", "one d", "test"),
]
TWO: list[Picture] = [
    ("x.jpg", b"A", "two a", "test"),
    ("b.jpg", b"B", "one b", "train"),
    ("c.jpg", b"other", "two c", "train"),
    ("y.jpg", b"C", "two y", "train"),
]


def put(folder: Path, pictures: list[Picture], name: str = "captions.csv") -> str:
    """Put a table of captions beside its pictures, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,caption,split"]
    for image, data, caption, split in pictures:
        (folder / image).write_bytes(data)
        lines.append(f"{image},{caption},{split}")
    if not any(split for *_, split in pictures):
        lines = [line.rpartition(",")[0] for line in lines]
    (folder / name).write_text("\n".join(lines))
    return str(folder / name)


def by_content(report: IngestReport, store: Bucket) -> dict[str, tuple[str, str, list[str]]]:
    """Id, split and captions of each picture of a dataset, by the hash of its bytes."""
    rows = load(report.dataset, store).table.to_pylist()
    found = {row["content_hash"]: (row["image_id"], row["split"], row["captions"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalBucket:
    """An empty local store."""
    return LocalBucket(tmp_path / "store")


@pytest.fixture
def one(tmp_path: Path) -> str:
    """The first source."""
    return put(tmp_path / "one", ONE)


@pytest.fixture
def two(tmp_path: Path) -> str:
    """The second source, with copies of pictures of the first under other names and in other splits."""
    return put(tmp_path / "two", TWO)


def test_copies_become_one_row(one: str, two: str, store: LocalBucket, tmp_path: Path) -> None:
    """It has the captions of all sources, each once, and is in the first source; what any source holds out is."""
    report = ingest([one, two], store)
    first, second = (tmp_path / name for name in ("one", "two"))
    assert by_content(report, store) == {
        content_hash(b"A"): ("a.jpg", "test", ["one a", "two a"]),
        content_hash(b"B"): ("b.jpg", "train", ["one b"]),
        content_hash(b"C"): (f"{first.as_uri()}/c.jpg", "dev", ["one c", "two y"]),
        content_hash(b"D"): ("d.jpg", "test", ["one d"]),
        content_hash(b"other"): (f"{second.as_uri()}/c.jpg", "train", ["two c"]),
    }
    rows = load(report.dataset, store).table.to_pylist()
    assert {row["source"] for row in rows if row["content_hash"] != content_hash(b"other")} == {first.as_uri()}


def test_the_report_counts_by_source(one: str, two: str, store: LocalBucket) -> None:
    """What each source gave, before copies were merged; and how many copies there were."""
    with Path(two).open("a") as file:
        file.write("\nnowhere.jpg,a dog,train")
    report = ingest([one, two], store, max_dropped_fraction=0.2)
    counts = {
        Path(one).as_uri(): SourceCounts(images=4, captions=4, dropped=0),
        Path(two).as_uri(): SourceCounts(images=4, captions=4, dropped=1),
    }
    assert report.sources == counts
    assert (report.merged, report.images, report.captions) == (3, {"train": 2, "dev": 1, "test": 2}, 7)
    [row] = report.dropped_rows
    assert (row.source, row.file, row.line) == (Path(two).as_uri(), "captions.csv", 6)
    assert str(report) == (
        "5 images (2 train, 1 dev, 2 test; copies of an image merged: 3), 7 captions, 1 dropped (image missing 1); "
        f"{Path(one).as_uri()}: 4 images, 4 captions, 0 dropped; {Path(two).as_uri()}: 4 images, 4 captions, 1 dropped"
    )
    assert ingest([report.dataset], store) == report


def test_the_order_of_sources_does_not_matter(one: str, two: str, store: LocalBucket, tmp_path: Path) -> None:
    """Every order gives the same dataset and the same report; so does a dataset among them."""
    dataset = ingest([one], store).dataset
    three = put(tmp_path / "three", [("e.jpg", b"A", "three e", "dev"), ("f.jpg", b"F", "three f", "train")])
    reports = [ingest(list(order), store) for order in itertools.permutations([one, two, three, dataset])]
    assert all(report == reports[0] for report in reports)
    assert reports[0].dataset.startswith("captions/")
    assert by_content(reports[0], store)[content_hash(b"A")] == ("a.jpg", "test", ["one a", "three e", "two a"])


def test_formats_may_be_mixed(one: str, store: LocalBucket, tmp_path: Path) -> None:
    """Text files beside pictures, a COCO file, a table and a dataset; a hash splits only what no source does."""
    lines = tmp_path / "lines"
    lines.mkdir()
    pictures = [(f"{number}.png", toy.png(number, 2, 3)) for number in range(9)]
    for name, data in [*pictures, ("copy.jpg", b"A")]:
        (lines / name).write_bytes(data)
        (lines / name).with_suffix(".txt").write_text(f"a caption of {name}")
    coco = tmp_path / "coco"
    put(coco, [("val.jpg", b"V", "", ""), ("train-copy.jpg", b"B", "", "")], "unused.txt")
    content = {
        "images": [{"id": 1, "file_name": "val.jpg"}, {"id": 2, "file_name": "train-copy.jpg"}],
        "annotations": [{"image_id": 1, "caption": "a coco v"}, {"image_id": 2, "caption": "a coco b"}],
    }
    (coco / "captions_val2017.json").write_text(json.dumps(content))
    (coco / "captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    dataset = ingest([one], store, name="earlier").dataset

    report = ingest([str(lines), str(coco), dataset], store)
    assert report.dataset.startswith("coco-and-earlier-and-lines/")
    assert list(report.sources) == [coco.as_uri(), lines.as_uri(), dataset]
    found = by_content(report, store)
    for name, data in pictures:
        assert found[content_hash(data)] == (name, split_by_hash(content_hash(data)), [f"a caption of {name}"])
    assert found[content_hash(b"A")][1:] == ("train", ["a caption of copy.jpg", "one a"])
    # COCO holds its val images out, also where another source gives a copy as train.
    for data in (b"V", b"B"):
        assert found[content_hash(data)][1] == split_by_hash(content_hash(data), ("dev", "test"))
    assert report.split_by_hash == len(pictures) + 2


def test_a_known_hash_is_not_computed_again(one: str, two: str, store: LocalBucket, monkeypatch) -> None:
    """Of a dataset, only images of train without a hash are read; of a merged one, none is."""
    dataset = ingest([one], store, name="one").dataset
    read = []
    get = LocalBucket.get
    monkeypatch.setattr(
        LocalBucket, "get", lambda bucket, key, **options: read.append(key) or get(bucket, key, **options)
    )
    merged = ingest([dataset, two], store)
    assert sorted(key for key in read if key.endswith(".jpg")) == ["a.jpg", "b.jpg", "b.jpg", "c.jpg", "x.jpg", "y.jpg"]
    read.clear()
    other = put(Path(two).parent.parent / "other", [("new.jpg", b"D", "another d", "dev")])
    again = ingest([merged.dataset, other], store)
    assert [key for key in read if key.endswith(".jpg")] == ["new.jpg"]
    assert by_content(again, store)[content_hash(b"D")][1:] == ("test", ["one d", "another d"])
    assert again.sources[merged.dataset] == SourceCounts(images=5, captions=7, dropped=0)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_dataset_has_one_language(one: str, two: str, store: LocalBucket) -> None:
    """Captions have the language of the dataset beside them; several languages are refused, before images are read."""
    german = ingest([one], store, name="german", language="de").dataset
    english = ingest([one], store, name="english").dataset
    report = ingest([two, german], store)
    assert (report.language, load(report.dataset, store).language) == ("de", "de")
    with pytest.raises(PipelineError, match=rf"has one language, and this one would be in en, but {german} is in de"):
        ingest([german, english], store)
    with pytest.raises(PipelineError, match=rf"would be in fr, but {german} is in de\. .*ingest it alone with --lang"):
        ingest([two, german], store, language="fr")
    assert ingest([german], store, language="en", name="english").dataset == english


def test_sources_that_are_missing_or_repeated(one: str, two: str, store: LocalBucket, tmp_path: Path) -> None:
    """None, one that does not exist, and one that is given twice, under whichever spelling, are errors."""
    with pytest.raises(PipelineError, match="No source is given"):
        ingest([], store)
    with pytest.raises(PipelineError, match=f"{tmp_path.as_uri()}/nowhere does not exist"):
        ingest([one, str(tmp_path / "nowhere")], store)
    with pytest.raises(PipelineError, match=f"There is no dataset none/{'0' * 16}"):
        ingest([one, f"none/{'0' * 16}"], store)
    for twice in (one, Path(one).as_uri(), str(Path(one).parent), f"{tmp_path}/two/../one"):
        with pytest.raises(PipelineError, match=f"The source {Path(one).as_uri()} is given twice"):
            ingest([one, two, twice], store)
    assert list(store.list()) == []


def test_each_source_may_drop_its_own_share(one: str, two: str, store: LocalBucket) -> None:
    """A source of which too much is dropped is named, even if it is a small part of all captions."""
    with Path(two).open("a") as file:
        file.write("\nnowhere.jpg,a dog,train")
    with pytest.raises(PipelineError, match=rf"1 of the 5 captions in {Path(two).as_uri()} can't be used \(20\.0%"):
        ingest([one, two], store, max_dropped_fraction=0.15)


def test_no_split_of_all_sources_may_be_empty(store: LocalBucket, tmp_path: Path) -> None:
    """Each source may lack splits that another has; the error names all sources."""
    train, dev, test = (put(tmp_path / split, [(f"{split}.jpg", split.encode(), "a dog", split)]) for split in SPLITS)
    places = f"{Path(dev).as_uri()}, {Path(train).as_uri()}"
    with pytest.raises(PipelineError, match=f"{places}: the split test has no image"):
        ingest([train, dev], store)
    assert ingest([train, dev, test], store).images == {"train": 1, "dev": 1, "test": 1}


def test_a_replaced_image(one: str, two: str, store: LocalBucket) -> None:
    """If its bytes are others than those in a dataset, it is named; if they are the same, the present file counts."""
    dataset = ingest([one], store).dataset
    image = Path(one).parent / "d.jpg"
    image.unlink()
    image.write_bytes(b"D")
    report = ingest([dataset, one, two], store)
    [row] = [row for row in load(report.dataset, store).table.to_pylist() if row["image_id"] == "d.jpg"]
    assert row["image_etag"] == next(iter(LocalBucket(image.parent).list("d.jpg"))).etag
    image.write_bytes(b"other bytes")
    with pytest.raises(PipelineError, match=rf"d\.jpg in {image.parent.as_uri()} was replaced after"):
        ingest([dataset, one, two], store)


def test_an_image_that_cannot_be_read_is_dropped(one: str, two: str, store: LocalBucket, monkeypatch) -> None:
    """Whether another source has a copy is unknown; its captions are listed, and too many of them are an error."""
    dataset = ingest([one], store, name="one").dataset
    get = LocalBucket.get

    def deny(bucket: LocalBucket, key: str, **options: object) -> bytes:
        if key in ("b.jpg", "y.jpg"):
            raise ObjectDeniedError("denied")
        return get(bucket, key, **options)

    monkeypatch.setattr(LocalBucket, "get", deny)
    report = ingest([dataset, two], store, max_dropped_fraction=0.5)
    assert [(row.source, row.line, row.reason, row.text) for row in report.dropped_rows] == [
        (Path(two).as_uri(), 3, "image can't be read", "b.jpg,one b,train"),
        (Path(two).as_uri(), 5, "image can't be read", "y.jpg,two y,train"),
        (dataset, 2, "image can't be read", "b.jpg, one b"),
    ]
    assert report.sources[dataset] == SourceCounts(images=3, captions=3, dropped=1)
    assert content_hash(b"B") not in by_content(report, store)
    with pytest.raises(PipelineError, match=rf"1 of the 4 captions in the dataset {dataset} can't be used"):
        ingest([dataset, put(Path(one).parents[1] / "new", [("n.jpg", b"N", "new", "dev")])], store)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_name_of_a_merged_dataset(store: LocalBucket, tmp_path: Path) -> None:
    """It has those of the sources in order, and is never too long."""
    splits = zip(["b" * 100, "a" * 100, "c"], SPLITS, strict=True)
    paths = [put(tmp_path / name, [(f"{split}.jpg", split.encode(), "a dog", split)]) for name, split in splits]
    folders = [str(Path(path).parent) for path in paths]
    assert ingest(folders, store).dataset.partition("/")[0] == f"{'a' * 100}-and-{'b' * 45}"
    assert ingest(folders, store, name="all").dataset.startswith("all/")


# --- corrections -----------------------------------------------------------------------------------------------------


def correct(data: bytes, store: Bucket) -> None:
    """Store a correction of a picture."""
    corrections.add(
        data, caption="a better caption", model_caption="", model_version="m", corrected_by="somebody", store=store
    )


def test_corrections_of_a_merged_dataset(store: LocalBucket, tmp_path: Path) -> None:
    """Those in a dataset are left out, and all are added by the option, but not those of what a source holds out."""
    splits = [*SPLITS, "train"]
    pictures = [(f"{n}.png", toy.png(n, 2, 3), f"picture {n}", split) for n, split in enumerate(splits)]
    one = put(tmp_path / "one", pictures)
    two = put(tmp_path / "two", [("copy.png", pictures[3][1], "a copy", "test")])
    for number in (0, 3):
        correct(pictures[number][1], store)
    corrected = ingest([one], store, corrections=True).dataset
    plain = ingest([corrected, two], store)
    assert [row["source"] for row in load(plain.dataset, store).table.to_pylist()] == 4 * [(tmp_path / "one").as_uri()]
    assert list(plain.sources) == [Path(two).as_uri(), corrected]
    report = ingest([corrected, two], store, corrections=True)
    assert report == ingest([two, corrected], store, corrections=True)
    assert report.sources["store:corrections"] == SourceCounts(images=1, captions=1, dropped=1)
    assert report.dropped == {"image in dev or test": 1}
    assert store.exists(layout.dataset_table(report.dataset))


# --- any sources -----------------------------------------------------------------------------------------------------

pictures = st.lists(
    st.tuples(st.sampled_from(list("abcdefgh")), st.sampled_from(["train", "dev", "test"])),
    max_size=8,
)


@given(st.lists(st.tuples(pictures, st.booleans(), st.permutations(range(8))), min_size=1, max_size=3))
@settings(max_examples=random_inputs(60), deadline=None)
def test_no_picture_is_in_two_splits(parts) -> None:
    """Whatever the sources, names and splits: a picture is in one row, held out if any source says so."""
    with tempfile.TemporaryDirectory() as folder:
        sure = [(f"{split}.jpg", split.encode(), "a dog", split) for split in SPLITS]
        paths, said = [put(Path(folder, "sure"), sure)], {}
        for number, (drawn, decided, order) in enumerate(parts):
            if not drawn:
                continue
            named = [
                (f"{name}.jpg", data.encode(), f"{data} of {number}", split if decided else "")
                for name, (data, split) in zip(order, drawn, strict=False)
            ]
            paths.append(put(Path(folder, str(number)), named))
            for _, data, _, split in named:
                said.setdefault(content_hash(data), set()).add(split)
        store = LocalBucket(Path(folder, "store"))
        report = ingest(paths, store)
        found = by_content(report, store)
        assert ingest(paths[::-1], store) == report
    for content, splits in said.items():
        given = [split for split in ("test", "dev", "train") if split in splits]
        assert found[content][1] == (given[0] if given else split_by_hash(content))
    assert report.merged == sum(counts.images for counts in report.sources.values()) - len(found)

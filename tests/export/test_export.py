"""Exports of the current captions: each format is read back, as its readers do, from folders and from S3."""

import csv
import io
import json
import re
import tarfile
from datetime import UTC, datetime
from urllib.parse import unquote

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.data.dataset import load
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.export import choose_format, coco, export, iceberg, jsonl, select, webdataset
from pipeline.export import csv as csv_format
from pipeline.nightly import current
from pipeline.ops.browse_current import Filters
from tests.support import toy
from tests.support.paths import PROJECT

TEXTS = {
    '2026/01/déjà vu, "1".JPG': 'a "red" dog,\nand another; 狗 🐕',
    "=cmd|'/C calc'!A0.jpg": "=1+1",
    "a.b.c/..hidden.png": "-2 dogs\ton the beach",
    "plain.jpg": "a dog",
    "a/plain.jpg": "a cat\u2028on the roof",
}
"""Hard captions, by keys that are as hard."""

BOTH_KINDS = pytest.mark.parametrize("new_bucket", ["file", "s3"], indirect=True)


def row(key, **values):
    """A row of the current captions; what is not given is null."""
    return {
        **dict.fromkeys(current.SCHEMA.names),
        "image_key": key,
        "image_etag": f"etag of {key}",
        "bytes": 3,
        **values,
    }


def captioned(key, text, *, source="model", version="v1"):
    """A row with a caption."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    return row(
        key,
        caption=text,
        alt_text=text.upper(),
        source=source,
        model_version=version if source == "model" else None,
        width=640,
        height=480,
        captioned_at=at,
    )


def tabulate(rows):
    """A table of the current captions."""
    return pa.Table.from_pylist(sorted(rows, key=lambda each: each["image_key"]), schema=current.SCHEMA)


CURRENT = tabulate(
    [
        *(captioned(key, text) for key, text in TEXTS.items()),
        captioned("person.jpg", "Max’s dog", source="person"),
        captioned("a/old.jpg", "an old dog", version="v0"),
        row("broken.jpg", error="not a picture, it begins with dog"),
        captioned("both.jpg", "a word of a person", source="person", version="v0"),
        row("waiting.jpg"),
        {**captioned("unsure.jpg", "a bear"), "confidence": 0.25, "novel": False, "review": True},
        # A person's word was withdrawn, and no night has ended since.
        {**captioned("withdrawn.jpg", "a bird", version="v2"), "captioned_at": None},
    ]
)


@pytest.fixture
def store(new_bucket):
    """An empty store."""
    return new_bucket()


@pytest.fixture
def inbox(new_bucket):
    """An inbox without photographs."""
    bucket = new_bucket()
    bucket.put("readme.txt", b"no photograph")
    return bucket


@pytest.fixture
def run(store, inbox):
    """Exports a table."""

    def run_export(destination, form, table=CURRENT, **options):
        return export(table, destination, form=form, store=store, inbox=inbox, **options)

    return run_export


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        (
            {"words": word},
            {k for k, text in TEXTS.items() if re.search(pattern, text)} | {"person.jpg", "a/old.jpg", "broken.jpg"},
        )
        for word, pattern in (("DOG", r"\bdog"), ('"DOG"', r"\bdog\b"))
    ]
    + [
        ({}, set(CURRENT["image_key"].to_pylist())),
        ({"words": "dog old"}, {"a/old.jpg"}),
        ({"under": "a/"}, {"a/plain.jpg", "a/old.jpg"}),
        ({"status": "failed"}, {"broken.jpg"}),
        ({"status": "waiting"}, {"waiting.jpg"}),
        ({"status": "ok", "source": "person"}, {"person.jpg", "both.jpg"}),
        ({"version": "v0"}, {"a/old.jpg"}),
        ({"review": True}, {"unsure.jpg"}),
        ({"source": "model", "under": "a/"}, {"a/plain.jpg", "a/old.jpg"}),
        ({"words": "%"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "keys",
)
def test_filters(filters, keys):
    """As in the gallery: each word occurs somewhere, keys begin alike; each photograph has one status."""
    assert set(select(CURRENT, Filters(**filters))["image_key"].to_pylist()) == keys


def test_each_photograph_has_one_status():
    """Nothing is left out, and nothing is counted twice."""
    parts = [select(CURRENT, Filters(status=status)) for status in ("ok", "failed", "waiting")]
    assert pa.concat_tables(parts).sort_by("image_key") == CURRENT.sort_by("image_key")


@BOTH_KINDS
def test_csv(run, new_bucket):
    """Every row and column; null is empty; quotes, lines and emoji survive, and formulas are texts."""
    folder = new_bucket()
    done = run(folder.url("captions.csv"), "csv")
    assert done == {
        "format": "csv",
        "rows": len(CURRENT),
        "destination": folder.url("captions.csv"),
        "summary": f"csv: {len(CURRENT)} rows",
    }
    data = folder.get("captions.csv")
    found = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert list(found[0]) == current.SCHEMA.names
    for read, written in zip(found, CURRENT.to_pylist(), strict=True):
        assert read["caption"].removeprefix("'") == (written["caption"] or "")
        assert read["image_key"].removeprefix("'") == written["image_key"]
        assert not any(text.startswith(("=", "+", "-", "@")) for text in read.values())
    frame = pd.read_csv(io.BytesIO(data), parse_dates=["captioned_at"])
    assert frame["width"].dropna().tolist() == CURRENT["width"].drop_null().to_pylist()
    assert frame["captioned_at"].dropna().tolist() == CURRENT["captioned_at"].drop_null().to_pylist()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＠"])
def test_a_text_is_no_formula(start):
    """Whichever column it is in; other texts are as they were."""
    table = tabulate([captioned(f"{start}1", f"{start}2"), row("a=1", error=f"{start}3"), captioned("-", "a - b")])
    found = list(csv.DictReader(io.StringIO(csv_format.render(table).decode(), newline="")))
    by_key = {each["image_key"]: each for each in found}
    assert by_key[f"'{start}1"]["caption"] == f"'{start}2"
    assert by_key["a=1"]["error"] == f"'{start}3"
    assert by_key["'-"]["caption"] == "a - b"


@BOTH_KINDS
def test_jsonl(run, new_bucket):
    """One object a line, with all columns, whose times are in ISO 8601."""
    folder = new_bucket()
    run(folder.url("captions.jsonl"), "jsonl")
    lines = folder.get("captions.jsonl").decode().removesuffix("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    for each in rows:
        each["captioned_at"] = each["captioned_at"] and datetime.fromisoformat(each["captioned_at"])
    assert rows == CURRENT.to_pylist()
    assert "🐕" in lines[0] + lines[1]


@BOTH_KINDS
def test_coco(run, new_bucket):
    """Captioned photographs alone, with their sizes; ids lead from a caption to its image."""
    folder = new_bucket()
    done = run(folder.url("captions.json"), "coco")
    assert (done["rows"], done["without_caption"]) == (len(CURRENT) - 2, 2)
    content = json.loads(folder.get("captions.json"))
    images = {image["id"]: image for image in content["images"]}
    texts = {images[found["image_id"]]["file_name"]: found["caption"] for found in content["annotations"]}
    expected = CURRENT.filter(pc.field("caption").is_valid())
    assert texts == dict(zip(expected["image_key"].to_pylist(), expected["caption"].to_pylist(), strict=True))
    assert len({found["id"] for found in content["annotations"]}) == len(expected)
    assert {(image["width"], image["height"]) for image in images.values()} == {(640, 480)}


def test_our_own_ingest_reads_coco(store, inbox, run, tmp_path):
    """Photographs and their exported captions are a dataset."""
    texts = {f"{number // 7}/{number} .jpg": f"a dog, number {number} 🐕" for number in range(60)}
    for key in texts:
        inbox.put(key, b"bytes of " + key.encode())
    run(inbox.url("captions.json"), "coco", tabulate(captioned(key, text) for key, text in texts.items()))
    report = ingest([inbox.url("captions.json")], store, name="exported")
    table = load(report.dataset, store).table
    assert {key: [text] for key, text in texts.items()} == dict(
        zip(table["image_key"].to_pylist(), table["captions"].to_pylist(), strict=True)
    )


def samples(folder):
    """The files of each sample by what follows the first dot, as readers of WebDataset group them."""
    found = {}
    for item in folder.list():
        if item.key.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(folder.get(item.key))) as tar:
                for member in tar:
                    name, _, ending = member.name.partition(".")
                    found.setdefault(name, {})[ending] = tar.extractfile(member).read()
    return found


@pytest.fixture
def photographed(inbox):
    """A photograph in the inbox for each hard key, with the rows of the current captions."""
    rows = []
    for number, (key, text) in enumerate(TEXTS.items()):
        etag = inbox.put(key.replace("..hidden", "shown"), toy.picture("red", number))
        rows.append({**captioned(key.replace("..hidden", "shown"), text), "image_etag": etag})
    return rows


@BOTH_KINDS
def test_webdataset(run, inbox, photographed, new_bucket, monkeypatch):
    """Each sample has a picture, its caption and its row; changed and unreadable pictures are counted."""
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 8_000)
    folder, inbox_rows = new_bucket(), [*photographed]
    etag = inbox.put("text.jpg", b"no picture")
    others = [
        captioned("gone.jpg", "gone"),
        {**captioned("text.jpg", "no picture"), "image_etag": etag},
        row("waiting.jpg"),
    ]
    inbox_rows[0]["image_etag"] = "another"
    inbox_rows[1]["captioned_at"] = None
    done = run(folder.uri, "webdataset", tabulate([*inbox_rows, *others]))
    shards = [item.key for item in folder.list() if item.key.endswith(".tar")]
    assert shards == [f"captions-{number:06d}.tar" for number in range(done["shards"])]
    assert len(shards) > 1
    counts = {"pictures": 4, "changed": 2, "unreadable": 1}
    assert {name: done[name] for name in counts} == counts
    assert json.loads(folder.get("captions.json")) == {**counts, "shards": len(shards)}
    assert (done["rows"], done["without_caption"]) == (7, 1)
    found = samples(folder)
    assert {unquote(name) for name in found} == {each["image_key"] for each in inbox_rows[1:]}
    for name, files in found.items():
        [expected] = [each for each in inbox_rows if each["image_key"] == unquote(name)]
        [ending] = files.keys() - {"txt", "json"}
        assert ending == "jpg"
        assert files["jpg"] == inbox.get(expected["image_key"])
        assert files["txt"].decode() == expected["caption"]
        described = json.loads(files["json"])
        assert described["image_key"] == expected["image_key"]
        at = described["captioned_at"]
        assert (at and datetime.fromisoformat(at)) == expected["captioned_at"]


def test_a_sample_stays_in_its_folder(store, inbox, run, new_bucket, monkeypatch):
    """Whatever its key is, no name in a shard leads out of the folder where it is unpacked, nor has a second dot."""
    monkeypatch.setattr(inbox, "get", lambda *_, **__: toy.picture("red", 1))
    keys = [
        "../up.jpg",
        "/root.jpg",
        "a//b.jpg",
        "a/./b",
        ".jpg",
        "x" * 300 + ".jpg",
        "." * 200,
        "a.b/c.d.jpg",
        "__a__",
    ]
    folder = new_bucket()
    run(folder.uri, "webdataset", tabulate(captioned(key, "a dog") for key in keys))
    found = samples(folder)
    assert len(found) == len(keys)
    for name, files in found.items():
        assert files.keys() == {"jpg", "txt", "json"}
        assert not name.startswith("/")
        assert all(part and len(part.encode()) <= 250 for part in name.split("/"))


def test_fewer_shards_replace_more(run, photographed, new_bucket, monkeypatch):
    """No shard of the earlier export stays, and other files do; the summary goes first and comes last."""
    folder = new_bucket()
    folder.put("captions-of-mine.txt", b"mine")
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 1)
    assert run(folder.uri, "webdataset", tabulate(photographed))["shards"] == len(photographed)
    with pytest.raises(PipelineError, match=r"captions-000000\.tar exists.*--overwrite"):
        run(folder.uri, "webdataset", tabulate(photographed[:1]))
    removed, put = [], []
    monkeypatch.setattr(type(folder), "delete", _recorded(type(folder).delete, removed))
    monkeypatch.setattr(type(folder), "put", _recorded(type(folder).put, put))
    run(folder.uri, "webdataset", tabulate(photographed[:1]), overwrite=True)
    assert removed[0] == put[-1] == "captions.json"
    assert [item.key for item in folder.list()] == ["captions-000000.tar", "captions-of-mine.txt", "captions.json"]


def test_an_interrupted_export_has_no_summary(run, photographed, new_bucket, monkeypatch):
    """Not even that of an earlier export, which was complete."""
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 1)
    folder = new_bucket()
    run(folder.uri, "webdataset", tabulate(photographed))
    put = type(folder).put

    def fail(self, key, *arguments, **options):
        if key == "captions-000002.tar":
            raise OSError("disk full")
        return put(self, key, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "put", fail)
        with pytest.raises(OSError, match="disk full"):
            run(folder.uri, "webdataset", tabulate(photographed), overwrite=True)
    assert [item.key for item in folder.list()] == ["captions-000000.tar", "captions-000001.tar"]
    run(folder.uri, "webdataset", tabulate(photographed), overwrite=True)
    assert folder.exists("captions.json")


def _recorded(method, keys):
    def call(self, key, *arguments, **options):
        keys.append(key)
        return method(self, key, *arguments, **options)

    return call


def test_an_inbox_that_is_not_mounted(run, store, new_bucket):
    """Is an error, and not an export without pictures."""
    with pytest.raises(PipelineError, match="does not exist"):
        export(CURRENT, new_bucket().uri, form="webdataset", store=store, inbox=new_bucket())


@pytest.fixture
def catalogue(new_bucket, tmp_path):
    """A warehouse with the options that its catalogue needs, and a function that opens the table as a reader does."""
    from pyiceberg.catalog import load_catalog

    warehouse = new_bucket()
    on_s3 = warehouse.uri.startswith("s3://")
    file = (tmp_path if on_s3 else warehouse.root) / "catalog.db"
    opened = []

    def read(name="captioning.captions"):
        properties = iceberg.s3_properties(warehouse) if on_s3 else {}
        opened.append(load_catalog("captioning", type="sql", uri=f"sqlite:///{file}", **properties))
        return opened[-1].load_table(name)

    yield warehouse, {"iceberg_catalog": f"sqlite:///{file}"} if on_s3 else {}, read
    for each in opened:
        each.close()


@BOTH_KINDS
def test_iceberg(run, catalogue, monkeypatch):
    """Readers get the rows, types and descriptions; an export is one snapshot, and earlier ones can still be read."""
    warehouse, options, read = catalogue
    done = run(warehouse.uri, "iceberg", **options)
    assert (done["rows"], done["table"], done["destination"]) == (len(CURRENT), "captioning.captions", warehouse.uri)
    table = read()
    assert table.properties == {}  # no credentials, for one
    found = table.scan().to_arrow()
    if not options:  # on S3 this reader has no credentials
        monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
        frame = pl.scan_iceberg(table.metadata_location, reader_override="native").collect()
        assert frame.to_dicts() == CURRENT.to_pylist()
    assert found.schema.remove_metadata().equals(CURRENT.schema.remove_metadata())
    assert found.to_pylist() == CURRENT.to_pylist()
    assert (
        table.schema().find_field("image_key").doc
        == current.SCHEMA.field("image_key").metadata[b"description"].decode()
    )
    with pytest.raises(PipelineError, match=r"captioning\.captions exists in .*--overwrite"):
        run(warehouse.uri, "iceberg", **options)
    for rows in (CURRENT.slice(2, 3), CURRENT.slice(0, 0), CURRENT.slice(1, 4)):
        before = read().snapshots()
        run(warehouse.uri, "iceberg", rows, overwrite=True, **options)
        table = read()
        assert table.scan().to_arrow().to_pylist() == rows.to_pylist()
        assert len(table.snapshots()) == len(before) + 1
    assert table.scan(snapshot_id=table.snapshots()[0].snapshot_id).to_arrow().to_pylist() == CURRENT.to_pylist()


def test_the_table_of_iceberg_grows_with_the_schema(run, catalogue):
    """A new column is added; one that is gone is null; one of another type is an error, which changes nothing."""
    warehouse, options, read = catalogue
    run(warehouse.uri, "iceberg", CURRENT.drop_columns(["width"]), **options)
    run(warehouse.uri, "iceberg", overwrite=True, **options)
    assert read().scan().to_arrow().select(current.SCHEMA.names).to_pylist() == CURRENT.to_pylist()
    run(warehouse.uri, "iceberg", CURRENT.drop_columns(["height"]), overwrite=True, **options)
    assert read().scan().to_arrow()["height"].null_count == len(CURRENT)
    place = CURRENT.schema.get_field_index("bytes")
    other = CURRENT.set_column(place, "bytes", CURRENT["bytes"].cast(pa.string()))
    with pytest.raises(PipelineError, match=r"captioning\.captions has other columns.*--table"):
        run(warehouse.uri, "iceberg", other, overwrite=True, **options)
    assert len(read().snapshots()) == 3


def test_the_documented_code_reads_the_table(run, tmp_path, monkeypatch):
    """From the default place of the catalogue, under the default names."""
    [snippet] = re.findall(
        r"```python\n(from pathlib .*?)```", (PROJECT / "docs" / "captions.md").read_text(), re.DOTALL
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    run(str(tmp_path / "warehouse"), "iceberg")
    names = {}
    exec(snippet, names)  # noqa: S102 - the document's own lines
    names["catalog"].close()
    assert names["captions"].to_pylist() == select(CURRENT, Filters(source="person")).to_pylist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iceberg_table": "captions"}, "Expected the namespace and the name of a table"),
        ({"iceberg_table": "a..b"}, "Expected the namespace and the name of a table"),
        ({"iceberg_catalog": "catalog.db"}, "Expected the SQLAlchemy URL of a catalogue"),
    ],
)
def test_wrong_options_of_iceberg(run, new_bucket, options, message):
    """Say what is expected."""
    with pytest.raises(PipelineError, match=message):
        run(new_bucket().uri, "iceberg", **options)


@pytest.mark.parametrize("new_bucket", ["s3"], indirect=True)
def test_a_warehouse_on_s3_needs_a_catalogue(run, new_bucket):
    """SQLite has no files there."""
    with pytest.raises(PipelineError, match="add --catalog"):
        run(new_bucket().uri, "iceberg")


@pytest.mark.parametrize("form", ["csv", "iceberg", "webdataset"])
@BOTH_KINDS
def test_nothing_is_exported_into_the_store(run, store, form):
    """The store itself, or a place in it."""
    for place in (store.url("x.csv"), store.url("exports"), *([] if form == "csv" else [store.uri])):
        with pytest.raises(PipelineError, match="is in the store"):
            run(place, form)
    assert list(store.list()) == []


@pytest.mark.parametrize("form", ["csv", "jsonl", "coco"])
@BOTH_KINDS
def test_a_file_is_replaced_only_on_request(run, new_bucket, form):
    """With the same bytes as those of a new file."""
    folder = new_bucket()
    folder.put("old", b"mine")
    with pytest.raises(PipelineError, match=r"old exists\. .*--overwrite"):
        run(folder.url("old"), form)
    assert folder.get("old") == b"mine"
    run(folder.url("old"), form, overwrite=True)
    run(folder.url("new"), form)
    assert folder.get("old") == folder.get("new")


@pytest.mark.parametrize("form", ["csv", "jsonl", "coco", "label-studio", "webdataset", "iceberg"])
def test_no_rows(run, tmp_path, form):
    """Are an export, too, that readers of the format can open."""
    done = run(str(tmp_path / "out"), form, CURRENT.slice(0, 0))
    assert done["rows"] == 0


def test_formats_are_told_by_suffixes():
    """An option counts more; without either, the error names all formats."""
    found = {name: choose_format(f"s3://b/x{name}", None) for name in (".csv", ".JSONL", ".json")}
    assert found == {".csv": "csv", ".JSONL": "jsonl", ".json": "coco"}
    assert choose_format("x.csv", "jsonl") == "jsonl"
    with pytest.raises(PipelineError, match="--format and one of csv, jsonl, coco, label-studio, webdataset, iceberg"):
        choose_format("warehouse/", None)


def test_many_rows_are_written_in_batches(monkeypatch):
    """The batches change nothing."""
    whole = jsonl.render(CURRENT), coco.render(CURRENT)
    monkeypatch.setattr("pipeline.export.rows.BATCH", 3)
    assert (jsonl.render(CURRENT), coco.render(CURRENT)) == whole

"""The command line: its results, its errors, and its help."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
import uuid

import pyarrow as pa
import pytest

from pipeline import cli
from pipeline.captioner import registry
from pipeline.cli import common
from pipeline.config import DecodingConfig
from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.storage import layout, names, open_bucket, parquet
from pipeline.work import runs, tombstones
from tests.support import toy
from tests.support.models import write_evaluation, write_model
from tests.support.paths import PROJECT

DECODING = {"--beam-width", "--mbr-samples", "--neighbours"}

DATASET, ENCODER, SHARD = "toy/0123456789abcdef", "means-0123456789ab", "0123456789abcdef"
VOCABULARY = f"datasets/{DATASET}/vocabulary-10.json"
"""Names that can be in a store, but are in none here."""

NAME = "NAME"
"""Stands for the name that a test gives."""

NIGHT_STEPS = ("list", "plan-extraction", "plan-captions", "reconcile")

COMMANDS = {
    "resolve-inputs": {"run", "--dataset", "--encoder", "--cause"},
    "ingest": {
        *("sources", "--name", "--language", "--licence"),
        *("--max-dropped-fraction", "--corrections", "--no-corrections"),
    },
    "datasets": {"--limit"},
    "vocabulary": {"dataset_id", "--min-count", "--neutral-wording", "--no-neutral-wording"},
    "register-encoder": {"spec", "--crops", "--no-crops", "--regions", "--int8"},
    "plan-extraction": {"dataset_id", "encoder_id", "--run"},
    "extract": {"shard"},
    "train": {"dataset_id", "vocabulary", "encoder_id", "--set"},
    "evaluate": {"version", *DECODING},
    "evaluate-champion": {"version", *DECODING, "--policy", "--floor"},
    "compare": {"version", *DECODING, "--picture-page"},
    "gate": {"version", "--policy", "--promote", "--keep", "--by", "--tolerance", "--floor", "--run", *DECODING},
    "end-run": {"kind", "run", "--error"},
    "promote": {"version"},
    "rollback": set(),
    "make-keys": {"folder"},
    "sign": {"versions"},
    "prune": {"--keep", "--older-than", "--records-older-than", "--remove", "--no-remove"},
    "forget": {"keys", "--from", "--keys", "--picture", "--remove", "--no-remove"},
    "backup": {"target", "--check"},
    "import-model": {"source", "version", "--promote", "--no-promote", "--profile", "--endpoint-url"},
    "caption": {"pictures", "--alternatives", "--json", "--model", *DECODING},
    "export": {
        "destination",
        "--format",
        "--words",
        "--under",
        "--status",
        "--version",
        "--source",
        "--review",
        "--overwrite",
        "--table",
        "--catalog",
    },
    "fold": set(),
    "corrections": {"--limit", "--format"},
    "import-corrections": {"file"},
    "withdraw": {"image_key", "--by"},
    "status": {"--captions", "--under"},
    "install-dags": {"folder"},
    "demo-data": {"directory", "--images", "--new", "--seed", "--language"},
    "demo-inbox": {"--count"},
    "night preview": {"--archive", "--retry-failed", "--no-retry-failed", "--recaption", "--recaption-keys"},
    "night list": {
        "run",
        "--archive",
        "--retry-failed",
        "--no-retry-failed",
        "--accept-smaller-inbox",
        "--no-accept-smaller-inbox",
        "--recaption",
        "--recaption-keys",
    },
    "night plan-extraction": {"run"},
    "night plan-captions": {"run", "--date"},
    "night caption": {"shard", "--review-below"},
    "night reconcile": {"run", "--review-below", "--look-again", "--no-look-again"},
}
"""Every command with its arguments and options."""

HELP = """
import contextlib, io, json, sys
import typer
from pipeline.cli import app

def commands(command, path):
    children = getattr(command, "commands", None)
    if children is None:
        yield path
    for name, child in (children or {}).items():
        yield from commands(child, [*path, name])

texts, root = {}, typer.main.get_command(app)
for path in commands(root, []):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        root.main([*path, "--help"], standalone_mode=False)
    texts[" ".join(path)] = text.getvalue()
json.dump({"texts": texts, "modules": sorted(sys.modules)}, sys.stdout)
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Store and inbox in the environment, and no Java, which would take most of the time."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CAPTION_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("CAPTION_INBOX", str(tmp_path / "inbox"))
    monkeypatch.setenv("CAPTION_SHARD_SIZE", "20")
    return tmp_path


def process(*arguments):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


PROGRAM = """
import sys
{definition}
from pipeline.__main__ import run
from pipeline.data import dataset
dataset.list_datasets = list_datasets
sys.argv = ["captioning", "datasets"]
run()
"""

READS_ON = """
import io, threading, time
import pyarrow as pa, pyarrow.parquet as pq
reads = threading.Event()
class Slow(io.BytesIO):
    def read(self, size=-1):
        reads.set()
        while True:
            time.sleep(0.001)
class Late:
    def __del__(self):
        time.sleep(0.5)
late = Late()  # its end takes as long as that of an interpreter with large libraries
sink = pa.BufferOutputStream()
pq.write_table(pa.table({"a": [1]}), sink)
data = sink.getvalue()
file = pq.ParquetFile(Slow(data), metadata=pq.read_metadata(pa.BufferReader(data)), pre_buffer=True)
def list_datasets(*_, **__):
    threading.Thread(target=file.read, daemon=True).start()
    assert reads.wait(60)
    return []
"""
"""A thread of Arrow that waits for the interpreter's lock again and again."""


def process_in_which_listing(definition):
    """Run `captioning datasets` in a process of its own, with another function that lists the datasets."""
    program = [sys.executable, "-c", PROGRAM.replace("{definition}", definition)]
    return subprocess.run(program, cwd=PROJECT, env=os.environ, capture_output=True, text=True, check=False)


@pytest.fixture
def command(environment, monkeypatch, capsys):
    """Run a command in this process: exit status, the last line of standard output, and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["captioning", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output, error = capsys.readouterr()
        return stop.value.code or 0, output.splitlines()[-1] if output else "", error

    return run


@pytest.fixture
def result(command):
    """Run a command that must succeed in this process; its result."""

    def run(*arguments):
        status, line, error = command(*arguments)
        assert status == 0, error
        return json.loads(line)

    return run


@pytest.fixture
def store(environment):
    """The store of the environment."""
    return open_bucket(os.environ["CAPTION_STORE"])


@pytest.fixture
def source(environment):
    """The URI of the toy world's captions."""
    return toy.draw(open_bucket(str(environment / "toy")))


def test_a_process_prints_one_line_of_json(environment, source, toy_encoder):
    """The result is the only line of standard output; the log goes to standard error."""
    done = process("ingest", source)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    report = json.loads(line)
    assert (report["images"], report["captions"]) == ({"train": 16, "dev": 4, "test": 4}, 48)
    assert (environment / f"store/datasets/{report['dataset']}/dataset.parquet").is_file()
    assert "INFO" in done.stderr
    assert "Traceback" not in done.stderr

    done = process("register-encoder", str(toy_encoder))
    assert done.returncode == 0, done.stderr
    encoder_id = json.loads(done.stdout.splitlines()[-1])["encoder_id"]
    assert (environment / f"store/encoders/{encoder_id}/files.json").is_file()


def test_encoders(result, source, toy_encoder):
    """A quantized encoder and one of crops or regions have ids of their own; an id is accepted as a file is."""
    dataset = result("ingest", source)["dataset"]
    plain = result("register-encoder", str(toy_encoder), "--int8=")["encoder_id"]
    quantized = result("register-encoder", str(toy_encoder), f"--int8={dataset}")["encoder_id"]
    assert quantized == f"{plain}-int8"
    for encoder_id in (plain, quantized):
        assert result("register-encoder", encoder_id) == {"encoder_id": encoder_id, "summary": encoder_id}
    assert result("register-encoder", quantized, f"--int8={dataset}")["encoder_id"] == quantized
    crops = result("register-encoder", plain, "--crops")["encoder_id"]
    assert crops.startswith("means-crops-")
    assert result("register-encoder", str(toy_encoder), "--crops")["encoder_id"] == crops
    regions = result("register-encoder", str(toy_encoder), f"--regions={dataset}", "--int8=")["encoder_id"]
    assert regions.startswith(f"{plain}-regions-")
    both = result("register-encoder", str(toy_encoder), f"--regions={dataset}", f"--int8={dataset}")["encoder_id"]
    assert both == f"{regions}-int8"


def test_crops_and_regions_are_alternatives(command, store, toy_encoder):
    """Together they are refused before anything is registered."""
    status, _, error = command("register-encoder", str(toy_encoder), "--crops", "--regions=toy/0123456789abcdef")
    assert (status, error) == (2, "error: Crops and regions are alternatives: leave out --crops or --regions.\n")
    assert not list(store.list())


def test_a_retraining(store, source, result, toy_encoder, monkeypatch):
    """Each command takes the results of earlier ones, from captioned pictures to a champion."""
    inputs = result("resolve-inputs", "r1", "--dataset", source, "--encoder", str(toy_encoder))
    assert (inputs["sources"], inputs["encoder"]) == ([source], str(toy_encoder))
    assert runs.read_record(runs.RETRAINING, "r1", store).status == "running"
    report = result("ingest", *inputs["sources"], "--name", "toy")
    dataset = report["dataset"]
    assert report["summary"] == "24 images (16 train, 4 dev, 4 test), 48 captions"
    assert result("datasets") == [dataset]
    words = result("vocabulary", dataset, "--min-count", "8")
    assert (words["words"], words["summary"]) == (14, "14 words")
    assert words["vocabulary"] == f"datasets/{dataset}/vocabulary-8.json"
    encoder_id = result("register-encoder", inputs["encoder"])["encoder_id"]
    shards = result("plan-extraction", dataset, encoder_id, "--run", "r1")
    assert len(shards) == 2
    assert sum(result("extract", shard)["images"] for shard in shards) == 24
    assert result("extract", shards[0])["summary"] == "done before"
    assert result("plan-extraction", dataset, encoder_id) == []
    config = [f"--set={name}={value}" for name, value in toy.CONFIG.model_dump().items()]
    model = result("train", dataset, words["vocabulary"], encoder_id, *config)
    version = model["version"]
    assert model["epochs"] == toy.CONFIG.epochs
    assert model["summary"].startswith(f"{version}: {toy.CONFIG.epochs} epochs, best {model['best_epochs'][0]}")

    decoding = ("--beam-width", "2")
    metrics = result("evaluate", version, *decoding)
    assert metrics["version"] == version
    assert metrics["CIDEr"] > 3
    assert metrics["report"] == store.url(
        f"models/{version}/evaluations/{dataset.replace('/', '-')}-beam2-near20/report.html"
    )
    assert store.exists(metrics["report"].removeprefix(f"{store.uri}/"))
    assert result("evaluate-champion", version, *decoding) == {
        "champion": None,
        "summary": "there is no champion yet",
    }
    compared = result("compare", version, *decoding)
    assert compared["summary"] == "No captions of photographs in the inbox are compared: there is no champion yet."
    assert compared["comparison"].endswith(f"\n\nThere is no champion yet.\n\n{compared['summary']}")
    monkeypatch.setenv("CAPTION_SHADOW", "0")
    compared = result("compare", version, *decoding)
    assert compared["comparison"].endswith("\n\nThere is no champion yet.")
    assert re.fullmatch(r"Scores on \d+ test photographs \(beam 2, 20 neighbours\)", compared["summary"])
    assert not result("gate", version, "--policy", "never", *decoding)["promoted"]
    assert not result("gate", version, "--floor", "9.9", *decoding)["promoted"]
    promoted = result("gate", version, "--run", "r1", *decoding)
    assert promoted == {
        "version": version,
        "promoted": True,
        "reason": promoted["reason"],
        "dataset": dataset,
        "scores": {name: value for name, value in metrics.items() if name in promoted["scores"]},
        "summary": f"{version} is the new champion: {promoted['reason']}",
    }
    record = runs.read_record(runs.RETRAINING, "r1", store)
    assert (record.status, record.extracted, record.scores["CIDEr"]) == ("succeeded", 24, metrics["CIDEr"])
    assert (record.version, record.dataset, record.promoted) == (version, dataset, True)


def test_a_night(store, result, command, trained):
    """From photographs in the inbox to captions and status."""
    toy.copy(trained.store, store, "")
    version = trained.model.version
    result("promote", version)
    result("evaluate", version, "--beam-width", "1")
    copied = result("demo-inbox", "--count", "3")
    assert copied == {"under": "toy/", "photographs": 3, "new": 3, "test": 3}
    assert result("demo-inbox", "--count", "3")["new"] == 0
    preview = result("night", "preview")
    assert (preview["listed"], preview["pending"], preview["to_extract"]) == (3, 3, 3)
    night = result("night", "list", "n1")
    assert (night["listed"], night["version"]) == (3, version)
    assert runs.read_record(runs.NIGHT, "n1", store).status == "running"
    # The inbox holds pictures of the dataset, but under other keys.
    for shard in result("night", "plan-extraction", "n1"):
        assert result("extract", shard)["failed"] == 0
    for shard in result("night", "plan-captions", "n1", "--date", "2026-01-02"):
        captioned = {"shard": shard, "images": 3, "captioned": 3, "failed": 0, "summary": "3 images"}
        made_by = {"version": version, "encoder_id": trained.inputs.encoder_id}
        assert result("night", "caption", shard, "--review-below=") == captioned | made_by
    reconciled = result("night", "reconcile", "n1", "--review-below=0.9")
    assert (reconciled["captioned"], reconciled["status"]) == (3, "succeeded")
    assert reconciled["summary"].startswith("3 images listed = 3 captioned + 0 failed + 0 done before")
    assert (reconciled["retraining_due"], reconciled["arrived"]) == ("", 0)
    open_bucket(os.environ["CAPTION_INBOX"]).put("late.jpg", toy.picture("red", 99))
    again = result("night", "reconcile", "n1", "--look-again")
    assert (again["arrived"], again["summary"].endswith("; 1 arrived during the night")) == (1, True)
    [shard] = store.list(f"captions/model={version}/date=2026-01-02/")
    for row in parquet.read(shard.key, store).to_pylist():
        assert row["image_key"].removeprefix("toy/").partition("-")[0] in row["caption"].split()
    status, line, _ = command("status", "--captions", "3")
    assert status == 0
    assert "captioning night preview" in line


def test_a_list_of_corrections(store, result, command):
    """As JSON or as CSV, the newest first, and no formula for a spreadsheet; withdrawn by the key of the image."""
    words = {"model_caption": "a dog", "model_version": "v1", "corrected_by": "ann", "store": store}
    for caption in ("=a cat", "a bird"):
        corrections.add(toy.picture("red", 1), caption=caption, image_key="a.jpg", image_etag="1", **words)
    assert [each["correction"]["caption"] for each in result("corrections")] == ["a bird", "=a cat"]
    [newest] = result("corrections", "--limit", "1")
    assert (newest["state"], newest["learned_by"]) == ("counts", [])
    status, line, _ = command("corrections", "--format", "csv")
    assert (status, line.split(",")[0], '"\'=a cat"' in line, "replaced" in line) == (0, '"corrected"', True, True)
    assert (
        result("withdraw", "a.jpg", "--by", "bob")["summary"] == "a.jpg: the caption of the model counts again: a dog"
    )
    assert result("corrections")[0]["state"] == "withdrawn"


def test_exports(environment, store, result, command):
    """The option or the suffix chooses the format, and each filter leaves out the rows that do not pass it."""
    photographs = open_bucket(str(environment / "inbox"))
    rows = [
        {"image_key": "a/ok.jpg", "caption": "a dog", "source": "model", "model_version": "v1", "review": True},
        {"image_key": "b/ok.jpg", "caption": "a bird", "source": "model", "model_version": "v0"},
        {"image_key": "a/failed.jpg", "error": "no dog"},
        {"image_key": "a/waiting.jpg"},
    ]
    for row in rows:
        row["image_etag"] = photographs.put(row["image_key"], toy.picture("red", 1))
    # An earlier export is not replaced by nothing, as with a wrong address of the store.
    target = environment / "out.jsonl"
    target.write_text("earlier")
    status, _, error = command("export", str(target), "--overwrite")
    assert (status, "has no current captions to export" in error) == (2, True)
    assert target.read_text() == "earlier"
    table, facts = pa.Table.from_pylist(rows, schema=current.SCHEMA), {"listed_at": "2026-01-01T02:00:00+00:00"}
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=facts)
    # Newer than the table, and exported all the same.
    corrections.add(
        toy.picture("red", 1),
        caption="a cat",
        model_caption="a bird",
        model_version="v0",
        corrected_by="somebody",
        store=store,
        image_key="b/ok.jpg",
        image_etag=rows[1]["image_etag"],
    )
    for option, keys in (
        ("--words=DOG", {"a/ok.jpg", "a/failed.jpg"}),
        ("--under=a/", {"a/ok.jpg", "a/failed.jpg", "a/waiting.jpg"}),
        ("--status=ok", {"a/ok.jpg", "b/ok.jpg"}),
        ("--status=failed", {"a/failed.jpg"}),
        ("--status=waiting", {"a/waiting.jpg"}),
        ("--version=v1", {"a/ok.jpg"}),
        ("--source=person", {"b/ok.jpg"}),
        ("--review", {"a/ok.jpg"}),
    ):
        assert result("export", str(target), option, "--overwrite")["rows"] == len(keys)
        assert {json.loads(line)["image_key"] for line in target.read_text().splitlines()} == keys
    folder = environment / "shards"
    done = result("export", str(folder), "--format=webdataset", "--under=a/")
    assert done == {
        "format": "webdataset",
        "without_caption": 2,
        "rows": 1,
        "destination": folder.as_uri(),
        "shards": 1,
        "pictures": 1,
        "changed": 0,
        "unreadable": 0,
        "summary": "webdataset: 2 without caption, 1 row, 1 shard, 1 picture, 0 changed, 0 unreadable",
    }
    catalog = f"--catalog=sqlite:///{environment}/other.db"
    done = result("export", str(environment / "w"), "--format=iceberg", "--table=a.b", catalog)
    assert (done["rows"], done["table"]) == (4, "a.b")
    assert command("export", str(target))[0] == 2


def test_corrections_by_way_of_label_studio(environment, store, result, command):
    """The captions to review go out as tasks, and what people said there comes back; other files are refused."""
    etag = open_bucket(str(environment / "inbox")).put("a.jpg", toy.picture("red"))
    row = {"image_key": "a.jpg", "image_etag": etag, "caption": "a dog", "source": "model", "review": True}
    table, facts = pa.Table.from_pylist([row], schema=current.SCHEMA), {"listed_at": "2026-01-01T02:00:00+00:00"}
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=facts)
    file = environment / "tasks.json"
    assert result("export", str(file), "--format=label-studio", "--review")["rows"] == 1
    [task] = json.loads(file.read_text())
    said = {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": ["a cat"]}}
    task["annotations"] = [{"result": [said], "completed_by": 1, "updated_at": "2026-01-03T00:00:00Z"}]
    file.write_text(json.dumps([task]))
    summary = "1 task = 1 corrected + 0 confirmed + 0 unanswered + 0 known + 0 changed + 0 refused"
    assert result("import-corrections", str(file))["summary"] == summary
    [row] = current.read(store).to_pylist()
    assert (row["caption"], row["source"], row["review"]) == ("a cat", "person", False)
    file.write_text("{}")
    status, _, error = command("import-corrections", str(file))
    assert (status, "choose Export and then JSON" in error) == (2, True)


def test_a_retraining_that_is_due(store, result, trained, monkeypatch):
    """The last step of a night says why, if a setting asks for it; the retraining records it, and none is due then."""
    toy.copy(trained.store, store, "")
    result("promote", trained.model.version)
    result("demo-inbox", "--count", "1")
    result("night", "list", "n1")
    for step in ("plan-extraction", "plan-captions"):
        for shard in result("night", step, "n1"):
            result(*(["extract"] if step == "plan-extraction" else ["night", "caption"]), shard)
    for name in ("CORRECTIONS", "DRIFT"):
        monkeypatch.setenv(f"CAPTION_RETRAIN_AFTER_{name}", "1")
    assert result("night", "reconcile", "n1")["retraining_due"] == ""
    corrections.add(
        toy.picture("red", 99),
        caption="a ball",
        model_caption="a dog",
        model_version="v",
        corrected_by="a",
        store=store,
    )
    reconciled = result("night", "reconcile", "n1")
    cause = "1 correction since the last retraining"
    assert reconciled["retraining_due"] == cause
    assert reconciled["summary"].endswith(f"; a retraining is due: {cause}")
    inputs = result("resolve-inputs", "r1", f"--cause={cause}")
    assert (inputs["cause"], inputs["summary"].endswith(f"; started by {cause}")) == (cause, True)
    assert runs.read_record(runs.RETRAINING, "r1", store).cause == cause
    assert result("night", "reconcile", "n1")["retraining_due"] == ""


def test_a_selection_to_be_captioned_again(environment, store, command, result):
    """By patterns, by keys in a file, or both; a file must have text, and something must match."""
    write_model("m1", store)
    registry.promote("m1", store)
    for key in ("a.jpg", "b, c.jpg", "d/ü.jpg"):
        open_bucket(os.environ["CAPTION_INBOX"]).put(key, b"x")
    keys = environment / "keys.txt"
    keys.write_bytes("b, c.jpg\r\n\nd/ü.jpg".encode())
    listed = result("night", "list", "n1", "--recaption", "a*", "--recaption-keys", str(keys))
    assert (listed["requested"], listed["summary"]) == (
        3,
        "3 images, to be captioned by m1; 3 of them again, on request",
    )
    assert result("night", "list", "n2", "--recaption=")["requested"] == 0
    assert result("night", "preview", "--recaption=d/*", "--recaption-keys", str(keys))["pending"] == 3
    status, _, error = command("night", "list", "n3", "--recaption", "e/*")
    assert (status, "None of the 3 photographs" in error) == (2, True)
    keys.write_bytes(b"\xff")
    status, _, error = command("night", "preview", "--recaption-keys", str(keys))
    assert (status, "is not a text file in UTF-8" in error) == (2, True)


def test_a_dataset_with_corrections(environment, store, source, result, toy_encoder):
    """Pictures of both buckets are planned, extracted and counted; a dataset is ingested by its id."""
    plain = result("ingest", source, "--name", "toy")
    corrections.add(
        toy.picture("red", 99),
        caption="a ball",
        model_caption="a dog",
        model_version="v",
        corrected_by="a",
        store=store,
    )
    assert result("ingest", plain["dataset"]) == plain
    report = result("ingest", plain["dataset"], "--corrections")
    assert report["dataset"] != plain["dataset"]
    assert report["sources"] == {
        (environment / "toy" / "captions.csv").as_uri(): {"images": 24, "captions": 48, "dropped": 0},
        "store:corrections": {"images": 1, "captions": 1, "dropped": 0},
    }
    assert sorted(result("datasets")) == sorted([plain["dataset"], report["dataset"]])
    assert len(result("datasets", "--limit", "1")) == 1
    encoder_id = result("register-encoder", str(toy_encoder))["encoder_id"]
    shards = result("plan-extraction", report["dataset"], encoder_id, "--run", "r")
    done = [result("extract", shard) for shard in shards]
    assert (sum(each["images"] for each in done), sum(each["failed"] for each in done)) == (25, 0)
    assert result("plan-extraction", report["dataset"], encoder_id) == []
    assert runs.extraction_stats("r", store)[0] == 25


# --- the inputs and the end of a run ---------------------------------------------------------------------------------


def test_inputs_of_the_settings(store, result, monkeypatch):
    """Where there is no champion, they come from the settings; the record of the run begins with them."""
    monkeypatch.setenv("CAPTION_DATASET", "s3://photos/captions.csv")
    monkeypatch.setenv("CAPTION_ENCODER", "random")
    found = result("resolve-inputs", "r1")
    origin = "from the settings, because there is no champion yet"
    assert found == {
        "sources": ["s3://photos/captions.csv"],
        "encoder": "random",
        "origin": origin,
        "cause": "",
        "summary": f"dataset s3://photos/captions.csv, encoder random ({origin})",
    }
    record = runs.read_record(runs.RETRAINING, "r1", store)
    assert (record.kind, record.status) == (runs.RETRAINING, "running")
    assert (record.dataset, record.encoder) == ("s3://photos/captions.csv", "random")


def test_several_sources(environment, store, result, monkeypatch):
    """Lines of the setting or of the option are the arguments of the ingest, which merges them."""
    lines = [str(environment / name) for name in ("one", "more colours")]
    for seed, folder in enumerate(lines):
        toy.draw(open_bucket(folder), seed=seed)
    monkeypatch.setenv("CAPTION_DATASET", "\n".join(lines))
    found = result("resolve-inputs", "r1")
    assert found["sources"] == result("resolve-inputs", "r1", "--dataset", "\n".join(lines))["sources"] == lines
    assert runs.read_record(runs.RETRAINING, "r1", store).dataset == ", ".join(lines)
    report = result("ingest", *found["sources"])
    assert report["dataset"].startswith("more-colours-and-one/")
    given = sum(counts["images"] for counts in report["sources"].values())
    assert given == 48 == sum(report["images"].values()) + report["merged"]
    assert report["merged"] > 0


def test_inputs_as_the_champion(store, result, trained):
    """Each input that is not given is that of the champion, and one that is given counts."""
    toy.copy(trained.store, store, layout.DATASETS, layout.ENCODERS, layout.MODELS)
    registry.promote(trained.model.version, store)
    champion = f"as the champion {trained.model.version}"
    dataset, encoder = trained.model.dataset, trained.model.encoder_id
    for options, expected in [
        ([], (dataset, encoder, champion)),
        (["--dataset", "", "--encoder", ""], (dataset, encoder, champion)),
        (["--dataset", "d.csv"], ("d.csv", encoder, champion)),
        (["--encoder", "random"], (dataset, "random", champion)),
        (["--dataset", "d.csv", "--encoder", "random"], ("d.csv", "random", "")),
    ]:
        found = result("resolve-inputs", "r1", *options)
        assert (*found["sources"], found["encoder"], found["origin"]) == expected
    assert found["summary"] == "dataset d.csv, encoder random"
    # The commands that follow accept the champion's own.
    assert result("ingest", dataset)["dataset"] == dataset
    assert result("register-encoder", encoder)["encoder_id"] == encoder


def test_the_champion_is_evaluated_once(store, result, trained, monkeypatch):
    """On the dataset and with the decoding of the candidate, unless that was done before.

    The card is written again, in case the evaluation was interrupted before.
    """
    from pipeline.evaluation import evaluate

    toy.copy(trained.store, store, "")
    version, dataset = trained.model.version, trained.model.dataset
    registry.promote(version, store)
    write_model("candidate", store, dataset=dataset)
    write_evaluation("candidate", store, cider=0.5, dataset=dataset, decoding=DecodingConfig(beam_width=1))
    first = result("evaluate-champion", "candidate", "--beam-width", "1")
    assert first["champion"] == version
    assert first["summary"].startswith(f"{version}: ")
    keys = layout.evaluation(version, dataset, DecodingConfig(beam_width=1))
    assert store.exists(keys.metrics)
    monkeypatch.setattr(evaluate, "evaluate_model", lambda *_, **__: pytest.fail("evaluated again"))
    card = store.get(layout.model_card(version))
    store.put(layout.model_card(version), trained.store.get(layout.model_card(version)))
    assert result("evaluate-champion", "candidate", "--beam-width", "1") == first
    assert store.get(layout.model_card(version)) == card


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policy", "never"], "the policy is never"),
        (["--floor", "0.6"], "CIDEr 0.500 is below the floor of 0.600"),
    ],
)
def test_the_champion_is_evaluated_only_for_the_decision(store, result, options, reason):
    """Where the decision on the candidate does not depend on it, nothing is extracted or captioned."""
    for version in ("champion", "candidate"):
        write_model(version, store)
    write_evaluation("candidate", store, cider=0.5, decoding=DecodingConfig())
    registry.promote("champion", store)
    answer = result("evaluate-champion", "candidate", *options)
    assert answer["champion"] == "champion"
    assert answer["summary"].startswith(f"not needed: {reason}")


@pytest.mark.parametrize("kind", [runs.NIGHT, runs.RETRAINING])
def test_the_end_of_a_run(store, result, kind):
    """With an error it is failed; without one, only if its record has no end. A night also measures the store."""
    ended = result("end-run", kind, "x1", "--error", "killed")
    assert (ended["failed"], ended["summary"]) == (True, "killed")
    assert ended["measures"][f"{kind}.succeeded"] == 0
    assert "captions.images" not in ended["measures"]
    record = runs.read_record(kind, "x1", store)
    assert (record.kind, record.status, record.message) == (kind, "failed", "killed")
    ended = result("end-run", kind, "x1")
    assert (ended["failed"], ended["summary"]) == (False, "the run has ended")
    assert runs.read_record(kind, "x1", store) == record
    assert result("end-run", kind, "x1", "--error", "again")["failed"]
    assert runs.read_record(kind, "x1", store).message == "again"
    write_model("m1", store)
    registry.promote("m1", store)
    ended = result("end-run", kind, "x2")
    assert (ended["failed"], ended["summary"]) == (True, "marked as failed")
    assert ("champion.judged" in ended["measures"]) == (kind == runs.NIGHT)
    assert runs.read_record(kind, "x2", store).message == "The run ended before its last step."


# --- other commands --------------------------------------------------------------------------------------------------


def test_a_backup(environment, store, result):
    """Every object is in the copy."""
    store.put("datasets/a", b"1")
    target = open_bucket(str(environment / "elsewhere"))
    copied = result("backup", target.uri)
    assert (copied["objects"], copied["copied"], copied["bytes"], copied["checked"]) == (1, 1, 1, None)
    assert target.get("datasets/a") == b"1"
    store.put("datasets/b", b"2")
    copied = result("backup", target.uri, "--check")
    assert copied["checked"] == {"objects": 2, "read_back": 1, "champion": None, "captions": 0}
    assert copied["summary"] == (
        "2 objects, 1 of them copied (0.0 MB); 1 object read back; no champion yet; 0 current captions in the backup"
    )


@pytest.fixture
def staging(trained, s3_bucket_name):
    """A store on S3 with a champion."""
    store = open_bucket(f"s3://{s3_bucket_name}/staging-{uuid.uuid4().hex}")
    toy.copy(trained.store, store, "")
    registry.promote(trained.model.version, store)
    return store


def test_an_import(environment, staging, result, command, monkeypatch):
    """The other store is on a server of its own, with credentials of its own."""
    version = registry.read_champion(staging).version
    (environment / "config").write_text("[profile staging]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(environment / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    access = ("--profile=staging", f"--endpoint-url={staging.client.meta.endpoint_url}")
    copied = result("import-model", staging.uri, version, "--no-promote", *access)
    assert (copied["version"], copied["champion"]) == (version, None)
    assert copied["summary"] == f"{version} can be promoted; {copied['copied']} objects copied"
    done = result("import-model", staging.uri, *access)
    assert done == {
        "version": version,
        "champion": version,
        "copied": 0,
        "summary": f"{version} is the champion; 0 objects copied",
    }
    status, _, error = command("import-model", staging.uri, "--profile=nobody")
    assert (status, "profile (nobody) could not be found" in error) == (2, True)


def test_signing(environment, result, command, monkeypatch, trained):
    """A store is signed with a new pair of keys; who has the public one reads it, and can't promote."""
    toy.copy(trained.store, open_bucket(os.environ["CAPTION_STORE"]), layout.MODELS, layout.ENCODERS)
    open_bucket(os.environ["CAPTION_INBOX"]).put("red.jpg", toy.picture("red"))
    version, encoder_id = trained.model.version, trained.inputs.encoder_id
    result("promote", version)
    keys = result("make-keys", str(environment / "keys"))
    monkeypatch.setenv("CAPTION_VERIFY_KEY", keys["verify_key"])
    monkeypatch.setenv("CAPTION_VERIFY_STATE", str(environment / "verified.json"))
    status, _, error = command("night", "list", "n1")
    assert (status, "champion.json is not signed as it is" in error) == (2, True)
    monkeypatch.setenv("CAPTION_SIGNING_KEY", keys["signing_key"])
    assert result("sign") == {
        "models": [version],
        "encoders": [encoder_id],
        "champion": version,
        "summary": f"1 model and 1 encoder signed, and {version} as the champion",
    }
    monkeypatch.delenv("CAPTION_SIGNING_KEY")
    assert result("night", "list", "n1")["version"] == version
    status, _, error = command("promote", version)
    assert (status, f"Can't promote {version}: CAPTION_VERIFY_KEY is set" in error) == (2, True)
    status, _, error = command("sign", "../evil")
    assert (status, "Not the version of a model" in error) == (2, True)


def test_a_prune(store, result, trained):
    """By default objects are only listed."""
    toy.copy(trained.store, store, layout.MODELS)
    registry.promote(trained.model.version, store)
    store.put("runs/steps/n1/listing.parquet", b"1")
    listed = result("prune", "--older-than", "0")
    assert (listed["removed"], listed["objects"], listed["bytes"]) == (False, 1, 1)
    assert store.exists("runs/steps/n1/listing.parquet")
    assert listed["summary"] == "1 object (0.0 MB) can be removed, nothing is without --remove"
    done = result("prune", "--older-than", "0", "--remove")
    assert done == {**listed, "removed": True, "summary": "1 object (0.0 MB) removed"}
    assert not store.exists("runs/steps/n1/listing.parquet")


def test_forgetting(environment, store, result):
    """Keys come from the arguments and from a file, pictures from files; by default they are only looked for."""
    inbox = open_bucket(str(environment / "inbox"))
    for key in ("a.jpg", "b.jpg", "c.jpg"):
        inbox.put(key, toy.picture("red", ord(key[0])))
    (environment / "keys.txt").write_text("b.jpg\n\nd.jpg\n")
    (environment / "c.jpg").write_bytes(inbox.get("c.jpg"))
    arguments = ("a.jpg", "--from", str(environment / "keys.txt"), "--picture", str(environment / "c.jpg"))
    found = result("forget", *arguments)
    assert (found["removed"], found["images"]) == (False, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    assert found["unknown"] == ["d.jpg"]
    assert not store.exists(layout.TOMBSTONES)
    assert result("forget", "--keys=a.jpg\n\nb.jpg")["images"] == ["a.jpg", "b.jpg"]
    assert result("forget", *arguments, "--remove")["removed"]
    assert tombstones.read(store).has("key", "c.jpg")


def test_demo_data(environment, result):
    """The result names the folder and the number of pictures."""
    folder = environment / "drawn"
    assert result("demo-data", str(folder), "--images", "10") == {"directory": str(folder), "images": 10}
    assert len(list((folder / "images").iterdir())) == 10


def test_promotion_and_rollback(store, result, trained):
    """Both print the new champion."""
    toy.copy(trained.store, store, layout.MODELS)
    assert result("promote", trained.model.version) == {"champion": trained.model.version}
    other = trained.model.model_copy(update={"version": "v2"})
    store.put(layout.model_metadata("v2"), other.model_dump_json().encode())
    assert result("promote", "v2") == {"champion": "v2"}
    assert result("rollback") == {"champion": trained.model.version}


def test_pictures_are_captioned_on_demand(environment, store, command, trained):
    """Captions go to standard output, errors to standard error; the exit status says whether a picture failed."""
    toy.copy(trained.store, store, layout.MODELS, layout.ENCODERS)
    registry.promote(trained.model.version, store)
    for colour in ("red", "blue"):
        (environment / f"{colour}.jpg").write_bytes(toy.picture(colour))
    red, blue, missing = (str(environment / f"{name}.jpg") for name in ("red", "blue", "missing"))

    status, line, error = command("caption", red, "--beam-width", "2")
    assert (status, error) == (0, "")
    assert line.startswith(f"{red}: ")
    assert "red" in line.removeprefix(red).split()
    status, line, error = command("caption", missing, red, "--alternatives", "1", "--model", trained.model.version)
    assert status == 1
    assert line.startswith("    ")
    assert error == f"error: {missing}: there is no such file or folder\n"

    done = process("caption", missing, blue, red, "--json")
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["picture"] for record in records] == [missing, blue, red]
    assert records[0]["error"] == "there is no such file or folder"
    assert [set(toy.COLOURS) & set(record["caption"].split()) for record in records[1:]] == [{"blue"}, {"red"}]


def test_an_error_is_one_line_and_status_2(environment):
    """An error that a person has to correct has no traceback, and there is no result."""
    done = process("night", "list", "n1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No model has been promoted in file://")
    assert "Traceback" not in done.stderr


def test_the_advice_without_a_champion(store, command):
    """Promotion by hand is suggested only if there is a model to promote."""
    assert command("night", "list", "n1")[2].endswith(": trigger a retraining.\n")
    write_model("v1", store)
    assert (
        "trigger a retraining, or promote a model that `captioning status` lists" in command("night", "list", "n1")[2]
    )


def test_a_missing_package_is_named(environment, store, trained, monkeypatch):
    """A package of an extra that is not installed is an error that says how to install it, without a traceback."""
    toy.copy(trained.store, store, layout.MODELS, layout.ENCODERS)
    registry.promote(trained.model.version, store)
    (environment / "sitecustomize.py").write_text("import sys\nsys.modules['openvino'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(environment))
    done = process("caption", "a.jpg")
    install = f"{sys.executable} -m pip install 'image-captioning-pipeline[inference]'"
    message = f"error: openvino is not installed. Install it: {install}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "nowhere"], "nowhere does not exist. Check the address"),
        (["vocabulary", "file:///nowhere/dataset.parquet"], "Not the id of a dataset"),
        (["vocabulary", "toy/0123456789abcdef"], "There is no dataset toy/0123456789abcdef in file://"),
        (["plan-extraction", "toy", "e"], "Not the id of a dataset"),
        (["train", DATASET, VOCABULARY, ENCODER], "no object file://"),
        (["register-encoder", "vgg"], "No such encoder"),
        (["register-encoder", "vgg16:/nowhere/vgg.h5"], "There is no file /nowhere/vgg.h5: check the path"),
        (["extract", SHARD], f"There is no shard '{SHARD}' in file://"),
        (["ingest", ""], "Not a bucket"),
        (["backup", ""], "Not a bucket"),
        (["import-model", ""], "Not a bucket"),
        (["import-model", "/nowhere"], "file:///nowhere does not exist"),
        (["import-model", "/", "../v"], "Not the version of a model"),
        (["demo-data", ""], "Received: ''"),
        (["install-dags", ""], "Received: ''"),
        (["backup", "b" * 5000], "File name too long"),
        (["demo-data", "d" * 5000], "File name too long"),
        (["evaluate", "v9"], "no model 'v9'"),
        (["evaluate-champion", "v9"], "no model 'v9'"),
        (["compare", "v9"], "no model 'v9'"),
        (["gate", "v9"], "no model 'v9'"),
        (["promote", "v9"], "no model 'v9'"),
        (["rollback"], "no earlier champion"),
        (["demo-inbox"], "no model"),
        (["caption", "a.jpg"], "No model has been promoted"),
        (["caption", "a.jpg", "--model", "v9"], "no model 'v9'"),
        (["caption", "a.jpg", "--beam-width", "3", "--alternatives", "3"], "raise --beam-width"),
        (["caption"], "Missing argument"),
        (["night", "reconcile", "n9"], "runs/steps/n9/listing.parquet"),
        (["gate", "v9", "--policy", "perhaps"], "perhaps"),
        (["end-run", "day", "n9"], "day"),
        (["night", "plan-captions", "n9", "--date", "tomorrow"], "tomorrow"),
        (["evaluate", "v9", "--beam-width", "0"], "--beam-width"),
        (["night", "reconcile", "n1", "--review-below=1.5"], "Expected a number from 0 to 1"),
        (["night", "caption", "0" * 16, "--review-below=low"], "Expected a number from 0 to 1"),
        (["evaluate", "v9", "--mbr-samples", "1001"], "--mbr-samples"),
        (["prune", "--older-than", "inf"], "--older-than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_status_2(command, arguments, message):
    """The exit status means that a retry would change nothing, and the error says what was wrong."""
    status, line, error = command(*arguments)
    assert (status, line) == (2, "")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "argument", "kind"),
    [
        (["vocabulary", NAME], "dataset_id", names.DATASET_ID),
        (["plan-extraction", NAME, ENCODER], "dataset_id", names.DATASET_ID),
        (["plan-extraction", DATASET, NAME], "encoder_id", names.ENCODER_ID),
        (["plan-extraction", DATASET, ENCODER, f"--run={NAME}"], "--run", names.RUN),
        (["ingest", "photos", f"--name={NAME}"], "--name", names.DATASET_NAME),
        (["train", NAME, VOCABULARY, ENCODER], "dataset_id", names.DATASET_ID),
        (["train", DATASET, NAME, ENCODER], "vocabulary", names.VOCABULARY),
        (["train", DATASET, VOCABULARY, NAME], "encoder_id", names.ENCODER_ID),
        (["evaluate", NAME], "version", names.VERSION),
        (["evaluate-champion", NAME], "version", names.VERSION),
        (["compare", NAME], "version", names.VERSION),
        (["gate", NAME], "version", names.VERSION),
        (["gate", "v1", f"--run={NAME}"], "--run", names.RUN),
        (["promote", NAME], "version", names.VERSION),
        (["import-model", "/nowhere", NAME], "version", names.VERSION),
        (["caption", "a.jpg", f"--model={NAME}"], "--model", names.VERSION),
        (["extract", NAME], "shard", names.SHARD),
        (["night", "caption", NAME], "shard", names.SHARD),
        (["resolve-inputs", NAME], "run", names.RUN),
        (["end-run", "night", NAME], "run", names.RUN),
        *((["night", step, NAME], "run", names.RUN) for step in NIGHT_STEPS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("name", ["", "..", "../../x", "a\nb", "n" * 251])
def test_an_argument_that_becomes_part_of_a_key_is_checked(command, arguments, argument, kind, name):
    """The error names the argument and says what was expected and where to find it, before anything is done."""
    status, line, error = command(*(each.replace(NAME, name) for each in arguments))
    assert (status, line) == (2, "")
    assert error == f"error: {argument}: Not {kind.title}: expected {kind.rule}. Received: {name!r}. {kind.advice}\n"


def test_an_argument_that_is_not_utf_8(command):
    """No URI and no record can hold it. A picture with such a name is captioned all the same."""
    name = os.fsdecode(b"\xff")
    for arguments in (["ingest", name], ["resolve-inputs", "r1", f"--dataset={name}"], ["demo-data", name]):
        status, line, error = command(*arguments)
        assert (status, line) == (2, "")
        assert error.startswith("error: This argument is not UTF-8: ")
    assert "No model has been promoted" in command("caption", name)[2]


def test_an_error_with_a_key_in_it_is_one_line(command, environment):
    """Whatever the key, it forges no second line, and no order to the terminal."""
    (environment / "captions.csv").write_text('image,caption\n"x\u202e\n12:00:00 INFO done\x1b[1m.jpg",a dog\n')
    status, _, error = command("ingest", str(environment / "captions.csv"))
    assert status == 2
    assert error.endswith("\n")
    assert error.removesuffix("\n").isprintable()
    assert r"x\u202e\n12:00:00 INFO done\x1b[1m.jpg" in error


def test_a_reader_that_is_gone(environment):
    """If nobody reads the result any more, or standard output is closed, there is no traceback."""
    arguments = [sys.executable, "-m", "pipeline", "datasets"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(arguments, cwd=PROJECT, env=os.environ, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    closed = f"exec {shlex.join(arguments)} >&-"
    done = subprocess.run(["/bin/sh", "-c", closed], cwd=PROJECT, env=os.environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_is_one_line_and_status_130(environment):
    """As other programs do it, without a traceback."""
    done = process_in_which_listing("def list_datasets(*_, **__): raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_thread_of_arrow_does_not_abort_the_end(environment):
    """A thread that still needs Python when the result is printed changes neither the exit status nor the log."""
    done = process_in_which_listing(READS_ON)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_an_unexpected_error_ends_with_status_1(environment):
    """With its traceback."""
    done = process_in_which_listing("def list_datasets(*_, **__): 1 / 0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_tensorflow_reports_no_missing_gpu(environment, toy_encoder, monkeypatch):
    """On a machine without a GPU there is no error of CUDA in the log, and on one with a GPU none is hidden."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    done = process("register-encoder", str(toy_encoder))
    assert done.returncode == 0, done.stderr
    assert "CUDA error" not in done.stderr
    (environment / "bin/nvidia-smi").touch(0o755)
    monkeypatch.setattr(sys, "argv", ["captioning", "datasets"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ.pop("TF_CPP_MIN_LOG_LEVEL") == "2"


def test_an_unexpected_error_is_not_status_2(environment, monkeypatch):
    """An error that may pass, such as a full disk, keeps its own exception, so that the command is tried again."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sys, "argv", ["captioning", "demo-data", str(environment / "drawn"), "--images", "50"])
    with pytest.raises(OSError, match="No space left on device"):
        cli.main()


def test_all_errors_of_a_training_configuration_are_reported(command):
    """An unknown field, a wrong type and values out of bounds are reported together, with the names of the fields."""
    wrong = ["unit=64", "units=4", "dropout=much", "learning_rate=2", "seed", "colour=red"]
    status, line, error = command(
        "train", DATASET, VOCABULARY, ENCODER, *(f"--set={assignment}" for assignment in wrong)
    )
    assert (status, line) == (2, "")
    for part in (
        "there is no field 'unit', but units",
        "there is no field 'colour'.",
        "units: Input should be greater than or equal to 8",
        "dropout: Input should be a valid number",
        "learning_rate: Input should be less than or equal to 1",
        "'seed' is not NAME=VALUE",
        "The fields are embedding, embedding_size, units,",
    ):
        assert part in error


def test_all_errors_of_the_settings_are_reported(command, monkeypatch):
    """Each wrong variable of the environment is named, with status 2."""
    monkeypatch.setenv("CAPTION_SHARD_SIZE", "many")
    monkeypatch.setenv("CAPTION_MAX_FAILED_FRACTION", "5")
    status, line, error = command("status")
    assert (status, line) == (2, "")
    assert "CAPTION_SHARD_SIZE: Input should be a valid integer" in error
    assert "CAPTION_MAX_FAILED_FRACTION: Input should be less than or equal to 1" in error


@pytest.fixture(scope="module")
def helped():
    """The help of every command, and the modules that were loaded for it."""
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=PROJECT,
        env={**os.environ, "TERMINAL_WIDTH": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_all_commands_decode_in_the_wording_of_the_settings(monkeypatch):
    """The options of a decoding change nothing of the words that the deployment forbids."""
    monkeypatch.setenv("CAPTION_FORBIDDEN_WORDS", "ugly, fat")
    monkeypatch.setenv("CAPTION_BEAM_WIDTH", "9")
    assert common.decoding_config(3, 40, 7) == DecodingConfig(
        beam_width=3, mbr_samples=40, neighbours=7, forbidden_words=("fat", "ugly")
    )


def test_help_lists_every_argument(helped):
    """There is help for every command, and it names all its arguments and options."""
    assert helped["texts"].keys() == COMMANDS.keys()
    for name, parameters in COMMANDS.items():
        text = helped["texts"][name]
        words = {word.strip("{}*[],").lower() for word in text.split()}
        assert parameters <= words, name
        options = {word for word in words if word.startswith("--")}
        assert options == {parameter for parameter in parameters if parameter.startswith("--")} | {"--help"}, name


def test_help_loads_nothing_heavy(helped):
    """Neither Keras nor a table library is loaded."""
    loaded = {module.partition(".")[0] for module in helped["modules"]}
    assert "typer" in loaded
    assert not loaded & {"keras", "tensorflow", "jax", "numpy", "pandas", "pyarrow", "PIL", "boto3", "airflow"}


def test_the_help_of_a_process(environment):
    """`python -m pipeline --help` lists the commands in their groups and succeeds."""
    done = process("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert name.partition(" ")[0] in done.stdout
    for title in cli.PANELS:
        assert title in done.stdout
    assert "Commands" not in done.stdout, "a command is in no group"

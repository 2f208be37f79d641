"""What a task tells OpenLineage: names that other tools know, and data sets by which tasks are connected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.lineage import Data, describe
from captioning.operators import PipelineOperator
from pipeline.nightly import captions, current
from tests.support.paths import PROJECT

DATASET, VERSION, ENCODER = "toy/0123456789abcdef", "v1", "means-0123456789ab"

STORE = "s3://bucket/captioning"

EXTRACTED = {"source": "s3://photos", "encoder_id": ENCODER, "images": 7}

CAPTIONED = {"version": VERSION, "encoder_id": ENCODER, "images": 7}

COMMANDS = {
    "ingest": (
        ["ingest", "s3://training/a.csv", "/data/b", DATASET, "--language=", "--corrections"],
        {"dataset": DATASET, "images": {"train": 5, "test": 2}, "sources": {"/data/b": {}, "store:corrections": {}}},
        [
            "s3://training a.csv",
            "file /data/b",
            f"s3://bucket captioning/datasets/{DATASET}/dataset.parquet",
            "s3://bucket captioning/corrections",
        ],
        [f"s3://bucket captioning/datasets/{DATASET}/dataset.parquet: 7"],
    ),
    "extract": (
        ["extract", "0123456789abcdef"],
        EXTRACTED,
        ["s3://photos /", f"s3://bucket captioning/encoders/{ENCODER}"],
        [f"s3://bucket captioning/features/{ENCODER}: 7"],
    ),
    "extract what is done": (
        ["extract", "0123456789abcdef"],
        {**EXTRACTED, "images": 0},
        ["s3://photos /", f"s3://bucket captioning/encoders/{ENCODER}"],
        [f"s3://bucket captioning/features/{ENCODER}"],
    ),
    "train": (
        ["train", DATASET, f"datasets/{DATASET}/vocabulary-1.json", ENCODER, "--set=seed=1"],
        {"version": VERSION},
        [
            f"s3://bucket captioning/datasets/{DATASET}/dataset.parquet",
            f"s3://bucket captioning/datasets/{DATASET}/vocabulary-1.json",
            f"s3://bucket captioning/features/{ENCODER}",
            f"s3://bucket captioning/encoders/{ENCODER}",
        ],
        ["s3://bucket captioning/models/v1"],
    ),
    "evaluate": (
        ["evaluate", VERSION, "--beam-width=5"],
        {"version": VERSION, "dataset": DATASET, "images": 2, "report": f"{STORE}/models/v1/evaluations/x/report.html"},
        ["s3://bucket captioning/models/v1", f"s3://bucket captioning/datasets/{DATASET}/dataset.parquet"],
        [
            "s3://bucket captioning/models/v1/evaluations/x/captions.parquet: 2",
            "s3://bucket captioning/models/v1/evaluations/x/metrics.json",
            "s3://bucket captioning/models/v1/evaluations/x/report.html",
        ],
    ),
    "caption": (
        ["night", "caption", "--review-below=", "0123456789abcdef"],
        CAPTIONED,
        ["s3://bucket captioning/models/v1", f"s3://bucket captioning/features/{ENCODER}"],
        ["s3://bucket captioning/captions/model=v1: 7"],
    ),
    "reconcile": (
        ["night", "reconcile", "r", "--review-below="],
        {"kind": "night", "run": "r", "version": VERSION, "listed": 9},
        ["s3://photos /", "s3://bucket captioning/captions/model=v1", "s3://bucket captioning/corrections"],
        ["s3://bucket captioning/current/captions.parquet: 9", "s3://bucket captioning/runs/night/r.json"],
    ),
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setenv("CAPTION_STORE", STORE)
    monkeypatch.setenv("CAPTION_INBOX", "s3://photos")


def texts(data):
    """Each data set as its namespace, its name, and the rows that were written."""
    return [" ".join(each.name) + ("" if each.rows is None else f": {each.rows}") for each in data]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/a/b.csv", ("s3://bucket", "a/b.csv")),
        ("s3://bucket/a%20b/", ("s3://bucket", "a%20b")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("file:///a%20b/c", ("file", "/a b/c")),
        ("file://localhost/a", ("file", "/a")),
        ("/a%20b", ("file", "/a%20b")),
        ("a/b", ("file", str(Path("a/b").absolute()))),
    ],
)
def test_names(uri, name):
    """Those of OpenLineage: for S3 the bucket and the key, for files the path; only a URI has escapes."""
    assert Data(uri).name == name


@pytest.mark.parametrize(("arguments", "result", "inputs", "outputs"), COMMANDS.values(), ids=COMMANDS)
def test_what_a_command_has_read_and_written(arguments, result, inputs, outputs):
    """Each by its real name; the rows only where some were written."""
    found = describe(arguments, result)
    assert (texts(found[0]), texts(found[1])) == (inputs, outputs)


def test_tables_have_their_schema_and_models_their_version():
    """The schema is that of the files."""
    [model, _], [written] = describe(["night", "caption", "s"], CAPTIONED)
    assert (model.version, model.schema) == (VERSION, None)
    assert written.schema == captions.SCHEMA
    assert describe(*COMMANDS["reconcile"][:2])[1][0].schema == current.SCHEMA


@pytest.mark.parametrize("arguments", [["gate", "v1"], ["night", "list", "r"], ["extracts"], []])
def test_other_commands_move_no_data(arguments):
    """For these, Airflow's provider names the assets alone."""
    assert describe(arguments, {}) is None


def test_a_task_that_has_failed_tells_nothing():
    """It may have written nothing, or a part; the event says that it failed."""
    assert PipelineOperator(task_id="t", arguments=["extract"]).get_openlineage_facets_on_complete(None) is None


def test_nothing_of_openlineage_is_imported():
    """The provider is optional: DAG files, and the lineage itself, are read without its client."""
    code = (
        "import sys, captioning.operators, captioning.lineage\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'openlineage'])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'plugins'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

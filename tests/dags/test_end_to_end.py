"""Both DAGs in Airflow, in folders, from photographs and their captions to the captions of new ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.captioner import registry
from pipeline.captioner.metadata import load_metadata
from pipeline.nightly import sidecars
from pipeline.storage import layout, open_bucket, parquet
from pipeline.work import runs
from tests.support import toy
from tests.support.airflow_server import NIGHT_DAG, RETRAINING_DAG
from tests.support.nights import colour_in, rows_in

AIRFLOW = Path(sys.executable).with_name("airflow")


MOVES = {"ingest", "extract", "train", "evaluate", "caption", "reconcile"}
"""The tasks that move data."""


def run_dag(dag_id, conf, environment):
    """Run a DAG to its end in a process of its own; fail with the end of its log unless it ended well."""
    # Without Java, which takes its time.
    environment = {**os.environ, **environment, "PATH": str(AIRFLOW.parent)}
    command = [AIRFLOW, "dags", "test", dag_id, "--conf", json.dumps(conf)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, airflow_home, toy_encoder):
    """A store and an inbox in folders, after a retraining and a night."""
    folder = tmp_path_factory.mktemp("deployment")
    source, store, inbox = (open_bucket(str(folder / name)) for name in ("source", "store", "inbox"))
    for seed, colour in enumerate(toy.COLOURS):
        inbox.put(f"{colour}.jpg", toy.picture(colour, 100 + seed))
    inbox.put("late/broken.jpg", b"no picture")
    inbox.put("notes.txt", b"not to be captioned")
    events = folder / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    environment = {
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": inbox.uri,
        "CAPTION_SIDECARS": "store",
        # Without its provider, Airflow ignores it.
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
    }
    conf = {"dataset": toy.draw(source), "encoder": str(toy_encoder), "min_count": 1, **toy.CONFIG.model_dump()}
    run_dag(RETRAINING_DAG, conf, environment)
    run_dag(NIGHT_DAG, {}, environment)
    return SimpleNamespace(store=store, inbox=inbox, source=source, events=events)


def test_the_first_candidate_becomes_champion(deployment):
    """The retraining's record and the champion name the same model."""
    [record] = runs.list_records(runs.RETRAINING, deployment.store)
    assert (record.status, record.promoted, record.extracted) == ("succeeded", True, 24)
    assert registry.read_champion(deployment.store).version == record.version


def test_every_image_ends_in_one_row(deployment):
    """Each photograph has one row, a true caption or an error; the record counts them; each caption has a sidecar."""
    rows = {row["image_key"]: row for row in rows_in(deployment.store)}
    failed = rows.pop("late/broken.jpg")
    assert "known format" in failed["error"]
    assert {key: colour_in(row["caption"]) for key, row in rows.items()} == {f"{one}.jpg": one for one in toy.COLOURS}
    [record] = runs.list_records(runs.NIGHT, deployment.store)
    assert record.status == "succeeded"
    assert (record.listed, record.captioned, record.failed, record.already_done) == (5, 4, 1, 0)
    found = [sidecars.parse(deployment.store.get(layout.sidecar(key))) for key in rows]
    assert [each.caption for each in found] == [row["caption"] for row in rows.values()]
    assert len(list(deployment.store.list(layout.SIDECARS))) == 4


@pytest.fixture(scope="module")
def lineage(deployment):
    """By task that moves data, what it has told OpenLineage when it had ended: inputs and outputs by their paths."""
    pytest.importorskip("airflow.providers.openlineage", reason="the optional provider is not installed")
    found = {}
    for line in deployment.events.read_text().splitlines():
        event = json.loads(line)
        dag, _, task = event["job"]["name"].partition(".")
        if event["eventType"] == "COMPLETE" and task in MOVES:
            found[dag, task] = [{each["name"]: each for each in event[side]} for side in ("inputs", "outputs")]
    return found


def test_openlineage_connects_the_tasks(deployment, lineage):
    """From the captioned photographs to the current captions, each task reads what an earlier one has written."""
    version, root = registry.read_champion(deployment.store).version, str(deployment.store.root)
    encoder_id = load_metadata(version, deployment.store).encoder_id
    features, model, captions = (f"{root}/features/{encoder_id}", f"{root}/models/{version}", f"{root}/captions/model=")
    assert {dag: {task for each, task in lineage if each == dag} for dag in (RETRAINING_DAG, NIGHT_DAG)} == {
        RETRAINING_DAG: {"ingest", "extract", "train", "evaluate"},
        NIGHT_DAG: {"extract", "caption", "reconcile"},
    }
    assert [*lineage[RETRAINING_DAG, "ingest"][0]] == [str(deployment.source.root / "captions.csv")]
    [dataset] = lineage[RETRAINING_DAG, "ingest"][1]
    assert features in lineage[RETRAINING_DAG, "extract"][1]
    assert {dataset, features} < lineage[RETRAINING_DAG, "train"][0].keys()
    assert [*lineage[RETRAINING_DAG, "train"][1]] == [model]
    assert {model, dataset} == lineage[RETRAINING_DAG, "evaluate"][0].keys()
    assert str(deployment.inbox.root) in lineage[NIGHT_DAG, "extract"][0]
    assert lineage[NIGHT_DAG, "caption"][0].keys() == {model, features}
    assert [*lineage[NIGHT_DAG, "caption"][1]] == [f"{captions}{version}"]
    assert f"{captions}{version}" in lineage[NIGHT_DAG, "reconcile"][0]
    for inputs, outputs in lineage.values():
        assert {each["namespace"] for each in (*inputs.values(), *outputs.values())} == {"file"}
        assert all(Path(path).exists() for path in (*inputs, *outputs) if not path.endswith("/corrections"))


def test_openlineage_knows_rows_columns_and_versions(deployment, lineage):
    """The rows are those of the tables, the columns those of their files, and the version is the model's."""
    version, root = registry.read_champion(deployment.store).version, str(deployment.store.root)
    current = lineage[NIGHT_DAG, "reconcile"][1][f"{root}/{layout.CURRENT_CAPTIONS}"]
    table = parquet.read(layout.CURRENT_CAPTIONS, deployment.store)
    assert current["outputFacets"]["outputStatistics"]["rowCount"] == len(table) == 5
    columns = {each["name"]: (each["type"], each["description"]) for each in current["facets"]["schema"]["fields"]}
    described = {field.name: (str(field.type), field.metadata[b"description"].decode()) for field in table.schema}
    assert columns == described
    [captions] = lineage[NIGHT_DAG, "caption"][1].values()
    assert captions["outputFacets"]["outputStatistics"]["rowCount"] == len(rows_in(deployment.store)) == 5
    [model] = lineage[RETRAINING_DAG, "train"][1].values()
    assert model["facets"]["version"]["datasetVersion"] == version

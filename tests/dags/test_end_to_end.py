"""Both DAGs in Airflow, in folders, from photographs and their captions to the captions of new ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.captioner import registry
from pipeline.nightly import sidecars
from pipeline.storage import layout, open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.airflow_server import NIGHT_DAG, RETRAINING_DAG
from tests.support.nights import colour_in, rows_in

AIRFLOW = Path(sys.executable).with_name("airflow")


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
    environment = {"CAPTION_STORE": store.uri, "CAPTION_INBOX": inbox.uri, "CAPTION_SIDECARS": "store"}
    conf = {"dataset": toy.draw(source), "encoder": str(toy_encoder), "min_count": 1, **toy.CONFIG.model_dump()}
    run_dag(RETRAINING_DAG, conf, environment)
    run_dag(NIGHT_DAG, {}, environment)
    return SimpleNamespace(store=store, inbox=inbox)


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

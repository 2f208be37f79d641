"""Both DAGs in Airflow, from drawn photographs to true captions, on folders and on S3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data import synthetic
from pipeline.storage import Bucket, layout, open_bucket, parquet
from pipeline.work import runs
from scripts.demo import DRAWN_TRAINING
from tests.support.airflow_server import NIGHT_DAG, RETRAINING_DAG
from tests.support.paths import PROJECT

AIRFLOW = Path(sys.executable).with_name("airflow")


def airflow_dag(dag_id, *, conf=None, **environment):
    """Run a DAG to its end in a process of its own, and return that process."""
    return subprocess.run(
        [AIRFLOW, "dags", "test", dag_id, "--conf", json.dumps(conf or {})],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def succeeded(process):
    """Fail with the end of the process's log unless it ended well."""
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-4000:]


def command(*arguments, **environment):
    """Run a command of the pipeline and return its result."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env={**os.environ, **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def captions_in(store: Bucket):
    """Every row of captions of a store, with the model of its partition."""
    return [
        {**row, "model": layout.parse_caption_shard(item.key)[0]}
        for item in store.list(layout.CAPTIONS)
        for row in parquet.read(item.key, store).to_pylist()
    ]


def objects(store: Bucket, *prefixes):
    """Key and etag of all objects under some prefixes."""
    return {(item.key, item.etag) for prefix in prefixes for item in store.list(prefix)}


class Deployment:
    """A store and an inbox in folders, and what was drawn for them."""

    def __init__(self, folder: Path) -> None:
        self.drawn = folder / "drawn"
        self.environment = {
            "CAPTION_STORE": (folder / "store").as_uri(),
            "CAPTION_INBOX": (folder / "inbox").as_uri(),
            "CAPTION_SIDECARS": "true",
        }
        self.store = open_bucket(self.environment["CAPTION_STORE"])
        self.inbox = open_bucket(self.environment["CAPTION_INBOX"])
        self.conf = {"dataset": str(self.drawn), "encoder": "random", **DRAWN_TRAINING}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, airflow_home):
    """A deployment whose first retraining and first night are done."""
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    synthetic.generate(deployment.drawn)
    succeeded(airflow_dag(RETRAINING_DAG, conf=deployment.conf, **deployment.environment))
    command("demo-inbox", **deployment.environment)
    deployment.inbox.put("late/broken.jpg", b"no picture")
    deployment.inbox.put("notes.txt", b"not to be captioned")
    succeeded(airflow_dag(NIGHT_DAG, **deployment.environment))
    return deployment


def test_captions_of_unseen_pictures_are_true(deployment):
    """Of the attribute words in the captions of pictures that training did not see, at least nine tenths are true."""
    truth = synthetic.read_truth(deployment.drawn)
    stated = [
        (row["image_key"], attribute)
        for row in captions_in(deployment.store)
        if row["status"] == "ok"
        for attribute in synthetic.attributes(row["caption"])
    ]
    true = [attribute in truth[key.rpartition("/")[2]] for key, attribute in stated]
    assert len(stated) >= 60 * 2
    assert sum(true) / len(true) >= 0.9


def test_every_image_ends_in_one_row(deployment):
    """Each photograph of the inbox has one row, a caption or an error, and the run's record counts them."""
    rows = captions_in(deployment.store)
    photographs = [item.key for item in deployment.inbox.list() if item.key.endswith(".jpg")]
    assert sorted(row["image_key"] for row in rows) == sorted(photographs)
    assert len(photographs) == 61
    [failed] = [row for row in rows if row["status"] == "failed"]
    assert failed["image_key"] == "late/broken.jpg"
    assert "known format" in failed["error"]
    [record] = runs.list_records(runs.NIGHT, deployment.store)
    assert record.status == "succeeded"
    assert (record.listed, record.captioned, record.failed, record.already_done) == (61, 60, 1, 0)
    assert len(list(deployment.store.list(layout.SIDECARS))) == 61


def test_a_second_retraining_and_night_do_nothing(deployment):
    """Run again, nothing is extracted, trained or captioned a second time, and the champion stays.

    The form of this retraining is untouched: it takes the champion's dataset and encoder.
    """
    work = (layout.FEATURES, layout.ENCODERS, layout.CAPTIONS, layout.SHARDS)
    results = (*work, layout.SIDECARS, layout.DATASETS)
    before = objects(deployment.store, *results)
    models = {key for key, _ in objects(deployment.store, layout.MODELS)}
    champion = deployment.store.etag(layout.CHAMPION)
    succeeded(airflow_dag(RETRAINING_DAG, conf=DRAWN_TRAINING, **deployment.environment))
    succeeded(airflow_dag(NIGHT_DAG, **deployment.environment))
    after = objects(deployment.store, *results)
    assert {key for key, _ in before} == {key for key, _ in after}
    assert not any(key.startswith(work) for key, _ in after - before)
    assert {key for key, _ in objects(deployment.store, layout.MODELS)} == models
    assert deployment.store.etag(layout.CHAMPION) == champion
    latest = next(runs.list_records(runs.NIGHT, deployment.store))
    assert (latest.extracted, latest.captioned, latest.failed, latest.already_done) == (0, 0, 0, 61)
    retraining = next(runs.list_records(runs.RETRAINING, deployment.store))
    assert (retraining.status, retraining.promoted) == ("succeeded", False)


def test_a_night_without_a_champion_fails_at_once(tmp_path, airflow_home):
    """Without a champion the night fails without a retry and says what to do, and its record says so too."""
    environment = {"CAPTION_STORE": (tmp_path / "store").as_uri(), "CAPTION_INBOX": (tmp_path / "inbox").as_uri()}
    process = airflow_dag(NIGHT_DAG, **environment)
    assert process.returncode != 0
    assert "No model has been promoted" in process.stdout
    assert "trigger a retraining" in process.stdout
    assert process.stdout.count("'night', 'list'") == 1
    [record] = runs.list_records(runs.NIGHT, open_bucket(environment["CAPTION_STORE"]))
    assert record.status == "failed"
    assert record.message.startswith("list_inbox: error: No model has been promoted")


def test_a_night_on_s3(deployment, s3_server, s3_bucket_name, monkeypatch, tmp_path):
    """With store and inbox on S3, reached by the connection aws_default alone, a night writes the same captions."""
    store, inbox = (open_bucket(f"s3://{s3_bucket_name}/{tmp_path.name}/{name}") for name in ("store", "inbox"))
    for item in deployment.store.list():
        if item.key.startswith((layout.ENCODERS, layout.MODELS)):
            store.put(item.key, deployment.store.get(item.key))
    names = [item.key for item in deployment.inbox.list("drawn/")][:7]
    for name in names:
        inbox.put(name, deployment.inbox.get(name))
    connection = {
        "conn_type": "aws",
        "login": os.environ["AWS_ACCESS_KEY_ID"],
        "password": os.environ["AWS_SECRET_ACCESS_KEY"],
        "extra": {"endpoint_url": s3_server, "region_name": os.environ["AWS_DEFAULT_REGION"]},
    }
    with monkeypatch.context() as patch:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
            patch.delenv(variable)
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        succeeded(airflow_dag(NIGHT_DAG, CAPTION_STORE=store.uri, CAPTION_INBOX=inbox.uri))
    expected = {row["image_key"]: row["caption"] for row in captions_in(deployment.store)}
    written = {row["image_key"]: row["caption"] for row in captions_in(store)}
    assert written == {name: expected[name] for name in names}

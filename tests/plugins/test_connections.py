"""Credentials: after both DAGs, on S3, have succeeded and failed, no secret is stored or logged anywhere."""

import base64
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.captioner import registry
from pipeline.serving.client import CaptionClient, UnavailableError
from pipeline.storage import layout, open_bucket
from tests.support import toy
from tests.support.airflow_server import start_airflow
from tests.support.paths import PROJECT

AIRFLOW = Path(sys.executable).with_name("airflow")

KEY, TOKEN, PASSWORD = "kWq7secretKeyZ4tD", "Vn3sessionTokenX8pL", "Rb5trackingPasswordJ2m"

TRACKING = f"http://tracker:{PASSWORD}@127.0.0.1:1/"
"""An MLflow server at which nobody listens."""

SECRETS = [
    secret.encode() for secret in (KEY, TOKEN, PASSWORD, base64.b64encode(f"tracker:{PASSWORD}".encode()).decode())
]

CONF = {"embedding": "learned", "embedding_size": 8, "units": 8, "epochs": 2, "batch_size": 8, "floor": 0}


class Refuses(BaseHTTPRequestHandler):
    """An S3 server that refuses all credentials, and repeats in its response what it was sent, as some do."""

    def do_GET(self):  # as http.server calls it
        self.answer(
            f"<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match.</Message><Token-0>{TOKEN}</Token-0>"
            f"<StringToSign>{KEY}</StringToSign></Error>".encode()
        )

    def do_HEAD(self):
        self.answer(b"")

    def answer(self, body):
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def refusing_server():
    """The URL of a server that refuses all credentials."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def by_connection(endpoint):
    """The environment of a deployment whose credentials are in the connection aws_default."""
    connection = {
        "conn_type": "aws",
        "login": "an-access-key-id",
        "password": KEY,
        "extra": {"endpoint_url": endpoint, "region_name": "us-east-1", "aws_session_token": TOKEN},
    }
    return {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection)}


def by_environment(endpoint):
    """The environment of a deployment whose credentials are in the variables that boto3 reads."""
    return {
        "AWS_ACCESS_KEY_ID": "an-access-key-id",
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class Deployment:
    """Both DAGs on S3, and the output of their processes."""

    def __init__(self, bucket_name):
        self.uri = f"s3://{bucket_name}/credentials"
        self.settings = {
            "CAPTION_STORE": f"{self.uri}/store",
            "CAPTION_INBOX": f"{self.uri}/pictures",
            "CAPTION_TRACKING_URI": TRACKING,
        }
        self.output = {}

    def run(self, name, command, environment):
        """Run a command, whose output is kept under a name, and return its exit status."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        inherited["PATH"] = str(AIRFLOW.parent)  # without Java, which takes its time
        done = subprocess.run(
            command,
            env={**inherited, **self.settings, **environment},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        self.output[name] = done.stdout
        return done.returncode

    def dag(self, name, dag_id, environment, conf=None):
        """Run a DAG to its end, and return the exit status."""
        return self.run(name, [AIRFLOW, "dags", "test", dag_id, "--conf", json.dumps(conf or {})], environment)

    def command(self, name, environment, *arguments):
        """Run a command of the pipeline, and return its exit status."""
        return self.run(name, [sys.executable, "-m", "pipeline", *arguments], environment)


@pytest.fixture(scope="module")
def mlflow_file(tmp_path_factory):
    """The place of an MLflow file, in a folder of its own."""
    return tmp_path_factory.mktemp("tracking") / "mlflow.db"


@pytest.fixture(scope="module")
def scheduled(refusing_server, tmp_path_factory):
    """The folder of an Airflow with a scheduler, whose workers keep logs, and in which a night was refused by S3.

    It runs beside what else the tests wait for.
    """
    home = tmp_path_factory.mktemp("scheduled")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    settings = {"CAPTION_STORE": "s3://refused/store", "CAPTION_INBOX": "s3://refused/inbox"}

    def refused_night():
        environment = {**inherited, **settings, "CAPTION_TRACKING_URI": TRACKING, **by_connection(refusing_server)}
        with start_airflow(home, environment) as server, pytest.raises(RuntimeError, match=r"The night .* failed"):
            server.first_night()
        return home

    with ThreadPoolExecutor() as pool:
        yield pool.submit(refused_night)


@pytest.fixture(scope="module")
def deployment(airflow_home, s3_bucket_name, refusing_server, toy_encoder, mlflow_file):
    """A deployment in which all ran that the tests look at, but what a scheduler runs."""
    deployment, s3_server = Deployment(s3_bucket_name), os.environ["AWS_ENDPOINT_URL"]
    source = open_bucket(deployment.uri)
    table = toy.draw(source)
    source.put("means.keras", toy_encoder.read_bytes())
    conf = {"dataset": table, "encoder": source.url("means.keras"), "min_count": 1, **CONF}
    good = by_connection(s3_server)
    assert deployment.dag("retraining", "retrain_captioner", good, conf) == 0, deployment.output
    assert deployment.dag("night", "caption_new_images", by_environment(s3_server)) == 0, deployment.output
    assert deployment.command("refused ingest", by_environment(refusing_server), "ingest", table) == 2
    wrong = {**good, "CAPTION_TRACKING_URI": TRACKING.replace("http", "postgresql")}
    assert deployment.dag("wrong setting", "retrain_captioner", wrong, conf) != 0
    store = open_bucket(deployment.settings["CAPTION_STORE"])
    versions = filter(None, (layout.model_of_metadata(item.key) for item in store.list(layout.MODELS)))
    [deployment.version] = versions
    recorded = {**by_environment(s3_server), "CAPTION_TRACKING_URI": f"sqlite:///{mlflow_file}"}
    assert deployment.command("evaluation", recorded, "evaluate", deployment.version) == 0, deployment.output
    return deployment


def unpacked(data):
    """All that some bytes hold: themselves, and what is packed in them."""
    yield data
    if data[:4] == b"PAR1":
        yield str(pq.read_table(io.BytesIO(data)).to_pydict()).encode()
        yield str(pq.read_schema(io.BytesIO(data)).metadata).encode()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from map(archive.read, archive.namelist())
    if data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def cells(file):
    """Every value of every table of an SQLite file, as bytes."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        database.text_factory = bytes
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table.decode()}"'):  # noqa: S608 - of SQLite's own list
                yield from (value if isinstance(value, bytes) else str(value).encode() for value in row)


def files(folder):
    """The bytes of every file below a folder."""
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def search(values, known):
    """Fail if one of the values contains a secret, or if none contains the known text."""
    everything = [part for value in values for part in unpacked(value)]
    assert any(known.encode() in part for part in everything)
    for secret in SECRETS:
        found = [part for part in everything if secret in part]
        assert not found, found[0][:2000]


def packed(data):
    """The same bytes in each of the ways in which objects and cells are packed."""
    parquet, archive = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"text": [data.decode()] * 1000}), parquet, compression="zstd")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("member", data)
    return [data, parquet.getvalue(), archive.getvalue(), zlib.compress(data)]


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_finds_what_it_looks_for(secret, way):
    """Plain and packed, each secret is found, so that the tests below can fail."""
    search(packed(b"known text"), "known")
    with pytest.raises(AssertionError):
        search([b"known", packed(b"known text " + secret)[way]], "known")


def test_what_the_processes_said(scheduled, deployment):
    """Airflow's log of each run, and the output of the commands, hold no secret; nor where they failed."""
    output = deployment.output
    assert b"is not recorded in MLflow at http://127.0.0.1:1/" in output["retraining"]
    assert b"(SignatureDoesNotMatch)" in output["refused ingest"]
    assert b"CAPTION_TRACKING_URI" in output["wrong setting"]
    search(output.values(), deployment.version)


def test_airflow_keeps_no_secret(deployment, airflow_home):
    """No file of Airflow's folder holds one, logs among them, and no cell of its database, XComs among them."""
    search(files(airflow_home), deployment.version)
    search(cells(airflow_home / "airflow.db"), deployment.version)


def test_the_logs_of_a_scheduler_keep_no_secret(scheduled, deployment):
    """Neither the log of a task that S3 refused, nor Airflow's own logs, nor its database contain one."""
    home = scheduled.result()
    [log] = home.glob("logs/dag_id=caption_new_images/*/task_id=list_inbox/*.log")
    assert "(403)" in log.read_text()
    search(files(home), "s3://refused/store")
    search(cells(home / "airflow.db"), "list_inbox")


def test_the_store_keeps_no_secret(deployment):
    """No object does: records, metadata, pages, and unpacked Parquet and archives."""
    store = open_bucket(deployment.settings["CAPTION_STORE"])
    objects = {item.key: store.get(item.key) for item in store.list()}
    assert {"parquet", "json", "html", "npz", "keras"} <= {key.rpartition(".")[2] for key in objects}
    search(objects.values(), deployment.version)


def test_the_captioning_process_tells_no_secret(trained, s3_server, s3_bucket_name, refusing_server, capfd):
    """Neither its answers nor its log hold one, whether the store lets it in or not."""
    store = open_bucket(f"s3://{s3_bucket_name}/served")
    toy.copy(trained.store, store, layout.MODELS, layout.ENCODERS)
    registry.promote(trained.model.version, store)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    welcome = {**inherited, **by_environment(s3_server), "CAPTION_STORE": store.uri}
    with CaptionClient(environment=lambda: welcome) as worker:
        answer = worker.caption(toy.picture("red")).model_dump_json()
    refused = {**inherited, **by_environment(refusing_server), "CAPTION_STORE": "s3://refused/store"}
    with (
        CaptionClient(environment=lambda: refused) as worker,
        pytest.raises(UnavailableError, match="refused/store") as error,
    ):
        worker.caption(toy.picture("red"))
    output = capfd.readouterr()
    search([answer.encode(), output.out.encode(), output.err.encode()], trained.model.version)
    search([str(error.value).encode()], "refused/store")


def test_mlflow_is_told_no_secret(deployment, mlflow_file):
    """Neither its database nor its artifacts hold one."""
    search(files(mlflow_file.parent), deployment.version)
    search(cells(mlflow_file), deployment.version)

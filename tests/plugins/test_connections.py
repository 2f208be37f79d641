"""Credentials: no command prints or records one, neither when it succeeds nor when it is refused.

``test_journey`` looks for them in all that a whole Airflow leaves behind.
"""

import io
import subprocess
import sys
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.captioner import registry
from pipeline.serving.client import CaptionClient, UnavailableError
from pipeline.storage import layout, open_bucket
from tests.support import secrets, toy
from tests.support.faults import Proxy
from tests.support.paths import PROJECT
from tests.support.processes import own_python


@pytest.fixture(scope="module")
def refusing_server(s3_server):
    """The URL of a server that refuses all credentials."""
    server = Proxy(s3_server)
    secrets.refuse_credentials(server)
    yield server.url
    server.stop()


@pytest.fixture
def store(trained, s3_bucket_name):
    """A store on S3 with all of the toy world, whose champion is its model."""
    store = open_bucket(f"s3://{s3_bucket_name}/credentials")
    toy.copy(trained.store, store, "")
    registry.promote(trained.model.version, store)
    return store


def run(store, environment, *arguments):
    """Run a command of the pipeline; its exit status, and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        # Without Java, which takes its time.
        env={**secrets.without_credentials(), "PATH": "", "CAPTION_STORE": store.uri, **environment},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def packed(data):
    """The same bytes in each of the ways in which objects and cells are packed."""
    parquet, archive = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"text": [data.decode()] * 1000}), parquet, compression="zstd")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("member", data)
    return [data, parquet.getvalue(), archive.getvalue(), zlib.compress(data)]


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("secret", secrets.SECRETS)
def test_the_search_finds_what_it_looks_for(secret, way):
    """Plain and packed, each secret is found, so that the tests below can fail."""
    secrets.search(packed(b"known text"), "known")
    with pytest.raises(AssertionError):
        secrets.search([b"known", packed(b"known text " + secret)[way]], "known")


def test_a_refused_command_prints_no_secret(store, refusing_server):
    """Its error names the object and S3's code, and repeats nothing else of the response."""
    environment = {**secrets.by_environment(refusing_server), "CAPTION_TRACKING_URI": secrets.TRACKING}
    status, output = run(store, environment, "ingest", store.url("captions.csv"))
    assert status == 2
    secrets.search([output], "(SignatureDoesNotMatch)")


def test_a_wrong_setting_is_not_repeated(store, s3_server):
    """The error names the variable, and not its value."""
    wrong = {"CAPTION_TRACKING_URI": secrets.TRACKING.replace("http", "postgresql")}
    status, output = run(store, {**secrets.by_environment(s3_server), **wrong}, "status")
    assert status == 2
    secrets.search([output], "CAPTION_TRACKING_URI")


def test_mlflow_is_told_no_secret(store, trained, s3_server, tmp_path):
    """After an evaluation neither its database nor its artifacts hold one, nor the objects in the store."""
    recorded = {**secrets.by_environment(s3_server), "CAPTION_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    version = trained.model.version
    status, output = run(store, recorded, "evaluate", version)
    assert status == 0, output
    secrets.search([output], version)
    secrets.search(secrets.files(tmp_path), version)
    secrets.search(secrets.cells(tmp_path / "mlflow.db"), version)
    secrets.search([store.get(item.key) for item in store.list(layout.evaluations(version))], version)


def test_the_captioning_process_tells_no_secret(store, trained, s3_server, refusing_server, capfd):
    """Neither its answers nor its log hold one, whether the store lets it in or not."""
    inherited = secrets.without_credentials()
    welcome = {**inherited, **secrets.by_environment(s3_server), "CAPTION_STORE": store.uri}
    with CaptionClient(lambda: own_python(welcome)) as worker:
        answer = worker.caption(toy.picture("red")).model_dump_json()
    refused = {**inherited, **secrets.by_environment(refusing_server), "CAPTION_STORE": "s3://refused/store"}
    with (
        CaptionClient(lambda: own_python(refused)) as worker,
        pytest.raises(UnavailableError, match="refused/store") as error,
    ):
        worker.caption(toy.picture("red"))
    output = capfd.readouterr()
    secrets.search([answer.encode(), output.out.encode(), output.err.encode()], trained.model.version)
    secrets.search([str(error.value).encode()], "refused/store")

"""Fixtures of all tests: buckets of both kinds, and the real photographs and encoder where they are to be had."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.storage import Bucket, open_bucket, s3
from tests.support import toy
from tests.support.faults import Proxy
from tests.support.paths import PROJECT

# Before any test imports Keras.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


# Before any test imports Airflow; child processes find the same.
os.environ.update(
    {
        "AIRFLOW_HOME": tempfile.mkdtemp(prefix="airflow-"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(PROJECT),
        "CAPTION_TRACKING_URI": "",  # what is to be recorded says where
    }
)

# `make` sets it to a file in another AIRFLOW_HOME, which need not exist.
os.environ.pop("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", None)

SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server, at which the environment points: this process's boto3 and child processes use it."""
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # S3 decides on a conditional write and does it in one step; moto looks first and writes later.
    lock, put_object = threading.Lock(), S3Response.put_object

    def put_object_atomically(response: S3Response) -> object:
        with lock:
            return put_object(response)

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_object_atomically)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.setup_default_session()  # one made earlier would keep what the environment said then
        yield os.environ["AWS_ENDPOINT_URL"]
    boto3.DEFAULT_SESSION = None
    server.stop()


@pytest.fixture(scope="session")
def s3_bucket_name(s3_server: str) -> str:
    """An S3 bucket, in which each test takes a prefix of its own."""
    import boto3

    name = f"test-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_faults(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that spoils answers as planned, at which the environment points; this process retries without a wait."""
    from botocore.retries.adaptive import ClientRateLimiter
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr(ClientRateLimiter, "on_sending_request", lambda *_, **__: None)
    monkeypatch.setattr(s3, "READ_PAUSE", 0)
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.stop()


@pytest.fixture(params=["file", "s3"])
def new_bucket(request: pytest.FixtureRequest) -> Callable[[], Bucket]:
    """Makes empty buckets, all of one kind; a test that takes it runs once for each kind."""
    if request.param == "file":
        folder = request.getfixturevalue("tmp_path")
        return lambda: open_bucket((folder / uuid.uuid4().hex).as_uri())
    name = request.getfixturevalue("s3_bucket_name")
    return lambda: open_bucket(f"s3://{name}/{uuid.uuid4().hex}")


@pytest.fixture
def bucket(new_bucket: Callable[[], Bucket]) -> Bucket:
    """An empty bucket; a test that takes it runs once for each kind."""
    return new_bucket()


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The folder of the real photographs and captions, in the Flickr8k layout."""
    return _resource("CAPTION_TEST_FLICKR8K", SHARED / "flickr8k")


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """A ``.keras`` file of an image encoder with trained weights."""
    return _resource("CAPTION_TEST_ENCODER", SHARED / "encoders" / "efficientnet_lite2.keras")


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.keras`` file of the toy encoder."""
    return toy.save_encoder(tmp_path_factory.mktemp("encoder") / "means.keras")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_encoder: Path) -> toy.Trained:
    """The toy world with a trained model, made once: only to be read and copied from."""
    folder = tmp_path_factory.mktemp("trained")
    store = open_bucket(str(folder / "store"))
    inputs = toy.prepare(open_bucket(str(folder / "source")), store, toy_encoder)
    return toy.Trained(store, inputs, toy.train(inputs, store))


def _resource(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        pytest.skip(f"{path} is not there; {variable} may name another place")
    return path


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """Airflow's folder for these tests, its database made, with the pool that the DAGs need."""
    home = Path(os.environ["AIRFLOW_HOME"])
    airflow = Path(sys.executable).with_name("airflow")
    for arguments in (["db", "migrate"], ["pools", "set", "gpu", "1", "the accelerator"]):
        subprocess.run([airflow, *arguments], check=True, capture_output=True)
    return home


@pytest.fixture(scope="session", autouse=True)
def _no_airflow_home_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)

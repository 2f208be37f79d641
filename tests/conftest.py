"""Fixtures of all tests: buckets, a trained captioner, Airflow's database, and the real photographs and encoder.

Tests are in tiers by marker, which CONTRIBUTING.md describes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.captioner.metadata import load_metadata
from pipeline.metrics import java
from pipeline.storage import Bucket, S3Bucket, open_bucket, s3
from tests.support import services, toy
from tests.support.cache import made_once
from tests.support.effort import PROFILE, STRESS, random_inputs
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

hypothesis.settings.register_profile(PROFILE, deadline=None, max_examples=random_inputs(100))
hypothesis.settings.load_profile(PROFILE)


@pytest.fixture(scope="session", autouse=True)
def real_java() -> Iterator[Callable[[], bool]]:
    """Whether there is a Java; until the end it seems that there is none.

    Without it an evaluation takes a fraction of the time. The tests of the metrics have it.
    """
    available = java.available
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java, "available", lambda: False)
        yield available


REAL = {"flickr8k", "real_encoder"}
"""The fixtures that give real photographs, and the real encoder."""


SLOWEST = ("test_journey.py", "test_end_to_end.py", "test_server.py", "test_train.py", "test_kills.py")
"""The files that run first, so that two processes come to their ends at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that take real photographs in their tier, and the slowest files first."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.photographs)


def pytest_collection_finish() -> None:
    """Refuse modules that change what a broken pipe does, as Go's runtime does: it would end this process silently."""
    [ignored] = re.findall(r"^SigIgn:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not int(ignored, 16) >> (signal.SIGPIPE - 1) & 1:
        raise pytest.UsageError(
            "A module of the tests imports a library that handles SIGPIPE: run it in a child process."
        )


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


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.SeaweedFS]:
    """SeaweedFS as docker-compose.yaml starts it, with buckets."""
    with services.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        for name in ("captioning", "inbox"):
            S3Bucket(f"s3://{name}", server.environment()).client.create_bucket(Bucket=name)
        yield server


KINDS_OF_BUCKETS = ["file", "s3"]


@pytest.fixture
def new_bucket(request: pytest.FixtureRequest) -> Callable[[], Bucket]:
    """Makes empty buckets, all of one kind.

    The tests of the storage, and those with the mark `all_buckets`, run once for each kind, in a tier of their own with
    SeaweedFS. What they promise lets the others do with folders; `make stress` runs these for S3, too.
    """
    if request.param == "file":
        folder = request.getfixturevalue("tmp_path")
        return lambda: open_bucket((folder / uuid.uuid4().hex).as_uri())
    if request.param == "seaweedfs":
        import boto3

        name, server = "captioning", request.getfixturevalue("seaweedfs")
        monkeypatch = request.getfixturevalue("monkeypatch")
        for variable, value in server.environment().items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # one made earlier would keep the other server's keys
    else:
        name = request.getfixturevalue("s3_bucket_name")
    return lambda: open_bucket(f"s3://{name}/{uuid.uuid4().hex}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the kinds of buckets for a test, unless it says itself which."""
    says = any("new_bucket" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    # Those whose S3 misbehaves make their own.
    if "new_bucket" in metafunc.fixturenames and "s3_faults" not in metafunc.fixturenames and not says:
        marked = metafunc.definition.get_closest_marker("all_buckets") is not None
        in_storage = "storage" in metafunc.definition.path.parts
        all_kinds = STRESS or marked or in_storage
        kinds = KINDS_OF_BUCKETS if all_kinds else ["file"]
        if marked or in_storage:
            kinds = [*kinds, pytest.param("seaweedfs", marks=pytest.mark.services)]
        metafunc.parametrize("new_bucket", kinds, indirect=True)


@pytest.fixture
def bucket(new_bucket: Callable[[], Bucket]) -> Bucket:
    """An empty bucket."""
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
def airflow_chart() -> Path:
    """Airflow's Helm chart, as the archive or the folder that `helm pull` gives."""
    return _resource("CAPTION_TEST_CHART", SHARED / "airflow-1.22.0.tgz")


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.keras`` file of the toy encoder."""
    return toy.save_encoder(tmp_path_factory.mktemp("encoder") / "means.keras")


@pytest.fixture(scope="session")
def trained(pytestconfig: pytest.Config) -> Iterator[toy.Trained]:
    """The toy world with a trained model: only to be read and copied from."""

    def make(folder: Path) -> None:
        store = open_bucket(str(folder / "store"))
        encoder_file = toy.save_encoder(folder / "means.keras")
        inputs = toy.prepare(open_bucket(str(folder / "source")), store, encoder_file)
        model = toy.train(inputs, store)
        (folder / "trained.json").write_text(
            json.dumps([inputs.dataset, inputs.vocabulary, inputs.encoder_id, model.version])
        )

    others = [PROJECT / "tests/support/toy.py", PROJECT / "requirements-training.txt"]
    folder = made_once("trained", [*PROJECT.glob("pipeline/**/*.py"), *others], make, pytestconfig)
    dataset, vocabulary, encoder_id, version = json.loads((folder / "trained.json").read_text())
    store = open_bucket(str(folder / "store"))
    before = toy.etags(store, "")
    inputs = toy.Inputs(open_bucket(str(folder / "source")), dataset, vocabulary, encoder_id)
    yield toy.Trained(store, inputs, load_metadata(version, store))
    assert toy.etags(store, "") == before, "a test has changed the toy world of all tests"


def _resource(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        pytest.skip(f"{path} is not there; {variable} may name another place")
    return path


@pytest.fixture(scope="session")
def airflow_database(pytestconfig: pytest.Config) -> Path:
    """An SQLite file with Airflow's database as it is after `make up` has prepared it: only to be copied."""

    def make(folder: Path) -> None:
        environment = {**os.environ, "AIRFLOW_HOME": str(folder)}
        airflow = Path(sys.executable).with_name("airflow")
        for arguments in (["db", "migrate"], ["pools", "set", "gpu", "1", "the accelerator"]):
            subprocess.run([airflow, *arguments], env=environment, check=True, capture_output=True)

    return made_once("airflow", [PROJECT / "requirements.txt"], make, pytestconfig) / "airflow.db"


@pytest.fixture(scope="session")
def airflow_home(airflow_database: Path) -> Path:
    """Airflow's folder for these tests, with its database."""
    home = Path(os.environ["AIRFLOW_HOME"])
    shutil.copy(airflow_database, home)
    return home


@pytest.fixture(scope="session", autouse=True)
def _no_airflow_home_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)

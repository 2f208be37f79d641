"""The bucket and Redis as docker-compose.yaml starts them: who may do what, and that they stop when asked to."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import grpc
import psutil
import pytest

from pipeline.errors import PipelineError
from pipeline.storage import ObjectDeniedError, S3Bucket
from tests.support import services
from tests.support.airflow_server import free_ports
from tests.support.compose_file import SERVICES
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

pytestmark = pytest.mark.services


def test_it_is_the_version_of_compose():
    """The package of the tests has the version of the image."""
    [image] = re.findall(r"^chrislusf/seaweedfs:([\d.]+)@", SERVICES["bucket"]["image"])
    assert f"\nseaweedfs-bin=={image} " in (PROJECT / "requirements-dev.txt").read_text()


def test_only_s3_is_on_the_network(seaweedfs):
    """The other servers, which ask for no key, listen on 127.0.0.1, and there are no more than these."""
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(seaweedfs.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    s3 = {port for option, port in seaweedfs.ports.items() if option.startswith("s3.")}
    own = {("127.0.0.1", port) for port in seaweedfs.ports.values()}
    assert listening == {(services.NETWORK, port) for port in s3} | own


def test_nobody_adds_an_identity(seaweedfs):
    """S3's port for gRPC, which is on the network, refuses what has no signature, and so does that of the filer."""
    identity = b"\x0a\x08intruder\x1a\x05Admin"
    request = b"\x0a" + bytes([len(identity)]) + identity
    calls = {
        f"{services.NETWORK}:{seaweedfs.ports['s3.port.grpc']}": "/messaging_pb.SeaweedS3IamCache/PutIdentity",
        f"127.0.0.1:{seaweedfs.ports['filer.port.grpc']}": "/iam_pb.SeaweedIdentityAccessManagement/CreateUser",
    }
    for address, method in calls.items():
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(method)(request, timeout=30)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_mistyped_bucket_is_not_made(seaweedfs):
    """It is an error that says what to check."""
    with pytest.raises(PipelineError, match=r"(?s)s3://captoining.*Check the bucket's name"):
        S3Bucket("s3://captoining", seaweedfs.environment()).put("object", b"bytes")


def test_the_analyst_reads_the_store_alone(seaweedfs):
    """Nothing else is read, and nothing written or deleted."""
    for name in ("captioning", "inbox"):
        S3Bucket(f"s3://{name}", seaweedfs.environment()).put("analyst/object", b"bytes")
    analyst = seaweedfs.environment("S3_ANALYST")
    store, inbox = (S3Bucket(f"s3://{name}/analyst", analyst) for name in ("captioning", "inbox"))
    assert [item.key for item in store.list()] == ["object"]
    assert store.get("object") == b"bytes"
    for refused in (
        lambda: store.put("other", b""),
        lambda: store.delete("object"),
        lambda: inbox.get("object"),
    ):
        with pytest.raises(ObjectDeniedError, match="AccessDenied"):
            refused()
    with pytest.raises(PipelineError, match="AccessDenied"):
        list(inbox.list())


def test_redis_is_asked_to_stop(tmp_path):
    """It takes the shell's place, so it hears the signal; it knows its password, and what it held when it is back."""
    server, client = shutil.which("redis-server"), shutil.which("redis-cli")
    if not server or not client:
        pytest.skip("Redis must be installed: apt-get install redis-server")
    data, log = tmp_path / "data", tmp_path / "redis.log"
    data.mkdir()
    [port] = free_ports(1)
    environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": "made-up"}
    command = f"{services.script('redis', tmp_path, data=data)} --bind 127.0.0.1 --port {port}"

    def ask(*words: str, variable: str = "REDISCLI_AUTH") -> str:
        arguments = [client, "-p", str(port), *words]
        asked = {**environment, variable: environment["REDIS_PASSWORD"]}
        return subprocess.run(arguments, env=asked, capture_output=True, text=True, check=False).stdout.strip()

    for before, after in (("", "1"), ("1", "2")):
        with services.running(command, environment, log, 30) as process:
            wait_for("Redis", lambda: ask("ping") == "PONG")
            assert Path(psutil.Process(process.pid).exe()).name.startswith("redis-")
            assert "made-up" not in " ".join(psutil.Process(process.pid).cmdline())
            assert "NOAUTH" in ask("get", "key", variable="NOT_READ")
            assert ask("get", "key") == before
            ask("set", "key", after)
    assert log.read_text().count("ready to exit") == 2

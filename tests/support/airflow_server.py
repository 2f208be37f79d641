"""A whole Airflow, started as `make up` starts it, and its REST API."""

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.paths import PROJECT

PORTS = ("AIRFLOW__API__PORT", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")
"""The ports on which Airflow listens; another one may run on this machine."""

NIGHT_DAG, RETRAINING_DAG = "caption_new_images", "retrain_captioner"


class Airflow:
    """A running Airflow, by its REST API."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self.token = ""
        self.token = self.call("POST", "/auth/token", {"username": user, "password": password})["access_token"]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response to a request."""
        request = urllib.request.Request(  # noqa: S310 - always http
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return dict(json.load(response))

    def unpause(self, *dag_ids: str) -> None:
        """Unpause DAGs as soon as Airflow has parsed them."""
        for dag_id in dag_ids:
            while dag_id not in {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags")["dags"]}:
                time.sleep(0.5)
            self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Trigger a run, and return its id."""
        body = {"logical_date": None, "conf": conf or {}}
        return str(self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The runs of a DAG."""
        return list(self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"])

    def wait_for_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run, and return it."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}"
        while (run := self.call("GET", path))["state"] not in ("success", "failed"):
            time.sleep(1)
        return run

    def first_night(self) -> None:
        """Unpause the DAG of nights, which makes it run for its last schedule, and wait until the night has ended.

        Raises:
            RuntimeError: it failed.
        """
        self.unpause(NIGHT_DAG)
        while not (runs := self.runs(NIGHT_DAG)):
            time.sleep(0.5)
        self._seconds(runs[0]["dag_run_id"])

    def night(self) -> float:
        """Run a night, and return its seconds from when it was queued. Raises ``RuntimeError`` where it failed."""
        return self._seconds(self.trigger(NIGHT_DAG))

    def _seconds(self, run_id: str) -> float:
        run = self.wait_for_run(NIGHT_DAG, run_id)
        if run["state"] == "failed":
            raise RuntimeError(f"The night {run_id} failed.")
        queued, ended = (datetime.fromisoformat(run[name]) for name in ("queued_at", "end_date"))
        return (ended - queued).total_seconds()


@contextlib.contextmanager
def start_airflow(home: Path, environment: dict[str, str]) -> Iterator[Airflow]:
    """Airflow as `make up` runs it, in ``home`` and on free ports; it is stopped at the end.

    Raises:
        RuntimeError: it did not start.
    """
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    # Nothing is installed now: the environment that runs this is the environment of Airflow.
    command = ["make", "--silent", "--assume-old=.venv/installed", "up"]
    # The variables that `make` exports name the port of another Airflow.
    others = ("AIRFLOW__API__BASE_URL", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL")
    environment = {name: value for name, value in environment.items() if name not in others}
    environment |= {**ports, "AIRFLOW_HOME": str(home)}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.match(r"Airflow is at (\S+), user (\S+), password (\S+)", line):
                    yield Airflow(*found.groups())
                    return
            raise RuntimeError("Airflow did not start: `make up` says why.")
        finally:
            process.terminate()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Different ports of this machine on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [held.getsockname()[1] for held in sockets]

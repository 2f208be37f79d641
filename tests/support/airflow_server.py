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
from tests.support.waiting import wait_for

PORTS = ("AIRFLOW__API__PORT", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")
"""The ports on which Airflow listens; another one may run on this machine."""

NIGHT_DAG, RETRAINING_DAG, MAINTENANCE_DAG = "caption_new_images", "retrain_captioner", "maintain_captioning"


RUN_SECONDS = 600
"""Time limit of a run."""


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
            wait_for(dag_id, lambda dag_id=dag_id: dag_id in {dag["dag_id"] for dag in self._dags()})
            self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def _dags(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/api/v2/dags")["dags"])

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> "Run":
        """Trigger a run."""
        body = {"logical_date": None, "conf": conf or {}}
        return Run(self, self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body))

    def runs(self, dag_id: str) -> list["Run"]:
        """The runs of a DAG."""
        return [Run(self, found) for found in self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]]

    def first_run(self, dag_id: str, run_type: str = "scheduled") -> "Run":
        """Wait until a DAG has a run of a type, and return the first one."""

        def found() -> list["Run"]:
            return [run for run in self.runs(dag_id) if run.shown["run_type"] == run_type]

        return wait_for(f"a {run_type} run of {dag_id}", found, RUN_SECONDS)[0]

    def first_night(self) -> None:
        """Unpause the DAG of nights, which makes it run for its last schedule, and wait until the night has ended.

        Raises:
            RuntimeError: it failed.
        """
        self.unpause(NIGHT_DAG)
        self.first_run(NIGHT_DAG).seconds()

    def night(self, limit: float = RUN_SECONDS) -> float:
        """Run a night, and return its seconds from when it was queued. Raises ``RuntimeError`` where it failed."""
        return self.trigger(NIGHT_DAG).seconds(limit)


class Run:
    """A run of a DAG, as the API describes it to the UI.

    Attributes:
        id: the run's id.
        path: of the run in the API.
        shown: the run itself, as last read.
    """

    def __init__(self, server: Airflow, shown: dict[str, Any]) -> None:
        self.server, self.shown, self.id = server, shown, str(shown["dag_run_id"])
        self.path = f"/api/v2/dags/{shown['dag_id']}/dagRuns/{quote(self.id)}"

    def end(self, limit: float = RUN_SECONDS) -> str:
        """Wait until it has ended, and return its state."""

        def ended() -> bool:
            self.shown = self.server.call("GET", self.path)
            return self.shown["state"] in ("success", "failed")

        wait_for(f"the end of {self.path}", ended, limit)
        return str(self.shown["state"])

    def seconds(self, limit: float = RUN_SECONDS) -> float:
        """Wait until it has ended; its seconds since it was queued. Raises ``RuntimeError`` where it failed."""
        if self.end(limit) == "failed":
            raise RuntimeError(f"The run {self.id} of {self.shown['dag_id']} failed.")
        queued, ended = (datetime.fromisoformat(self.shown[name]) for name in ("queued_at", "end_date"))
        return (ended - queued).total_seconds()

    def wait_for_task(self, task_id: str, *states: str) -> None:
        """Wait until a task has one of these states."""
        path = f"{self.path}/taskInstances/{task_id}"
        wait_for(f"{path} {states}", lambda: self.server.call("GET", path)["state"] in states, RUN_SECONDS)

    def question(self) -> dict[str, Any]:
        """Wait until the run asks a person, and return what they see."""
        self.wait_for_task("approval", "awaiting_input")
        # The process of a task that waits lingers for a heartbeat, a second here; an answer within that second is lost.
        time.sleep(3)
        return self.server.call("GET", f"{self.path}/taskInstances/approval/-1/hitlDetails")

    def answer(self, choice: str) -> None:
        """Answer as a person does."""
        self.server.call("PATCH", f"{self.path}/taskInstances/approval/-1/hitlDetails", {"chosen_options": [choice]})

    def tasks(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """The instances of all its tasks, or of one, by map index."""
        path = f"{self.path}/taskInstances?limit=100" + (f"&task_id={task_id}" if task_id else "")
        return sorted(self.server.call("GET", path)["task_instances"], key=lambda task: int(task["map_index"]))

    def of_tasks(self, task_id: str, field: str) -> list[Any]:
        """A field of each instance of a task: ``state``, ``try_number``, ``rendered_map_index``."""
        return [task[field] for task in self.tasks(task_id)]

    def notes(self) -> dict[str, str]:
        """The notes of the tasks that have one."""
        return {task["task_id"]: task["note"] for task in self.tasks() if task["note"]}

    def links(self, task_id: str) -> dict[str, str]:
        """The extra links of a task: path on the server by name."""
        links = self.server.call("GET", f"{self.path}/taskInstances/{task_id}/links")["extra_links"]
        return {name: address.removeprefix(self.server.url) for name, address in links.items()}


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
            url = ""
            for line in process.stdout:
                if found := re.match(r"Airflow is at (\S+)", line):
                    url = found[1]
                if found := re.match(r" +password: (\S+)", line):
                    yield Airflow(url, "admin", found[1])
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

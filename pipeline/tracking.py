"""What MLflow shows of a training: its parameters, its curves as they grow, its scores, and its report.

A run is brought up to date, not appended to: each call says all that is known, and writes what MLflow lacks. So a
training that is resumed, and the evaluation in its own process later, continue the same run without doubling a point,
and what was missed while a server was away is made good by the next call. The pipeline itself never reads any of it.
"""

import fcntl
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.captioner import Epoch

log = logging.getLogger(__name__)

EXPERIMENT = "captioner"
"""The MLflow experiment of all runs."""

PAUSE = 300.0
"""Seconds for which MLflow is left alone after a failure: a server that never answers must not slow a training down."""

ENVIRONMENT = {
    # A request gives up after two tries of ten seconds; MLflow's own defaults are minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for a command's result.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""How MLflow is to behave, where the environment says nothing else."""


class Run:
    """The MLflow run of one model; as a context manager it also keeps the run's status.

    Whatever goes wrong with MLflow is a warning, once, and never an error: no training is lost to its record.

    Args:
        uri: ``sqlite:///….db``, whose artifacts go to the folder of the same name without ``.db``, or the ``http(s)``
            address of a server; empty records nothing.
        version: of the model. It is the run's name, and the tag by which another process finds the run.
    """

    def __init__(self, uri: str, version: str) -> None:
        self.uri = uri
        self.version = version
        self._resume_at = 0.0 if uri else math.inf
        self._warned = False

    def __enter__(self) -> Self:
        self._set_status("RUNNING")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._set_status("FINISHED" if kind is None else "FAILED")

    def parameters(self, values: Mapping[str, object]) -> None:
        """Record what the training starts from; a value can't be changed later."""

        def write(client: "MlflowClient", run: str) -> None:
            for name, value in values.items():
                client.log_param(run, name, value)

        self._write(write)

    def curves(self, points: Sequence[Mapping[str, float]]) -> None:
        """Record all epochs so far: of each its ``epoch``, and what was measured by its name."""
        measured = {
            (name, int(point["epoch"])): value for point in points for name, value in point.items() if name != "epoch"
        }

        def write(client: "MlflowClient", run: str) -> None:
            names = {name for name, _ in measured}
            known = {(metric.key, metric.step) for name in names for metric in client.get_metric_history(run, name)}
            for (name, epoch), value in measured.items():
                if (name, epoch) not in known:
                    client.log_metric(run, name, value, step=epoch)

        self._write(write)

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Record scores by search and metric, such as ``chosen/CIDEr``; MLflow shows the newest of each."""

        def write(client: "MlflowClient", run: str) -> None:
            for search, values in scores.items():
                for name, value in values.items():
                    client.log_metric(run, f"{search}/{name}", value)

        self._write(write)

    def page(self, name: str, html: str) -> None:
        """Keep a page as an artifact, in place of an earlier one of the same name."""
        self._write(lambda client, run: client.log_text(run, html, name))

    def _set_status(self, status: str) -> None:
        """A training that has finished stays so: its evaluation, which may be repeated, does not change that."""

        def write(client: "MlflowClient", run: str) -> None:
            if client.get_run(run).info.status == "FINISHED":
                return
            if status == "RUNNING":
                client.update_run(run, status)
            else:
                client.set_terminated(run, status)

        self._write(write)

    def _write(self, write: "Callable[[MlflowClient, str], object]") -> None:
        """Call ``write`` with a client and the run's id, unless MLflow failed a short while ago."""
        if time.monotonic() < self._resume_at:
            return
        try:
            write(self._client, self._id)
        except Exception as error:
            self._resume_at = time.monotonic() + PAUSE
            if not self._warned:
                log.warning(
                    "model %s is not recorded in MLflow at %s, and the work goes on without: %s. See that it can be "
                    "reached, or set CAPTION_TRACKING_URI (empty: no tracking); `python -m pipeline evaluate %s` "
                    "records later what is missing.",
                    self.version,
                    _without_credentials(self.uri),
                    _without_credentials(str(error)),
                    self.version,
                )
                self._warned = True

    @cached_property
    def _client(self) -> "MlflowClient":
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        # Where it creates its tables, or tries a server again, it says so in many lines.
        for name in ("alembic", "mlflow", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _alone(_sqlite_file(self.uri)), warnings.catch_warnings(action="ignore"):
            return MlflowClient(self.uri)

    @cached_property
    def _id(self) -> str:
        """The run of this version: the one that is there, or a new one."""
        experiment = self._experiment()
        known = self._client.search_runs([experiment], f"tags.version = '{self.version}'", max_results=1)
        if known:
            run = known[0]
        else:
            run = self._client.create_run(experiment, tags={"version": self.version}, run_name=self.version)
        return str(run.info.run_id)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        file = _sqlite_file(self.uri)
        artifacts = None if file is None else file.with_suffix("").as_uri()
        try:
            self._client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None  # noqa: S101 - for mypy
        return str(experiment.experiment_id)


def inputs(dataset: str, encoder_id: str, recipe: Recipe) -> dict[str, object]:
    """What a training starts from, as a run's parameters."""
    return {"dataset": dataset, "encoder": encoder_id, **recipe.model_dump()}


def points(recipe: Recipe, seed: int, epochs: "Sequence[Epoch]") -> list[dict[str, float]]:
    """A member's epochs as the points of a run's curves; where there are several members, under the member's seed."""
    prefix = f"seed-{seed}/" if recipe.members > 1 else ""
    measured = (epoch.model_dump(exclude={"stage", "epoch"}, exclude_none=True) for epoch in epochs)
    return [
        {"epoch": epoch.epoch, **{prefix + name: value for name, value in values.items()}}
        for epoch, values in zip(epochs, measured, strict=True)
    ]


def _without_credentials(text: str) -> str:
    """The text, and in its addresses no user and no password."""
    return re.sub(r"(https?://)\S*@", r"\1", text)


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path).absolute()


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Keep other processes out of a file's folder: two that create MLflow's tables at the same moment both fail."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)

"""Tracking in MLflow: the parameters, curves, scores, report and model card of each training.

A run is updated, not appended to: each call passes everything known, and writes the part that MLflow lacks. A resumed
training, and the evaluation in a later process, continue the same run without duplicate points, and the next call adds
the data that was missed while the server was unreachable. The pipeline itself never reads from MLflow.
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

from pipeline.config import TrainingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from pipeline.captioner.metadata import Epoch, ModelMetadata
    from pipeline.evaluation.results import Metrics

log = logging.getLogger(__name__)

EXPERIMENT = "captioner"
"""The MLflow experiment of all runs."""

REPORT = "report.html"
"""The artifact that is the report of a model."""

CARD = "card.md"
"""The artifact that is the card of a model."""

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run, in Markdown."""

DESCRIPTION_LENGTH = 5000
"""Maximum characters of a tag; later servers take 8,000."""

PAUSE = 300.0
"""Seconds without another attempt after a failure: an unreachable server must not slow a training down."""

ENVIRONMENT = {
    # A request gives up after two tries of ten seconds; MLflow's own defaults are minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output is for a command's result.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Defaults for MLflow's own settings, which the environment overrides."""


class Run:
    """The MLflow run of one model; as a context manager it also sets the run's status.

    A failure of MLflow is logged once as a warning and is never an error: no training fails for lack of tracking.

    Args:
        uri: ``sqlite:///….db``, whose artifacts go to the folder of the same name without ``.db``, or the ``http(s)``
            address of a server; empty records nothing.
        version: of the model; it is the name of the run, and the tag by which another process finds it.
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
        """Record the inputs of the training; a value can't be changed later."""

        def write(client: "MlflowClient", run: str) -> None:
            for name, value in values.items():
                client.log_param(run, name, value)

        self._write(write)

    def curves(self, points: Sequence[Mapping[str, float]]) -> None:
        """Record all epochs so far: each point holds ``epoch`` and the measurements by name."""
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
        """Record scores by decoding and metric, such as ``chosen/CIDEr``; MLflow shows the newest of each."""

        def write(client: "MlflowClient", run: str) -> None:
            for decoding, values in scores.items():
                for name, value in values.items():
                    client.log_metric(run, f"{decoding}/{name}", value)

        self._write(write)

    def page(self, name: str, text: str) -> None:
        """Store a page as an artifact, in place of an earlier one of the same name."""
        self._write(lambda client, run: client.log_text(run, text, name))

    def card(self, markdown: str) -> None:
        """Store the model card as an artifact, and as much of it as fits as the description that MLflow shows."""
        self.page(CARD, markdown)
        lines = markdown[: DESCRIPTION_LENGTH + 1].rpartition("\n")[0]
        self._write(lambda client, run: client.set_tag(run, DESCRIPTION, lines))

    def replace_page(self, name: str, html: str) -> None:
        """Replace a page, if the run exists and has one of this name. Unlike the others, it raises MLflow's errors."""
        for run in self._known_runs(self._experiment()):
            if any(artifact.path == name for artifact in self._client.list_artifacts(run.info.run_id)):
                self._client.log_text(run.info.run_id, html, name)

    def address(self) -> str:
        """The address of the run's page, without credentials; empty if no server records it."""
        found: list[str] = []

        def read(client: "MlflowClient", run: str) -> None:
            experiment = client.get_run(run).info.experiment_id
            found.append(f"{_without_credentials(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{run}")

        if _sqlite_file(self.uri) is None:
            self._write(read)
        return found[0] if found else ""

    def _set_status(self, status: str) -> None:
        """Set the status, unless the run is finished: a repeated evaluation does not change that of its training."""

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
                    "model %s is not recorded in MLflow at %s, and the work continues without it: %s. Make the server "
                    "reachable, or change CAPTION_TRACKING_URI (empty: no tracking). `captioning evaluate %s` "
                    "records the rest later.",
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

        # It logs many lines when it creates its tables or retries a request.
        for name in ("alembic", "mlflow", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _exclusive(_sqlite_file(self.uri)), warnings.catch_warnings(action="ignore"):
            return MlflowClient(self.uri)

    @cached_property
    def _id(self) -> str:
        """The run of this version, created if there is none."""
        experiment = self._experiment()
        if known := self._known_runs(experiment):
            run = known[0]
        else:
            run = self._client.create_run(experiment, tags={"version": self.version}, run_name=self.version)
        return str(run.info.run_id)

    def _known_runs(self, experiment: str) -> "Sequence[MlflowRun]":
        return self._client.search_runs([experiment], f"tags.version = '{self.version}'", max_results=1)

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


def inputs(dataset_id: str, encoder_id: str, config: TrainingConfig) -> dict[str, object]:
    """The inputs of a training, as the parameters of a run."""
    return {"dataset": dataset_id, "encoder": encoder_id, **config.model_dump()}


def points(config: TrainingConfig, seed: int, epochs: "Sequence[Epoch]") -> list[dict[str, float]]:
    """The epochs of one model as points of the run's curves; those of an ensemble are named by the model's seed."""
    prefix = f"seed-{seed}/" if config.ensemble_size > 1 else ""
    measured = (epoch.model_dump(exclude={"phase", "epoch"}, exclude_none=True) for epoch in epochs)
    return [
        {"epoch": epoch.epoch, **{prefix + name: value for name, value in values.items()}}
        for epoch, values in zip(epochs, measured, strict=True)
    ]


def record_evaluation(model: "ModelMetadata", metrics: "Metrics", *, report: str, card: str, uri: str) -> None:
    """Record the scores, the report and the card of a model, and the part of its training that is missing.

    Args:
        model: the model.
        metrics: its scores.
        report: the HTML of its report.
        card: its card in Markdown.
        uri: of MLflow, as for ``Run``.
    """
    with Run(uri, model.version) as run:
        run.parameters(inputs(model.dataset, model.encoder_id, model.config))
        for member in model.ensemble:
            run.curves(points(model.config, member.seed, member.epochs))
        run.scores({name: scores.corpus for name, scores in metrics.scores.items()})
        run.page(REPORT, report)
        run.card(card)


def replace_report(version: str, report: str, uri: str) -> None:
    """Replace the report of a model in MLflow, if MLflow has one. Unlike with ``Run``, a failure is an error.

    Args:
        version: of the model.
        report: the HTML of its report.
        uri: of MLflow, as for ``Run``.
    """
    Run(uri, version).replace_page(REPORT, report)


def _without_credentials(text: str) -> str:
    """The text without user names and passwords in its URLs."""
    return re.sub(r"(https?://)\S*@", r"\1", text)


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path).absolute()


@contextmanager
def _exclusive(file: Path | None) -> Iterator[None]:
    """Lock the folder of a file: two processes that create MLflow's tables at the same moment both fail."""
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

"""What both DAGs are made of: tasks that run a command of ``python -m pipeline`` in a child process."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook, SubprocessResult
from airflow.sdk import BaseOperator, Context, XComArg
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags.assets import FEATURES
from dags.connections import aws_environment
from dags.links import PageLink
from pipeline.settings import PROJECT

GPU = "gpu"
"""Pool and queue of the tasks that hold the accelerator, or all cores where there is none."""

DEFAULT_ARGS = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=1),
}

SHARD_NAME = "{{ ti.map_index + 1 }}: {{ task.summary or task.shard[:8] }}"
"""How a mapped task is called: by its shard until it has succeeded, then by what it did."""

BAD_INPUT = 2
"""The command's exit status for what no retry mends."""


class PipelineOperator(BaseOperator):
    """Run ``python -m pipeline ARGUMENTS`` and return the JSON of its last line of output.

    Keras runs in a process of its own because the task's process is a fork: a lock that some thread of the parent held
    would stay locked in it for ever, and a GPU's memory is given back only when a process ends. The command in the
    task's log is one that a person can paste.

    A result that is a dictionary is also pushed key by key, and becomes the extra of the outlets' asset events. Where
    the command fails, what it said last is pushed as ``error``.

    :param arguments: the command and its options, templated; a mapped task may instead be given ``shard``
    :param shard: a last argument, by which a mapped task is named in the UI
    :param pages: pages that the task links to, templated: paths on Airflow's server by what the button says
    """

    template_fields: Sequence[str] = ("arguments", "shard", "pages")
    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        arguments: Sequence[Any],
        shard: str | None = None,
        pages: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.shard = shard
        self.pages = pages or {}
        self.operator_extra_links = [PageLink(name) for name in self.pages]
        self.summary: str | None = None
        self.hook = SubprocessHook()

    def execute(self, context: Context) -> Any:
        """Run the command in the task's process and follow its output."""
        arguments = [str(argument) for argument in self.arguments] + ([self.shard] if self.shard else [])
        environment = {**os.environ, **aws_environment(self.log), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "pipeline", *arguments]
        finished = self.hook.run_command(command, env=environment, cwd=str(PROJECT))
        if finished.exit_code != 0:
            raise self._error(finished, context)
        result = json.loads(finished.output)
        if isinstance(result, dict):
            self.summary = result.get("summary")
            for outlet in self.outlets:
                context["outlet_events"][outlet].extra = result
            for key, value in result.items():
                context["ti"].xcom_push(key, value)
        return result

    def _error(self, finished: SubprocessResult, context: Context) -> AirflowException:
        """The error of a command that failed, which is also left for those who tell of the failure."""
        if finished.exit_code == BAD_INPUT:
            error = AirflowFailException(finished.output)
        else:
            error = AirflowException(f"The command exited with status {finished.exit_code}: {finished.output}")
        context["ti"].xcom_push("error", str(error))
        return error

    def on_kill(self) -> None:
        """Stop the command when Airflow stops the task."""
        self.hook.send_sigterm()


def extract_features(shards: XComArg) -> MappedOperator:
    """The task that extracts the features of planned shards, one instance a shard; it is the same in both DAGs."""
    return PipelineOperator.partial(
        task_id="extract",
        arguments=["extract"],
        pool=GPU,
        queue=GPU,
        outlets=[FEATURES],
        map_index_template=SHARD_NAME,
    ).expand(shard=shards)

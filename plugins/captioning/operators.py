"""The operators of all DAGs: tasks that run a command of ``python -m pipeline`` in a child process."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook, SubprocessResult
from airflow.sdk import BaseOperator, Context, TaskGroup, XComArg
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from captioning import metrics
from captioning.assets import FEATURES
from captioning.checkout import find_checkout, find_code, mismatch
from captioning.child import Child, prepare_child
from captioning.connections import child_environment, private_folder
from captioning.failures import describe_failures
from captioning.links import PageLink
from captioning.names import END_RUN, ERROR, SUMMARY
from captioning.settings import read_settings
from pipeline.errors import PipelineError
from pipeline.settings import data_variables

DEFAULT_ARGS = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=1),
}

MAP_INDEX_TEMPLATE = "{{ ti.map_index + 1 }}: {{ task.summary or task.shard[:8] }}"
"""The name of a mapped task in the UI: its shard until it has succeeded, then its summary."""

BAD_INPUT = 2
"""Exit status of a command whose error no retry can fix."""

UNKNOWN = "Error: No such "
"""Begins the last line of a command that does not know one of its options, or is not known itself."""


class PipelineOperator(BaseOperator):
    """Run ``python -m pipeline ARGUMENTS`` and return the JSON in its last line of output.

    A DAG file in a checkout of the project, such as a Git bundle, has its tasks run the code of this checkout.

    Keras runs in a child process because the task's own process is a fork: a lock held by another thread of the parent
    would stay locked in it forever, and a GPU's memory is only released when a process ends. The command in the task's
    log can be pasted into a shell.

    If the result is a dictionary, each key is also pushed as an XCom, and the dictionary becomes the extra of the
    outlets' asset events. If the command fails, the last line of its output is pushed as the XCom ``error``.

    :param arguments: the command and its options, templated; a list among them stands for its items; a mapped task may
        get ``shard`` in addition
    :param shard: the last argument, which also names a mapped task in the UI
    :param pages: the pages that the task links to, as paths on Airflow's server by label, templated
    :param skip: why the command is not run, templated; empty if it is
    """

    template_fields: Sequence[str] = ("arguments", "shard", "pages", "skip")
    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        arguments: Sequence[Any],
        shard: str | None = None,
        pages: Mapping[str, str] | None = None,
        skip: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.shard = shard
        self.pages = pages or {}
        self.skip = skip
        self.operator_extra_links = [PageLink(name) for name in self.pages]
        self.summary: str | None = None
        self.done: tuple[list[str], dict[str, Any]] | None = None
        self.hook = SubprocessHook()

    def execute(self, context: Context) -> Any:
        """Run the command and copy its output to the task's log."""
        if self.skip:
            context["ti"].xcom_push(SUMMARY, f"skipped: {self.skip}")
            raise AirflowSkipException(self.skip)
        lists = (argument if isinstance(argument, list) else [argument] for argument in self.arguments)
        arguments = [*map(str, itertools.chain(*lists)), *([self.shard] if self.shard else [])]
        with private_folder() as folder:
            child = self._child(self._environment(folder, arguments, context), context)
            finished = self.hook.run_command(
                [*child.command, "pipeline", *arguments],
                # Without Rich, the last line of a usage error is the error, and not the frame around it.
                env={**child.environment, "PYTHONUNBUFFERED": "1", "TYPER_USE_RICH": "0"},
                cwd=str(child.folder),
            )
        if finished.exit_code != 0:
            raise self._error(finished, context)
        result = json.loads(finished.output)
        if isinstance(result, dict):
            self.summary, self.done = result.get(SUMMARY), (arguments, result)
            for outlet in self.outlets:
                context["outlet_events"][outlet].extra = result
            for key, value in result.items():
                context["ti"].xcom_push(key, value)
        return result

    def _environment(self, folder: Path, arguments: Sequence[str], context: Context) -> dict[str, str]:
        """The environment of the command. Raises ``AirflowFailException`` if it needs a connection that is unusable."""
        try:
            return child_environment(folder)
        except PipelineError as error:
            # A dataset that was ingested from S3 is not named here, but its ingestion was.
            settings = [value for name, value in os.environ.items() if name.startswith("CAPTION_")]
            if any("s3://" in text for text in (*settings, *arguments)):
                raise self._failure(str(error), context) from error
            self.log.warning("%s No S3 bucket is named, so the command runs without it.", error)
            return dict(os.environ)

    def _child(self, environment: Mapping[str, str], context: Context) -> Child:
        """How the command is run, with the code of the DAG file's checkout, or else the plugin's.

        Raises:
            AirflowFailException: the DAG file does not fit the plugin, or the settings' Python can't run the code.
        """
        try:
            code = find_checkout(context["dag"].fileloc) or find_code()
            child = prepare_child({**environment, **data_variables()}, code)
        except PipelineError as error:
            raise self._failure(str(error), context) from error
        self.log.info("The code is in %s", code or f"the environment of {child.command[0]}")
        return child

    def _failure(
        self, message: str, context: Context, kind: type[AirflowException] = AirflowFailException
    ) -> AirflowException:
        """The error of the task, by default one that no retry helps; pushed for the run note and the notifications."""
        context["ti"].xcom_push(ERROR, message)
        return kind(message)

    def _error(self, finished: SubprocessResult, context: Context) -> AirflowException:
        """The error of a failed command."""
        if finished.output.startswith(UNKNOWN):
            reason = finished.output.removeprefix("Error: ")
            error = mismatch(context["dag"].fileloc, f", with which a command failed ({reason})")
            return self._failure(str(error), context)
        if finished.exit_code == BAD_INPUT:
            return self._failure(finished.output, context)
        message = f"The command exited with status {finished.exit_code}: {finished.output}"
        return self._failure(message, context, AirflowException)

    def result(self, key: str) -> XComArg:
        """The value of a key of the result, as an argument of another task."""
        return XComArg(self, key=key)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What the task has read and written; Airflow's provider for OpenLineage asks for it, if it is installed."""
        from captioning import lineage

        return lineage.operator_lineage(*self.done) if self.done else None

    def on_kill(self) -> None:
        """Stop the command when Airflow stops the task."""
        self.hook.send_sigterm()  # type: ignore[no-untyped-call]


class EndRunOperator(PipelineOperator):
    """Write the record of a run that failed, with the error messages of its failed tasks, and send the run's metrics.

    The record of a run that succeeded exists by then, and stays as it is.

    :param kind: ``night`` or ``retraining``
    """

    def __init__(self, *, kind: str, **kwargs: Any) -> None:
        super().__init__(arguments=["end-run", kind, "{{ run_id }}"], **kwargs)

    def execute(self, context: Context) -> Any:
        """Run the command with the messages of the tasks that have failed."""
        if errors := describe_failures(context):
            self.arguments = [*self.arguments, f"--error={errors}"]
        result = super().execute(context)
        metrics.send(result["measures"], context["dag"].dag_id)
        return result


def extract_features(plan: Sequence[Any]) -> TaskGroup:
    """The tasks that extract missing features, the same in nights and retrainings.

    Args:
        plan: the command that plans the extraction and returns its shards.
    """
    with TaskGroup(
        "features", prefix_group_id=False, tooltip="Encode the images whose features are not in the store"
    ) as features:
        plan_extraction = PipelineOperator(
            task_id="plan_extraction",
            arguments=plan,
            doc_md="Find the images without stored features, and divide them into shards of `CAPTION_SHARD_SIZE`.",
        )
        PipelineOperator.partial(
            task_id="extract",
            arguments=["extract"],
            outlets=[FEATURES],
            map_index_template=MAP_INDEX_TEMPLATE,
            doc_md="Encode the images of a shard and store their features. Skipped if no features are missing.",
            **read_settings().accelerator,
        ).expand(shard=plan_extraction.output)
    return features


def end_run(kind: str) -> EndRunOperator:
    """The teardown task of a DAG: it runs however the run went, and does not decide whether the run failed."""
    teardown: EndRunOperator = EndRunOperator(
        task_id=END_RUN,
        kind=kind,
        execution_timeout=timedelta(minutes=10),
        doc_md="Write the record of a run that failed, with the errors of its tasks, and send the run's metrics. Runs "
        "however the run went.",
    ).as_teardown()
    return teardown

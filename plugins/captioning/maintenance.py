"""The tasks of the maintenance that run no command: one waits until nothing else runs, and one sums the run up."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout

from captioning.names import APPROVAL, ERROR, SUMMARY
from captioning.settings import read_settings

WAIT = timedelta(days=2)
"""How long the maintenance waits: longer than a training may take."""

PAUSE = timedelta(minutes=2)
"""Time between two looks."""

WAITING = ("awaiting_input", "deferred")
"""States of a task that waits for a person: that of Airflow 3.3, and that of earlier versions."""


class AwaitRuns(BaseSensorOperator):
    """Wait, without a slot of a worker, until neither a night nor a retraining of this deployment runs.

    A retraining that waits for an approval does not count: a person may take days, and all that it still needs is kept.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", poke_interval=PAUSE, timeout=WAIT, **kwargs)

    def execute(self, context: Context) -> Any:
        """Wait; fail without a retry if this takes too long."""
        try:
            super().execute(context)
        except AirflowSensorTimeout:
            message = (
                f"{' and '.join(_running(context))} still ran after {WAIT.days} days. Nothing was done: trigger the "
                "maintenance again when no night and no retraining runs."
            )
            context["ti"].xcom_push(ERROR, message)
            raise AirflowFailException(message) from None

    def poke(self, context: Context) -> bool:
        """Whether nothing runs."""
        if running := _running(context):
            self.log.info("waiting for the end of %s", " and ".join(running))
        return not running


class Report(BaseOperator):
    """Leave the summaries of other tasks as that of this one, which becomes the note of the run.

    :param tasks: the ids of the tasks, in the order in which they are shown
    """

    def __init__(self, *, tasks: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = tasks

    def execute(self, context: Context) -> None:
        """Collect the summaries."""
        found = {task: context["ti"].xcom_pull(task_ids=task, key=SUMMARY) for task in self.tasks}
        context["ti"].xcom_push(SUMMARY, "; ".join(f"{task}: {text}" for task, text in found.items() if text))


def _running(context: Context) -> list[str]:
    """The ids of the DAGs of which a run is going on."""
    settings, instance = read_settings(), context["ti"]
    nights = instance.get_dr_count(settings.night_dag, states=["running"])
    retrainings = instance.get_dr_count(settings.retraining_dag, states=["running"])
    waiting = instance.get_ti_count(settings.retraining_dag, task_ids=[APPROVAL], states=list(WAITING))
    counts = {settings.night_dag: nights, settings.retraining_dag: retrainings - waiting}
    return [dag for dag, number in counts.items() if number > 0]

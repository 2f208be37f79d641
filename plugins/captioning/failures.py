"""The failed tasks of a run and their error messages."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from captioning.names import ERROR
from pipeline.errors import printable

LIMIT = 10
"""Failed tasks that a message lists one by one."""

NO_MESSAGE = (
    "no error message: the task was killed or exceeded its time limit, see its log; if it has no log, no worker serves "
    "its queue"
)
"""Stands for the message of a task that has left none."""


class FailedTask(NamedTuple):
    """A failed task instance; ``map_index`` is -1 where the task is not mapped."""

    task_id: str
    map_index: int

    def __str__(self) -> str:
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


def failed_tasks(context: Mapping[str, Any]) -> list[FailedTask]:
    """The failed tasks of the run that a task or a callback of this context belongs to, sorted."""
    dag, run_id = context["dag"], context["run_id"]
    states = context["ti"].get_task_states(dag_id=dag.dag_id, run_ids=[run_id])[run_id]
    found = []
    for name in (name for name, state in states.items() if state == "failed"):
        # Airflow names the instances of a mapped task extract_0, extract_1, ….
        task_id, _, map_index = (name, "", -1) if dag.has_task(name) else name.rpartition("_")
        found.append(FailedTask(task_id, int(map_index)))
    return sorted(found)


def error_message(task: FailedTask, context: Mapping[str, Any]) -> str:
    """The error message that a failed task has left, on one line."""
    error = context["ti"].xcom_pull(task_ids=task.task_id, map_indexes=task.map_index, key=ERROR)
    return printable(error or "") or NO_MESSAGE


def describe_failures(context: Mapping[str, Any]) -> str:
    """The messages of a run's failed tasks in one line, of many the first; empty where none failed."""
    tasks = failed_tasks(context)
    messages = [f"{task}: {error_message(task, context)}" for task in tasks[:LIMIT]]
    if len(tasks) > LIMIT:
        messages.append(f"and {len(tasks) - LIMIT} more failed tasks")
    return "; ".join(messages)

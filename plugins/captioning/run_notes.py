"""A listener that writes the notes of our runs and of their tasks: what was done and how long it took, or the error.

A task of Airflow 3.3 can't write a note (apache/airflow#64890), but it can leave the text as an XCom. When a run has
ended, Airflow calls this listener in the process that noticed it, the scheduler, with the run as it is about to be
written to the database.
"""

from typing import TYPE_CHECKING, NamedTuple

import pendulum
from airflow.listeners import hookimpl

from captioning.failures import NO_MESSAGE, FailedTask
from captioning.names import END_RUN, ERROR, SUMMARY, is_ours
from pipeline.errors import printable

if TYPE_CHECKING:
    from captioning.internals import DagRun, TaskInstance

LENGTH = 1000
"""Maximum characters of a note: Airflow's column holds no more."""


class Message(NamedTuple):
    """The text that a task has left for its note, on one line."""

    task_id: str
    map_index: int
    key: str
    text: str


@hookimpl
def on_dag_run_success(dag_run: "DagRun") -> None:
    """Note the last task's summary at the run."""
    if is_ours(dag_run.dag_id):
        run, messages = note_tasks(dag_run)
        summaries = [each.text for each in messages if each.key == SUMMARY and each.task_id != END_RUN]
        write_note(run, "dag_run_note", _timed(summaries[-1], dag_run.duration) if summaries else "")


@hookimpl
def on_dag_run_failed(dag_run: "DagRun") -> None:
    """Note the error messages of the failed tasks at the run, last those of tasks that have left none."""
    if is_ours(dag_run.dag_id):
        run, messages = note_tasks(dag_run)
        errors = {FailedTask(each.task_id, each.map_index): each.text for each in messages if each.key == ERROR}
        failed = sorted(
            FailedTask(each.task_id, each.map_index) for each in run.task_instances if each.state == "failed"
        )
        errors |= {task: NO_MESSAGE for task in failed if task not in errors}
        write_note(run, "dag_run_note", "\n".join(f"{task}: {text}" for task, text in errors.items()))


def note_tasks(ended: "DagRun") -> tuple["DagRun", list[Message]]:
    """Note each task's message at the task, except at mapped tasks, whose names show it.

    Returns:
        The run as it is in the database, and the messages in the order in which they were left.
    """
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    from captioning.internals import DagRun, XComModel, settings

    # `airflow dags test` passes a run that belongs to no session; this thread's session is committed all the same.
    session = object_session(ended) or settings.Session()  # type: ignore[misc]
    run = session.get_one(DagRun, ended.id)
    columns = (XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value)
    left = select(*columns).where(XComModel.dag_run_id == run.id, XComModel.key.in_((SUMMARY, ERROR)))
    rows = session.execute(left.order_by(XComModel.timestamp))
    messages = [Message(task_id, map_index, key, printable(text)) for task_id, map_index, key, text in rows]
    texts = {each.task_id: each for each in messages if each.map_index < 0}
    for instance in run.task_instances:
        if instance.map_index < 0 and (message := texts.get(instance.task_id)):
            text = _timed(message.text, instance.duration) if message.key == SUMMARY else message.text
            write_note(instance, "task_instance_note", text)
    return run, messages


def _timed(summary: str, seconds: float | None) -> str:
    """A summary with the duration of what it summarizes."""
    return f"{summary} ({pendulum.duration(seconds=max(1, round(seconds or 0))).in_words()})"


def write_note(target: "DagRun | TaskInstance", relation: str, text: str) -> None:
    """Write a note, unless the text is empty or a person has written a note."""
    if text and ((existing := getattr(target, relation)) is None or existing.user_id is None):
        text = text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"
        if existing is None:
            target.note = text
        else:
            existing.content = text

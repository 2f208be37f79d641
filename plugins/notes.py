"""The notes of our runs and of their tasks, as the UI shows them: what was done, in a line, or what went wrong.

A task of Airflow 3.3 can't write a note (apache/airflow#64890), but it can leave what it has to say as an XCom. Where a
run has ended, Airflow calls this listener in the process that has found that out, the scheduler, with the run as it is
about to be written to the database.
"""

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.models import DagRun, TaskInstance

DAGS = ("retrain_captioner", "caption_new_images")

SUMMARY, ERROR = "summary", "error"
"""Keys under which a task leaves what it did, and why it failed."""

LENGTH = 1000
"""Characters of a note, at most: Airflow's column has no more."""


class Said(NamedTuple):
    """What a task has left to say."""

    task_id: str
    map_index: int
    key: str
    text: str


class Notes:
    """Listens to the ends of runs."""

    @hookimpl
    def on_dag_run_success(self, dag_run: "DagRun") -> None:
        """Note what the last task has said."""
        if dag_run.dag_id in DAGS:
            run, said = note_tasks(dag_run)
            note(run, "dag_run_note", next((each.text for each in reversed(said) if each.key == SUMMARY), ""))

    @hookimpl
    def on_dag_run_failed(self, dag_run: "DagRun") -> None:
        """Note why tasks have failed."""
        if dag_run.dag_id in DAGS:
            run, said = note_tasks(dag_run)
            errors = [f"{each.task_id}: {each.text}" for each in said if each.key == ERROR]
            note(run, "dag_run_note", "\n".join(errors))


def note_tasks(ended: "DagRun") -> tuple["DagRun", list[Said]]:
    """Note at each task what it has said. Mapped ones are named by it, and get no note.

    Returns:
        The run as the database knows it, and what was said, in order.
    """
    from airflow import settings
    from airflow.models import DagRun
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    # `airflow dags test` hands over a run that belongs to no session; this thread's is committed all the same.
    session = object_session(ended) or settings.Session()
    run = session.get_one(DagRun, ended.id)
    columns = (XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value)
    left = select(*columns).where(XComModel.dag_run_id == run.id, XComModel.key.in_((SUMMARY, ERROR)))
    said = [Said(*row) for row in session.execute(left.order_by(XComModel.timestamp))]
    texts = {each.task_id: each.text for each in said if each.map_index < 0}
    for instance in run.task_instances:
        if instance.map_index < 0 and instance.task_id in texts:
            note(instance, "task_instance_note", texts[instance.task_id])
    return run, said


def note(what: "DagRun | TaskInstance", relation: str, text: str) -> None:
    """Write a note, unless there is nothing to say, or a person has written one."""
    if text and ((known := getattr(what, relation)) is None or known.user_id is None):
        text = text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"
        if known is None:
            what.note = text
        else:
            known.content = text


class NotesPlugin(AirflowPlugin):
    """Tells Airflow of the listener."""

    name = "notes"
    listeners: ClassVar[list[Any]] = [Notes()]

"""The notes of runs and tasks, which a listener writes when a run has ended."""

import itertools
import re

import pendulum
import pytest

DURATION = r"\d+ seconds?"
"""The duration of a short task or run in its note."""

MONDAY = pendulum.datetime(2026, 1, 5, tz="UTC")


@pytest.fixture
def run(airflow_home):
    """Runs a DAG of chained tasks, each of which pushes a text; returns the notes by task, and the run's note."""
    from airflow.models import DagRun, TaskInstance
    from airflow.sdk import DAG, task
    from airflow.utils.session import create_session
    from sqlalchemy import select

    @task
    def push(key, text, ti=None):
        if text:
            ti.xcom_push(key, text)
        if key == "error":
            raise RuntimeError(text)

    def run(messages):
        with DAG("retrain_captioner", schedule=None, start_date=MONDAY) as dag:
            tasks = [push.override(task_id=task_id)(key, text) for task_id, key, text in messages]
            for before, after in itertools.pairwise(tasks):
                before >> after
        run_id = dag.test(logical_date=pendulum.now("UTC")).run_id  # at which such a run is said to have started
        with create_session() as session:
            of_run = select(DagRun).where(DagRun.run_id == run_id)
            of_tasks = select(TaskInstance).where(TaskInstance.run_id == run_id)
            notes = {instance.task_id: instance.note for instance in session.scalars(of_tasks).unique()}
            return notes, session.scalars(of_run).unique().one().note

    return run


def test_the_last_summary_is_the_run_s_note(run):
    """Each task's note is its summary; the note of a run that succeeded is the last one before its record is ended."""
    messages = [
        ("train", "summary", "20 epochs"),
        ("gate", "summary", "promoted"),
        ("emit_champion_event", "version", "v1"),
        ("end_run", "summary", "the record stays"),
    ]
    tasks, note = run(messages)
    assert {task: note and re.sub(DURATION, "…", note) for task, note in tasks.items()} == {
        "train": "20 epochs (…)",
        "gate": "promoted (…)",
        "emit_champion_event": None,
        "end_run": "the record stays (…)",
    }
    assert re.fullmatch(rf"promoted \({DURATION}\)", note)


def test_a_failed_run_s_note_is_its_errors(run):
    """The note of a run that failed names the failed task and its error, up to the maximum length of a note."""
    tasks, note = run([("train", "summary", "20 epochs"), ("evaluate", "error", "no test image " * 100)])
    assert tasks["train"].startswith("20 epochs (")
    assert tasks["evaluate"].startswith("no test image")
    assert note.startswith("evaluate: no test image no")
    assert len(note) == len(tasks["evaluate"]) == 1000
    assert note[-1] == tasks["evaluate"][-1] == "…"


def test_a_failed_task_without_a_message(run):
    """The note of a run says so where a failed task has left no message, as one that no worker has taken."""
    tasks, note = run([("train", "error", "")])
    assert tasks == {"train": None}
    assert note == (
        "train: no error message: the task was killed or exceeded its time limit, see its log; if it has no log, no "
        "worker serves its queue"
    )


def test_a_message_is_one_line_of_the_note(run):
    """Whatever the key of an image in it."""
    tasks, note = run([("train", "error", "a\ngate: promoted\u202egpj.b")])
    assert tasks["train"] == r"a\ngate: promoted\u202egpj.b"
    assert note == f"train: {tasks['train']}"


def test_other_dags_are_left_alone(airflow_home):
    """Runs of other DAGs get no note."""
    from airflow.models import DagRun

    from captioning import run_notes

    run = DagRun(dag_id="another", run_id="r")
    run_notes.on_dag_run_success(run)
    run_notes.on_dag_run_failed(run)
    assert run.note is None


def test_the_listener_is_registered(airflow_home):
    """Airflow knows the plugin by its name and calls its listener once."""
    from airflow.listeners.listener import get_listener_manager
    from airflow.plugins_manager import get_plugin_info

    from captioning import run_notes

    assert {"captioning_gallery", "captioning_run_notes"} <= {plugin["name"] for plugin in get_plugin_info()}
    plugins = [function.plugin for function in get_listener_manager().hook.on_dag_run_success.get_hookimpls()]
    assert plugins.count(run_notes) == 1


def test_a_person_s_note_stays(airflow_home):
    """A note is replaced when a run ends again, unless a person has written it."""
    from airflow.models import DagRun

    from captioning.run_notes import write_note

    run = DagRun(dag_id="retrain_captioner", run_id="r")
    for text in ("failed", "promoted", ""):
        write_note(run, "dag_run_note", text)
    assert (run.note, run.dag_run_note.user_id) == ("promoted", None)
    run.dag_run_note.content, run.dag_run_note.user_id = "looked at it", "admin"
    write_note(run, "dag_run_note", "promoted again")
    assert (run.note, run.dag_run_note.user_id) == ("looked at it", "admin")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 second"), (59.6, "1 minute"), (3723.4, "1 hour 2 minutes 3 seconds"), (None, "1 second")],
)
def test_durations_are_words(seconds, text):
    """A summary is followed by how long the work took, in whole seconds."""
    from captioning.run_notes import _timed

    assert _timed("20 epochs", seconds) == f"20 epochs ({text})"

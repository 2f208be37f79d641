"""The notes of runs and tasks, which a plugin writes where a run has ended."""

import itertools

import pendulum
import pytest

MONDAY = pendulum.datetime(2026, 1, 5, tz="UTC")


@pytest.fixture
def run(airflow_home):
    """Runs a DAG whose tasks leave what they are told to, one after another; the notes by task, and the run's."""
    from airflow.models import DagRun, TaskInstance
    from airflow.sdk import DAG, task
    from airflow.utils.session import create_session
    from sqlalchemy import select

    @task
    def say(key, text, ti=None):
        ti.xcom_push(key, text)
        if key == "error":
            raise RuntimeError(text)

    def run(said):
        with DAG("retrain_captioner", schedule=None, start_date=MONDAY) as dag:
            tasks = [say.override(task_id=task_id)(key, text) for task_id, key, text in said]
            for before, after in itertools.pairwise(tasks):
                before >> after
        run_id = dag.test(logical_date=MONDAY).run_id
        with create_session() as session:
            of_run = select(DagRun).where(DagRun.run_id == run_id)
            of_tasks = select(TaskInstance).where(TaskInstance.run_id == run_id)
            notes = {instance.task_id: instance.note for instance in session.scalars(of_tasks).unique()}
            return notes, session.scalars(of_run).unique().one().note

    return run


def test_the_last_summary_is_the_run_s_note(run):
    """Each task's note is its summary; that of a run that succeeded is the last one."""
    said = [("train", "summary", "20 epochs"), ("consider", "summary", "promoted"), ("announce", "version", "v1")]
    tasks, note = run(said)
    assert tasks == {"train": "20 epochs", "consider": "promoted", "announce": None}
    assert note == "promoted"


def test_a_failed_run_s_note_is_its_errors(run):
    """The note of a run that failed names the failed task and its error, as far as a note can be long."""
    tasks, note = run([("train", "summary", "20 epochs"), ("evaluate", "error", "no test image " * 100)])
    assert tasks["train"] == "20 epochs"
    assert tasks["evaluate"].startswith("no test image")
    assert note.startswith("evaluate: no test image no")
    assert len(note) == len(tasks["evaluate"]) == 1000
    assert note[-1] == tasks["evaluate"][-1] == "…"


def test_other_dags_are_left_alone(airflow_home):
    """Of runs of DAGs that are not ours nothing is asked and nothing noted."""
    from airflow.models import DagRun
    from airflow.plugins_manager import get_plugin_info

    assert "notes" in {plugin["name"] for plugin in get_plugin_info()}
    from notes import Notes  # the plugin, as Airflow has imported it

    run = DagRun(dag_id="somebody_s", run_id="r")
    Notes().on_dag_run_success(run)
    Notes().on_dag_run_failed(run)
    assert run.note is None


def test_a_person_s_note_stays(airflow_home):
    """A note is replaced where a run ends again, but not one that a person has written."""
    from airflow.models import DagRun
    from airflow.plugins_manager import get_plugin_info

    assert "notes" in {plugin["name"] for plugin in get_plugin_info()}
    from notes import note  # the plugin, as Airflow has imported it

    run = DagRun(dag_id="retrain_captioner", run_id="r")
    for text in ("failed", "promoted", ""):
        note(run, "dag_run_note", text)
    assert (run.note, run.dag_run_note.user_id) == ("promoted", None)
    run.dag_run_note.content, run.dag_run_note.user_id = "looked at it", "admin"
    note(run, "dag_run_note", "promoted again")
    assert (run.note, run.dag_run_note.user_id) == ("looked at it", "admin")

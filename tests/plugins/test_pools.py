"""The pool of the accelerator, which a listener creates when a run starts without it."""

import logging
import uuid

import pytest
from sqlalchemy import insert, select


@pytest.fixture
def session(airflow_home):
    """A session whose transaction is rolled back, and which refuses commits as the scheduler's does."""
    from airflow.models import Pool
    from airflow.utils.session import create_session
    from airflow.utils.sqlalchemy import prohibit_commit

    with create_session() as session:
        with prohibit_commit(session):
            session.delete(session.scalar(select(Pool).where(Pool.pool == "gpu")))
            session.flush()
            yield session
        session.rollback()


def start(dag_id, session, pool="gpu"):
    """Start a run with a task in a pool, as the scheduler does; return the slots of each pool."""
    from airflow.models import DagRun, Pool, TaskInstance

    run = DagRun(dag_id=dag_id, run_id=uuid.uuid4().hex, run_type="manual", state="running")
    session.add(run)
    session.flush()
    task = {"dag_id": dag_id, "run_id": run.run_id, "map_index": -1, "pool_slots": 1, "max_tries": 0}
    for task_id, name in (("list_inbox", "default_pool"), ("caption", pool), ("extract", pool)):
        values = {**task, "task_id": task_id, "pool": name, "queue": name}
        session.execute(insert(TaskInstance).values(id=uuid.uuid4(), **values))
    with session.no_autoflush:
        run.notify_dagrun_state_changed("started")
        pools = dict(session.execute(select(Pool.pool, Pool.slots)).all())
    session.expunge(run)
    return pools


@pytest.mark.parametrize("dag_id", ["retrain_captioner", "team_a_caption_new_images"])
def test_a_missing_pool_is_created(session, dag_id, caplog):
    """It gets one slot within the scheduler's transaction, and the scheduler's log says so; a second run finds it."""
    with caplog.at_level(logging.WARNING):
        assert start(dag_id, session)["gpu"] == 1
        assert start(dag_id, session)["gpu"] == 1
    assert [record.message for record in caplog.records if "pool gpu" in record.message] == [
        "There was no pool gpu: it has been created with one slot. If more than one worker serves the queue gpu, give "
        "it as many slots: airflow pools set gpu SLOTS DESCRIPTION"
    ]


def test_an_existing_pool_keeps_its_slots(session):
    """A pool that a person has made, even one without slots, stays as it is."""
    from airflow.models import Pool

    session.add(Pool(pool="gpu", slots=0, include_deferred=False))
    session.flush()
    assert start("caption_new_images", session)["gpu"] == 0


def test_each_deployment_has_its_pool(session):
    """The scheduler knows the variables of one deployment at most: a run's tasks say which pool they need."""
    assert start("team_b_caption_new_images", session, pool="b")["b"] == 1


def test_other_dags_need_no_pool(session):
    """A run of another DAG creates none."""
    assert "gpu" not in start("another", session)


def test_two_schedulers_create_one_pool(session, monkeypatch):
    """The pool that another scheduler has just created is left alone, and the transaction goes on."""
    from airflow.models import Pool

    session.add(Pool(pool="gpu", slots=4, include_deferred=False))
    session.flush()
    with monkeypatch.context() as patch:
        # It was not there yet.
        patch.setattr("captioning.pools._missing_pools", lambda *_: [("gpu", "gpu")])
        assert start("caption_new_images", session)["gpu"] == 4
    assert session.scalar(select(Pool.slots).where(Pool.pool == "gpu")) == 4

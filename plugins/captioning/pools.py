"""A listener that creates the pools of a run where there are none: its tasks would wait for them for ever.

Airflow calls it in the scheduler when a run starts, before any task of the run can be queued.
"""

import logging
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from captioning.names import is_ours

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from captioning.internals import DagRun

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_running(dag_run: "DagRun") -> None:
    """Create the pools that the run's tasks name, with one slot, unless they exist."""
    if not is_ours(dag_run.dag_id):
        return
    from sqlalchemy.orm import Session

    session = Session.object_session(dag_run)
    if session is None:
        return
    for pool, queue in _missing_pools(session, dag_run):
        _create_pool(session, pool, queue)


def _missing_pools(session: "Session", dag_run: "DagRun") -> list[tuple[str, str | None]]:
    """The pools of the run's tasks that do not exist, each with the queue of its tasks."""
    from sqlalchemy import select

    from captioning.internals import Pool, TaskInstance

    tasks = select(TaskInstance.pool, TaskInstance.queue).where(
        TaskInstance.dag_id == dag_run.dag_id,
        TaskInstance.run_id == dag_run.run_id,
        TaskInstance.pool.not_in(select(Pool.pool)),
    )
    return [(pool, queue) for pool, queue in session.execute(tasks.distinct())]


def _create_pool(session: "Session", name: str, queue: str | None) -> None:
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    from captioning.internals import Pool

    pool = {"pool": name, "slots": 1, "include_deferred": False, "description": "created when a run needed it"}
    # The scheduler forbids its session to commit here, and a savepoint of the session would count as one. Without any,
    # a second scheduler that has just created the pool would make this one lose its transaction.
    connection = session.connection()
    try:
        with connection.begin_nested():
            connection.execute(insert(Pool).values(pool))
    except IntegrityError:
        return
    log.warning(
        "There was no pool %s: it has been created with one slot. If more than one worker serves the queue %s, give it "
        "as many slots: airflow pools set %s SLOTS DESCRIPTION",
        name,
        queue,
        name,
    )

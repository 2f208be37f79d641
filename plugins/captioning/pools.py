"""A listener that creates the pool of the accelerator where there is none: its tasks would wait for it for ever.

Airflow calls it in the scheduler when a run starts, before any task of the run can be queued.
"""

import logging
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from captioning.names import GPU, NIGHT_DAG, RETRAINING_DAG

if TYPE_CHECKING:
    from airflow.models import DagRun

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_running(dag_run: "DagRun") -> None:
    """Create the pool, with one slot, unless it exists."""
    if dag_run.dag_id not in (RETRAINING_DAG, NIGHT_DAG):
        return
    from airflow.models import Pool
    from sqlalchemy import insert, select
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import Session

    session = Session.object_session(dag_run)
    if session is None or session.scalar(select(Pool.id).where(Pool.pool == GPU)) is not None:
        return
    pool = {"pool": GPU, "slots": 1, "include_deferred": False, "description": "created when a run needed it"}
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
        *[GPU] * 3,
    )

"""What the form of a retraining suggests: the datasets that are in the store."""

import json
import logging
import os
import subprocess
import sys
from threading import Thread

from airflow.sdk import get_parsing_context

from dags.connections import aws_environment
from pipeline.settings import PROJECT, Settings

PATIENCE = 5.0
"""Seconds that the store may take to be listed."""

DATASETS = 20
"""Suggested, at most."""

log = logging.getLogger(__name__)


def datasets() -> list[str]:
    """URIs of the newest datasets in the store; none where it can't be listed at once.

    They are asked for in a child process, which ends in time whatever the store does, and keeps S3's libraries and
    credentials out of the process that reads DAGs. Nobody is asked where a DAG is read only to run a task of it.
    """
    if get_parsing_context().task_id is not None:
        return []
    found: list[str] = []
    asking = Thread(target=_ask, args=(found,), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if asking.is_alive():
        log.warning("The form suggests no datasets: listing %s took over %g seconds.", Settings().store, PATIENCE)
        return []
    return found


def _ask(found: list[str]) -> None:
    try:
        store = Settings().store
        connection = aws_environment(log) if store.startswith("s3://") else {}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "datasets", "--limit", str(DATASETS)],
            env={**os.environ, **connection},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            log.warning("The form suggests no datasets: %s", done.stderr.strip().splitlines()[-1])
        else:
            found.extend(json.loads(done.stdout))
    except Exception as error:
        log.warning("The form suggests no datasets: %s", error)

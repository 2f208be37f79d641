"""Stopping the Airflow that `make up` started."""

import os
import subprocess
import sys

from tests.support.paths import PROJECT

STOP = """
import subprocess, sys
from scripts import up
airflow = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stdout=-1, stderr=-3)
airflow.stdout.readline()
sys.stdin.readline()
up.stop(airflow)
sys.stderr.write(f"stopped with {airflow.returncode}.")
"""

RUN_UNTIL_INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(42))
print("ready", flush=True)
time.sleep(30)
"""


def test_airflow_is_stopped_where_nobody_reads(tmp_path):
    """If standard output is closed, as when the terminal is gone, Airflow is still stopped cleanly."""
    environment = {
        **os.environ,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": "0",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(tmp_path / "passwords.json"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", STOP, RUN_UNTIL_INTERRUPTED],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        log = process.stderr.read()
    assert "stopped with 42" in log
    assert "Traceback" not in log

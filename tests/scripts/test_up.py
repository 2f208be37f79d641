"""Starting and stopping Airflow, as `make up` does."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.airflow_server import free_ports
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


AIRFLOW = f"""#!{sys.executable}
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
assert sys.argv[1:] == ["standalone"]
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
http.server.HTTPServer(("127.0.0.1", int(os.environ["AIRFLOW__API__PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def up(tmp_path):
    """Starts `make up`'s script with a program in Airflow's place."""
    [port] = free_ports(1)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(tmp_path / "passwords.json"),
        "CAPTION_STORE": (tmp_path / "store").as_uri(),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), sysconfig.get_path("purelib")]),
    }
    # The script runs what lies beside its interpreter.
    (tmp_path / "python").symlink_to(Path(sys.executable).resolve())

    def start(program):
        (tmp_path / "airflow").write_text(program)
        (tmp_path / "airflow").chmod(0o755)
        command = [tmp_path / "python", "-m", "scripts.up"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=PROJECT, env=environment, text=True, **pipes)

    return start


def test_it_says_where_airflow_is_and_stops_it(up, tmp_path):
    """Once the server answers, one reads URL, login and what to do. SIGTERM stops it; a second start is refused."""
    with up(AIRFLOW) as process:
        assert process.stdout.readline().startswith("starting Airflow (log: ")
        assert process.stdout.readline().startswith("Airflow is at http://127.0.0.1:")
        assert process.stdout.readline() == "  user:     admin\n"
        password = process.stdout.readline().removeprefix("  password: ").strip()
        passwords = tmp_path / "passwords.json"
        assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
        assert json.loads(passwords.read_text()) == {"admin": password}
        # The store is empty.
        assert re.fullmatch(
            r"There is no model yet. Train one: \S+, Trigger. Or, .*: make demo\n", process.stdout.readline()
        )
        assert process.stdout.readline() == "Ctrl-C stops it.\n"
        with up(AIRFLOW) as second:
            assert "is already in use" in second.communicate()[1]
        assert second.returncode == 2
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopping …\nstopped\n"
    assert process.returncode == 0


def test_an_airflow_that_does_not_start(up, tmp_path):
    """The message names the log."""
    with up(f"#!{sys.executable}\nraise SystemExit(1)\n") as process:
        assert f"Airflow did not start: read {tmp_path}/standalone.log" in process.communicate()[1]
    assert process.returncode == 1

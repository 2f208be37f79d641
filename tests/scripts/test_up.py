"""Starting and stopping Airflow, as `make up` does."""

import importlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.settings import Settings
from tests.support.airflow_server import free_ports
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

SERVER = f"""#!{sys.executable}
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
assert sys.argv[1:] == ["standalone"]
print(os.getpid(), flush=True)
signal.signal(signal.SIGINT, STOP)
http.server.HTTPServer(("127.0.0.1", int(os.environ["AIRFLOW__API__PORT"])), Handler).serve_forever()
"""

AIRFLOW = SERVER.replace("STOP", "lambda *_: sys.exit(0)")

STUBBORN = SERVER.replace("STOP", "signal.SIG_IGN")
"""Goes on after Ctrl-C."""

SLOW = SERVER.replace("STOP", "lambda *_: sys.exit(0)").replace("http.server.HTTPServer(", "signal.pause(), (")
"""Never answers."""


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
        "CAPTION_DAG_PREFIX": "team_a_",
        "CAPTION_STORE": (tmp_path / "store").as_uri(),
        "CAPTION_INBOX": (tmp_path / "inbox").as_uri(),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "plugins"), sysconfig.get_path("purelib")]),
    }
    # The script runs what lies beside its interpreter.
    (tmp_path / "python").symlink_to(Path(sys.executable).resolve())

    def start(program, *, port=port, ignored=None):
        (tmp_path / "airflow").write_text(program)
        (tmp_path / "airflow").chmod(0o755)
        return subprocess.Popen(
            [tmp_path / "python", "-m", "scripts.up"],
            cwd=PROJECT,
            env={**environment, "AIRFLOW__API__PORT": str(port)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)),  # noqa: PLW1509 - one thread
        )

    return start


def ready(process):
    """Wait until it has said all; what it said."""
    lines = []
    while not lines or lines[-1] != "Ctrl-C stops it.\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return lines


def has_ended(tmp_path):
    """Whether the program in Airflow's place, the process that wrote the log, is no more."""
    return not Path("/proc", (tmp_path / "standalone.log").read_text().split()[0]).exists()


def test_it_says_where_airflow_is_and_stops_it(up, tmp_path):
    """Once the server answers, one reads URL, login and what to do. SIGTERM stops it; a second start is refused."""
    with up(AIRFLOW) as process:
        first, url, user, password, step, _ = ready(process)
        assert first.startswith("starting Airflow (log: ")
        assert url.startswith("Airflow is at http://127.0.0.1:")
        assert user == "  user:     admin\n"
        passwords = tmp_path / "passwords.json"
        assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
        assert json.loads(passwords.read_text()) == {"admin": password.removeprefix("  password: ").strip()}
        # The store is empty.
        assert re.fullmatch(
            r"There is no model yet. Train one: \S+/dags/team_a_retrain_captioner, Trigger. Or, .*: make demo\n", step
        )
        with up(AIRFLOW) as second:
            assert "is not free (Address already in use" in second.communicate()[1]
        assert second.returncode == 2
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopping … (Ctrl-C again kills it)\nstopped\n"
    assert process.returncode == 0
    assert has_ended(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_kills_an_airflow_that_does_not_stop(up, tmp_path, number):
    """Neither Ctrl-C twice nor the end of the terminal leaves a process of Airflow behind."""
    with up(STUBBORN) as process:
        ready(process)
        process.send_signal(number)
        assert process.stdout.readline().startswith("stopping …")
        process.send_signal(number)
        assert process.stdout.read() == "killing it\nstopped\n"
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert has_ended(tmp_path)


def test_nohup_keeps_it(up, tmp_path):
    """If SIGHUP is ignored, it stays so."""
    with up(AIRFLOW, ignored=signal.SIGHUP) as process:
        ready(process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().startswith("stopping …")
    assert process.returncode == 0


def test_airflow_is_stopped_where_nobody_reads(up, tmp_path):
    """If standard output is closed, as when the terminal is gone, Airflow is still stopped cleanly."""
    with up(AIRFLOW) as process:
        ready(process)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert has_ended(tmp_path)


def test_airflow_is_stopped_while_it_starts(up, tmp_path):
    """Ctrl-C before the server answers is no failure."""
    with up(SLOW) as process:
        assert process.stdout.readline().startswith("starting Airflow")
        wait_for("the start of Airflow", (tmp_path / "standalone.log").read_text)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("stopping … (Ctrl-C again kills it)\nstopped\n", "")
    assert process.returncode == 0
    assert has_ended(tmp_path)


def test_an_airflow_that_does_not_start(up, tmp_path):
    """The message names the log."""
    with up(f"#!{sys.executable}\nraise SystemExit(1)\n") as process:
        assert f"Airflow did not start: read {tmp_path}/standalone.log" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize("port", ["", "abc", "0", "-1", "65536", "80802", "８０８０"])
def test_what_is_no_port_is_refused(up, tmp_path, port):
    """At once, in a line, and without a start of Airflow."""
    with up(AIRFLOW, port=port) as process:
        assert process.communicate() == (
            "",
            f"error: AIRFLOW__API__PORT is not a port: expected a number from 1 to 65535. Received: {port!r}\n",
        )
    assert process.returncode == 2
    assert not (tmp_path / "standalone.log").exists()


def test_a_port_of_a_program_that_speaks_no_http_is_refused(up, tmp_path):
    """It need not answer at all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with up(AIRFLOW, port=port) as process:
            error = process.communicate()[1]
    assert error.startswith(f"error: http://127.0.0.1:{port} is not free (Address already in use")
    assert error.endswith("stop the program there, or set another AIRFLOW__API__PORT.\n")
    assert process.returncode == 2
    assert not (tmp_path / "standalone.log").exists()


def test_the_inbox_of_the_default_is_created(tmp_path, monkeypatch):
    """Another folder that does not exist may be a mistake, which a night reports."""
    for name in ("AIRFLOW__API__HOST", "AIRFLOW__API__PORT", "AIRFLOW_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "")
    up = importlib.import_module("scripts.up")
    monkeypatch.setattr(up, "DATA", tmp_path / "data")
    up.make_default_inbox(Settings(inbox=(tmp_path / "data/in-box").as_uri()))
    assert list(tmp_path.iterdir()) == []
    up.make_default_inbox(Settings(inbox=(tmp_path / "data/inbox").as_uri()))
    assert (tmp_path / "data/inbox").is_dir()

"""Run Airflow in the foreground until Ctrl-C, and print its URL and login. `make up` sets the environment."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TextIO

from captioning.settings import read_settings as read_airflow_settings
from pipeline.captioner.registry import find_champion
from pipeline.errors import PipelineError, exit_on_error
from pipeline.settings import DATA, Settings, read_settings
from pipeline.storage import open_bucket
from scripts.prepare import write_login

HOST, PORT = os.environ["AIRFLOW__API__HOST"], os.environ["AIRFLOW__API__PORT"]
URL = f"http://{HOST}:{PORT}"
PASSWORDS = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
LOG = Path(os.environ["AIRFLOW_HOME"], "standalone.log")
START_TIMEOUT = 180  # seconds
STOP_TIMEOUT = 60  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `kill`, and a terminal that is closed


def main() -> int:
    """Run until Ctrl-C, or another of ``SIGNALS``; the exit status is 0 unless Airflow failed."""
    with exit_on_error():
        check_port()
        make_default_inbox(read_settings())
        retraining_dag = read_airflow_settings().retraining_dag
    password = admin_password()
    with LOG.open("w") as log:
        airflow = Airflow(log)
    try:
        say(f"starting Airflow (log: {LOG}) …")
        deadline = time.monotonic() + START_TIMEOUT
        while airflow.runs() and not (started := is_up()) and time.monotonic() < deadline:
            time.sleep(0.5)
        if not airflow.stopping and not (airflow.runs() and started):
            say(f"Airflow did not start: read {LOG}", sys.stderr)
            return 1
        if not airflow.stopping:
            say(f"Airflow is at {URL}\n  user:     admin\n  password: {password}")
            # A bucket that does not answer keeps nobody from the login.
            say(f"{next_step(retraining_dag)}Ctrl-C stops it.")
        return airflow.wait()
    finally:
        airflow.end()


def check_port() -> None:
    """Raise ``PipelineError`` if Airflow can't listen on the port."""
    if not (PORT.isascii() and PORT.isdigit() and 0 < int(PORT) < 1 << 16):
        raise PipelineError(f"AIRFLOW__API__PORT is not a port: expected a number from 1 to 65535. Received: {PORT!r}")
    try:
        socket.create_server((HOST, int(PORT))).close()
    except OSError as error:
        raise PipelineError(
            f"{URL} is not free ({error.strerror}): stop the program there, or set another AIRFLOW__API__PORT."
        ) from error


def make_default_inbox(settings: Settings) -> None:
    """Create the inbox if it is the folder of the default; a night reports another that does not exist."""
    if settings.inbox == (DATA / "inbox").as_uri():
        (DATA / "inbox").mkdir(parents=True, exist_ok=True)


def next_step(retraining_dag: str) -> str:
    """What to do in a store without a champion, in a line; empty where there is one, or where nobody can say."""
    try:
        if find_champion(open_bucket(Settings().store)):
            return ""
    except Exception:  # such as credentials that only Airflow's connection has: its tasks will say so
        return ""
    return (
        f"There is no model yet. Train one: {URL}/dags/{retraining_dag}, Trigger. Or, in another terminal: make demo\n"
    )


class Airflow:
    """`airflow standalone` in a child process. The first of ``SIGNALS`` asks it to stop, and the second kills it.

    The handlers raise nothing, so that no signal ends this process before Airflow.
    """

    def __init__(self, log: IO[str]) -> None:
        self.stopping = False
        # A signal that arrives before the handlers are set waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        # In a session of its own, Airflow gets Ctrl-C once, from this process, and not from the terminal as well. It
        # stops all its parts on SIGINT only, which a shell may have set to be ignored.
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("airflow")), "standalone"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_reset_signals,  # noqa: PLW1509 - one thread
        )
        for number in (*SIGNALS, signal.SIGALRM):
            # `nohup` has SIGHUP ignored.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self.stop())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for its end. Returns its exit status, or 0 if it was stopped."""
        status = self.process.wait()
        return 0 if self.stopping else status

    def stop(self) -> None:
        """Ask Airflow to stop; kill it if it was asked before, or if it takes too long."""
        if self.stopping:
            say("killing it")
            self.kill()
        elif self.runs():
            self.stopping = True
            say("stopping … (Ctrl-C again kills it)")
            self.process.send_signal(signal.SIGINT)
            signal.alarm(STOP_TIMEOUT)

    def end(self) -> None:
        """Stop Airflow, if it runs, and all processes that it has left."""
        if self.runs() and not self.stopping:
            self.stop()
        self.process.wait()
        self.kill()
        say("stopped")

    def kill(self) -> None:
        """Kill all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _reset_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def say(text: str, stream: TextIO | None = sys.stdout) -> None:
    """Print at once. A terminal or a reader that is gone changes nothing: Airflow must be stopped all the same."""
    if stream is not None:
        with contextlib.suppress(OSError):
            os.write(stream.fileno(), f"{text}\n".encode())


def is_up() -> bool:
    """Whether the API server answers."""
    try:
        with urllib.request.urlopen(f"{URL}/api/v2/version", timeout=2) as answer:  # noqa: S310 - always http
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False


def admin_password() -> str:
    """The password of the user admin, generated on the first start and kept in a file that only its owner can read."""
    if not PASSWORDS.exists():
        write_login(PASSWORDS, secrets.token_urlsafe(9))
    return str(json.loads(PASSWORDS.read_text())["admin"])


if __name__ == "__main__":
    sys.exit(main())

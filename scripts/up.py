"""Run Airflow in the foreground until Ctrl-C, and print its URL and login. `make up` sets the environment."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

from pipeline.captioner.registry import find_champion
from pipeline.settings import Settings
from pipeline.storage import open_bucket

HOST, PORT = os.environ["AIRFLOW__API__HOST"], os.environ["AIRFLOW__API__PORT"]
URL = f"http://{HOST}:{PORT}"
PASSWORDS = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
LOG = Path(os.environ["AIRFLOW_HOME"], "standalone.log")
START_TIMEOUT = 180  # seconds


def main() -> int:
    """Run until Ctrl-C (or SIGTERM); the exit status is 0 unless Airflow failed."""
    if is_up():
        sys.stderr.write(f"{URL} is already in use: stop the server there, or set another AIRFLOW__API__PORT.\n")
        return 2
    password = admin_password()
    with LOG.open("w") as log:
        # In a session of its own, Airflow gets Ctrl-C once, from this process, and not from the terminal as well. It
        # stops all its parts on SIGINT only, which a shell may have set to be ignored.
        airflow = subprocess.Popen(
            [str(Path(sys.executable).with_name("airflow")), "standalone"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread
        )
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            say(f"starting Airflow (log: {LOG}) …")
            deadline = time.monotonic() + START_TIMEOUT
            while not is_up() and airflow.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
            if not is_up():
                sys.stderr.write(f"Airflow did not start: read {LOG}\n")
                return 1
            say(f"Airflow is at {URL}\n  user:     admin\n  password: {password}")
            # A bucket that does not answer keeps nobody from the login.
            say(f"{next_step()}Ctrl-C stops it.")
            return airflow.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop(airflow)


def next_step() -> str:
    """What to do in a store without a champion, in a line; empty where there is one, or where nobody can say."""
    try:
        if find_champion(open_bucket(Settings().store)):
            return ""
    except Exception:  # such as credentials that only Airflow's connection has: its tasks will say so
        return ""
    return (
        f"There is no model yet. Train one: {URL}/dags/retrain_captioner, Trigger. Or, in another terminal: make demo\n"
    )


def stop(airflow: "subprocess.Popen[bytes]") -> None:
    """Stop Airflow, and kill it if that takes too long."""
    if airflow.poll() is None:
        airflow.send_signal(signal.SIGINT)
        say("stopping …")
        try:
            airflow.wait(60)
        except subprocess.TimeoutExpired:
            say("Airflow did not stop within a minute: killing it", sys.stderr)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(airflow.pid, signal.SIGKILL)
    say("stopped")


def say(text: str, stream: TextIO = sys.stdout) -> None:
    """Print at once; ignore a closed terminal, because Airflow must be stopped all the same."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=stream, flush=True)


def is_up() -> bool:
    """Whether the API server answers."""
    try:
        with urllib.request.urlopen(f"{URL}/api/v2/version", timeout=2) as answer:  # noqa: S310 - always http
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def admin_password() -> str:
    """The password of the user admin, generated on the first start and kept in a file that only its owner can read."""
    if not PASSWORDS.exists():
        descriptor = os.open(PASSWORDS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"admin": secrets.token_urlsafe(9)}, file)
    return str(json.loads(PASSWORDS.read_text())["admin"])


if __name__ == "__main__":
    sys.exit(main())

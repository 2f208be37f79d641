"""How processes of ours are run, and processes that others have started, as Linux shows them."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.serving.client import Child
from tests.support.paths import PROJECT


def own_python(environment: Mapping[str, str]) -> Child:
    """How the Python of the tests runs a module of the checkout."""
    return [sys.executable, "-m"], PROJECT, environment


def stat(pid: int) -> list[str]:
    """What Linux says of a process after its name, which may have spaces: its state, its parent, and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = stat(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(folder.name))
    return found


def suspend(pid: int) -> None:
    """Stop a process, and wait until it has stopped: until then it may go on reading."""
    os.kill(pid, signal.SIGSTOP)
    while stat(pid)[0] != "T":
        time.sleep(0.001)


def gone(pids: Iterable[int]) -> bool:
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)

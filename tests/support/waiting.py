"""Waiting for something to happen in another process."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 180) -> Any:
    """Ask until the answer is true, and return it.

    Raises:
        TimeoutError: it has not become so.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {seconds:g} seconds for {what}.")
        time.sleep(0.2)
    return answer

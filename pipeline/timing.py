"""Where the time of a unit of work goes, so that a slow stage is seen."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by stage, summed over all threads that work on it: stages that overlap add up to more than the clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done in this context for a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.monotonic() - start

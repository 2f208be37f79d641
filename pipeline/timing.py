"""How long the sections of a unit of work take, to find the slow one."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by section, summed over all threads: sections that overlap add up to more than wall time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add the time spent in this context to a section."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.monotonic() - start

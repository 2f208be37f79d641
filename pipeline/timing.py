"""Where the time of a unit of work goes, so that a slow stage is seen."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.storage import Bucket, ObjectNotFoundError


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


def save(shard: str, stopwatch: Stopwatch, store: Bucket) -> None:
    """Note what a shard took, beside its plan."""
    store.put(_key(shard), json.dumps(stopwatch.seconds).encode())


def total(shards: Iterable[str], store: Bucket) -> dict[str, float]:
    """Seconds by stage of all the shards that noted them; one that was interrupted just before is not counted."""
    seconds: dict[str, float] = defaultdict(float)
    for shard in shards:
        try:
            noted = json.loads(store.get(_key(shard)))
        except ObjectNotFoundError:
            continue
        for name, value in noted.items():
            seconds[name] += value
    return dict(seconds)


def _key(shard: str) -> str:
    return f"plans/{shard}.json"

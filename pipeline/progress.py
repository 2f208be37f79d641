"""Progress of long work: a bar on a terminal, an occasional line in a log; and counts in words."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

LOG_INTERVAL = 15.0
"""Seconds between two progress lines in a log."""


def counted(count: int, noun: str) -> str:
    """A count of something in words, such as ``1 image`` or ``2,000 images``; ``noun`` is the singular."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def track(items: Iterable[Item], *, total: int, unit: str, log: logging.Logger) -> Iterator[Item]:
    """Yield ``items`` and report how many of ``total`` are done, the rate, and the time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, unit=f" {unit}", leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_INTERVAL:
            last, rate = now, done / max(now - start, 1e-9)
            log.info("%d of %d %s, %.1f a second, %.0f s left", done, total, unit, rate, (total - done) / rate)

"""The pool of decoder processes, against one thread that decodes by itself: seconds of the CPU, and of the clock.

The clock means something only on a machine with nothing else to do. On others, a pool that keeps its cores busy is
known by two figures: its CPU seconds, and how often a decoder had to wait for its parent.
"""

import os
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.extraction import photographs
from benchmarks.measure import Cost, cpu, spread, wall
from pipeline.data.decoders import Decoders
from pipeline.data.images import decode
from pipeline.features.extraction import READERS
from tests.support.processes import stat

SIZE = (224, 224)
PHOTOGRAPHS = {"500x375": (500, 375, 1024), "12mp": (4000, 3000, 96)}
"""Width, height, and how many are decoded at once, of which sixteen are different."""

DIFFERENT = 16


def decoding_pool(rounds: int) -> dict[str, float]:
    """Rates of the pool, as shares of those of one thread for each core."""
    found = {}
    for name, (width, height, count) in PHOTOGRAPHS.items():
        jpegs = list(photographs(DIFFERENT, width=width, height=height)) * -(-count // DIFFERENT)
        found |= measure(name, jpegs[:count], rounds)
    return found


def measure(name: str, jpegs: list[bytes], rounds: int) -> dict[str, float]:
    """The same for photographs of one size."""
    cores = os.cpu_count() or 1
    own = jpegs[: len(jpegs) // cores]
    pixels = np.zeros((len(jpegs), *SIZE, 3), np.uint8)
    with Decoders(SIZE) as decoders, ThreadPoolExecutor(READERS) as readers:

        def pool() -> None:
            pairs = zip(jpegs, pixels, strict=True)
            for future in [readers.submit(decoders.decode, data, out=out) for data, out in pairs]:
                future.result()

        def one() -> None:
            for data in own:
                decode(data, SIZE)

        pool()
        before = waits()
        by_pool, by_one = in_turn(pool, one, rounds=rounds)
        waited = (waits() - before) / (len(jpegs) * (rounds + 1))
    pool_cpu, one_cpu = cpu(by_pool) / len(jpegs), cpu(by_one) / len(own)
    pool_rate, one_rate = len(jpegs) / wall(by_pool), len(own) / wall(by_one)
    busy = statistics.median(cost.cpu / cost.wall for cost in by_pool) / cores
    return {
        f"decoding_one_{name}_per_cpu_second": 1 / one_cpu,
        f"decoding_pool_{name}_per_cpu_second": 1 / pool_cpu,
        f"decoding_pool_{name}_over_one": one_cpu / pool_cpu,
        f"decoding_pool_{name}_waits_a_picture": waited,
        f"decoding_pool_{name}_busy": busy,
        f"decoding_pool_{name}_by_the_clock_of_cores": pool_rate / (cores * one_rate),
        f"decoding_pool_{name}_spread": spread(by_pool),
    }


def in_turn(*functions: Callable[[], object], rounds: int) -> list[list[Cost]]:
    """As ``measure.alternate``, with the CPU seconds of child processes, which are still running."""
    for function in functions:
        function()
    costs: list[list[Cost]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, found in zip(functions, costs, strict=True):
            seconds, start = time.process_time() + of_children(), time.perf_counter()
            function()
            found.append(Cost(time.process_time() + of_children() - seconds, time.perf_counter() - start))
    return costs


def of_children() -> float:
    """CPU seconds of the child processes until now."""
    # User and system time are the 12th and 13th word after the name.
    return sum(int(ticks) for pid in children() for ticks in stat(int(pid))[11:13]) / os.sysconf("SC_CLK_TCK")


def waits() -> int:
    """How often the child processes have waited until now, rather than been interrupted."""
    found = [
        re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        for pid in children()
    ]
    return sum(int(each[1]) for each in found if each)


def children() -> list[str]:
    """The ids of the child processes."""
    return [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]

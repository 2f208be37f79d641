"""Measuring: functions in turn in one process, so that a machine whose speed drifts does so for all; peak memory."""

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """The cost of a call: seconds of all its threads, and of the clock."""

    cpu: float
    wall: float


def alternate(*functions: Callable[[], object], rounds: int = 5) -> list[list[Cost]]:
    """The costs of the functions, called in turn ``rounds`` times, after each was called once to warm up."""
    for function in functions:
        function()
    costs: list[list[Cost]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, found in zip(functions, costs, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            found.append(Cost(time.process_time() - cpu, time.perf_counter() - wall))
    return costs


def cpu(costs: list[Cost]) -> float:
    """The median of the CPU seconds."""
    return statistics.median(cost.cpu for cost in costs)


def wall(costs: list[Cost]) -> float:
    """The median of the seconds of the clock."""
    return statistics.median(cost.wall for cost in costs)


def spread(costs: list[Cost]) -> float:
    """The spread of the CPU seconds: their range over their median."""
    return _spread([cost.cpu for cost in costs])


def wall_spread(costs: list[Cost]) -> float:
    """The spread of the seconds of the clock, for functions that wait for other processes."""
    return _spread([cost.wall for cost in costs])


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def peak() -> float:
    """The most memory that this process has had, in MB."""
    # Not getrusage's peak, which begins at that of the process that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("There is no VmHWM in /proc/self/status: this measurement needs Linux.")
    return int(found[1]) / 1024

"""All measurements: `python -m benchmarks [NAME ...]`, or `make bench`.

Writes what was measured to results.json beside this file, and keeps there what was measured before under other names.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
ROUNDS = 5


def extraction() -> dict[str, float]:
    """Pictures encoded a second, against the usual ways and against a product of matrices."""
    from benchmarks.extraction import extraction

    return extraction(ROUNDS)


def training() -> dict[str, float]:
    """Captions learnt a second, against the expansion of captions into prefixes."""
    from benchmarks import learning

    return learning.training(ROUNDS)


def decoding() -> dict[str, float]:
    """Pictures captioned a second, against `predict` for each word."""
    from benchmarks import learning

    return learning.decoding(ROUNDS)


def scale() -> dict[str, float]:
    """Listing a bucket of a million photographs and finding what is new in it."""
    from benchmarks.scale import measure

    found = measure(1_000_000)
    return {"plan_1m_seconds": found["seconds"], "plan_1m_peak_mb": found["peak_mb"]}


MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "extraction": extraction,
    "training": training,
    "decoding": decoding,
    "scale": scale,
}


def main() -> None:
    """Measure what is named, by default everything."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MEASUREMENTS)}")
    names = parser.parse_args().names or list(MEASUREMENTS)
    if unknown := set(names) - MEASUREMENTS.keys():
        parser.error(f"no such measurement: {', '.join(unknown)}. There are {', '.join(MEASUREMENTS)}.")
    for name in names:
        found = MEASUREMENTS[name]()
        for what, value in found.items():
            print(f"{what:40} {value:12.4g}", flush=True)  # noqa: T201 - it is a program for a terminal
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(known | found, indent=2) + "\n")


if __name__ == "__main__":
    main()

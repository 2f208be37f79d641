"""All measurements: `python -m benchmarks [NAME ...]`, or `make bench`.

The results go to results.json beside this file, where those of other measurements are kept; the table in README.md is
made from it.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import table

RESULTS = Path(__file__).with_name("results.json")
PLOT = Path(__file__).with_name("scale.svg")
ROUNDS = 5

Measured = Mapping[str, float | str]
"""Figures, and names such as that of a library."""


def extraction() -> Measured:
    """Pictures encoded a second, against the usual ways and against a product of matrices."""
    from benchmarks.extraction import extraction

    return extraction(ROUNDS)


def onnx() -> Measured:
    """Pictures encoded a second by ONNX Runtime."""
    from benchmarks.extraction import onnx

    return onnx(ROUNDS)


def training() -> Measured:
    """Captions trained on per second, against the expansion of captions into prefixes."""
    from benchmarks import learning

    return learning.training(ROUNDS)


def decoding() -> Measured:
    """Pictures captioned a second, against `predict` for each word."""
    from benchmarks import learning

    return learning.decoding(ROUNDS)


def start() -> Measured:
    """One picture captioned from the shell, against the import of TensorFlow and Keras."""
    from benchmarks.start import start

    return start(ROUNDS)


def scale() -> Measured:
    """Listing a bucket of a million photographs and finding what is new in it; draws how it grows."""
    from benchmarks.plot import log_log
    from benchmarks.scale import KEYS, measure

    found = [measure(keys) for keys in KEYS]
    panels = {
        title: [(row["keys"], row[name]) for row in found]
        for title, name in (("seconds", "seconds"), ("peak of memory, MB", "peak_mb"))
    }
    PLOT.write_text(log_log(panels, "photographs in the bucket"))
    return {"plan_1m_seconds": found[-1]["seconds"], "plan_1m_peak_mb": found[-1]["peak_mb"]}


def gallery() -> Measured:
    """The gallery's pages over a million captions, against reading all of them into pandas."""
    from benchmarks.gallery import CAPTIONS, measure

    found = measure(CAPTIONS[-1], ROUNDS)
    return {
        "gallery_first_page_1m_seconds": found["first_page_seconds"],
        "gallery_first_page_1m_over_pandas": found["usual_first_page_seconds"] / found["first_page_seconds"],
        "gallery_last_page_1m_seconds": found["last_page_seconds"],
        "gallery_history_search_1m_seconds": found["history_search_seconds"],
        "gallery_search_1m_seconds": found["search_seconds"],
        "gallery_search_1m_over_pandas": found["usual_search_seconds"] / found["search_seconds"],
        "gallery_picture_1m_seconds": found["picture_seconds"],
        "gallery_1m_added_mb": found["added_mb"],
        "gallery_1m_added_mb_pandas": found["usual_added_mb"],
        "gallery_spread": found["spread"],
    }


def night() -> Measured:
    """A whole night in Airflow, against the extraction of its pictures."""
    from benchmarks.night import night

    return night()


def first_nights() -> Measured:
    """A first night of many small pictures, and one of large ones, against the extraction of their pictures."""
    from benchmarks.night import first_nights

    return first_nights()


def gpu() -> Measured:
    """Extraction, training and decoding on a GPU."""
    from benchmarks.gpu import gpu

    return gpu(ROUNDS)


MEASUREMENTS: dict[str, Callable[[], Measured]] = {
    "extraction": extraction,
    "training": training,
    "decoding": decoding,
    "start": start,
    "scale": scale,
    "gallery": gallery,
    "night": night,
    "first_nights": first_nights,
    "onnx": onnx,
    "gpu": gpu,
}
ONLY_NAMED = {"first_nights", "onnx", "gpu"}
"""Measurements that run only where they are named: the first takes longer than all others, the others need more than
every machine has."""


def main() -> None:
    """Run the named measurements, by default all that any machine can run."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    names = parser.parse_args().names or [name for name in MEASUREMENTS if name not in ONLY_NAMED]
    if unknown := set(names) - MEASUREMENTS.keys():
        parser.error(f"no such measurement: {', '.join(unknown)}. There are {', '.join(MEASUREMENTS)}.")
    for name in names:
        found = MEASUREMENTS[name]()
        for what, value in found.items():
            shown = value if isinstance(value, str) else f"{value:.4g}"
            print(f"{what:40} {shown:>12}", flush=True)  # noqa: T201 - it is a program for a terminal
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known |= {**found, "machine": table.machine()}
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")
        table.write(known)


if __name__ == "__main__":
    main()

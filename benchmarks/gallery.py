"""Pages of the gallery in a store that has grown large, against reading all captions and sorting them with pandas.

    python -m benchmarks.gallery [CAPTIONS ...]

The captions are those of nights of 2,500 pictures, by two models. A page is what the library makes of it, from the
listing of the shards on; a search that goes on begins anew each time. Medians of several rounds, on a local disk.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa

from pipeline import captions, gallery, tables
from pipeline.gallery import Filters
from pipeline.storage import Bucket, open_bucket

CAPTIONS = (10_000, 100_000, 1_000_000)
NIGHT = 2_500
PAGE = 24
RARE = "xylophone"
"""A word of one caption only, of the oldest night."""

WORDS = (
    ("a man", "a woman", "two dogs", "a child", "a group of people", "a brown dog"),
    ("runs", "sits", "jumps", "stands", "plays", "rides a bike"),
    ("on the beach", "in the water", "on the grass", "in a park", "on a street", "in the snow"),
)


def main() -> None:
    """Measure each size, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", nargs="*", type=int, default=CAPTIONS)
    for count in parser.parse_args().captions:
        print(json.dumps(measure(count, rounds=5)), flush=True)  # noqa: T201 - it is a program for a terminal


def measure(count: int, *, rounds: int) -> dict[str, float]:
    """Seconds of the pages, and of the usual way to the first."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_bucket(folder)
        prepare(store, count)
        asked: dict[str, Callable[[], object]] = {
            "first_page": lambda: first(store, Filters()),
            "failed": lambda: first(store, Filters(status="failed")),
            "unsure": lambda: first(store, Filters(unsure=0.2)),
            "word": lambda: first(store, Filters(words="beach")),
            "rare_word": lambda: everything(store, Filters(words=RARE)),
            "picture": lambda: gallery.pictures_captions(key(0, 0), store=store),
            "usual_first_page": lambda: usual(folder),
        }
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, ask in asked.items():
                start = time.perf_counter()
                if not ask():
                    raise RuntimeError(f"{name} found nothing.")
                seconds[name].append(time.perf_counter() - start)
    return {"captions": count, **{name: round(statistics.median(found), 4) for name, found in seconds.items()}}


def prepare(store: Bucket, count: int) -> None:
    """Write so many captions, a shard a night."""
    rng = random.Random(0)
    for night in range(count // NIGHT):
        version = f"v{2 * night * NIGHT // count}"
        taken = datetime(2024, 1, 1, 2, tzinfo=UTC) + timedelta(days=night)
        rows = [row(night, number, version, taken, rng) for number in range(NIGHT)]
        if night == 0:
            rows[-1]["caption"] = f"a man plays the {RARE}"
            rows[-1]["status"], rows[-1]["error"] = "ok", None
        table = pa.Table.from_pylist(rows, schema=captions.SCHEMA)
        tables.write(table, f"captions/model={version}/date={taken:%Y-%m-%d}/{rng.randbytes(8).hex()}.parquet", store)


def row(night: int, number: int, version: str, taken: datetime, rng: random.Random) -> dict[str, object]:
    """A caption, or one time in a hundred a failure."""
    failed = number % 100 == 0
    return {
        "image_key": key(night, number),
        "image_etag": rng.randbytes(8).hex(),
        "caption": None if failed else " ".join(map(rng.choice, WORDS)),
        "log_prob": None if failed else rng.gauss(-1, 0.3),
        "status": "failed" if failed else "ok",
        "error": "the file is empty" if failed else None,
        "model_version": version,
        "encoder_id": "encoder-0",
        "captioned_at": taken,
    }


def key(night: int, number: int) -> str:
    """A picture's key, such as a camera's folders have."""
    return f"camera/{night:04}/IMG_{night * NIGHT + number:07}.jpg"


def first(store: Bucket, filters: Filters) -> object:
    """The first page."""
    found = gallery.page(gallery.shards(store), filters, store=store, size=PAGE)
    return len(found.rows) == PAGE


def everything(store: Bucket, filters: Filters) -> object:
    """All that passes, however many pages it takes."""
    rows, after = [], ""
    while after is not None:
        found = gallery.page(gallery.shards(store), filters, store=store, size=PAGE, after=after)
        rows += found.rows
        after = found.after
    return rows


def usual(folder: str) -> object:
    """The newest captions as a notebook finds them."""
    found = pd.read_parquet(f"{folder}/captions")
    return len(found.sort_values("captioned_at", ascending=False).head(PAGE))


if __name__ == "__main__":
    main()

"""Estimates for nights of other sizes: machines, hours, S3 requests, bytes and money, from the measured speed.

    python -m benchmarks.cost [--pictures N ...] [--hours H] [--price-of-worker $] [--price-of-read $] …

A worker is the machine of results.json, two cores. The counts of requests are exact for small nights (tested); the pace
is that of results.json; prices are parameters, and their defaults only examples. Nothing was run at such sizes.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.work.shards import MAX_SHARDS

RESULTS = Path(__file__).with_name("results.json")

PICTURES = (1_000_000, 100_000_000, 1_000_000_000)

SHARD = 2000
"""Pictures in a task of extraction; five times as many in one of captioning."""

FEATURE_BYTES = 2 * 2048 * 0.8
"""Of a picture: 2,048 16-bit floats, compressed."""

CAPTION_BYTES = 80


@dataclass(frozen=True)
class Requests:
    """S3 requests: ``reads`` are GET and HEAD, ``writes`` PUT and LIST, which cost ten times as much."""

    reads: float
    writes: float

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.reads + other.reads, self.writes + other.writes)

    def __mul__(self, times: float) -> "Requests":
        return Requests(self.reads * times, self.writes * times)


A_NIGHT = Requests(reads=47, writes=22)
"""Of any night, with the reading of one earlier night."""

A_PICTURE = Requests(reads=1, writes=0)

A_SHARD = Requests(reads=11, writes=3)
"""Of extraction: to plan it, to write it, and to read its features again."""

AN_EARLIER_NIGHT = Requests(reads=8, writes=0)
"""To read its record and look up what one of its shards has done, each night again; 5 if it is none of the last 30."""

A_LISTING = Requests(reads=0, writes=1 / 1000)
"""Of a picture, new or not."""


def requests(pictures: int, *, shards: int, earlier: int, listed: int) -> Requests:
    """S3 requests of a night.

    Args:
        pictures: new ones.
        shards: of extraction, in which they are.
        earlier: nights before, of a shard each.
        listed: pictures in the inbox.
    """
    return A_NIGHT + A_PICTURE * pictures + A_SHARD * shards + AN_EARLIER_NIGHT * earlier + A_LISTING * listed


@dataclass(frozen=True)
class Prices:
    """In dollars: a worker's hour, a thousand reads and a thousand writes of S3, a gigabyte kept for a month."""

    worker: float
    read: float
    write: float
    month: float


@dataclass(frozen=True)
class Estimate:
    """An estimate for the first night of so many pictures."""

    pictures: int
    shard: int
    tasks: int
    worker_hours: float
    workers: int
    reads: float
    writes: float
    gigabytes: float
    listing_hours: float
    planning_gigabytes: float
    dollars_per_million: float


def estimate(pictures: int, *, pace: float, hours: float, prices: Prices, planning_mb: float) -> Estimate:
    """Work out a night.

    Args:
        pictures: all of them new.
        pace: pictures that a worker encodes and captions in a second.
        hours: in which it is to be done.
        prices: of what it takes.
        planning_mb: memory that planning takes for a million pictures.
    """
    shard = max(SHARD, math.ceil(pictures / MAX_SHARDS))
    tasks = math.ceil(pictures / shard)
    worker_hours = pictures / pace / 3600
    asked = requests(pictures, shards=tasks, earlier=0, listed=pictures)
    gigabytes = pictures * (FEATURE_BYTES + CAPTION_BYTES) / 1e9
    dollars = (
        worker_hours * prices.worker
        + (asked.reads * prices.read + asked.writes * prices.write) / 1000
        + gigabytes * prices.month
    )
    return Estimate(
        pictures=pictures,
        shard=shard,
        tasks=tasks,
        worker_hours=worker_hours,
        workers=math.ceil(worker_hours / hours),
        reads=asked.reads,
        writes=asked.writes,
        gigabytes=gigabytes,
        # A thousand keys come in about a tenth of a second, one page after another.
        listing_hours=pictures / 1000 * 0.1 / 3600,
        planning_gigabytes=planning_mb * pictures / 1e6 / 1000,
        dollars_per_million=dollars / pictures * 1e6,
    )


def main() -> None:
    """Print a table, a size a column."""
    known = json.loads(RESULTS.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", nargs="+", type=int, default=PICTURES, help="of a first night")
    parser.add_argument("--hours", type=float, default=8, help="in which it is to be done")
    parser.add_argument(
        "--pace", type=float, default=known["night_pictures_per_second"], help="pictures a second of a worker"
    )
    parser.add_argument("--price-of-worker", type=float, default=0.085, help="dollars an hour")
    parser.add_argument("--price-of-read", type=float, default=0.0004, help="dollars a thousand")
    parser.add_argument("--price-of-write", type=float, default=0.005, help="dollars a thousand")
    parser.add_argument("--price-of-month", type=float, default=0.023, help="dollars a gigabyte")
    asked = parser.parse_args()
    prices = Prices(asked.price_of_worker, asked.price_of_read, asked.price_of_write, asked.price_of_month)
    columns = [
        estimate(pictures, pace=asked.pace, hours=asked.hours, prices=prices, planning_mb=known["plan_1m_peak_mb"])
        for pictures in asked.pictures
    ]
    lines = {
        "pictures": ("pictures", "{:,}"),
        "shard": ("pictures in a shard", "{:,}"),
        "tasks": ("tasks of extraction", "{:,}"),
        "worker_hours": ("hours of all workers", "{:,.0f}"),
        "workers": ("workers", "{:,}"),
        "reads": ("reads of S3", "{:,.0f}"),
        "writes": ("writes and lists of S3", "{:,.0f}"),
        "gigabytes": ("gigabytes of features and captions", "{:,.1f}"),
        "listing_hours": ("hours of listing", "{:,.2f}"),
        "planning_gigabytes": ("gigabytes of memory for planning", "{:,.1f}"),
        "dollars_per_million": ("dollars per million pictures", "{:,.2f}"),
    }
    for name, (title, form) in lines.items():
        cells = (form.format(getattr(column, name)) for column in columns)
        print(f"| {title} | {' | '.join(cells)} |")  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    main()

"""A night's bookkeeping in a bucket that has grown large: list it, and find what has no features and no caption yet.

    python -m benchmarks.scale [KEYS ...]

The bucket is a listing of made-up keys. All of them have features, and all but one in a hundred a caption, in as many
shards as earlier nights would have left. Each step has a process of its own, as in a night.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import peak
from pipeline.captioner.metadata import ModelMetadata
from pipeline.captioner.registry import promote
from pipeline.config import TrainingConfig
from pipeline.features import store as feature_store
from pipeline.nightly import captions
from pipeline.nightly import night as nights
from pipeline.storage import Bucket, LocalBucket, StoredObject, layout, open_bucket, parquet

KEYS = (10_000, 100_000, 1_000_000)
SHARD_SIZE = 1000
ENCODER, VERSION, NEW = "encoder-0", "v1", 100
"""One key in ``NEW`` has no caption yet."""

TAKEN = datetime(2026, 1, 1, tzinfo=UTC)

STEPS: dict[str, Callable[[Bucket, Bucket], object]] = {
    "list": lambda store, inbox: nights.list_inbox("r", inbox=inbox, store=store, options=nights.NightOptions()),
    "plan_extraction": lambda store, _: nights.plan_extraction("r", store=store, shard_size=500),
    "plan_captions": lambda store, _: nights.plan_captions("r", store=store, date="2026-01-02", shard_size=500),
}
"""The steps of a night before it reads a picture."""


class Listing(LocalBucket):
    """A bucket of so many photographs, of which only the listing can be read."""

    def __init__(self, keys: int) -> None:
        super().__init__(Path("/photographs"))
        self.keys = keys

    def require(self) -> None:
        """It is there."""

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        """All photographs."""
        yield from map(photograph, range(self.keys))


def photograph(number: int) -> StoredObject:
    """A key such as a camera's folders have, with an etag such as S3's."""
    return StoredObject(f"2026/{number // 1000:04}/IMG_{number:07}.jpg", f"{number:032x}", 100_000, TAKEN)


def main() -> None:
    """Measure each size in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", type=int, default=KEYS)
    for keys in parser.parse_args().keys:
        print(json.dumps(measure(keys)), flush=True)  # noqa: T201 - it is a program for a terminal


def measure(keys: int) -> dict[str, float]:
    """Seconds of the steps, each in a process of its own as in a night, and the peak of their memory in MB."""
    found: dict[str, float] = {"keys": keys, "seconds": 0, "peak_mb": 0}
    with tempfile.TemporaryDirectory() as folder:
        prepare(open_bucket(folder), keys)
        for step in STEPS:
            work = [sys.executable, "-c", f"from benchmarks.scale import work; work({step!r}, {folder!r}, {keys})"]
            seconds, peak = map(float, subprocess.run(work, check=True, stdout=subprocess.PIPE).stdout.split())
            found[f"{step}_seconds"] = seconds
            found["seconds"] += seconds
            found["peak_mb"] = max(found["peak_mb"], peak)
    return found


def prepare(store: Bucket, keys: int) -> None:
    """A champion, the features of all photographs, and the captions of nearly all."""
    promote_champion(store)
    everything = list(Listing(keys).list())
    of_captions = layout.captions_folder(VERSION, "2026-01-01")
    for start in range(0, keys, SHARD_SIZE):
        part = everything[start : start + SHARD_SIZE]
        vectors = np.zeros((len(part), 8), np.float16)
        of_features = pa.table(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8),
                [item.key for item in part],
                [item.etag for item in part],
                [0] * len(part),
                ["ok"] * len(part),
                pa.nulls(len(part), pa.string()),
                [640] * len(part),
                [480] * len(part),
            ],
            schema=feature_store.schema((8,)),
        )
        parquet.write(of_features, layout.shard_result(layout.features_folder(ENCODER), f"{start:016x}"), store)
        written = pa.Table.from_pylist(
            [
                {"image_key": item.key, "image_etag": item.etag, "caption": "a dog on the grass", "status": "ok"}
                for item in part
                if int(item.etag, 16) % NEW
            ],
            schema=captions.SCHEMA,
        )
        parquet.write(written, layout.shard_result(of_captions, f"{start:016x}"), store)


def promote_champion(store: Bucket) -> None:
    """A champion that is nothing but its metadata."""
    metadata = ModelMetadata(
        version=VERSION,
        created_at=datetime.now(UTC),
        encoder_id=ENCODER,
        dataset="none",
        max_length=20,
        config=TrainingConfig(),
        ensemble=[],
    )
    store.put(layout.model_metadata(VERSION), metadata.model_dump_json().encode())
    promote(VERSION, store)


def work(step: str, folder: str, keys: int) -> None:
    """Run a step of a night; print its seconds, and its peak of memory in MB."""
    store = open_bucket(folder)
    start = time.perf_counter()
    STEPS[step](store, Listing(keys))
    seconds = time.perf_counter() - start
    print(f"{seconds:.3f} {peak():.0f}")  # noqa: T201


if __name__ == "__main__":
    main()

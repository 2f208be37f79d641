"""A store after years of nights, in memory, that counts the requests that its readers send."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import IO

from pipeline.captioner.registry import promote
from pipeline.storage import StoredObject, layout
from pipeline.work import runs
from tests.support.caption_tables import row, write
from tests.support.memory import MemoryBucket
from tests.support.models import write_evaluation, write_model

NIGHTS = 1500

PAGE = 1000
"""Keys that S3 lists in one request."""


class CountingBucket(MemoryBucket):
    """A bucket that counts requests as S3 would."""

    requests = 0

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        """A request for each page that is read."""
        for number, item in enumerate(super().list(prefix, passed_over=passed_over)):
            self.requests += number % PAGE == 0
            yield item

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        """A request."""
        self.requests += 1
        return super().get(key, etag=etag, limit=limit)

    def open(self, key: str) -> IO[bytes]:
        """A request, of ``get``."""
        return super().open(key)

    def etag(self, key: str) -> str:
        """A request."""
        self.requests += 1
        return super().etag(key)


def write_history() -> CountingBucket:
    """Fifteen hundred nights, each with a shard of captions, a record and a profile, and a model every fifty nights."""
    store = CountingBucket("store")
    start = datetime(2022, 1, 1, 2, tzinfo=UTC)
    version = ""
    for number in range(NIGHTS):
        begun = start + timedelta(days=number)
        if number % 50 == 0:
            version = f"{begun:%Y%m%dT%H%M%S}-0000"
            write_model(version, store)
            write_evaluation(version, store, cider=0.5)
            promote(version, store)
            runs.write_record(runs.RetrainingRecord(run=f"r{number}", started_at=begun, status="succeeded"), store)
        rows = [row(f"{begun:%Y/%m/%d}/{name}.jpg") for name in "abcdefghijklmnopqrstuvwxyz"]
        write(store, rows, night=f"{begun:%Y-%m-%d}", shard="s", version=version)
        record = runs.NightRecord(run=f"n{number}", started_at=begun, status="succeeded", version=version, listed=26)
        runs.write_record(record, store)
        store.put(layout.run_profile(record.run), b"{}")
        store.put(layout.run_listing(record.run), b"")
    store.requests = 0
    return store

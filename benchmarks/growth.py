"""The requests and bytes of a night whose store has grown for years, before and after maintenance.

    python -m benchmarks growth

The store is in memory, and its requests and bytes are counted as S3 would count them (tested with an S3 server). Each
earlier night has found a hundred new photographs, and left what a night leaves: a shard of features and one of captions
by the same champion, their plans and statistics, a record and a profile. Counted are the steps of one more night that
list, plan and reconcile: what grows with the history. Not counted is the work on its own photographs.
"""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import numpy as np
import pyarrow as pa

from benchmarks.scale import ENCODER, VERSION, Listing, photograph, promote_champion
from pipeline.captioner.captioner import Caption
from pipeline.config import GREEDY
from pipeline.evaluation.drift import Profile
from pipeline.features import store as feature_store
from pipeline.features.store import Encoded, Features
from pipeline.nightly import captions, current, reconcile
from pipeline.nightly import night as nights
from pipeline.nightly.captions import CaptionStats
from pipeline.ops import prune
from pipeline.storage import ABSENT, Bucket, StoredObject, layout, parquet
from pipeline.storage.s3 import TAIL
from pipeline.work import runs, shards
from pipeline.work.outcomes import IDENTITY
from pipeline.work.shards import Shard

NIGHTS = (30, 365, 3650)
NEW = 100
"""Photographs that are new each night."""

PAGE = 1000
"""Keys in an answer to a list request."""

START = datetime(2026, 1, 1, 2, tzinfo=UTC)

VECTORS = np.random.default_rng(0).random((NEW, 2048)).astype(np.float16)
CAPTIONS = [Caption("a dog on the grass", -1.0, 0.5)] * NEW


class CountingBucket(Bucket):
    """A bucket in memory that counts requests and bytes as S3 does, and has a clock of its own.

    Attributes:
        counts: ``reads`` (GET, HEAD), ``writes`` (PUT, LIST), ``read_bytes`` and ``written_bytes``.
        now: the time at which objects are written.
    """

    def __init__(self) -> None:
        super().__init__("memory://store")
        self.objects: dict[str, tuple[StoredObject, bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.now = START

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Requests within the context are not counted."""
        before = self.counts.copy()
        yield
        self.counts = before

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item, _ in self.objects.values())

    def require(self) -> None:
        """It is always there."""

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        """A request for each page."""
        self.counts["writes"] += 1
        found = sorted(key for key in self.objects if key.startswith(prefix))
        for number, key in enumerate(found):
            self.counts["writes"] += number > 0 and number % PAGE == 0
            yield self.objects[key][0]

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        """A request, of the whole object."""
        self.counts["reads"] += 1
        data = self._data(key, etag)
        self.counts["read_bytes"] += len(data)
        return data

    def modified(self, key: str) -> datetime:
        """A request."""
        self.counts["reads"] += 1
        self._data(key)
        return self.objects[key][0].modified

    def first_bytes(self, key: str, count: int) -> bytes:
        """A request, of the beginning."""
        self.counts["reads"] += 1
        return self._data(key)[:count]

    def open(self, key: str) -> IO[bytes]:
        """A request of the end, and one for each read before it."""
        self.counts["reads"] += 1
        data = self._data(key)
        self.counts["read_bytes"] += min(len(data), TAIL)
        return _Ranges(data, self.counts)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """A request."""
        self.counts["writes"] += 1
        self.counts["written_bytes"] += len(data)
        if if_match is not None and self._etag(key) != if_match:
            raise self._changed(key, if_match)
        item = StoredObject(key, hashlib.sha256(data).hexdigest()[:32], len(data), self.now)
        self.objects[key] = (item, data)
        return item.etag

    def delete(self, key: str) -> None:
        """A request that costs nothing."""
        self.objects.pop(key, None)

    def etag(self, key: str) -> str:
        """A request."""
        self.counts["reads"] += 1
        return self._etag(key)

    def clean(self, older_than: datetime) -> Sequence[str]:
        """A write leaves nothing behind."""
        return []

    def _etag(self, key: str) -> str:
        return self.objects[key][0].etag if key in self.objects else ABSENT

    def _data(self, key: str, etag: str | None = None) -> bytes:
        if etag is not None and self._etag(key) != etag:
            raise self._changed(key, etag)
        if key not in self.objects:
            raise self._not_found(key)
        return self.objects[key][1]


class _Ranges(io.BytesIO):
    """An object whose end has been fetched; every other read is a request."""

    def __init__(self, data: bytes, counts: Counter[str]) -> None:
        super().__init__(data)
        self.counts, self.tail = counts, max(len(data) - TAIL, 0)

    def read(self, size: int | None = -1) -> bytes:
        """Read from here on."""
        start = self.tell()
        data = super().read(size)
        if data and start < self.tail:
            self.counts["reads"] += 1
            self.counts["read_bytes"] += min(start + len(data), self.tail) - start
        return data


def measure(earlier: int) -> dict[str, float]:
    """The requests and megabytes of a night after so many, and those of the next one, after maintenance.

    Returns:
        For both nights, as ``before_`` and ``after_``: ``reads``, ``writes`` (with lists), ``read_mb`` and
        ``written_mb``; and of the store, ``objects`` and ``store_mb``.
    """
    store = CountingBucket()
    promote_champion(store)
    for number in range(earlier - 1):
        store.now = START + timedelta(days=number)
        leave(number, store)
    work(earlier - 1, store)  # its table of current captions has all photographs
    found = {f"before_{name}": value for name, value in _night(earlier, store).items()}
    maintain(store)
    return found | {f"after_{name}": value for name, value in _night(earlier + 1, store).items()}


def table(results: Mapping[str, Any]) -> str:
    """The table of the document, from the results of ``python -m benchmarks growth``."""
    lines = {
        "reads": ("reads of S3", "{:,.0f}"),
        "writes": ("writes and lists of S3", "{:,.0f}"),
        "read_mb": ("megabytes read", "{:,.1f}"),
        "written_mb": ("megabytes written", "{:,.1f}"),
        "objects": ("objects in the store", "{:,.0f}"),
        "store_mb": ("megabytes in the store", "{:,.0f}"),
    }
    columns = [(nights, when) for nights in NIGHTS for when in ("before", "after")]
    titles = [f"{nights:,}" if when == "before" else "after maintenance" for nights, when in columns]
    rows = [f"| nights before | {' | '.join(titles)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, (title, form) in lines.items():
        cells = (form.format(results[f"growth_{nights}_{when}_{name}"]) for nights, when in columns)
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def leave(number: int, store: CountingBucket) -> None:
    """Write what a night leaves, without its intermediate objects."""
    images = _new(number)
    for folder, spec, write in (
        (layout.features_folder(ENCODER), {"encoder_id": ENCODER, "source": "inbox"}, write_features),
        (layout.captions_folder(VERSION, _date(number)), {"encoder_id": ENCODER, "version": VERSION}, write_captions),
    ):
        shard = Shard(
            hashlib.sha256(f"{folder} {number}".encode()).hexdigest()[:16], images, {"folder": folder, **spec}
        )
        parquet.write(images, layout.shard(shard.name), store, metadata=shard.spec)
        write(shard, store)
    store.put(layout.run_profile(f"night-{number}"), _profile().model_dump_json().encode())
    record = runs.NightRecord(
        run=f"night-{number}",
        started_at=store.now,
        status="succeeded",
        version=VERSION,
        inbox=_inbox(number).uri,
        listed=NEW * (number + 1),
    )
    runs.write_record(record, store)


def work(number: int, store: CountingBucket) -> None:
    """The steps of a night; what they write for its own photographs is not counted."""
    store.now = START + timedelta(days=number)
    run = f"night-{number}"
    nights.list_inbox(run, inbox=_inbox(number), store=store, options=nights.NightOptions())
    for name in nights.plan_extraction(run, store=store, shard_size=2000):
        with store.uncounted():
            write_features(shards.read(name, store), store)
    for name in nights.plan_captions(run, store=store, date=_date(number), shard_size=2000):
        with store.uncounted():
            write_captions(shards.read(name, store), store)
    reconcile.reconcile(
        run, store=store, max_failed_fraction=0, max_shrink_fraction=0, drift_limit=99, review_below=0.5
    )
    runs.end_run(runs.NIGHT, run, None, store)


def maintain(store: CountingBucket) -> None:
    """What the DAG of the maintenance does to the store if its form says that what is not needed is removed."""
    current.fold(store, place="none", damaged=[])
    before, records_before = store.now - timedelta(days=7), store.now - timedelta(days=730)
    found = prune.find(store, keep=3, before=before, records_before=records_before)
    prune.remove(found, before=before, store=store)


def write_features(shard: Shard, store: CountingBucket) -> None:
    """Write the features of a shard of new photographs, and its statistics."""
    count = len(shard.images)
    encoded = Encoded(Features(VECTORS[:count]), [None] * count, [(640, 480)] * count)
    images = shard.images.select(IDENTITY).append_column("attempt", pa.array([0] * count, pa.int32()))
    feature_store.write(images, encoded, shard.result_key, store)
    shards.write_stats(shard.name, shards.ShardStats(seconds={"encode": 1.0}), store)


def write_captions(shard: Shard, store: CountingBucket) -> None:
    """Write the captions of a shard of new photographs, and its statistics."""
    same = {"caption": "a dog on the grass", "status": "ok", "model_version": VERSION, "captioned_at": store.now}
    rows = [{**image, **same} for image in shard.images.select(IDENTITY).to_pylist()]
    parquet.write(pa.Table.from_pylist(rows, schema=captions.SCHEMA), shard.result_key, store)
    shards.write_stats(shard.name, CaptionStats(seconds={"caption": 1.0}, profile=_profile()), store)


def _night(number: int, store: CountingBucket) -> dict[str, float]:
    store.counts.clear()
    work(number, store)
    counts = store.counts
    return {
        "reads": counts["reads"],
        "writes": counts["writes"],
        "read_mb": counts["read_bytes"] / 1e6,
        "written_mb": counts["written_bytes"] / 1e6,
        "objects": len(store.objects),
        "store_mb": store.size / 1e6,
    }


def _inbox(number: int) -> Listing:
    """The inbox in this night."""
    return Listing(NEW * (number + 1))


def _new(number: int) -> pa.Table:
    """The photographs that are new in this night."""
    found = list(map(photograph, range(NEW * number, NEW * (number + 1))))
    return pa.table([[item.key for item in found], [item.etag for item in found]], names=IDENTITY)


def _date(number: int) -> str:
    return f"{START + timedelta(days=number):%Y-%m-%d}"


def _profile() -> Profile:
    return Profile.of(VECTORS.astype(np.float32), CAPTIONS, failed=0, decoding=GREEDY)

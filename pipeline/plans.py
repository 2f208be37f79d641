"""Plans: images cut into shards of work, each shard claimed for whoever asks first.

A shard is a list of images. Its plan lies under ``plans/<shard>.parquet``, and its result, one row an image, is one
object that is written at once under the shard's name. That name is a hash of the plan, so whoever repeats a shard
writes the same object.

The shards of one product (the features of an encoder, the captions of a model) that have no result yet stand in its
ledger, ``plans/open/<product>.json``, which is changed by compare-and-swap. So however many plan at once, and wherever
one of them dies, an image is in one open shard at most: who finds it in another's takes that shard over, whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, ObjectNotFoundError

MAX_SHARDS = 1000
"""Airflow maps one task over at most 1,024 items: beyond this many shards, shards grow instead."""

LEDGERS = "plans/open/"

IDENTITY = ["key", "etag"]
"""The columns that say which image, in which version of it."""


@dataclass(frozen=True)
class Plan:
    """A shard of work.

    Attributes:
        shard: its name.
        images: a row an image, with ``key``, ``etag`` and whatever else the work needs.
        about: what all of them have in common; ``folder`` is where the result goes.
    """

    shard: str
    images: pa.Table
    about: dict[str, str]

    @property
    def result(self) -> str:
        """The key of the object that makes the shard done."""
        return f"{self.about['folder']}/{self.shard}.parquet"


def read(shard: str, store: Bucket) -> Plan:
    """A planned shard. Raises ``ObjectNotFoundError`` where there is none of this name."""
    table = tables.read(_plan_key(shard), store)
    return Plan(shard, table, tables.about(table))


def claim(
    find_pending: Callable[[], pa.Table],
    about: dict[str, str],
    *,
    product: str,
    order: Sequence[str],
    store: Bucket,
    shard_size: int,
) -> list[str]:
    """Claim shards that hold all pending images, and return their names.

    Args:
        find_pending: the images that have no result, with ``key`` and ``etag``. It must read the results anew each
            time: what has got one since the ledger was read is no longer in the ledger.
        about: what is said in the plans. Open shards of which it says the same, but for the folder, are taken over.
        product: names the ledger.
        order: columns to sort the images by before they are cut into shards.
        store: the store.
        shard_size: images in a new shard; more where there would be over ``MAX_SHARDS`` shards.
    """
    while True:
        ledger, etag = _read_ledger(product, store)
        still_open = {shard: result for shard, result in ledger.items() if not store.exists(result)}
        pending = find_pending()
        taken_over = []
        for plan in (read(shard, store) for shard in still_open):
            alike = {**plan.about, "folder": ""} == {**about, "folder": ""}
            rest = (
                pending.join(plan.images.select(IDENTITY), keys=IDENTITY, join_type="left anti") if alike else pending
            )
            if len(rest) < len(pending):
                taken_over.append(plan.shard)
                pending = rest
        pending = pending.sort_by([(name, "ascending") for name in order])
        new = _write(pending, about, store=store, shard_size=shard_size, most=MAX_SHARDS - len(taken_over))
        if not new:
            return taken_over
        try:
            ledger = {**still_open, **{plan.shard: plan.result for plan in new}}
            store.put(_ledger_key(product), json.dumps(ledger, indent=2).encode(), if_match=etag)
        except ObjectChangedError:
            continue  # somebody else has claimed, these images perhaps
        return [*taken_over, *(plan.shard for plan in new)]


def summary(images: int, failed: int) -> str:
    """What was done of a shard, for people."""
    if not images:
        return "done before"
    return f"{images:,} images" + (f", {failed:,} failed" if failed else "")


def open_shards(store: Bucket) -> set[str]:
    """All shards that are claimed and not done."""
    ledgers = [json.loads(store.get(item.key)) for item in store.list(LEDGERS)]
    return {shard for ledger in ledgers for shard, result in ledger.items() if not store.exists(result)}


def write_note(shard: str, document: dict[str, Any], store: Bucket) -> None:
    """Note what a shard took and found, beside its plan."""
    store.put(_note_key(shard), json.dumps(document).encode())


def read_notes(shards: Iterable[str], store: Bucket) -> list[dict[str, Any]]:
    """The notes of those shards that have one; who is interrupted after the result and before the note leaves none."""
    notes = []
    for shard in shards:
        try:
            notes.append(json.loads(store.get(_note_key(shard))))
        except ObjectNotFoundError:
            continue
    return notes


def _write(pending: pa.Table, about: dict[str, str], *, store: Bucket, shard_size: int, most: int) -> list[Plan]:
    shard_size = max(shard_size, -(-len(pending) // max(most, 1)))
    plans = []
    for start in range(0, len(pending), shard_size):
        part = pending.slice(start, shard_size).combine_chunks()
        digest = hashlib.sha256(repr((sorted(about.items()), part.to_pydict())).encode())
        plans.append(Plan(digest.hexdigest()[:16], part, about))
        tables.write(part, _plan_key(plans[-1].shard), store, about=about)
    return plans


def _read_ledger(product: str, store: Bucket) -> tuple[dict[str, str], str]:
    """The keys of the results by shard, and the ledger's etag."""
    etag = store.etag(_ledger_key(product))
    if etag == ABSENT:
        return {}, ABSENT
    try:
        ledger: dict[str, str] = json.loads(store.get(_ledger_key(product), etag=etag))
    except ObjectChangedError:
        return _read_ledger(product, store)
    return ledger, etag


def _ledger_key(product: str) -> str:
    return f"{LEDGERS}{product}.json"


def _plan_key(shard: str) -> str:
    return f"plans/{shard}.parquet"


def _note_key(shard: str) -> str:
    return f"plans/{shard}.note.json"

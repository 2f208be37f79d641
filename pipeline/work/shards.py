"""Shards of work: images are cut into shards, and a process that needs the images of a shard claims it.

A shard is a list of images, stored as one object. Its result, one row per image, is one object, written in one step
under the name of the shard. That name is a hash of the shard's content, so a repeated shard writes the same object.

The claimed shards of a product (the features of an encoder, the captions of a model) that may have no result yet are
listed in one object, which is changed by compare-and-swap. Even if many processes plan at once, or one of them dies,
an image is in at most one open shard: a process that needs an image of an open shard takes over the whole shard.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue

from pipeline.storage import ABSENT, Bucket, ObjectChangedError, ObjectNotFoundError, json, layout, parquet
from pipeline.work.outcomes import IDENTITY

MAX_SHARDS = 1000
"""Maximum shards of one claim; if there is more work, the shards grow instead."""


@dataclass(frozen=True)
class Shard:
    """A shard of work.

    Attributes:
        name: a hash of its content.
        images: one row per image, with the columns ``IDENTITY`` and others that the work needs.
        spec: the parameters that all images share; ``folder`` is where the result goes.
    """

    name: str
    images: pa.Table
    spec: dict[str, str]

    @property
    def result_key(self) -> str:
        """The key of the object whose existence makes the shard done."""
        return layout.shard_result(self.spec["folder"], self.name)


class ShardStats(BaseModel):
    """Time and statistics of a finished shard."""

    model_config = ConfigDict(frozen=True)

    seconds: dict[str, float]
    profile: JsonValue = None


def read(name: str, store: Bucket) -> Shard:
    """Read a shard. Raises ``ObjectNotFoundError`` if there is no such shard."""
    table = parquet.read(layout.shard(name), store)
    return Shard(name, table, parquet.metadata(table))


def claim(
    find_pending: Callable[[], pa.Table],
    spec: dict[str, str],
    *,
    product: str,
    order: Sequence[str],
    store: Bucket,
    shard_size: int,
) -> list[str]:
    """Claim shards that hold all pending images, and return their names.

    Args:
        find_pending: returns the images that have no result, with the columns ``IDENTITY``. It must read the results
            again each time: a shard that was finished since is no longer in the list of open shards.
        spec: the parameters of the shards. Open shards with the same parameters, except for the folder, are taken over.
        product: names the list of open shards.
        order: columns to sort the images by before they are cut into shards.
        store: the store.
        shard_size: images in a new shard; more if there would be more than ``MAX_SHARDS`` shards.
    """
    while True:
        listed, etag = _read_open(product, store)
        still_open = {name: result for name, result in listed.items() if not store.exists(result)}
        pending = find_pending()
        taken_over = []
        for shard in (read(name, store) for name in still_open):
            if {**shard.spec, "folder": ""} != {**spec, "folder": ""}:
                continue
            rest = pending.join(shard.images.select(IDENTITY), keys=IDENTITY, join_type="left anti")
            if len(rest) < len(pending):
                taken_over.append(shard.name)
                pending = rest
        pending = pending.sort_by([(name, "ascending") for name in order])
        new = _write(pending, spec, store=store, shard_size=shard_size, max_shards=MAX_SHARDS - len(taken_over))
        if not new:
            return taken_over
        try:
            listed = {**still_open, **{shard.name: shard.result_key for shard in new}}
            json.write(listed, layout.open_shards(product), store, if_match=etag)
        except ObjectChangedError:
            continue  # another process has claimed shards, perhaps of the same images
        return [*taken_over, *(shard.name for shard in new)]


def summary(images: int, failed: int) -> str:
    """A short description of a finished shard."""
    if not images:
        return "done before"
    return f"{images:,} images" + (f", {failed:,} failed" if failed else "")


def open_shards(store: Bucket) -> set[str]:
    """The names of all shards that are claimed and not done."""
    claims = [json.read(dict[str, str], item.key, store) for item in store.list(layout.OPEN_SHARDS)]
    return {name for listed in claims for name, result in listed.items() if not store.exists(result)}


def write_stats(shard: str, stats: ShardStats, store: Bucket) -> None:
    """Write the statistics of a finished shard."""
    json.write(stats, layout.shard_stats(shard), store)


def read_stats(shards: Iterable[str], store: Bucket) -> list[ShardStats]:
    """The statistics of shards. A process interrupted right after it wrote the result of a shard leaves none."""
    stats = []
    for shard in shards:
        try:
            stats.append(json.read(ShardStats, layout.shard_stats(shard), store))
        except ObjectNotFoundError:
            continue
    return stats


def _write(
    pending: pa.Table, spec: Mapping[str, str], *, store: Bucket, shard_size: int, max_shards: int
) -> list[Shard]:
    shard_size = max(shard_size, -(-len(pending) // max(max_shards, 1)))
    shards = []
    for start in range(0, len(pending), shard_size):
        part = pending.slice(start, shard_size).combine_chunks()
        digest = hashlib.sha256(repr((sorted(spec.items()), part.to_pydict())).encode())
        shards.append(Shard(digest.hexdigest()[:16], part, dict(spec)))
        parquet.write(part, layout.shard(shards[-1].name), store, metadata=spec)
    return shards


def _read_open(product: str, store: Bucket) -> tuple[dict[str, str], str]:
    """The keys of the results by shard, and the etag of their list."""
    key = layout.open_shards(product)
    etag = store.etag(key)
    if etag == ABSENT:
        return {}, ABSENT
    try:
        return json.read(dict[str, str], key, store, etag=etag), etag
    except ObjectChangedError:
        return _read_open(product, store)

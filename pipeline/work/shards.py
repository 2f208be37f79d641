"""Shards of work: images are cut into shards, and a process that needs the images of a shard claims it.

A shard is a list of images, stored as one object. Its result, one row per image, is one object, written in one step
under the name of the shard. That name is a hash of the shard's content, so a repeated shard writes the same object.

The claimed shards of a product (the features of an encoder, the captions of a model) that may have no result yet are
listed in one object, which is changed by compare-and-swap. Even if many processes plan at once, or one of them dies,
an image is in at most one open shard: a process that needs an image of an open shard takes over the whole shard.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.progress import counted
from pipeline.storage import (
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectNotFoundError,
    json,
    layout,
    parquet,
)
from pipeline.storage.bucket import read_version
from pipeline.work.outcomes import IDENTITY

log = logging.getLogger(__name__)

MAX_SHARDS = 1000
"""Maximum shards of one claim; if there is more work, the shards grow instead."""

READERS = 16
"""Objects that are read in parallel."""

REQUESTED_AT = "requested_at"
"""The column with the time at which a person asked to do an image again, null for others. It gives the shard another
name than that of the shard which did the image before; of two requests, one open shard does for both."""

_PLANNED_BY = (
    "`captioning plan-extraction` cuts a dataset into shards, `captioning night plan-extraction` and `captioning night "
    "plan-captions` a night, and they print the names."
)

REDONE = "Delete it: its images are then pending, and the next run writes them again."
"""What to do about a damaged result of a shard."""


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


Stats = TypeVar("Stats", bound=ShardStats)


def read(
    name: str, store: Bucket, *, parameters: Sequence[str] = (), columns: Sequence[str] = tuple(IDENTITY)
) -> Shard:
    """Read a shard.

    Args:
        name: of the shard.
        store: the store.
        parameters: what the work needs in its ``spec``, besides the folder of the result.
        columns: what the work needs of each image.

    Raises:
        ObjectNotFoundError: there is no such shard.
        DamagedObjectError: it can't be read, or is not a shard of this work.
    """
    key = layout.shard(name)
    try:
        table = parquet.read(key, store, advice="Delete it, and run the planning step again.")
    except ObjectNotFoundError:
        raise ObjectNotFoundError(f"There is no shard {name!r} in {store.uri}: {_PLANNED_BY}") from None
    shard = Shard(name, table, parquet.metadata(table))
    missing = [*({"folder", *parameters} - shard.spec.keys()), *(set(columns) - set(table.column_names))]
    if missing:
        raise DamagedObjectError(
            f"{store.url(key)} is not a shard of this kind: it has no {', '.join(sorted(missing))}. {_PLANNED_BY}"
        )
    return shard


def read_existing(names: Iterable[str], store: Bucket) -> Iterator[Shard]:
    """Read those of the shards that exist. A damaged one is left out, with a warning."""

    def read_unless_gone(name: str) -> Shard | None:
        try:
            return read(name, store)
        except (ObjectNotFoundError, DamagedObjectError) as error:
            log.warning("%s", error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        yield from filter(None, pool.map(read_unless_gone, names))


def results(prefix: str, store: Bucket) -> list[str]:
    """The keys of the results of shards that begin with ``prefix``, without what other programs have put there."""
    return [item.key for item in store.list(prefix) if layout.shard_of_result(item.key) is not None]


def is_done(shard: Shard, store: Bucket, *, columns: pa.Schema) -> bool:
    """Whether the result of the shard exists, with these columns. A damaged one is to be written again."""
    try:
        with parquet.opened(shard.result_key, store) as file:
            parquet.select(file, columns)
            file.read()
    except ObjectNotFoundError:
        return False
    except DamagedObjectError as error:
        log.warning("%s", error)
        return False
    return True


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
            A pending image about which they say something out of date is claimed anew.
        product: names the list of open shards.
        order: columns to sort the images by before they are cut into shards.
        store: the store.
        shard_size: images in a new shard; more if there would be more than ``MAX_SHARDS`` shards.
    """
    while True:
        listed, etag = _read_list(layout.open_shards(product), store)
        still_open = {name: result for name, result in listed.items() if not store.exists(result)}
        pending = find_pending()
        taken_over = []
        # A shard that can't be read is dropped, and its images are pending again.
        existing = list(read_existing(still_open, store))
        for shard in existing:
            if {**shard.spec, "folder": ""} != {**spec, "folder": ""}:
                continue
            rest = pending.join(_up_to_date(shard, pending), keys=IDENTITY, join_type="left anti")
            if len(rest) < len(pending):
                taken_over.append(shard.name)
                pending = rest
        pending = pending.sort_by([(name, "ascending") for name in order])
        new = _write(pending, spec, store=store, shard_size=shard_size, max_shards=MAX_SHARDS - len(taken_over))
        if not new:
            return taken_over
        try:
            listed = {shard.name: shard.result_key for shard in [*existing, *new]}
            json.write(listed, layout.open_shards(product), store, if_match=etag)
        except ObjectChangedError:
            continue  # another process has claimed shards, perhaps of the same images
        return [*taken_over, *(shard.name for shard in new)]


def summary(images: int, failed: int) -> str:
    """A short description of a finished shard."""
    if not images:
        return "done before"
    return counted(images, "image") + (f", {failed:,} failed" if failed else "")


def product_of_features(encoder_id: str) -> str:
    """The product of the shards of an encoder's features."""
    return f"features-{encoder_id}"


def product_of_captions(version: str) -> str:
    """The product of the shards of a model's captions."""
    return f"captions-{version}"


def open_shards(store: Bucket, *, products: Iterable[str] | None = None) -> set[str]:
    """The names of the shards that are claimed and not done: of these products, or of all."""
    if products is None:
        lists = [item.key for item in store.list(layout.OPEN_SHARDS)]
    else:
        lists = list(map(layout.open_shards, products))
    claims = [_read_list(key, store)[0] for key in lists]
    return {name for listed in claims for name, result in listed.items() if not store.exists(result)}


def write_stats(shard: str, stats: ShardStats, store: Bucket) -> None:
    """Write the statistics of a finished shard."""
    json.write(stats, layout.shard_stats(shard), store)


def read_stats(shards: Iterable[str], store: Bucket, *, kind: type[Stats]) -> list[Stats]:
    """The statistics of shards, of the kind as which they were written.

    A process interrupted right after it wrote the result of a shard leaves none. Damaged ones are left out, with a
    warning.
    """

    def find(shard: str) -> Stats | None:
        return json.find(kind, layout.shard_stats(shard), store)

    with ThreadPoolExecutor(READERS) as pool:
        return list(filter(None, pool.map(find, shards)))


def _up_to_date(shard: Shard, pending: pa.Table) -> pa.Table:
    """The pending images about which an open shard says the same, such as where their features are, as ``IDENTITY``."""
    shared = [name for name in pending.column_names if name in shard.images.column_names and name != REQUESTED_AT]
    in_shard = pending.join(shard.images.select(IDENTITY), keys=IDENTITY, join_type="left semi").select(shared)
    said = {tuple(row.values()) for row in shard.images.select(shared).to_pylist()}
    same = [tuple(row.values()) in said for row in in_shard.to_pylist()]
    return in_shard.filter(pa.array(same, pa.bool_())).select(IDENTITY)


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


def _read_list(key: str, store: Bucket) -> tuple[dict[str, str], str]:
    """A list of open shards: the keys of their results by shard; and the etag of the list, or ``ABSENT``.

    A damaged list is read as an empty one, with a warning: work is then done again, and none is lost.
    """

    def read(etag: str) -> dict[str, str]:
        try:
            return json.read(dict[str, str], key, store, etag=etag)
        except DamagedObjectError as error:
            log.warning("%s The next claim writes it again.", error)
            return {}

    listed, etag = read_version(read, key, store)
    return listed or {}, etag

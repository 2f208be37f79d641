"""The feature store: each image's vector, computed once for whoever asks first.

Work is cut into shards. A shard is a list of (key, etag); its plan lies under ``plans/<shard>.parquet`` and its result,
one row an image, under ``features/<encoder_id>/<shard>.parquet``, written with one atomic put. The shard's name is a
hash of its content, so a retry writes the same object, and what is pending is the listing less the rows that exist.
"""

import hashlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import runs, tables, timing
from pipeline.errors import PipelineError
from pipeline.images import BadImageError, decode
from pipeline.progress import track
from pipeline.storage import Bucket, ObjectChangedError, ObjectNotFoundError, StoredObject, open_bucket
from pipeline.timing import Stopwatch

if TYPE_CHECKING:
    from pipeline.encoder import Encoder

log = logging.getLogger(__name__)

MAX_SHARDS = 1000
"""Airflow maps one task over at most 1,024 items: beyond this many shards, shards grow instead."""

SHARD = 1000
"""Images a shard where one process extracts all: what is lost, at most, if it is interrupted."""

READERS = min(32, 4 + (os.cpu_count() or 1))
"""Threads that read and decode pictures: enough to keep the cores busy while some wait for the storage."""

IMAGES = pa.schema([("key", pa.string()), ("etag", pa.string())])
"""A listing: images by key, each with the etag that it had when it was listed."""

PAGE = 50_000
"""Objects of a listing held at once."""

INDEX = pa.schema([*IMAGES, ("status", pa.string()), ("error", pa.string()), ("shard", pa.string())])
"""The feature store without its vectors: what is done, what failed, and in which shard it lies."""


def schema(shape: tuple[int, ...]) -> pa.Schema:
    """A shard of features of a shape; ``status`` is ok or failed, then ``feature`` is null and ``error`` says why."""
    feature = pa.float16()
    for size in reversed(shape):
        feature = pa.list_(feature, size)
    return pa.schema([*IMAGES, ("status", pa.string()), ("error", pa.string()), ("feature", feature)])


def as_table(images: Iterator[StoredObject]) -> pa.Table:
    """A listing of schema ``IMAGES``, page by page: a million rows take a tenth of the memory of as many objects."""
    pages = [IMAGES.empty_table()]
    while page := list(islice(images, PAGE)):
        pages.append(pa.table([[item.key for item in page], [item.etag for item in page]], schema=IMAGES))
    return pa.concat_tables(pages).combine_chunks()


def plan(images: pa.Table, *, run: str, source: str, encoder_id: str, store: Bucket, shard_size: int) -> list[str]:
    """Cut what has no row yet into shards and write their plans.

    Args:
        run: who asks; the counts are noted under its name.
        images: the listing, of schema ``IMAGES``.
        source: URI of the bucket that holds the images.
        encoder_id: whose features are wanted.
        store: the store.
        shard_size: images a shard; more where there would be over ``MAX_SHARDS`` shards.

    Returns:
        The shards' names; empty when nothing is pending.
    """
    done = index(encoder_id, store).select(["key", "etag"])
    pending = images.join(done, keys=["key", "etag"], join_type="left anti").sort_by("key")
    log.info("%d images: %d have a row, %d are pending", len(images), len(images) - len(pending), len(pending))
    shards = write_plans(pending, {"source": source, "encoder_id": encoder_id}, store=store, shard_size=shard_size)
    runs.write(run, "extraction", {"images": len(images), "pending": len(pending), "shards": shards}, store)
    return shards


def write_plans(pending: pa.Table, about: dict[str, str], *, store: Bucket, shard_size: int) -> list[str]:
    """Write ``pending``, sliced, as ``plans/<shard>.parquet`` with ``about`` as metadata; return the shards' names."""
    shard_size = max(shard_size, -(-len(pending) // MAX_SHARDS))
    shards = []
    for start in range(0, len(pending), shard_size):
        part = pending.slice(start, shard_size).combine_chunks()
        digest = hashlib.sha256(repr((sorted(about.items()), part.to_pydict())).encode())
        shards.append(digest.hexdigest()[:16])
        tables.write(part, _plan_key(shards[-1]), store, about=about)
    return shards


def read_plan(shard: str, store: Bucket) -> tuple[pa.Table, dict[str, str]]:
    """A planned shard's rows and what is said about them."""
    table = tables.read(_plan_key(shard), store)
    return table, tables.about(table)


def complete(images: pa.Table, *, run: str, source: str, encoder_id: str, store: Bucket) -> None:
    """Extract here and now what has no row yet; arguments as those of ``plan`` and ``extract``."""
    shards = plan(images, run=run, source=source, encoder_id=encoder_id, store=store, shard_size=SHARD)
    for shard in shards:
        extract(shard, store=store)


@dataclass(frozen=True)
class Extraction:
    """What the extraction of one shard did.

    Attributes:
        shard: its name.
        images: how many there were to encode; none where it was done before.
        failed: how many of them could not be.
        images_per_second: by the clock, without loading the encoder.
    """

    shard: str
    images: int
    failed: int
    images_per_second: float


def extract(shard: str, *, store: Bucket) -> Extraction:
    """Encode a planned shard's images and write its features; does nothing where they are written already."""
    from pipeline import encoder as encoders

    images, about = read_plan(shard, store)
    key = _features_key(about["encoder_id"], shard)
    if store.exists(key):
        log.info("%s exists: nothing to do", store.url(key))
        return Extraction(shard, 0, 0, 0.0)
    stopwatch = Stopwatch()
    with stopwatch.stage("load"):
        encoder = encoders.load(about["encoder_id"], store)
    start = time.monotonic()
    read = partial(read_picture, open_bucket(about["source"]), encoder.size, stopwatch=stopwatch)
    rows = list(zip(images["key"].to_pylist(), images["etag"].to_pylist(), strict=True))
    vectors, errors = encode(rows, read, encoder, stopwatch)
    table = pa.table(
        [
            images["key"],
            images["etag"],
            pa.array(["ok" if error is None else "failed" for error in errors], pa.string()),
            pa.array(errors, pa.string()),
            _column(vectors, null=[error is not None for error in errors]),
        ],
        schema=schema(encoder.shape),
    )
    with stopwatch.stage("write"):
        tables.write(table, key, store)
    rate = len(rows) / max(time.monotonic() - start, 1e-9)
    timing.save(shard, stopwatch, store)
    done = Extraction(shard, len(rows), sum(error is not None for error in errors), round(rate, 2))
    log.info("%s: %d images, %d failed, %.1f a second", shard, done.images, done.failed, rate)
    log.info("seconds, those of all threads added up: %s", stopwatch)
    return done


def index(encoder_id: str, store: Bucket) -> pa.Table:
    """Every row of an encoder's features, without the vectors: a table of schema ``INDEX``."""
    parts = [INDEX.empty_table()]
    for item in store.list(f"features/{encoder_id}/"):
        table = tables.read(item.key, store, columns=INDEX.names[:-1])
        shard = item.key.rpartition("/")[2].removesuffix(".parquet")
        parts.append(table.append_column("shard", pa.array([shard] * len(table), pa.string())))
    return pa.concat_tables(parts)


def look_up(images: pa.Table, *, encoder_id: str, store: Bucket) -> pa.Table:
    """The images' rows of the index, one an image, in the images' order.

    Raises:
        PipelineError: an image has no row.
    """
    order = images.select(["key", "etag"]).append_column("position", pa.array(range(len(images)), pa.int64()))
    # A join keeps its right side in memory, which is the shorter one here.
    found = index(encoder_id, store).join(order, keys=["key", "etag"], join_type="inner").sort_by("position")
    # Two planners at once may have put an image in two shards; either row serves.
    found = found.group_by("position", use_threads=False).aggregate([(name, "first") for name in INDEX.names])
    found = found.select([f"{name}_first" for name in INDEX.names]).rename_columns(INDEX.names)
    if len(found) < len(images):
        raise PipelineError(
            f"{len(images) - len(found)} of {len(images)} images have no features of {encoder_id} in {store.uri}: "
            "plan and extract them first."
        )
    return found


def read_vectors(rows: pa.Table, *, encoder_id: str, store: Bucket) -> npt.NDArray[np.float32]:
    """The features of index rows whose status is ok: float32, (rows, D) or (rows, V, D), in the rows' order."""
    wanted: dict[str, dict[tuple[str, str], int]] = {}
    for position, (key, etag, shard) in enumerate(
        zip(*(rows[name].to_pylist() for name in ("key", "etag", "shard")), strict=True)
    ):
        wanted.setdefault(shard, {})[key, etag] = position
    vectors: npt.NDArray[np.float32] | None = None
    for shard, positions in wanted.items():
        table = tables.read(_features_key(encoder_id, shard), store, columns=["key", "etag", "feature"])
        identities = zip(table["key"].to_pylist(), table["etag"].to_pylist(), strict=True)
        here = [(row, positions[identity]) for row, identity in enumerate(identities) if identity in positions]
        taken = table["feature"].combine_chunks().take(pa.array([row for row, _ in here]))
        shape = []
        while isinstance(taken, pa.FixedSizeListArray):
            shape.append(taken.type.list_size)
            taken = taken.flatten()
        values = np.asarray(taken).reshape(len(here), *shape)
        if vectors is None:
            vectors = np.zeros((len(rows), *shape), np.float32)
        vectors[[position for _, position in here]] = values
    if vectors is None:
        raise PipelineError(
            f"No image to read features of {encoder_id} for: every one of them failed, or none is left."
        )
    return vectors


def _column(vectors: npt.NDArray[np.float16], *, null: list[bool]) -> pa.Array:
    """Vectors, (N, D) or (N, V, D), as a column of fixed-size lists."""
    column = pa.array(vectors.reshape(-1))
    for size in reversed(vectors.shape[2:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return pa.FixedSizeListArray.from_arrays(column, vectors.shape[1], mask=pa.array(null))


def check_failures(failed: Sequence[tuple[str, str]], total: int, *, allowed_fraction: float) -> None:
    """Raise ``PipelineError`` where more images failed than allowed: (key, error) of those that did, out of ``total``.

    The allowed number is rounded up, so that one bad picture among a handful of new ones is no alarm.
    """
    if len(failed) > math.ceil(total * allowed_fraction):
        examples = "; ".join(f"{key}: {error}" for key, error in failed[:5])
        raise PipelineError(
            f"{len(failed)} of {total} images failed, more than the allowed {allowed_fraction:.0%}: {examples}. "
            "Mend or remove them, or raise max_failed_fraction."
        )


def _plan_key(shard: str) -> str:
    return f"plans/{shard}.parquet"


def _features_key(encoder_id: str, shard: str) -> str:
    return f"features/{encoder_id}/{shard}.parquet"


Picture = npt.NDArray[np.uint8] | str
"""A decoded picture, or why there is none."""


def read_picture(bucket: Bucket, size: tuple[int, int], image: tuple[str, str], *, stopwatch: Stopwatch) -> Picture:
    """The picture of an image, (key, etag), scaled to (height, width); the time goes to the stages read and decode."""
    key, etag = image
    try:
        with stopwatch.stage("read"):
            data = bucket.get(key, etag=etag)
        with stopwatch.stage("decode"):
            return decode(data, size)
    except BadImageError as error:
        return str(error)
    except (ObjectNotFoundError, ObjectChangedError):
        # Under its new etag it is another image, which the next listing will find.
        return "removed or replaced since it was listed"


def encode(
    rows: list[tuple[str, str]],
    read: Callable[[tuple[str, str]], Picture],
    encoder: "Encoder",
    stopwatch: Stopwatch,
) -> tuple[npt.NDArray[np.float16], list[str | None]]:
    """Encode pictures, in batches, while others are read.

    Args:
        rows: the pictures' names, as ``read`` takes them.
        read: from a name to the decoded picture, or to why there is none; called from several threads.
        encoder: what to encode with.
        stopwatch: the time goes to the stage encode.

    Returns:
        The vectors, (N, D) or (N, V, D) float16, zero where there is no picture; and of each picture why there is none,
        or None.
    """
    vectors = np.zeros((len(rows), *encoder.shape), np.float16)
    errors: list[str | None] = [None] * len(rows)

    def batches() -> Iterator[dict[int, npt.NDArray[np.uint8]]]:
        batch = {}
        pictures = _ahead(read, rows, threads=READERS, window=4 * encoder.threads * encoder.batch_size)
        for row, picture in enumerate(track(pictures, total=len(rows), unit="images", log=log)):
            if isinstance(picture, str):
                errors[row] = picture
                log.warning("%s: %s", rows[row][0], picture)
            else:
                batch[row] = picture
            if len(batch) == encoder.batch_size:
                yield batch
                batch = {}
        if batch:
            yield batch

    def run(batch: dict[int, npt.NDArray[np.uint8]]) -> tuple[list[int], npt.NDArray[np.float32]]:
        with stopwatch.stage("encode"):
            return list(batch), encoder.encode(np.stack(list(batch.values())))

    for places, encoded in _ahead(run, batches(), threads=encoder.threads, window=2 * encoder.threads):
        with np.errstate(over="ignore"):
            vectors[places] = encoded
        for place in places:
            if not np.isfinite(vectors[place]).all():
                errors[place] = "its features are not finite in 16 bits"
    return vectors, errors


Item = TypeVar("Item")
Result = TypeVar("Result")


def _ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, window: int) -> Iterator[Result]:
    """The function's values in the items' order, computed in threads, at most ``window`` ahead of who takes them."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

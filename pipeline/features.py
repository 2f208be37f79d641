"""The feature store: each image's vector, computed once for whoever asks first.

Features are extracted in shards (see ``plans``); the result of one, a row an image, is
``features/<encoder_id>/<shard>.parquet``. What is pending is the listing less the images whose rows settle them.
"""

import logging
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plans, runs, tables
from pipeline.decoders import Decoders
from pipeline.errors import PipelineError
from pipeline.images import MAX_BYTES, TOO_LARGE, BadImageError
from pipeline.plans import IDENTITY
from pipeline.progress import track
from pipeline.storage import (
    BadKeyError,
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoredObject,
    open_bucket,
)
from pipeline.timing import Stopwatch

if TYPE_CHECKING:
    from pipeline.encoder import Encoder

log = logging.getLogger(__name__)

SHARD = 1000
"""Images a shard where one process extracts all: what is lost, at most, if it is interrupted."""

READERS = min(32, 4 + (os.cpu_count() or 1))
"""Threads that read and decode pictures: enough to keep the cores busy while some wait for the storage."""

IMAGES = pa.schema([("key", pa.string()), ("etag", pa.string())])
"""A listing: images by key, each with the etag that it had when it was listed."""

PAGE = 50_000
"""Objects of a listing held at once."""

OFFENDERS = 5
"""Kinds of failure, and keys of each, that an error lists."""

GONE = "removed or replaced since it was listed"
"""The error of an image that was not there any more. Where it comes back as it was, it is tried again."""

ROWS = pa.schema([*IMAGES, ("attempt", pa.int32()), ("status", pa.string()), ("error", pa.string())])
"""A row of the feature store without its vector; ``attempt`` says how often it had failed before."""

INDEX = pa.schema([*ROWS, ("shard", pa.string())])
"""The feature store without its vectors: what is done, what failed, and in which shard it lies."""


def schema(shape: tuple[int, ...]) -> pa.Schema:
    """A shard of features of a shape; ``status`` is ok or failed, then ``feature`` is null and ``error`` says why."""
    feature = pa.float16()
    for size in reversed(shape):
        feature = pa.list_(feature, size)
    return pa.schema([*ROWS, ("feature", feature)])


def as_table(images: Iterator[StoredObject]) -> pa.Table:
    """A listing of schema ``IMAGES``, page by page: a million rows take a tenth of the memory of as many objects."""
    pages = [IMAGES.empty_table()]
    while page := list(islice(images, PAGE)):
        pages.append(pa.table([[item.key for item in page], [item.etag for item in page]], schema=IMAGES))
    return pa.concat_tables(pages).combine_chunks()


def plan(
    images: pa.Table,
    *,
    run: str,
    source: str,
    encoder_id: str,
    store: Bucket,
    shard_size: int,
    retry_failed: bool = False,
) -> list[str]:
    """Claim what has no features yet.

    Args:
        images: the listing, of schema ``IMAGES``.
        run: who asks; the shards are noted under its name.
        source: URI of the bucket that holds the images.
        encoder_id: whose features are wanted.
        store: the store.
        shard_size: images a shard.
        retry_failed: try what failed before again.

    Returns:
        The names of the shards to extract; empty when nothing is pending.
    """

    def find_pending() -> pa.Table:
        rows = index(encoder_id, store)
        pending = images.join(settled(rows, retry_failed=retry_failed), keys=IDENTITY, join_type="left anti")
        failed = rows.filter(pc.field("status") == "failed").select(IDENTITY)
        attempts = failed.group_by(IDENTITY).aggregate([([], "count_all")]).rename_columns([*IDENTITY, "attempt"])
        pending = pending.join(attempts, keys=IDENTITY, join_type="left outer")
        attempt = pc.fill_null(pending["attempt"], 0).cast(pa.int32())
        return pending.select(IDENTITY).append_column("attempt", attempt)

    shards = plans.claim(
        find_pending,
        {"folder": _folder(encoder_id), "source": source, "encoder_id": encoder_id},
        product=f"features-{encoder_id}",
        order=["key"],
        store=store,
        shard_size=shard_size,
    )
    runs.note_shards(run, runs.EXTRACTION, shards, store)
    log.info("%d images: features are to be extracted in %d shards", len(images), len(shards))
    return shards


def settled(rows: pa.Table, *, retry_failed: bool) -> pa.Table:
    """The images, of schema ``IMAGES``, that need no further attempt: of rows with ``status`` and ``error``."""
    ok = pc.field("status") == "ok"
    if retry_failed:
        return rows.filter(ok).select(IDENTITY)
    return rows.filter(ok | (pc.field("error") != GONE)).select(IDENTITY)


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
        encoder_id: of the encoder.
    """

    shard: str
    images: int
    failed: int
    images_per_second: float
    encoder_id: str

    def __str__(self) -> str:
        return plans.summary(self.images, self.failed)


def extract(shard: str, *, store: Bucket) -> Extraction:
    """Encode a planned shard's images and write its features; does nothing where they are written already."""
    from pipeline import encoder as encoders

    plan = plans.read(shard, store)
    if store.exists(plan.result):
        log.info("%s exists: nothing to do", store.url(plan.result))
        return Extraction(shard, 0, 0, 0.0, plan.about["encoder_id"])
    stopwatch = Stopwatch()
    with stopwatch.stage("load"):
        encoder = encoders.load(plan.about["encoder_id"], store)
    start = time.monotonic()
    images = plan.images
    rows = list(zip(*(images[name].to_pylist() for name in IDENTITY), strict=True))
    with Decoders(encoder.size) as decoders:
        read = partial(read_picture, open_bucket(plan.about["source"]), decoders, stopwatch=stopwatch)
        vectors, errors = encode(rows, read, encoder, stopwatch)
    table = pa.table(
        [
            *images.select([*IDENTITY, "attempt"]),
            pa.array(["ok" if error is None else "failed" for error in errors], pa.string()),
            pa.array(errors, pa.string()),
            _column(vectors, null=[error is not None for error in errors]),
        ],
        schema=schema(encoder.shape),
    )
    with stopwatch.stage("write"):
        tables.write(table, plan.result, store)
    rate = len(rows) / max(time.monotonic() - start, 1e-9)
    plans.write_note(shard, {"seconds": stopwatch.seconds}, store)
    failed = sum(error is not None for error in errors)
    done = Extraction(shard, len(rows), failed, round(rate, 2), plan.about["encoder_id"])
    log.info("%s: %s, %.1f a second", shard, done, rate)
    log.info("seconds, those of all threads added up: %s", stopwatch)
    return done


def index(encoder_id: str, store: Bucket) -> pa.Table:
    """Every row of an encoder's features, without the vectors: a table of schema ``INDEX``."""
    parts = [INDEX.empty_table()]
    for item in store.list(f"{_folder(encoder_id)}/"):
        table = tables.read(item.key, store, columns=ROWS.names)
        shard = item.key.rpartition("/")[2].removesuffix(".parquet")
        parts.append(table.append_column("shard", pa.array([shard] * len(table), pa.string())))
    return pa.concat_tables(parts)


def look_up(images: pa.Table, *, encoder_id: str, store: Bucket) -> pa.Table:
    """The images' rows of the index, one an image, in the images' order: of several attempts the one that succeeded.

    Raises:
        PipelineError: an image has no row.
    """
    order = images.select(IDENTITY).append_column("position", pa.array(range(len(images)), pa.int64()))
    # A join keeps its right side in memory, which is the shorter one here.
    found = index(encoder_id, store).join(order, keys=IDENTITY, join_type="inner")
    # "ok" comes after "failed", and the last attempt after those before.
    found = found.sort_by([("position", "ascending"), ("status", "descending"), ("attempt", "descending")])
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
        table = tables.read(f"{_folder(encoder_id)}/{shard}.parquet", store, columns=[*IDENTITY, "feature"])
        identities = zip(*(table[name].to_pylist() for name in IDENTITY), strict=True)
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
    if len(failed) <= math.ceil(total * allowed_fraction):
        return
    keys = defaultdict(list)
    for key, error in failed:
        keys[error].append(key)
    worst = sorted(keys.items(), key=lambda item: len(item[1]), reverse=True)[:OFFENDERS]
    kinds = "; ".join(
        f"{len(of_kind)} × {error} ({', '.join(of_kind[:OFFENDERS])}{', …' if len(of_kind) > OFFENDERS else ''})"
        for error, of_kind in worst
    )
    raise PipelineError(
        f"{len(failed)} of {total} images failed, more than the allowed {allowed_fraction:.0%}: {kinds}. "
        "Mend or remove them, or raise max_failed_fraction."
    )


def _folder(encoder_id: str) -> str:
    return f"features/{encoder_id}"


Picture = npt.NDArray[np.uint8] | str
"""A decoded picture, or why there is none."""


def read_picture(bucket: Bucket, decoders: Decoders, image: tuple[str, str], *, stopwatch: Stopwatch) -> Picture:
    """The picture of an image, (key, etag), or why there is none; the time goes to the stages read and decode."""
    key, etag = image
    try:
        with stopwatch.stage("read"):
            data = bucket.get(key, etag=etag, limit=MAX_BYTES)
        with stopwatch.stage("decode"):
            return decoders.decode(data)
    except (BadImageError, BadKeyError) as error:
        return str(error)
    except ObjectDeniedError:
        return "access to it is denied; allow it to be read"
    except ObjectTooLargeError:
        return TOO_LARGE
    except (ObjectNotFoundError, ObjectChangedError):
        # Under its new etag it is another image, which the next listing will find.
        return GONE


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

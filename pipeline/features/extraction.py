"""Feature extraction: images without features are cut into shards, and each shard is read, decoded and encoded."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import dataset as datasets
from pipeline.data.decoders import SEATS, Decoders
from pipeline.data.images import MAX_BYTES, TOO_LARGE, BadImageError, Picture, SlowImageError
from pipeline.errors import PipelineError
from pipeline.features import store as feature_store
from pipeline.features.store import Features
from pipeline.progress import track
from pipeline.storage import (
    BadKeyError,
    Bucket,
    ObjectArchivedError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    has_portable_names,
    json,
    layout,
    open_source,
)
from pipeline.timing import Stopwatch
from pipeline.work import runs, shards
from pipeline.work.outcomes import ARCHIVED, GONE, IDENTITY
from pipeline.work.outcomes import pending as pending_images

if TYPE_CHECKING:
    from pipeline.features.encoder import Encoder

log = logging.getLogger(__name__)

SHARD_SIZE = 1000
"""Images per shard if one process extracts all: an interruption loses at most one shard."""

READERS = min(64, 4 + SEATS * (os.cpu_count() or 1))
"""Threads that read and decode pictures: one for each seat in a decoder, and some that wait for the storage."""


USUAL_SECONDS = 2.5
"""CPU time in which an image must be decoded; the largest healthy ones take two seconds."""

SLOW_IMAGES = 10
"""Images of a shard that may take longer, up to the limit of the decoders.

They are for slow machines and odd pictures. Hostile pictures, which may be small and never end, can't make a shard
last: even 2,000 of them, the default of ``CAPTION_SHARD_SIZE``, take 2,000 × 2.5 s + 10 × 30 s of CPU time, and 2,000
times .2 s to replace the decoder: 48 minutes on two cores. The tasks of the DAGs may take an hour. Where a shard is
interrupted nevertheless, ``SlowImages`` continues where it was.
"""


def plan_extraction(
    images: pa.Table,
    *,
    run: str,
    source: str,
    encoder_id: str,
    store: Bucket,
    shard_size: int,
    retry_failed: bool = False,
) -> list[str]:
    """Claim the images that have no features yet.

    Args:
        images: a listing, of schema ``IMAGES``.
        run: the run under which the shards are recorded.
        source: name of the bucket that holds the images, as ``source_name`` gives it.
        encoder_id: encoder of the features.
        store: the store.
        shard_size: images per shard.
        retry_failed: whether images that failed before are tried again.

    Returns:
        The names of the shards to extract; empty when nothing is pending.
    """

    def find_pending() -> pa.Table:
        rows = feature_store.index(encoder_id, store, images=images)
        pending = pending_images(images, [rows], by="attempt", retry_failed=retry_failed)
        failed = rows.filter(pc.field("status") == "failed").select(IDENTITY)
        attempts = failed.group_by(IDENTITY).aggregate([([], "count_all")]).rename_columns([*IDENTITY, "attempt"])
        pending = pending.join(attempts, keys=IDENTITY, join_type="left outer")
        attempt = pc.fill_null(pending["attempt"], 0).cast(pa.int32())
        return pending.select(IDENTITY).append_column("attempt", attempt)

    names = shards.claim(
        find_pending,
        {"folder": layout.features_folder(encoder_id), "source": source, "encoder_id": encoder_id},
        product=shards.product_of_features(encoder_id),
        order=["image_key"],
        store=store,
        shard_size=shard_size,
    )
    runs.record_shards(run, runs.EXTRACTION, names, store)
    log.info("images: %d; shards of features to extract: %d", len(images), len(names))
    return names


def extract_missing(images: pa.Table, *, run: str, source: str, encoder_id: str, store: Bucket) -> None:
    """Extract in this process the features of images that have no row yet; arguments as for ``plan_extraction``."""
    known = feature_store.index(encoder_id, store, images=images)
    missing = images.join(known.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    if not len(missing):
        return
    for shard in plan_extraction(
        missing, run=run, source=source, encoder_id=encoder_id, store=store, shard_size=SHARD_SIZE
    ):
        extract(shard, store=store)


@dataclass(frozen=True)
class Extraction:
    """The extraction of one shard.

    Attributes:
        shard: its name.
        images: images that were to be encoded; 0 if the shard was done before.
        failed: images that failed.
        images_per_second: in wall time, without loading the encoder.
        encoder_id: of the encoder.
        source: URI of the bucket of the images.
    """

    shard: str
    images: int
    failed: int
    images_per_second: float
    encoder_id: str
    source: str

    def __str__(self) -> str:
        return shards.summary(self.images, self.failed)


def extract(name: str, *, store: Bucket) -> Extraction:
    """Encode the images of a shard and write their features, unless they are written already.

    Raises:
        DecoderStartError: no picture can be decoded on this machine at the moment.
    """
    from pipeline.features import encoder as encoders

    shard = shards.read(name, store, parameters=("encoder_id", "source"), columns=[*IDENTITY, "attempt"])
    encoder_id, source = shard.spec["encoder_id"], shard.spec["source"]
    photographs = open_source(source, store)
    if shards.is_done(shard, store, columns=feature_store.ROWS):
        log.info("%s exists: nothing to do", store.url(shard.result_key))
        return Extraction(name, 0, 0, 0.0, encoder_id, photographs.uri)
    stopwatch = Stopwatch()
    with stopwatch.section("load"):
        encoder = encoders.load(encoder_id, store)
    start = time.monotonic()
    images = list(zip(*(shard.images[column].to_pylist() for column in IDENTITY), strict=True))
    slow_key = layout.shard_slow_images(name)
    # Of two processes that extract the shard at the same time, the last to write is remembered.
    slow = json.find(dict[str, str | None], slow_key, store) or {}
    with Decoders(encoder.size) as pool:
        read = partial(
            read_picture,
            photographs,
            SlowImages(pool, slow, lambda slow: json.write(slow, slow_key, store)).decode,
            stopwatch=stopwatch,
            check_etag=not has_portable_names(source),
        )
        encoded = encode(images, read, encoder, stopwatch)
    with stopwatch.section("write"):
        feature_store.write(shard.images, encoded, shard.result_key, store)
    rate = len(images) / max(time.monotonic() - start, 1e-9)
    shards.write_stats(name, shards.ShardStats(seconds=stopwatch.seconds), store)
    failed = sum(error is not None for error in encoded.errors)
    done = Extraction(name, len(images), failed, round(rate, 2), encoder_id, photographs.uri)
    log.info("%s: %s, %.1f a second", name, done, rate)
    log.info("seconds, summed over all threads: %s", stopwatch)
    return done


class SlowImages:
    """The rule for images that take long to decode: ``SLOW_IMAGES`` of a shard may, and the others fail.

    Args:
        pool: decodes them.
        slow: the images that are known to take longer than ``USUAL_SECONDS``, by key: the error of one that took too
            long, and None for one that may take up to the limit of the pool.
        remember: called with ``slow`` after each change, so that a repeated shard can begin with it.
    """

    def __init__(
        self, pool: Decoders, slow: dict[str, str | None], remember: Callable[[dict[str, str | None]], None]
    ) -> None:
        self._pool, self._slow, self._remember = pool, slow, remember
        self._lock = threading.Lock()

    def decode(self, key: str, data: bytes, out: npt.NDArray[np.uint8]) -> Picture:
        """Decode an image into ``out``, unless it is known to take too long. Raises as ``Decoders.decode``."""
        if known := self._slow.get(key):
            raise SlowImageError(known)
        if key not in self._slow:
            try:
                return self._pool.decode(data, seconds=USUAL_SECONDS, out=out)
            except SlowImageError as error:
                self._allow(key, error)
        try:
            return self._pool.decode(data, out=out)
        except SlowImageError as error:
            with self._lock:
                self._set(key, str(error))
            raise

    def _allow(self, key: str, error: SlowImageError) -> None:
        """Let an image take longer, or raise that it is one too many."""
        with self._lock:
            if len(self._slow) < SLOW_IMAGES:
                self._set(key, None)
                return
            message = (
                f"takes longer than {USUAL_SECONDS:g} s to decode, like {SLOW_IMAGES} others before it; save it again "
                "with another program, or remove the others and retry failed images"
            )
            self._set(key, message)
        raise SlowImageError(message) from error

    def _set(self, key: str, error: str | None) -> None:
        self._slow[key] = error
        self._remember(self._slow)


def training_pictures(dataset_id: str, store: Bucket, *, size: tuple[int, int], count: int) -> npt.NDArray[np.uint8]:
    """Training pictures of a dataset, evenly spread over it, for what is learnt of an encoder's activations.

    Args:
        dataset_id: of the dataset.
        store: the store.
        size: (height, width) to which they are resized.
        count: how many at most; those that can't be read are left out.

    Returns:
        (N, height, width, 3) uint8, N at least 1.

    Raises:
        PipelineError: there is no such dataset, or no training picture can be read.
    """
    training = datasets.load(dataset_id, store).split("train")
    chosen = training.take(np.linspace(0, len(training) - 1, min(count, len(training))).astype(int))
    sources = datasets.sources(chosen, store)
    stopwatch = Stopwatch()
    pictures = np.empty((len(chosen), *size, 3), np.uint8)
    with Decoders(size) as pool:
        decode = SlowImages(pool, {}, lambda _: None).decode
        is_read = [
            not isinstance(
                read_picture(
                    sources[row["source"]],
                    decode,
                    (row["image_key"], row["image_etag"]),
                    out,
                    stopwatch=stopwatch,
                    check_etag=not has_portable_names(row["source"]),
                ),
                str,
            )
            for row, out in zip(chosen.to_pylist(), pictures, strict=True)
        ]
    if not any(is_read):
        raise PipelineError(
            f"None of {len(chosen)} training pictures in {', '.join(sources)} can be read to calibrate the encoder: "
            "restore the pictures, or ingest the dataset again."
        )
    return pictures[is_read]


def read_picture(
    bucket: Bucket,
    decode: Callable[[str, bytes, npt.NDArray[np.uint8]], Picture],
    image: tuple[str, str],
    out: npt.NDArray[np.uint8],
    *,
    stopwatch: Stopwatch,
    check_etag: bool = True,
) -> Picture | str:
    """Read and decode an image.

    Args:
        bucket: the bucket of the image.
        decode: decodes an image, given its key, its bytes, and where its pixels are put.
        image: its key and its etag.
        out: where its pixels are put, (height, width, 3).
        stopwatch: the time is added to its sections read and decode.
        check_etag: whether another etag is an error.

    Returns:
        The picture, or the error.
    """
    key, etag = image
    try:
        with stopwatch.section("read"):
            data = bucket.get(key, etag=etag if check_etag else None, limit=MAX_BYTES)
        with stopwatch.section("decode"):
            return decode(key, data, out)
    except (BadImageError, BadKeyError) as error:
        return str(error)
    except ObjectArchivedError:
        return ARCHIVED
    except ObjectDeniedError as error:
        return error.reason
    except ObjectTooLargeError:
        return TOO_LARGE
    except (ObjectNotFoundError, ObjectChangedError):
        # With a new etag it is another image, which the next listing finds.
        return GONE


def encode(
    rows: list[tuple[str, str]],
    read: Callable[[tuple[str, str], npt.NDArray[np.uint8]], Picture | str],
    encoder: "Encoder",
    stopwatch: Stopwatch,
) -> feature_store.Encoded:
    """Encode pictures in batches while others are read.

    Args:
        rows: the images, as ``read`` takes them.
        read: returns the decoded picture of an image, or the error; called from several threads, with an array of
            (height, width, 3) in which the pixels should be, as others are copied there.
        encoder: the encoder.
        stopwatch: the time is added to its section encode.
    """
    features = Features(
        np.zeros((len(rows), *encoder.shape), np.float16),
        encoder.regions and np.zeros((len(rows), *encoder.regions), np.float16),
    )
    errors: list[str | None] = [None] * len(rows)
    sizes: list[tuple[int, int] | None] = [None] * len(rows)
    # Arrays of pictures that are encoded: those of later batches are put there, because new memory takes time.
    free: deque[npt.NDArray[np.uint8]] = deque()

    def places() -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        """The number of each row, the array of its batch, and its place there."""
        for first in range(0, len(rows), encoder.batch_size):
            batch = free.popleft() if free else np.empty((encoder.batch_size, *encoder.size, 3), np.uint8)
            for row, place in zip(range(first, len(rows)), batch, strict=False):
                yield row, batch, place

    def fill(
        item: tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    ) -> tuple[npt.NDArray[np.uint8], Picture | str]:
        row, batch, place = item
        picture = read(rows[row], place)
        if isinstance(picture, Picture) and picture.pixels is not place:
            place[:] = picture.pixels
        return batch, picture

    def batches() -> Iterator[tuple[npt.NDArray[np.uint8], list[int]]]:
        """The array of each batch, and the rows whose pictures are in it; a row that has failed leaves its place."""
        window = 2 * encoder.threads * encoder.batch_size
        filled = _map_ahead(fill, places(), threads=READERS, window=max(window, 2 * READERS))
        found: list[int] = []
        for row, (batch, picture) in enumerate(track(filled, total=len(rows), unit="images", log=log)):
            if isinstance(picture, str):
                errors[row] = picture
                log.warning("%s: %s", rows[row][0], picture)
            else:
                found.append(row)
                sizes[row] = picture.width, picture.height
            if (row + 1) % encoder.batch_size == 0 or row + 1 == len(rows):
                yield batch, found
                found = []

    def run(filled: tuple[npt.NDArray[np.uint8], list[int]]) -> tuple[list[int], Features | None]:
        batch, found = filled
        encoded = None
        if found:
            with stopwatch.section("encode"):
                used = np.array(found) % encoder.batch_size
                # Pictures are copied only if some between them have failed.
                encoded = encoder.encode(batch[: len(used)] if used[-1] + 1 == len(used) else batch[used])
        free.append(batch)
        return found, encoded

    for found, encoded in _map_ahead(run, batches(), threads=encoder.threads, window=2 * encoder.threads):
        if encoded is None:
            continue
        is_finite = np.ones(len(found), bool)
        for target, source in zip(features.arrays, encoded.arrays, strict=True):
            with np.errstate(over="ignore"):
                target[found] = source
            is_finite &= np.isfinite(target[found]).reshape(len(found), -1).all(axis=1)
        for place in np.flatnonzero(~is_finite):
            errors[found[place]] = "its features are not finite in 16 bits"
    return feature_store.Encoded(features, errors, sizes)


Item = TypeVar("Item")
Result = TypeVar("Result")


def _map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, window: int
) -> Iterator[Result]:
    """``map`` in threads, in the order of the items, at most ``window`` items ahead of the consumer."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

"""The outcome of an image: which of several attempts counts, what is settled, and what is tried again (the retry rule).

Features, captions, nights and reports all use this module. An attempt is a row with the columns ``IDENTITY``,
``status`` (ok or failed) and ``error``.

The retry rule: an image that succeeded is settled. One that failed is settled too, because the same bytes fail in the
same way, unless they could not be had (``UNAVAILABLE``), or a person asks for a retry of the failed ones.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError

IDENTITY = ["image_key", "image_etag"]
"""The columns that identify an image and its version."""

GONE = "removed or replaced after it was listed"
"""The error of an image that was gone when it was read. If the same version comes back, it is tried again."""

ARCHIVED = "archived; restore it, and the next night captions it"
"""The error of an image whose bytes must be restored from an archive first."""

UNAVAILABLE = {GONE, ARCHIVED}
"""Errors of images whose bytes could not be had: they settle nothing, and do not count as failures of a night."""

COMPARED = 100_000
"""Attempts that are compared with images at once. All of them would take more memory than the images."""

REPORTED = 5
"""Kinds of failure, and keys of each, that an error message lists."""


def latest_outcome(attempts: pa.Table, *, by: str) -> pa.Table:
    """The attempt that counts for each image: the last that succeeded, or the last failure if none did.

    Args:
        attempts: rows in any order.
        by: the column that orders the attempts at an image.

    Returns:
        The rows that count, with all their columns, ordered by ``IDENTITY``.
    """
    # "ok" sorts after "failed". The error breaks ties, so that the result never depends on the order of the input.
    order = [(name, "ascending") for name in IDENTITY]
    order += [("status", "descending"), (by, "descending"), ("error", "ascending")]
    ordered = attempts.sort_by(order).combine_chunks()
    if len(ordered) < 2:
        return ordered
    differs = [pc.not_equal(ordered[name][1:], ordered[name][:-1]) for name in IDENTITY]
    first = pa.concat_arrays([pa.array([True]), *pc.or_(*differs).chunks])
    return ordered.filter(first)


def pending(images: pa.Table, attempts: Iterable[pa.Table], *, by: str, retry_failed: bool) -> pa.Table:
    """The rows of ``images`` that the attempts at them do not settle.

    Args:
        images: one row per image, with the columns ``IDENTITY``.
        attempts: rows in any order, also of other images; each table is read once.
        by: the column that orders the attempts at an image.
        retry_failed: whether images that failed are tried again.
    """
    identities = _identities(images)
    settled = pa.chunked_array([pa.repeat(False, len(images))])
    failed = []
    # An attempt that succeeded settles its image whenever it was, so that only the failed ones are put in order.
    for some in _in_batches(attempts, COMPARED):
        settled = pc.or_(settled, pc.is_in(identities, _identities(some.filter(pc.field("status") == "ok"))))
        failed.append(some.filter(pc.field("status") == "failed"))
    if failed and not retry_failed:
        last = latest_outcome(pa.concat_tables(failed), by=by)
        final = last.filter(~pc.field("error").isin(list(UNAVAILABLE)))
        settled = pc.or_(settled, pc.is_in(identities, _identities(final)))
    return images.filter(pc.invert(settled))


def of_images(images: pa.Table, attempts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The attempts at these images, some of them in each table; ``images`` has the columns ``IDENTITY``."""
    identities = _identities(images)
    for some in _in_batches(attempts, COMPARED):
        yield some.filter(pc.is_in(_identities(some), identities))


def _in_batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of tables in new ones of ``rows`` rows or more, but less than twice as many."""
    held, count = [], 0
    for table in tables:
        for start in range(0, len(table), rows):
            held.append(table.slice(start, rows))
            count += len(held[-1])
            if count >= rows:
                yield pa.concat_tables(held)
                held, count = [], 0
    if held:
        yield pa.concat_tables(held)


def _identities(images: pa.Table) -> pa.ChunkedArray:
    """The columns ``IDENTITY`` as one. An etag has no NUL, so that no two images are the same."""
    return pc.binary_join_element_wise(images["image_etag"], images["image_key"], "\0")


def check_failures(failed: Sequence[tuple[str, str]], total: int, *, allowed_fraction: float) -> None:
    """Raise ``PipelineError`` if more images failed than allowed.

    The allowed number is rounded up, so that one bad picture in a handful of new ones does not fail a run.

    Args:
        failed: key and error of each failed image.
        total: images in all.
        allowed_fraction: share of the images that may fail.
    """
    if len(failed) <= math.ceil(total * allowed_fraction):
        return
    keys = defaultdict(list)
    for key, error in failed:
        keys[error].append(key)
    most_frequent = sorted(keys.items(), key=lambda item: len(item[1]), reverse=True)[:REPORTED]
    kinds = "; ".join(
        f"{len(of_kind)} × {error} ({', '.join(of_kind[:REPORTED])}{', …' if len(of_kind) > REPORTED else ''})"
        for error, of_kind in most_frequent
    )
    raise PipelineError(
        f"{len(failed)} of {total} images failed, more than the allowed {allowed_fraction:.0%}: {kinds}. "
        "Fix or remove them, or raise CAPTION_MAX_FAILED_FRACTION."
    )

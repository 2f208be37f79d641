"""Queries of the gallery: captions by models page by page, the newest nights first.

What a person said about an image stands in place of each model's caption, and filters see it so, too.

A page reads only as many shards as are needed to fill it, so the first page of a million captions is as quick as that
of a thousand. A shard is small and fetched in one request. Only the columns that the filters need are decoded, and the
others if rows pass the filters. A search with few results stops after a while, and the next page continues it.
"""

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.nightly.current import MODEL, PERSON
from pipeline.ops.filters import SEARCHED, CommonFilters, with_words
from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError, layout, parquet
from pipeline.work.outcomes import IDENTITY
from pipeline.work.shards import REDONE

SECONDS = 2.0
"""Time after which a search that has not filled its page stops."""

READERS = 8
"""Objects that are read in parallel, for all pages together: their host has other work to do."""

COLUMNS = [
    *("image_key", "image_etag", "caption", "confidence", "novel"),
    *("status", "error", "model_version", "captioned_at"),
]

NIGHT = r"^(\d{4}-\d\d-\d\d)?$"
"""The date of a night, or nothing."""

REPLACED = {"confidence": None, "novel": None, "status": "ok", "error": None}
"""What a person's word makes of the columns of captions, besides the caption itself."""

readers = ThreadPoolExecutor(READERS, thread_name_prefix="browse")


class Filters(CommonFilters):
    """Which captions by models are shown. None of them waits."""

    status: Literal["", "ok", "failed"] = ""
    night: str = Field("", pattern=NIGHT, description="date of the partition")
    image: str = Field("", max_length=1024, description="key of the image")


@dataclass(frozen=True)
class Shard:
    """A shard of captions, by its key."""

    key: str
    version: str
    night: str
    modified: datetime


@dataclass(frozen=True)
class Page:
    """Some captions.

    Attributes:
        rows: the columns ``COLUMNS`` of each, ``night``, and ``source``. Where that is person, the caption is theirs,
            and ``action`` and ``corrected_by`` are those of the correction; otherwise both are None.
        after: where the next page begins; ``None`` at the end.
        searched_to: the last night that was searched, if time ran out before the page was full.
        damaged: messages of damaged shards and corrections, which were left out.
    """

    rows: list[dict[str, Any]]
    after: str | None
    searched_to: str | None = None
    damaged: tuple[str, ...] = ()


def shards(store: Bucket) -> list[Shard]:
    """All shards of captions, the newest night first, and within a night the last written."""
    found = (
        Shard(item.key, *parsed, item.modified)
        for item in store.list(layout.CAPTIONS)
        if (parsed := layout.parse_caption_shard(item.key))
    )
    return sorted(found, key=lambda shard: (shard.night, shard.modified, shard.key), reverse=True)


def page(
    found: Sequence[Shard],
    filters: Filters,
    *,
    store: Bucket,
    size: int,
    after: str = "",
    seconds: float = SECONDS,
    events: pa.Table | None = None,
) -> Page:
    """The captions that pass the filters, in the order of their shards.

    Args:
        found: all shards, as ``shards`` gives them.
        filters: which captions.
        store: the store.
        size: captions of a full page.
        after: ``after`` of the previous page.
        seconds: time after which a search that has not filled its page stops.
        events: what people said, as ``corrections.read`` gives it; it is read if it is None.

    Raises:
        PipelineError: ``after`` names no shard, which may have been pruned.
    """
    first, seen = _page_start(found, after)
    damaged: list[str] = []
    words = _words(corrections.read(store, damaged=damaged) if events is None else events)
    rest = [
        shard
        for shard in found[first:]
        if shard.night == (filters.night or shard.night) and shard.version == (filters.version or shard.version)
    ]
    if filters.source == PERSON and not len(words):
        rest = []
    deadline = time.monotonic() + seconds
    passing, needed = _row_filter(filters)
    rows: list[dict[str, Any]] = []

    def read(shard: Shard) -> list[dict[str, Any]]:
        """The first rows that pass the filters, up to one more than a page holds, with their numbers."""
        unseen = pc.field("number") >= (seen if shard == found[first] else 0)
        try:
            with parquet.opened(shard.key, store, by_ranges=bool(filters.image), advice=REDONE) as file:
                if filters.image and not parquet.groups_with(file, "image_key", [filters.image]):
                    return []
                overlaid = _overlay(parquet.select(file, needed), words)
                numbered = overlaid.append_column("number", pa.arange(0, file.metadata.num_rows))
                found_rows = with_words(numbered.filter(passing & unseen), filters.words)
                numbers = found_rows["number"].slice(0, size + 1)
                if not len(numbers):
                    return []
                taken = parquet.select(file, COLUMNS).take(numbers).append_column("number", numbers)
        except ObjectNotFoundError:  # pruned since it was listed
            return []
        except DamagedObjectError as error:
            damaged.append(str(error))
            return []
        with_numbers: list[dict[str, Any]] = _overlay(taken, words).to_pylist()
        return with_numbers

    for batch in _growing_batches(rest):
        for shard, left in zip(batch, readers.map(read, batch), strict=True):
            taken = left[: size - len(rows)]
            rows += [{**row, "night": shard.night} for row in taken]
            if len(rows) == size:
                more = len(taken) < len(left) or shard != rest[-1]
                following = f"{shard.key}:{taken[-1]['number'] + 1}" if more else None
                return Page(rows, following, damaged=tuple(damaged))
        if time.monotonic() > deadline and batch[-1] != rest[-1]:
            next_shard = rest[rest.index(batch[-1]) + 1]
            return Page(rows, f"{next_shard.key}:0", searched_to=batch[-1].night, damaged=tuple(damaged))
    return Page(rows, None, damaged=tuple(damaged))


def _page_start(found: Sequence[Shard], after: str) -> tuple[int, int]:
    """The shard, and the row in it, at which a page begins."""
    if not after:
        return 0, 0
    key, _, row = after.rpartition(":")
    places = [place for place, shard in enumerate(found) if shard.key == key]
    if not places or not re.fullmatch(r"\d{1,9}", row, re.ASCII):
        raise PipelineError("This page no longer exists, because its captions were pruned. Start from the newest ones.")
    return places[0], int(row)


def _words(events: pa.Table) -> pa.Table:
    """What counts about images in the inbox, with the column ``identity``, as ``_identity`` makes it."""
    counting = corrections.latest(events).filter(pc.field("image_key").is_valid()).combine_chunks()
    return counting.append_column("identity", _identity(counting))


def _identity(rows: pa.Table) -> pa.ChunkedArray:
    """Key and etag of each image as one text; no etag has the separator."""
    return pc.binary_join_element_wise(rows["image_key"], rows["image_etag"], "\0")


def _overlay(rows: pa.Table, words: pa.Table) -> pa.Table:
    """Captions, of which some columns may be missing, with what people said in their place, and who; see ``Page``."""
    places = pc.index_in(_identity(rows), value_set=words["identity"])
    said, by_person = words.take(places), places.is_valid()
    for name in rows.column_names:
        if name == "caption" or name in REPLACED:
            replaced = said["caption"] if name == "caption" else REPLACED[name]
            column = pc.if_else(by_person, replaced, rows[name])
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    rows = rows.append_column("source", pc.if_else(by_person, PERSON, MODEL))
    for name in ("action", "corrected_by"):
        rows = rows.append_column(name, said[name])
    return rows


def _row_filter(filters: Filters) -> tuple[pc.Expression, list[str]]:
    """The filters of columns as an expression, and the columns that all filters and ``_overlay`` need."""
    passing, needed = pc.scalar(True), set(IDENTITY)
    if filters.image:
        passing &= pc.field("image_key") == filters.image
    if filters.under:
        passing &= pc.starts_with(pc.field("image_key"), filters.under)
    if filters.source:
        passing &= pc.field("source") == filters.source
    if filters.status:
        passing &= pc.field("status") == filters.status
        needed |= {"status"}
    if filters.unsure is not None:
        passing &= (pc.field("confidence") < filters.unsure) | pc.field("novel")
        needed |= {"confidence", "novel"}
    if filters.words:
        needed |= set(SEARCHED)
    return passing, sorted(needed)


def _growing_batches(items: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
    """Batches of one, two, four and more, so that a page that the first shard fills reads no other."""
    start, size = 0, 1
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(2 * size, 2 * READERS)

"""Queries of the gallery: captions page by page, the newest nights first, and models and nights.

A page reads only as many shards as are needed to fill it, so the first page of a million captions is as quick as that
of a thousand. A shard is small and fetched in one request. Only the columns that the filters need are decoded, and the
others if rows pass the filters. A search with few results stops after a while, and the next page continues it.
"""

import math
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import ModelMetadata, list_models, load_metadata
from pipeline.captioner.registry import Promotion, find_champion
from pipeline.errors import PipelineError
from pipeline.evaluation.results import Metrics, latest_metrics
from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError, layout, parquet
from pipeline.work import runs
from pipeline.work.outcomes import latest_outcome
from pipeline.work.runs import NightRecord
from pipeline.work.shards import REDONE

SECONDS = 2.0
"""Time after which a search that has not filled its page stops."""

READERS = 8
"""Shards that are read in parallel."""

SHARDS = 40
"""Shards that are searched for the captions of one image."""

MANY = 10_000
"""Captions of one image: all."""

COLUMNS = ["image_key", "image_etag", "caption", "log_prob", "status", "error", "model_version", "captioned_at"]

NIGHT = r"^(\d{4}-\d\d-\d\d)?$"
"""The date of a night, or nothing."""

SEARCHED = ["caption", "image_key", "error"]
"""The columns that are searched for words."""


class Filters(BaseModel):
    """Which captions are shown; a filter that is empty or None excludes nothing."""

    model_config = ConfigDict(frozen=True)

    words: str = Field("", max_length=300, description="each word must occur in the caption, the key or the error")
    night: str = Field("", pattern=NIGHT, description="date of the partition")
    version: str = Field("", max_length=200, description="of the model")
    status: Literal["", "ok", "failed"] = ""
    unsure: float | None = Field(None, gt=0, le=1, description="upper limit of the mean probability of a word")
    under: str = Field("", max_length=1024, description="the key of the image begins with this")
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
        rows: the columns ``COLUMNS`` of each, and ``night``.
        after: where the next page begins; ``None`` at the end.
        searched_to: the last night that was searched, if time ran out before the page was full.
        damaged: messages of damaged shards, which were left out.
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
    found: Sequence[Shard], filters: Filters, *, store: Bucket, size: int, after: str = "", seconds: float = SECONDS
) -> Page:
    """The captions that pass the filters, in the order of their shards.

    Args:
        found: all shards, as ``shards`` gives them.
        filters: which captions.
        store: the store.
        size: captions of a full page.
        after: ``after`` of the previous page.
        seconds: time after which a search that has not filled its page stops.

    Raises:
        PipelineError: ``after`` names no shard, which may have been pruned.
    """
    first, seen = _page_start(found, after)
    rest = [
        shard
        for shard in found[first:]
        if shard.night == (filters.night or shard.night) and shard.version == (filters.version or shard.version)
    ]
    deadline = time.monotonic() + seconds
    passing, needed = _row_filter(filters)
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []

    def read(shard: Shard) -> list[dict[str, Any]]:
        """The first rows that pass the filters, up to one more than a page holds, with their numbers."""
        unseen = pc.field("number") >= (seen if shard == found[first] else 0)
        try:
            with parquet.opened(shard.key, store, advice=REDONE) as file:
                numbered = file.read(columns=needed).append_column("number", pa.arange(0, file.metadata.num_rows))
                numbers = numbered.filter(passing & unseen)["number"].slice(0, size + 1)
                if not len(numbers):
                    return []
                taken = parquet.select(file, COLUMNS).take(numbers).append_column("number", numbers)
        except ObjectNotFoundError:  # pruned since it was listed
            return []
        except DamagedObjectError as error:
            damaged.append(str(error))
            return []
        with_numbers: list[dict[str, Any]] = taken.to_pylist()
        return with_numbers

    with ThreadPoolExecutor(READERS) as pool:
        for batch in _growing_batches(rest):
            for shard, left in zip(batch, pool.map(read, batch), strict=True):
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


def image_captions(key: str, *, store: Bucket, night: str = "") -> Page:
    """The captions of an image by all models: first the one that counts, then the others, the newest first.

    Only the newest shards are searched, so that the time does not grow with the archive.

    Args:
        key: of the image.
        store: the store.
        night: a night in which it was captioned, which is searched, too; empty if none is known.
    """
    found = shards(store)
    filters = Filters(image=key, night=night)
    here = page(found, filters, store=store, size=MANY, seconds=math.inf) if night else None
    everywhere = page(found[:SHARDS], Filters(image=key), store=store, size=MANY, seconds=math.inf)
    everywhere = replace(everywhere, searched_to=found[SHARDS - 1].night if len(found) > SHARDS else None)
    rows = everywhere.rows
    if here is not None:
        rows = [*rows, *(row for row in here.rows if row not in rows)]
    if not rows:
        return everywhere
    rows = sorted(rows, key=lambda row: row["captioned_at"], reverse=True)
    newest = [row for row in rows if row["image_etag"] == rows[0]["image_etag"]]
    table = pa.Table.from_pylist(newest).append_column("row", pa.arange(0, len(newest)))
    current = newest[latest_outcome(table, by="captioned_at")["row"][0].as_py()]
    return replace(everywhere, rows=[current, *(row for row in rows if row is not current)])


@dataclass(frozen=True)
class Model:
    """A model in the store: its scores, if it was evaluated, and its promotion, if there was one."""

    metadata: ModelMetadata
    metrics: Metrics | None
    promoted: Promotion | None
    is_champion: bool


def newest_models(
    store: Bucket, champion: str | None, *, limit: int, damaged: list[str] | None = None
) -> list[ModelMetadata]:
    """The champion and the newest models, the newest first; ``damaged`` as for ``list_models``."""
    found = list_models(store, limit=limit, damaged=damaged)
    if champion and champion not in [model.version for model in found]:
        found.append(load_metadata(champion, store))
    return found


def models(store: Bucket, *, limit: int, damaged: list[str]) -> list[Model]:
    """The champion and the newest models, the newest first; ``damaged`` as for ``list_models``."""
    champion = find_champion(store)
    history = {promotion.version: promotion for promotion in champion.history} if champion else {}

    def describe(metadata: ModelMetadata) -> Model:
        version = metadata.version
        is_champion = champion is not None and version == champion.version
        return Model(metadata, latest_metrics(metadata, store), history.get(version), is_champion)

    with ThreadPoolExecutor(READERS) as pool:
        found = newest_models(store, champion.version if champion else None, limit=limit, damaged=damaged)
        return list(pool.map(describe, found))


def report(version: str, store: Bucket) -> bytes:
    """The HTML report of the newest evaluation of a model. Raises ``PipelineError`` if there is none."""
    metrics = latest_metrics(load_metadata(version, store), store)
    if metrics is None:
        raise PipelineError(f"Model {version} was not evaluated: run `captioning evaluate {version}`.")
    return store.get(layout.evaluation(version, metrics.dataset, metrics.decoding).report)


def nights(store: Bucket, *, limit: int, damaged: list[str]) -> list[NightRecord]:
    """The records of the last nights, the newest first; ``damaged`` as for ``list_records``."""
    records = islice(runs.list_records(runs.NIGHT, store, damaged=damaged), limit)
    return [record for record in records if isinstance(record, NightRecord)]


def _page_start(found: Sequence[Shard], after: str) -> tuple[int, int]:
    """The shard, and the row in it, at which a page begins."""
    if not after:
        return 0, 0
    key, _, row = after.rpartition(":")
    places = [place for place, shard in enumerate(found) if shard.key == key]
    if not places or not re.fullmatch(r"\d{1,9}", row, re.ASCII):
        raise PipelineError("This page no longer exists, because its captions were pruned. Start from the newest ones.")
    return places[0], int(row)


def _row_filter(filters: Filters) -> tuple[pc.Expression, list[str]]:
    """The filters that do not depend on the shard, as an expression, and the columns that it needs."""
    passing, needed = pc.scalar(True), set()
    if filters.image:
        passing &= pc.field("image_key") == filters.image
        needed |= {"image_key"}
    if filters.under:
        passing &= pc.starts_with(pc.field("image_key"), filters.under)
        needed |= {"image_key"}
    if filters.status:
        passing &= pc.field("status") == filters.status
        needed |= {"status"}
    if filters.unsure is not None:
        passing &= pc.exp(pc.field("log_prob")) < filters.unsure
        needed |= {"log_prob"}
    if filters.words:
        passing &= contains_words(filters.words)
        needed |= set(SEARCHED)
    return passing, sorted(needed)


def contains_words(words: str) -> pc.Expression:
    """Whether each word occurs in one of the columns ``SEARCHED``, in upper or lower case, even as part of another."""
    passing = pc.scalar(True)
    for word in words.split():
        anywhere = pc.scalar(False)
        for column in SEARCHED:
            occurs = pc.match_substring(pc.field(column), word, ignore_case=True)
            anywhere |= pc.coalesce(occurs, pc.scalar(False))
        passing &= anywhere
    return passing


def _growing_batches(items: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
    """Batches of one, two, four and more, so that a page that the first shard fills reads no other."""
    start, size = 0, 1
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(2 * size, 2 * READERS)

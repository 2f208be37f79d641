"""Captions page by page, the newest nights first, and what else there is to show: models and nights.

A page reads as many shards as it takes to fill it, so that with a million captions the first is as quick as with a
thousand. A shard is small and fetched by one request; of it, only the columns that the filters need are decoded, and
the others where there is something to show. A search that finds little stops after a while and says from where it goes
on.
"""

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline import night, registry, runs, tables
from pipeline.captioner import Metadata, list_models
from pipeline.errors import PipelineError
from pipeline.evaluation import Metrics, load_metrics
from pipeline.storage import Bucket, ObjectNotFoundError

SECONDS = 2.0
"""After which a search that has not filled its page stops."""

READERS = 8
"""Shards that are read at a time."""

COLUMNS = ["image_key", "image_etag", "caption", "log_prob", "status", "error", "model_version", "captioned_at"]

SEARCHED = ["caption", "image_key", "error"]
"""Columns in one of which a word must occur."""

_SHARD = re.compile(r"captions/model=(?P<version>[^/]+)/date=(?P<night>\d{4}-\d\d-\d\d)/[^/]+\.parquet")


class Filters(BaseModel):
    """Which captions are shown; what is empty or None excludes none."""

    model_config = ConfigDict(frozen=True)

    words: str = Field("", max_length=300, description="each must occur in the caption, the key or the error")
    night: str = Field("", pattern=r"^(\d{4}-\d\d-\d\d)?$", description="the partition")
    version: str = Field("", max_length=200, description="of the model")
    status: Literal["", "ok", "failed"] = ""
    unsure: float | None = Field(None, gt=0, le=1, description="a word's probability, on average, is below this")
    image: str = Field("", max_length=1024, description="key of the only picture")


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
        rows: ``COLUMNS`` of each, and ``night``.
        after: from where the next page goes on; ``None`` at the end.
        searched_to: the night up to which was searched, where the time was up before the page was full.
    """

    rows: list[dict[str, Any]]
    after: str | None
    searched_to: str | None = None


def shards(store: Bucket) -> list[Shard]:
    """All shards of captions, the newest night first, and of a night the last written."""
    found = (
        Shard(item.key, match["version"], match["night"], item.modified)
        for item in store.list("captions/")
        if (match := _SHARD.fullmatch(item.key))
    )
    return sorted(found, key=lambda shard: (shard.night, shard.modified, shard.key), reverse=True)


def page(
    found: Sequence[Shard], filters: Filters, *, store: Bucket, size: int, after: str = "", seconds: float = SECONDS
) -> Page:
    """The captions that pass the filters, in the order of their shards.

    Args:
        found: all shards, as ``shards`` gives them.
        filters: which captions.
        store: where they lie.
        size: captions of a full page.
        after: of the page before, to go on there.
        seconds: after which a search that has not filled its page stops.

    Raises:
        PipelineError: ``after`` names no shard, which may have been pruned.
    """
    first, seen = _position(found, after)
    rest = [
        shard
        for shard in found[first:]
        if shard.night == (filters.night or shard.night) and shard.version == (filters.version or shard.version)
    ]
    deadline = time.monotonic() + seconds
    passing, needed = _passing(filters)
    rows: list[dict[str, Any]] = []

    def read(shard: Shard) -> list[dict[str, Any]]:
        """The first of its rows that pass, one more than a page holds, with their numbers."""
        try:
            file = tables.fetch(shard.key, store)
        except ObjectNotFoundError:  # pruned since it was listed
            return []
        unseen = pc.field("number") >= (seen if shard == found[first] else 0)
        numbered = file.read(columns=needed).append_column("number", pa.arange(0, file.metadata.num_rows))
        numbers = numbered.filter(passing & unseen)["number"].slice(0, size + 1)
        if not len(numbers):
            return []
        found_rows: list[dict[str, Any]] = (
            file.read(columns=COLUMNS).take(numbers).append_column("number", numbers).to_pylist()
        )
        return found_rows

    with ThreadPoolExecutor(READERS) as pool:
        for batch in _growing(rest):
            for shard, left in zip(batch, pool.map(read, batch), strict=True):
                taken = left[: size - len(rows)]
                rows += [{**row, "night": shard.night} for row in taken]
                if len(rows) == size:
                    more = len(taken) < len(left) or shard != rest[-1]
                    return Page(rows, f"{shard.key}:{taken[-1]['number'] + 1}" if more else None)
            if time.monotonic() > deadline and batch[-1] != rest[-1]:
                following = rest[rest.index(batch[-1]) + 1]
                return Page(rows, f"{following.key}:0", searched_to=batch[-1].night)
    return Page(rows, None)


def pictures_captions(key: str, *, store: Bucket) -> list[dict[str, Any]]:
    """Every row about a picture, by all models, the newest first."""
    found = page(shards(store), Filters(image=key), store=store, size=10_000, seconds=float("inf"))
    return sorted(found.rows, key=lambda row: row["captioned_at"], reverse=True)


@dataclass(frozen=True)
class Model:
    """A model in the store: its scores, if it was evaluated, and its promotion, if there was one."""

    metadata: Metadata
    metrics: Metrics | None
    promoted: registry.Promotion | None
    is_champion: bool


def models(store: Bucket) -> list[Model]:
    """All models, the newest first."""
    try:
        champion = registry.champion(store)
        history = {promotion.version: promotion for promotion in champion.history}
        version = champion.version
    except PipelineError:
        history, version = {}, ""

    def describe(metadata: Metadata) -> Model:
        try:
            metrics = load_metrics(metadata.version, store)
        except ObjectNotFoundError:
            metrics = None
        return Model(metadata, metrics, history.get(metadata.version), metadata.version == version)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(describe, list_models(store)))


def nights(store: Bucket, *, limit: int) -> list[dict[str, Any]]:
    """The records of the last nights, the newest first."""
    return list(islice(runs.finished(night.KIND, store), limit))


def _position(found: Sequence[Shard], after: str) -> tuple[int, int]:
    """The number of the shard, and of the row in it, at which a page begins."""
    if not after:
        return 0, 0
    key, _, row = after.rpartition(":")
    places = [place for place, shard in enumerate(found) if shard.key == key]
    if not places or not re.fullmatch(r"\d{1,9}", row, re.ASCII):
        raise PipelineError("This page is no more: its captions were pruned. Begin with the newest.")
    return places[0], int(row)


def _passing(filters: Filters) -> tuple[pc.Expression, list[str]]:
    """Which rows pass what does not depend on the shard, and the columns that are needed to say so."""
    passing, needed = pc.scalar(True), set()
    if filters.image:
        passing &= pc.field("image_key") == filters.image
        needed |= {"image_key"}
    if filters.status:
        passing &= pc.field("status") == filters.status
        needed |= {"status"}
    if filters.unsure is not None:
        passing &= pc.exp(pc.field("log_prob")) < filters.unsure
        needed |= {"log_prob"}
    for word in filters.words.split():
        anywhere = pc.scalar(False)
        for column in SEARCHED:
            occurs = pc.match_substring(pc.field(column), word, ignore_case=True)
            anywhere |= pc.coalesce(occurs, pc.scalar(False))
        passing &= anywhere
        needed |= set(SEARCHED)
    return passing, sorted(needed)


def _growing(items: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
    """Batches of one, two, four and more, so that a page that the first can fill reads no other."""
    start, size = 0, 1
    while start < len(items):
        yield items[start : start + size]
        start, size = start + size, min(2 * size, 2 * READERS)

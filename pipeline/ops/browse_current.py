"""Queries of the gallery about the current captions: filtered, counted, ordered, and page by page.

Their table has a row for each image, a million or more. What filters and orders ask of it (``FACTS``) takes some 30
bytes a row, and is kept in memory until the table or the corrections change. Texts take ten times as much: they are
read from the table when they are searched or shown, one row group after the other.
"""

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.nightly.current import PERSON
from pipeline.ops.filters import SEARCHED, CommonFilters, with_words
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, layout, parquet
from pipeline.work.outcomes import IDENTITY

FOLDERS = 300
"""Folders, at most, that are kept as suggestions."""

TRIES = 5
"""How often a page is read again if the table is replaced meanwhile."""

Order = Literal["newest", "unsure", "name"]
"""The newest caption first, or the one of which the model is least sure, or by key."""


class Filters(CommonFilters):
    """Which images are shown or exported."""

    review: bool = Field(False, description="only captions that a person should look at")


def row_filter(filters: Filters) -> pc.Expression:
    """All filters but those of texts, for a table with the columns ``FACTS``."""
    captioned, failed = pc.field("source").is_valid(), pc.field("error").is_valid()
    by_status = {"ok": captioned, "failed": ~captioned & failed, "waiting": ~captioned & ~failed}
    passing = pc.scalar(True)
    if filters.status:
        passing &= by_status[filters.status]
    if filters.version:
        passing &= pc.field("model_version") == filters.version
    if filters.source:
        passing &= pc.field("source") == filters.source
    if filters.review:
        passing &= pc.field("review")
    if filters.unsure is not None:
        passing &= (pc.field("confidence") < filters.unsure) | pc.field("novel")
    return passing


def with_texts(table: pa.Table, filters: Filters) -> pa.Table:
    """The rows that pass the filters of texts; those of words need the columns ``SEARCHED``."""
    if filters.under:
        table = table.filter(pc.starts_with(pc.field("image_key"), filters.under))
    return with_words(table, filters.words)


def _columns(*names: str) -> pa.Schema:
    return pa.schema([current.SCHEMA.field(name) for name in names])


FACTS = _columns("source", "error", "model_version", "confidence", "novel", "review", "captioned_at")
"""The columns that are kept in memory. Their texts are few different ones, and kept as dictionaries."""

SHOWN = _columns(*IDENTITY, "caption", *FACTS.names)
"""The columns of a page."""


@dataclass(frozen=True)
class Page:
    """Some of the current captions.

    Attributes:
        rows: the columns ``SHOWN`` of each, and ``status``, as in ``Filters``. Where a person's word counts, ``action``
            and ``corrected_by`` are those of the correction; otherwise both are None.
        found: how many images pass the filters.
        number: of the page, from 1; that of the last one if there are fewer.
        pages: how many there are, at least one.
        images: how many images the table has; none before the first night has ended.
        versions: the models that wrote the captions, the newest first.
        folders: those of the images, each as the keys in it begin; see ``FOLDERS``.
    """

    rows: list[dict[str, Any]]
    found: int
    number: int
    pages: int
    images: int
    versions: Sequence[str]
    folders: Sequence[str]


@dataclass(frozen=True)
class _Facts:
    """What is kept of a version of the table.

    Attributes:
        version: URI of the store, and etag of the table.
        events: the names of the corrections that are in it.
        table: the columns ``FACTS``, and the number of each ``row``.
        said: the columns ``SEARCHED`` and ``row`` of the images about which people said something.
        folders: as ``Page`` has them.
    """

    version: tuple[str, str]
    events: pa.ChunkedArray
    table: pa.Table
    said: pa.Table
    folders: Sequence[str]


class CurrentCaptions:
    """The current captions with all corrections. It keeps facts about those of one store until they change.

    All methods raise ``DamagedObjectError`` if the table is damaged, and ``ObjectChangedError`` if it is replaced while
    it is read. Their argument ``damaged`` gets the messages of damaged corrections, which are left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: _Facts | None = None

    def page(
        self, filters: Filters, *, store: Bucket, order: Order, number: int, size: int, damaged: list[str]
    ) -> Page:
        """A page of the captions that pass the filters.

        Args:
            filters: which captions.
            store: the store.
            order: in which order.
            number: of the page, from 1.
            size: captions of a full page.
            damaged: see ``CurrentCaptions``.
        """
        events = corrections.read(store, damaged=damaged)
        for attempt in itertools.count(1):
            try:
                with _opened(store) as (file, etag):
                    if file is None:
                        break
                    facts = self._facts_of(file, store, etag, events)
                    found = _passing(file, facts, filters)
                    pages = max(1, -(-len(found) // size))
                    number = min(number, pages)
                    rows = _ordered(found, order).slice((number - 1) * size, size).to_pylist()
                    versions = facts.table["model_version"].unique().drop_null().to_pylist()
                    return Page(
                        _shown(file, rows, events),
                        found=len(found),
                        number=number,
                        pages=pages,
                        images=len(facts.table),
                        versions=sorted(versions, reverse=True),
                        folders=facts.folders,
                    )
            except ObjectChangedError:
                if attempt == TRIES:
                    raise
        return Page([], found=0, number=1, pages=1, images=0, versions=(), folders=())

    def tables(self, filters: Filters, *, store: Bucket, damaged: list[str]) -> Iterator[pa.Table]:
        """The rows of the captions that pass the filters, by key, as tables of schema ``current.SCHEMA``.

        One of them is in memory at a time, with at most ``current.ROW_GROUP`` rows; the first one is empty.
        """
        events = corrections.read(store, damaged=damaged)
        yield current.SCHEMA.empty_table()
        with _opened(store) as (file, etag):
            if file is None:
                return
            found = _passing(file, self._facts_of(file, store, etag, events), filters)["row"]
            for group, start, stop in _groups(file):
                wanted = found.filter(_within(found, start, stop))
                if len(wanted):
                    table = parquet.select(file, current.SCHEMA, groups=[group]).take(pc.subtract(wanted, start))
                    yield current.overlay(table.replace_schema_metadata(None), _about(events, table["image_key"]))

    def _facts_of(self, file: pq.ParquetFile, store: Bucket, etag: str, events: pa.Table) -> _Facts:
        version, names = (store.uri, etag), events["name"]
        with self._lock:  # two requests need not read them both
            facts = self._facts
            if facts is None or facts.version != version or not facts.events.equals(names):
                self._facts = facts = _Facts(version, names, *_read_facts(file, events), _folders(file))
            return facts


@contextlib.contextmanager
def _opened(store: Bucket) -> Iterator[tuple[pq.ParquetFile | None, str]]:
    """The table, and its etag; None if no night has ended yet. All reads are of this version, or raise errors.

    Raises:
        ObjectChangedError: it was replaced since its etag was read.
    """
    key = layout.CURRENT_CAPTIONS
    if (etag := store.etag(key)) == ABSENT:
        yield None, etag
        return
    with parquet.opened(key, store, by_ranges=True, advice=current.ADVICE) as file:
        if store.etag(key) != etag:
            raise ObjectChangedError(f"{store.url(key)} was written while it was read: try again.")
        yield file, etag


def _groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Each row group: its number, its first row, and the first one behind it."""
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        yield group, start, stop
        start = stop


def _within(rows: pa.ChunkedArray, start: int, stop: int) -> pa.ChunkedArray:
    """Which rows are in a row group."""
    return pc.and_(pc.greater_equal(rows, start), pc.less(rows, stop))


def _read(file: pq.ParquetFile, columns: Sequence[str] | pa.Schema, group: int, start: int) -> pa.Table:
    """Columns of a row group, with the number of each ``row`` of the table."""
    table = parquet.select(file, columns, groups=[group]).replace_schema_metadata(None)
    # Arrow keeps what it has freed, which for all row groups is more than the facts.
    pa.default_memory_pool().release_unused()
    return table.append_column("row", pa.array(range(start, start + len(table)), pa.int32()))


def _about(events: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    """What was said about these images."""
    return events.filter(pc.is_in(events["image_key"], value_set=keys.combine_chunks()))


def _read_facts(file: pq.ParquetFile, events: pa.Table) -> tuple[pa.Table, pa.Table]:
    """``table`` and ``said`` of ``_Facts``."""
    keys = events["image_key"].drop_null().unique()
    told = set(parquet.groups_with(file, "image_key", keys.to_pylist()))
    number = pa.field("row", pa.int32())
    parts = [_encoded(pa.schema([*FACTS, number]).empty_table())]
    said = [_columns(*SEARCHED).append(number).empty_table()]
    for group, start, _ in _groups(file):
        facts = _read(file, FACTS, group, start)
        by_person = pc.fill_null(pc.equal(facts["source"], PERSON), False)
        if group in told or pc.any(by_person).as_py():
            shown = _read(file, SHOWN, group, start)
            touched = pc.or_(by_person, pc.is_in(shown["image_key"], value_set=keys))
            changed = shown.filter(touched)
            changed = current.overlay(changed, _about(events, changed["image_key"]))
            said.append(changed.select(said[0].column_names))
            same = facts.filter(pc.invert(touched))
            facts = pa.concat_tables([same, changed.select(facts.column_names)]).sort_by("row")
        parts.append(_encoded(facts))
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks(), pa.concat_tables(said)


def _folders(file: pq.ParquetFile) -> list[str]:
    """The folders of the images, in the order of their keys; of the outer ones only, if there are more than FOLDERS."""
    found: dict[str, None] = {}
    for group, start, _ in _groups(file):
        keys = _read(file, ["image_key"], group, start)["image_key"]
        found |= dict.fromkeys(pc.replace_substring_regex(keys, "[^/]*$", "").unique().to_pylist())
    found.pop("", None)
    depth = max((folder.count("/") for folder in found), default=0)
    while len(found) > FOLDERS and depth > 1:
        depth -= 1
        found = dict.fromkeys("".join(re.findall("[^/]*/", folder)[:depth]) for folder in found)
    return list(found)[:FOLDERS]


def _encoded(facts: pa.Table) -> pa.Table:
    """The table with its texts as dictionaries."""
    columns = [pc.dictionary_encode(each) if each.type == pa.string() else each for each in facts.columns]
    return pa.table(columns, names=facts.column_names)


def _passing(file: pq.ParquetFile, facts: _Facts, filters: Filters) -> pa.Table:
    """The facts about the images that pass the filters."""
    passing = row_filter(filters)
    found = facts.table if passing.equals(pc.scalar(True)) else facts.table.filter(passing)  # which copies it
    if not (filters.words or filters.under):
        return found
    names = SEARCHED if filters.words else ["image_key"]
    parts = [pa.array([], pa.int32())]
    for group, start, stop in _groups(file):
        wanted = found["row"].filter(_within(found["row"], start, stop))
        if not len(wanted):
            continue
        texts = _read(file, names, group, start)
        if len(wanted) < len(texts):
            texts = texts.take(pc.subtract(wanted, start))
        said = facts.said.filter(pc.is_in(facts.said["row"], value_set=wanted.combine_chunks()))
        if len(said):
            same = texts.filter(pc.invert(pc.is_in(texts["row"], value_set=said["row"].combine_chunks())))
            texts = pa.concat_tables([same, said.select(texts.column_names)])
        parts += with_texts(texts, filters)["row"].chunks
    return found.filter(pc.is_in(found["row"], value_set=pa.concat_arrays(parts)))


def _ordered(found: pa.Table, order: Order) -> pa.ChunkedArray:
    """The numbers of the rows in this order; equal ones in that of their keys, as the sorting is stable."""
    if order == "name":
        return found["row"]
    if order == "newest":
        places = pc.sort_indices(found["captioned_at"], sort_keys=[("", "descending")])
    else:
        # A novel photograph comes first: a confidence says little about it.
        by = pc.if_else(pc.fill_null(found["novel"], False), pa.scalar(-1, pa.float32()), found["confidence"])
        places = pc.sort_indices(by)
    return found["row"].take(places)


def _shown(file: pq.ParquetFile, rows: Sequence[int], events: pa.Table) -> list[dict[str, Any]]:
    """The rows of a page, in this order."""
    parts = [pa.schema([*SHOWN, pa.field("row", pa.int32())]).empty_table()]
    for group, start, stop in _groups(file):
        if wanted := [row - start for row in rows if start <= row < stop]:
            parts.append(_read(file, SHOWN, group, start).take(wanted))
    table = pa.concat_tables(parts)
    events = _about(events, table["image_key"])
    said = corrections.by_image(corrections.latest(events))
    found = {}
    for row in current.overlay(table, events).to_pylist():
        word = said.get((row["image_key"], row["image_etag"]))
        row["status"] = "ok" if row["source"] else "failed" if row["error"] else "waiting"
        number = row.pop("row")
        found[number] = {**row, "action": word and word.action, "corrected_by": word and word.corrected_by}
    return [found[row] for row in rows]

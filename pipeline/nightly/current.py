"""The current captions: one table, with the caption that counts for each image in the inbox.

A night replaces the table when it ends (``refresh``): each listed image has the newest caption by the champion, or else
the one that it had before. What a person said about this version of the image wins over every model, at once: ``read``
and ``find`` also return corrections that are newer than the table, and ``fold`` puts them into it.

The table is replaced by compare-and-swap, so that of two writers none undoes what the other has written.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from pipeline.config import SidecarPlace
from pipeline.data import corrections
from pipeline.data.corrections import WITHDRAWN, Correction
from pipeline.data.text import alt_text
from pipeline.errors import PipelineError
from pipeline.nightly import captions, sidecars
from pipeline.storage import (
    ABSENT,
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectNotFoundError,
    layout,
    open_source,
    parquet,
)
from pipeline.storage.bucket import read_version
from pipeline.storage.parquet import column
from pipeline.work import shards, tombstones
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import GONE, IDENTITY, latest_outcome

log = logging.getLogger(__name__)

MODEL, PERSON = "model", "person"
"""The sources of captions. A caption that a person has confirmed is a person's."""

SCHEMA = pa.schema(
    [
        *IMAGES,
        column("caption", pa.string(), "the caption that counts; null if there is none yet, or the image failed"),
        column("alt_text", pa.string(), "the caption as a sentence of at most 125 characters"),
        column("source", pa.string(), "model, or person if a person wrote or confirmed the caption"),
        column("model_version", pa.string(), "model that wrote the caption; null if a person wrote it"),
        *captions.JUDGEMENT,
        column("width", pa.int32(), "width of the upright image in pixels; null if it was never decoded"),
        column("height", pa.int32(), "height of the upright image in pixels; null if it was never decoded"),
        column("bytes", pa.int64(), "size of the image's object in bytes"),
        column("captioned_at", pa.timestamp("us", tz="UTC"), "when the caption was written or confirmed, in UTC"),
        column("error", pa.string(), "why the image has no caption; null if it has one, or was not tried yet"),
    ]
)
"""A row of the current captions."""

ATTEMPT = pa.schema(
    [
        captions.SCHEMA.field(name)
        for name in (
            *IDENTITY,
            "status",
            "error",
            "caption",
            "confidence",
            "novel",
            "model_version",
            "width",
            "height",
            "captioned_at",
        )
    ]
)
"""The columns of captions from which the current ones are chosen."""

ROW_GROUP = 30_000
"""Rows of a row group, which is what is read to find one image."""

TRIES = 20
"""How often the table is written again if others write it at the same time."""

_TEXTS = ["image_key", "caption", "alt_text"]
"""The columns that a sidecar depends on."""

ADVICE = "Delete it: the next night writes it again."


def read(store: Bucket) -> pa.Table:
    """The current captions with all corrections, as a table of schema ``SCHEMA``; empty if no night has ended yet.

    Raises:
        DamagedObjectError: the table, or a correction, is damaged.
    """
    table, _ = _read(store)
    return overlay(table, corrections.read(store))


def find(keys: Collection[str], store: Bucket, *, events: pa.Table | None = None) -> pa.Table:
    """The rows of some images, with all corrections. Only the row groups that may hold them are read, one by one.

    Args:
        keys: of the images.
        store: the store.
        events: all corrections, as ``corrections.read`` gives them; they are read if it is None.

    Raises:
        DamagedObjectError: as for ``read``.
    """
    wanted, parts = pa.array(list(keys), pa.string()), [SCHEMA.empty_table()]
    try:
        with parquet.opened(layout.CURRENT_CAPTIONS, store, by_ranges=True, advice=ADVICE) as file:
            for group in parquet.groups_with(file, "image_key", keys):
                table = parquet.select(file, SCHEMA, groups=[group]).replace_schema_metadata(None)
                parts.append(table.filter(pc.is_in(table["image_key"], wanted)))
    except ObjectNotFoundError:
        return SCHEMA.empty_table()
    found = pa.concat_tables(part.replace_schema_metadata(None) for part in parts)
    return overlay(found, corrections.read(store) if events is None else events)


@dataclass(frozen=True)
class Coverage:
    """How many of the images in the inbox have a caption, as of the last night.

    Attributes:
        listed_at: when the night listed the inbox.
        images: images in the inbox.
        captioned: those with a caption.
        by_person: those whose caption a person wrote or confirmed.
        failed: those without a caption because they failed.
        waiting: those that were not tried yet.
        newest_at: when a model wrote the newest of their captions; None if none is a model's.
    """

    listed_at: datetime
    images: int
    captioned: int
    by_person: int
    failed: int
    waiting: int
    newest_at: datetime | None


def coverage(store: Bucket) -> Coverage | None:
    """The coverage; None if no night has ended yet. Raises ``DamagedObjectError``."""
    columns = ["caption", "source", "captioned_at", "error"]
    try:
        table = parquet.read(layout.CURRENT_CAPTIONS, store, columns=columns, by_ranges=True, advice=ADVICE)
    except ObjectNotFoundError:
        return None
    _check_is_of_a_night(table, store)
    captioned, failed = (len(table) - table[name].null_count for name in ("caption", "error"))
    return Coverage(
        listed_at=datetime.fromisoformat(parquet.metadata(table)["listed_at"]),
        images=len(table),
        captioned=captioned,
        by_person=pc.sum(pc.equal(table["source"], PERSON), min_count=0).as_py(),
        failed=failed,
        waiting=len(table) - captioned - failed,
        newest_at=pc.max(table["captioned_at"].filter(pc.equal(table["source"], MODEL))).as_py(),
    )


def overlay(table: pa.Table, events: pa.Table) -> pa.Table:
    """The rows with what people said about these versions of the images, and nothing that they have withdrawn.

    Args:
        table: the columns ``IDENTITY`` and ``source``, and any others; those of ``SCHEMA`` may change.
        events: all corrections, as ``corrections.read`` gives them.
    """
    counting = corrections.by_image(corrections.latest(events))
    withdrawn = corrections.by_image(events.filter(pc.field("action") == WITHDRAWN))
    # Only images about which something was said are touched: the table may have a million rows.
    told = {key for key, _ in counting.keys() | withdrawn.keys()}
    by_person = pc.fill_null(pc.equal(table["source"], PERSON), False)
    touched = pc.or_(by_person, pc.is_in(table["image_key"], pa.array(sorted(told), pa.string())))
    positions = pc.indices_nonzero(touched)
    rows = table.take(positions).to_pylist()
    for row in rows:
        identity = (row["image_key"], row["image_etag"])
        if said := counting.get(identity):
            row.update(_words(said))
        elif row["source"] == PERSON:
            row.update(_without_words(withdrawn.get(identity)))
    rest = table.filter(pc.invert(touched))
    if not rows:
        return table
    return pa.concat_tables([rest, pa.Table.from_pylist(rows, schema=table.schema)]).sort_by("image_key")


def refresh(
    listing: pa.Table,
    attempts: pa.Table,
    *,
    night: dict[str, str],
    store: Bucket,
    place: SidecarPlace,
    damaged: list[str],
    review_below: float,
) -> bool:
    """Replace the table at the end of a night.

    Args:
        listing: the images in the inbox: columns ``IDENTITY`` and ``bytes``.
        attempts: rows of schema ``ATTEMPT``: all attempts that count for the night.
        night: facts about the night, which are stored with the table: its ``inbox``, as ``source_name`` gives it; the
            ``language`` of the captions; ``listed_at``, which orders nights; and others.
        store: the store.
        place: where the sidecars of the images are. Those whose caption has changed are written first.
        damaged: gets the messages of damaged objects.
        review_below: confidence below which a person should look at a caption.

    Returns:
        Whether it was replaced; not if it is that of a later night.
    """

    def renew(old: pa.Table) -> tuple[pa.Table, dict[str, str]] | None:
        last = parquet.metadata(old).get("listed_at", night["listed_at"])
        if datetime.fromisoformat(last) > datetime.fromisoformat(night["listed_at"]):
            log.warning("the current captions are those of a later night, and stay as they are")
            return None
        chosen = _complete(_choose(listing, attempts, old, store, damaged), review_below)
        return overlay(chosen, corrections.fold(store, damaged=damaged)), night

    return _replace(store, place, renew)


def fold(store: Bucket, *, place: SidecarPlace, damaged: list[str]) -> int:
    """Put all corrections into the table, and return their number; arguments as for ``refresh``."""
    count = 0

    def renew(old: pa.Table) -> tuple[pa.Table, dict[str, str]] | None:
        nonlocal count
        events = corrections.fold(store, damaged=damaged)
        count = len(events)
        # Before the first night there is no table.
        return (overlay(old, events), night) if (night := parquet.metadata(old)) else None

    _replace(store, place, renew)
    return count


def _replace(
    store: Bucket, place: SidecarPlace, renew: Callable[[pa.Table], tuple[pa.Table, dict[str, str]] | None]
) -> bool:
    """Replace the table by what ``renew`` makes of it, its rows and its metadata, again if others have replaced it.

    ``renew`` must read the corrections itself: those that another writer has put into the table are then among them.
    """
    touched = pa.table({"image_key": pa.array([], pa.string())})
    for attempt in range(1, TRIES + 1):
        try:
            old, etag = _read(store)
        except DamagedObjectError as error:
            log.warning("%s", error)
            old, etag = SCHEMA.empty_table(), store.etag(layout.CURRENT_CAPTIONS)
        if (renewed := renew(old)) is None:
            return False
        table, metadata = tombstones.read(store).drop(renewed[0]), {**renewed[1], "sidecars": place}
        if etag != ABSENT and metadata == parquet.metadata(old) and table.equals(old):
            return True
        # The table goes last, so that an interrupted step writes the sidecars again. What an attempt has written that
        # came too late is written again, too.
        trouble = None
        try:
            known = old.join(touched, keys="image_key", join_type="left anti")
            _write_sidecars(known, parquet.metadata(old), table, metadata, store)
        except PipelineError as error:
            # The table does not wait for them: the next night writes them all.
            trouble, metadata = error, {**metadata, "sidecars": ""}
        try:
            parquet.write(
                table, layout.CURRENT_CAPTIONS, store, metadata=metadata, row_group_size=ROW_GROUP, if_match=etag
            )
        except ObjectChangedError:
            if attempt == TRIES:
                raise
            changed = table.join(old.select(_TEXTS), keys=_TEXTS, join_type="left anti").select(["image_key"])
            touched = pa.concat_tables([touched, changed])
        else:
            break
    if trouble is not None:
        raise trouble
    return True


def _write_sidecars(
    old: pa.Table, before: dict[str, str], new: pa.Table, metadata: dict[str, str], store: Bucket
) -> None:
    """Write the sidecars of the images whose row has changed, or of all if their place or language has changed."""
    place = TypeAdapter(SidecarPlace).validate_python(metadata["sidecars"])
    if place == "none":
        return
    gone = old.join(new.select(["image_key"]), keys="image_key", join_type="left anti")["image_key"].to_pylist()
    if any(before.get(name) != metadata.get(name) for name in ("sidecars", "language", "inbox")):
        old = SCHEMA.empty_table()
    had = old.filter(pc.field("caption").is_valid()).select(_TEXTS)
    have = new.filter(pc.field("caption").is_valid()).select(_TEXTS)
    written = have.join(had, keys=_TEXTS, join_type="left anti")
    without = new.filter(pc.field("caption").is_null()).select(["image_key"])
    emptied = had.join(without, keys="image_key", join_type="left semi")
    emptied = emptied.set_column(1, "caption", pa.nulls(len(emptied), pa.string()))
    sidecars.update(
        pa.concat_tables([written, emptied]),
        gone,
        language=metadata["language"],
        place=place,
        inbox=open_source(metadata["inbox"], store),
        store=store,
    )


def _choose(listing: pa.Table, attempts: pa.Table, old: pa.Table, store: Bucket, damaged: list[str]) -> pa.Table:
    """Each listed image with its newest caption among the attempts, or else with the one that it had before."""
    images = listing.select([*IDENTITY, "bytes"])
    tried = latest_outcome(attempts, by="captioned_at").join(images.select(IDENTITY), keys=IDENTITY, join_type="inner")
    gone = tried.filter((pc.field("error") == GONE) & (pc.field("status") == "failed")).select(IDENTITY)
    images = images.join(gone, keys=IDENTITY, join_type="left anti")
    captioned, failed = (tried.filter(pc.field("status") == status) for status in ("ok", "failed"))
    lacking = images.join(captioned.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    before = _before(lacking, failed, old, store, damaged)
    failed = failed.join(before.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    found = pa.concat_tables([table.select(ATTEMPT.names) for table in (captioned, before, failed)])
    return images.join(found, keys=IDENTITY, join_type="left outer")


def _before(lacking: pa.Table, failed: pa.Table, old: pa.Table, store: Bucket, damaged: list[str]) -> pa.Table:
    """The captions by other models of images that have none among the attempts of a night, as columns ``ATTEMPT``.

    The table knows them. The whole history is read only for images that are new to the table and were not tried.
    """
    status = pa.array(["ok"] * len(old), pa.string())
    by_model = old.append_column(ATTEMPT.field("status"), status).filter(pc.field("source") == MODEL)
    known = by_model.select(ATTEMPT.names).join(lacking.select(IDENTITY), keys=IDENTITY, join_type="inner")
    without_words = old.filter(pc.invert(pc.fill_null(pc.equal(old["source"], PERSON), False)))
    unknown = lacking.join(without_words.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    unknown = unknown.join(failed.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    if not len(unknown):
        return known
    history = captions.read(shards.results(layout.CAPTIONS, store), store, columns=ATTEMPT, damaged=damaged)
    found = history.filter(pc.field("status") == "ok").join(unknown.select(IDENTITY), keys=IDENTITY, join_type="inner")
    return pa.concat_tables(
        [known.select(ATTEMPT.names), latest_outcome(found, by="captioned_at").select(ATTEMPT.names)]
    )


def _complete(found: pa.Table, review_below: float) -> pa.Table:
    """Rows of schema ``SCHEMA``, by key, from images with their attempts."""
    found = found.sort_by("image_key").combine_chunks()
    captioned = found["caption"].is_valid()

    def where_captioned(values: pa.ChunkedArray | str) -> pa.ChunkedArray:
        return pc.if_else(captioned, values, None)

    columns = {
        **{name: found[name] for name in (*IDENTITY, "caption", "confidence", "novel", "width", "height", "bytes")},
        "alt_text": _alt_texts(found["caption"]),
        "source": where_captioned(MODEL),
        "model_version": where_captioned(found["model_version"]),
        "review": captions.needs_review(found, review_below),
        "captioned_at": where_captioned(found["captioned_at"]),
        "error": pc.if_else(captioned, None, found["error"]),
    }
    return pa.table([columns[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def _alt_texts(found: pa.ChunkedArray) -> pa.Array:
    """The alt text of each caption; many images share one."""
    encoded = found.combine_chunks().dictionary_encode()
    texts = pa.array([alt_text(caption) for caption in encoded.dictionary.to_pylist()], pa.string())
    return texts.take(encoded.indices)


def _words(said: Correction) -> dict[str, object]:
    """What a person's word changes in a row."""
    return {
        "caption": said.caption,
        "alt_text": alt_text(said.caption or ""),
        "source": PERSON,
        "model_version": said.model_version if said.action == "confirmed" else None,
        "confidence": None,
        "novel": None,
        "review": False,
        "captioned_at": said.corrected_at,
        "error": None,
    }


def _without_words(withdrawn: Correction | None) -> dict[str, object]:
    """What is left of a row when a person's word was withdrawn, or removed: the caption that the person had seen."""
    caption = withdrawn and (withdrawn.model_caption or None)
    return {
        "caption": caption,
        "alt_text": caption and alt_text(caption),
        "source": caption and MODEL,
        "model_version": caption and withdrawn and withdrawn.model_version,
        "review": caption and False,
        # Not known here; the next night knows. Confidence and novelty, too, are still null, as they were a person's.
        "captioned_at": None,
    }


def _read(store: Bucket) -> tuple[pa.Table, str]:
    """The table as it is stored, and its etag, or ``ABSENT``."""
    table, etag = read_version(
        lambda etag: parquet.read(layout.CURRENT_CAPTIONS, store, columns=SCHEMA, etag=etag, advice=ADVICE),
        layout.CURRENT_CAPTIONS,
        store,
    )
    if table is None:
        return SCHEMA.empty_table(), ABSENT
    _check_is_of_a_night(table, store)
    return table, etag


def _check_is_of_a_night(table: pa.Table, store: Bucket) -> None:
    """Raise ``DamagedObjectError`` if another program wrote the table: it then lacks the facts about the night."""
    if "listed_at" not in parquet.metadata(table):
        raise DamagedObjectError(f"{store.url(layout.CURRENT_CAPTIONS)} was not written by a night. {ADVICE}")

"""The captions of an image: the one that counts, those by all models, and what people said about it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import corrections
from pipeline.data.corrections import Correction
from pipeline.nightly import current
from pipeline.nightly.current import MODEL
from pipeline.ops.browse import Filters, page, shards
from pipeline.storage import Bucket, DamagedObjectError
from pipeline.work.outcomes import latest_outcome

SHARDS = 40
"""Newest shards that are searched for the captions of one image."""

NIGHT_SHARDS = 200
"""Shards of one night that are searched for them; a new champion's first night has one for 10,000 images."""

MANY = 10_000
"""More captions than one image has."""


@dataclass(frozen=True)
class Counting:
    """The caption of an image that counts.

    Attributes:
        image_etag: version of the image.
        caption: the caption; None if there is none yet, or the image failed.
        error: why it has no caption; None if it has one, or was not tried yet.
        said: what a person said, if the caption is theirs.
        model_caption: the generated caption, in whose place the person's is; empty if there is none.
        model_version: model that generated it; empty if there is none.
        confidence: probability that a person would accept the generated caption, if it is known.
        novel: whether the photograph is unlike those that the model learned from, if it is known.
        width: of the upright image in pixels, if it is known.
        height: likewise.
        bytes: size of the image's object, if it is known.
        seen: what was said about this version of the image, as ``corrections.last_said`` gives it.
    """

    image_etag: str
    caption: str | None
    error: str | None
    said: Correction | None
    model_caption: str
    model_version: str
    confidence: float | None
    novel: bool | None
    width: int | None
    height: int | None
    bytes: int | None
    seen: str


@dataclass(frozen=True)
class ImageCaptions:
    """The captions of an image.

    Attributes:
        counting: the one that counts; None if nothing is known of the image.
        history: those by models, the newest first, as in ``browse.Page``.
        said: all that people said about it, of any version, in this order.
        searched_to: the last night that was searched for the history; None if all were.
        damaged: messages of damaged objects, which were left out.
    """

    counting: Counting | None
    history: list[dict[str, Any]]
    said: list[Correction]
    searched_to: str | None
    damaged: tuple[str, ...]


def image_captions(key: str, *, store: Bucket, night: str = "") -> ImageCaptions:
    """The caption of an image that counts, and its captions by all models.

    The current captions say which one counts. An image that is not among them, because it is new or no longer in the
    inbox, has the newest caption. Only the newest shards, and those of the night in which a model wrote the caption,
    are searched for the others, and of these only the ones that may hold the image are read, so that the time does not
    grow with the archive.

    Args:
        key: of the image.
        store: the store.
        night: another night in which it was captioned, which is searched, too; empty if none is known.
    """
    damaged: list[str] = []
    events = corrections.read(store, damaged=damaged)
    of_image = events.filter(pc.field("image_key") == key)
    try:
        rows = current.find([key], store, events=of_image).to_pylist()
    except DamagedObjectError as error:
        damaged.append(str(error))
        rows = []
    found, searched = shards(store), {night, *(_nights_of(rows[0]) if rows else ())}
    of_nights = [shard for shard in found[SHARDS:] if shard.night in searched][:NIGHT_SHARDS]
    by_models = page(
        [*found[:SHARDS], *of_nights],
        Filters(image=key),
        store=store,
        size=MANY,
        events=corrections.LOG.empty_table(),
    )
    damaged.extend(by_models.damaged)
    history = sorted(by_models.rows, key=lambda row: row["captioned_at"], reverse=True)
    ends = [by_models.searched_to, found[SHARDS - 1].night if len(found) > SHARDS else None]
    row = rows[0] if rows else _newest(history)
    return ImageCaptions(
        _counting(row, history, of_image) if row else None,
        history,
        [Correction(**each) for each in of_image.select(corrections.SCHEMA.names).to_pylist()],
        max(filter(None, ends), default=None),
        tuple(dict.fromkeys(damaged)),
    )


def _nights_of(row: dict[str, Any]) -> list[str]:
    """The nights that may have written a row of the current captions: a night may go on after midnight."""
    if row["source"] != MODEL or row["captioned_at"] is None:
        return []
    return [f"{row['captioned_at'] - timedelta(days):%Y-%m-%d}" for days in (0, 1)]


def _newest(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The caption of the newest version of an image that counts among those by models."""
    newest = [row for row in history if row["image_etag"] == history[0]["image_etag"]]
    if not newest:
        return None
    table = pa.Table.from_pylist(newest).append_column("row", pa.arange(0, len(newest)))
    places: list[int] = latest_outcome(table, by="captioned_at")["row"].to_pylist()
    return newest[places[0]]


def _counting(row: dict[str, Any], history: list[dict[str, Any]], events: pa.Table) -> Counting:
    """The caption that counts, from a row of the current captions or of the history; ``events`` are of the image."""
    version = (row["image_key"], row["image_etag"])
    said = corrections.by_image(corrections.latest(events)).get(version)
    generated = said.model_version if said else row["model_version"]
    # A person's word has neither; the caption in its place has.
    by_model = [
        each
        for each in history
        if (each["image_etag"], each["model_version"], each["status"]) == (row["image_etag"], generated, "ok")
    ]
    rated = by_model[0] if by_model else row
    return Counting(
        image_etag=row["image_etag"],
        caption=said.caption if said else row["caption"],
        error=None if said else row["error"],
        said=said,
        model_caption=(said.model_caption if said else row["caption"]) or "",
        model_version=generated or "",
        confidence=rated["confidence"],
        novel=rated["novel"],
        width=row.get("width"),
        height=row.get("height"),
        bytes=row.get("bytes"),
        seen=corrections.last_said(events, *version),
    )

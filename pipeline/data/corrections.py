"""Corrections: what people say about generated captions. Readers see it at once, and training learns from it.

A person corrects a caption, confirms that it is right, or withdraws what was said before. Each of these is one object,
written once and never changed, so that nothing is lost when several people write at once. The last one about a version
of a picture counts (``latest``), whatever any model says. A person who names the last one that they saw (``seen``)
replies to it. Each has at most one reply: of two people who saw the same, the second learns what the first has said.

A table holds them all, too (``fold``), so that a reader fetches only those that are newer. The picture may be removed
from the inbox, so a copy of it is stored with the corrections.
"""

import contextlib
import hashlib
import logging
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.decoders import Decoders
from pipeline.data.images import BadImageError, content_hash, suffix_of
from pipeline.data.text import clean
from pipeline.errors import PipelineError
from pipeline.storage import (
    ABSENT,
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectNotFoundError,
    layout,
    open_bucket,
    parquet,
)
from pipeline.storage.bucket import is_utf8
from pipeline.storage.parquet import column
from pipeline.work import tombstones

log = logging.getLogger(__name__)

MAX_LENGTH = 300
"""Maximum characters of a better caption."""

WITHDRAWN = "withdrawn"
"""The action that ends what was said before."""

EPOCH = datetime.fromtimestamp(0, UTC)
"""Before anything was said."""

TRIES = 20
"""How often the table of all corrections is written again if others write it at the same time."""


def _better_caption(text: str) -> str:
    caption = text.strip()
    # A caption without any word of the cleaned text would teach the captioner to write nothing.
    if len(caption) > MAX_LENGTH or not caption.isprintable() or not clean(caption):
        raise ValueError(f"expected one line of 1 to {MAX_LENGTH} printable characters, with at least one letter")
    return caption


def _utf8(text: str) -> str:
    if not is_utf8(text):
        raise ValueError("expected text that can be encoded as UTF-8")
    return text


Text = Annotated[str, Field(max_length=4096), AfterValidator(_utf8)]


class AlreadySaidError(PipelineError):
    """Somebody has said something about this version of the image that the person had not seen."""


class Correction(BaseModel):
    """What a person said about a caption; the content of its object, a table of schema ``SCHEMA`` with one row."""

    model_config = ConfigDict(frozen=True)

    action: Literal["corrected", "confirmed", "withdrawn"] = Field(
        description="corrected: the caption is better; confirmed: the generated caption is right; withdrawn: what was "
        "said before about this picture no longer counts"
    )
    picture: str = Field(description="key of the copy of the picture, relative to the folder of corrections")
    caption: Annotated[str, AfterValidator(_better_caption)] | None = Field(
        description="the better caption, or the confirmed one; null if withdrawn"
    )
    model_caption: Text = Field(description="the generated caption")
    image_key: Text | None = Field(description="key of the image in the inbox; null for an uploaded picture")
    image_etag: Text | None = Field(description="etag of the image in the inbox; null for an uploaded picture")
    model_version: Text = Field(description="model that generated the caption")
    corrected_by: Text = Field(description="user who said it")
    corrected_at: AwareDatetime = Field(description="when it was said, in UTC")


SCHEMA = pa.schema(
    [
        column(name, pa.timestamp("us", tz="UTC") if name == "corrected_at" else pa.string(), str(field.description))
        for name, field in Correction.model_fields.items()
    ]
)
"""The fields of a correction as columns."""

LOG = pa.schema([column("name", pa.string(), "name of the object of the correction"), *SCHEMA])
"""The table of all corrections, in the order in which things were said."""


def add(
    data: bytes,
    *,
    caption: str,
    model_caption: str,
    model_version: str,
    corrected_by: str,
    store: Bucket,
    action: Literal["corrected", "confirmed"] = "corrected",
    image_key: str | None = None,
    image_etag: str | None = None,
    seen: str | None = None,
    corrected_at: datetime | None = None,
) -> Correction:
    """Store a better caption of a picture, or that its caption is right, and the picture.

    Args:
        data: the bytes of the picture.
        caption: the better caption, or the confirmed one.
        model_caption: the generated caption.
        model_version: model that generated it.
        corrected_by: user who says it.
        store: the store.
        action: corrected or confirmed.
        image_key: key of the image in the inbox; None for an uploaded picture.
        image_etag: version of the image in the inbox.
        seen: what the person saw, as ``last_said`` gives it; None if whatever was said before is to be replaced.
        corrected_at: when it was said, if that was earlier, in another program.

    Raises:
        AlreadySaidError: something was said about this version of the image since.
        PipelineError: the caption is empty, too long, not one line of printable characters or without a word, another
            text is too long or not UTF-8, the bytes are not a picture, or the picture was forgotten.
    """
    after = EPOCH if seen is None else _time_after(seen, image_key or "", image_etag or "", store)
    _check_picture(data)
    forgotten = tombstones.read(store)
    if forgotten.has("key", image_key) or forgotten.has("content", content_hash(data)):
        raise PipelineError("The correction can't be stored: the picture was forgotten (`captioning forget`).")
    try:
        made = Correction(
            action=action,
            picture=layout.correction_picture(content_hash(data), suffix_of(data)),
            caption=caption,
            model_caption=model_caption,
            image_key=image_key,
            image_etag=image_etag,
            model_version=model_version,
            corrected_by=corrected_by,
            # The clock of another machine may be ahead, and the last word counts.
            corrected_at=corrected_at or max(datetime.now(UTC), after),
        )
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise PipelineError(f"The correction can't be stored: {wrong}.") from error
    # The picture goes first, so that each correction has one. Written again, it would get a new etag: another image.
    with contextlib.suppress(ObjectChangedError):
        store.put(f"{layout.CORRECTIONS}{made.picture}", data, if_match=ABSENT)
    _write(made, store, seen)
    return made


def withdraw(image_key: str, image_etag: str, *, by: str, store: Bucket) -> Correction:
    """Withdraw what was said about a version of an image, so that the caption of the model counts again.

    Args:
        image_key: key of the image in the inbox; for an uploaded picture, empty.
        image_etag: version of the image in the inbox; for an uploaded picture, ``picture`` of its correction.
        by: user who withdraws it.
        store: the store.

    Raises:
        PipelineError: nothing that counts was said about this version of the image.
    """
    counting = by_image(latest(read(store)))
    if (said := counting.get((image_key, image_etag))) is None:
        raise PipelineError(
            f"There is no correction of {image_key or image_etag} to withdraw: `captioning corrections` lists them."
        )
    return write_withdrawal(said, by=by, store=store)


def write_withdrawal(said: Correction, *, by: str, store: Bucket) -> Correction:
    """Withdraw a correction that counts."""
    withdrawn = said.model_copy(
        update={"action": WITHDRAWN, "caption": None, "corrected_by": by, "corrected_at": datetime.now(UTC)}
    )
    _write(withdrawn, store)
    return withdrawn


def last_said(events: pa.Table, image_key: str, image_etag: str) -> str:
    """The name of the last thing that was said about a version of an image; empty if nothing was.

    Args:
        events: as ``read`` gives them.
        image_key: key of the image in the inbox.
        image_etag: version of the image.
    """
    names = events.filter((pc.field("image_key") == image_key) & (pc.field("image_etag") == image_etag))["name"]
    return str(names[-1]) if len(names) else ""


def _time_after(seen: str, image_key: str, image_etag: str, store: Bucket) -> datetime:
    """The earliest time of a reply. Raises ``AlreadySaidError`` if it is one to something that was replaced."""
    events = read(store)
    if last_said(events, image_key, image_etag) != seen:
        raise _already_said(events, image_key, image_etag)
    times: list[datetime] = events.filter(pc.field("name") == seen)["corrected_at"].to_pylist()
    return times[0] + timedelta(microseconds=1) if times else EPOCH


def _already_said(events: pa.Table, image_key: str, image_etag: str) -> AlreadySaidError:
    [last] = events.filter(pc.field("name") == last_said(events, image_key, image_etag)).to_pylist()
    did = {"corrected": "corrected", "confirmed": "confirmed", WITHDRAWN: "withdrawn a correction of"}[last["action"]]
    caption = last["caption"] or last["model_caption"]
    return AlreadySaidError(
        f"Nothing was saved: {last['corrected_by']} has {did} this caption meanwhile: {caption}. Reload the page "
        "before you save again."
    )


def _write(made: Correction, store: Bucket, seen: str | None = None) -> None:
    table = pa.Table.from_pylist([made.model_dump()], schema=SCHEMA)
    if seen is None:
        name = f"{made.corrected_at:%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}"
        parquet.write(table, layout.correction(f"{made.corrected_at:%Y-%m-%d}", name), store)
        return
    key, etag = made.image_key or "", made.image_etag or ""
    digest = hashlib.sha256("\0".join((key, etag, seen)).encode()).hexdigest()[:32]
    try:
        parquet.write(table, layout.reply(digest), store, if_match=ABSENT)
    except ObjectChangedError as error:
        raise _already_said(read(store), key, etag) from error


def read(store: Bucket, *, damaged: list[str] | None = None) -> pa.Table:
    """All that was ever said, in that order, as a table of schema ``LOG``.

    Args:
        store: the store.
        damaged: gets the messages of damaged objects, which are left out. By default, they are errors.

    Raises:
        DamagedObjectError: an object is damaged; deleting it loses what it says.
    """
    return _read(store, _read_log(store), damaged)


def fold(store: Bucket, *, damaged: list[str]) -> pa.Table:
    """Put all corrections into one table, from which they are read faster, and return it; arguments as for ``read``.

    Raises:
        ObjectChangedError: others write the table all the time.
    """
    for attempt in range(1, TRIES + 1):
        etag = store.etag(layout.CORRECTION_LOG)
        known = _read_log(store)
        table = _read(store, known, damaged)
        if table.equals(known) and (etag != ABSENT or not len(table)):
            return table
        try:
            parquet.write(table, layout.CORRECTION_LOG, store, if_match=etag)
        except ObjectChangedError:
            if attempt == TRIES:
                raise
        else:
            break
    return table


def latest(events: pa.Table) -> pa.Table:
    """What counts: the last thing that was said about each version of an image, without what was withdrawn.

    Args:
        events: as ``read`` gives them.
    """
    subjects = zip(*(events[name].to_pylist() for name in ("image_key", "image_etag", "picture")), strict=True)
    last = {identity(*subject): row for row, subject in enumerate(subjects)}
    return events.take(pa.array(sorted(last.values()), pa.int64())).filter(pc.field("action") != WITHDRAWN)


def by_image(events: pa.Table) -> dict[tuple[str, str], Correction]:
    """Corrections by key and etag of the image; for uploaded pictures, by an empty key and ``picture``."""
    rows = [Correction(**row) for row in events.select(SCHEMA.names).to_pylist()]
    return {identity(row.image_key, row.image_etag, row.picture): row for row in rows}


def identity(image_key: str | None, image_etag: str | None, picture: str) -> tuple[str, str]:
    """The version of the image that a correction is about, as in ``by_image``."""
    return (image_key, image_etag or "") if image_key else ("", picture)


def count(store: Bucket) -> int:
    """The number of objects of corrections."""
    return len(_names(store))


def pictures(store: Bucket) -> Bucket:
    """The bucket to which the keys of the copied pictures are relative."""
    return open_bucket(store.url(layout.CORRECTIONS.rstrip("/")))


def _check_picture(data: bytes) -> None:
    with Decoders((8, 8)) as decoders:  # any size shows whether it can be decoded
        try:
            decoders.decode(data)
        except BadImageError as error:
            raise PipelineError(f"The picture can't be used: {error}.") from error


def _read_log(store: Bucket) -> pa.Table:
    """The table of corrections, which may lack the newest; empty if there is none, or it is damaged."""
    try:
        return parquet.read(layout.CORRECTION_LOG, store, columns=LOG).replace_schema_metadata(None)
    except ObjectNotFoundError:
        return LOG.empty_table()
    except DamagedObjectError as error:
        log.warning("%s It is made again from the single corrections.", error)
        return LOG.empty_table()


def _read(store: Bucket, known: pa.Table, damaged: list[str] | None) -> pa.Table:
    """All corrections of which there is an object; those that are not ``known`` are read."""
    names = _names(store)
    new = {names[name]: name for name in sorted(names.keys() - set(known["name"].to_pylist()))}
    parts = [known.filter(pc.is_in(known["name"], pa.array(list(names), pa.string())))]
    found: list[str] = []
    advice = "Delete it; what it says is lost."
    for key, table in parquet.read_all(new, store, columns=SCHEMA, advice=advice, damaged=found):
        named = table.add_column(0, LOG.field("name"), pa.array([new[key]] * len(table), pa.string()))
        parts.append(named.replace_schema_metadata(None))
    if found and damaged is None:
        raise DamagedObjectError(found[0])
    if damaged is not None:
        damaged += found
    return pa.concat_tables(parts).sort_by([("corrected_at", "ascending"), ("name", "ascending")]).combine_chunks()


def _names(store: Bucket) -> dict[str, str]:
    """The key of each correction, by its name."""
    return {name: item.key for item in store.list(layout.CORRECTIONS) if (name := layout.correction_of_key(item.key))}

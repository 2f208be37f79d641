"""Corrections: better captions that people wrote where a generated caption was wrong. Training learns from them.

A correction is one object, written once and never changed, so that nothing is lost when several people write at once.
The picture may be removed from the inbox, so a copy of it is stored with the corrections.
"""

import contextlib
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated

import pyarrow as pa
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.decoders import Decoders
from pipeline.data.images import BadImageError, content_hash, suffix_of
from pipeline.data.text import clean
from pipeline.errors import PipelineError
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, layout, open_bucket, parquet
from pipeline.storage.bucket import is_utf8
from pipeline.storage.parquet import column

MAX_LENGTH = 300
"""Maximum characters of a better caption."""

READERS = 16
"""Threads that read corrections, each of which is an object of its own."""


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


class Correction(BaseModel):
    """A correction; the content of its object, a table of schema ``SCHEMA`` with one row."""

    model_config = ConfigDict(frozen=True)

    picture: str = Field(description="key of the copy of the picture, relative to the folder of corrections")
    caption: Annotated[str, AfterValidator(_better_caption)] = Field(description="the better caption")
    wrong_caption: Text = Field(description="the generated caption")
    image_key: Text | None = Field(description="key of the image in the inbox; null for an uploaded picture")
    image_etag: Text | None = Field(description="etag of the image in the inbox; null for an uploaded picture")
    model_version: Text = Field(description="model that generated the wrong caption")
    corrected_by: Text = Field(description="user who corrected it")
    corrected_at: AwareDatetime = Field(description="time of the correction, in UTC")


SCHEMA = pa.schema(
    [
        column(name, pa.timestamp("us", tz="UTC") if name == "corrected_at" else pa.string(), str(field.description))
        for name, field in Correction.model_fields.items()
    ]
)
"""The fields of a correction as columns."""


def add(
    data: bytes,
    *,
    caption: str,
    wrong_caption: str,
    model_version: str,
    corrected_by: str,
    store: Bucket,
    image_key: str | None = None,
    image_etag: str | None = None,
) -> Correction:
    """Store a better caption of a picture, and the picture.

    Args:
        data: the bytes of the picture.
        caption: the better caption.
        wrong_caption: the generated caption.
        model_version: model that generated the wrong caption.
        corrected_by: user who corrects it.
        store: the store.
        image_key: key of the image in the inbox; None for an uploaded picture.
        image_etag: version of the image in the inbox.

    Raises:
        PipelineError: the caption is empty, too long, not one line of printable characters or without a word, another
            text is too long or not UTF-8, or the bytes are not a picture.
    """
    _check_picture(data)
    try:
        made = Correction(
            picture=layout.correction_picture(content_hash(data), suffix_of(data)),
            caption=caption,
            wrong_caption=wrong_caption,
            image_key=image_key,
            image_etag=image_etag,
            model_version=model_version,
            corrected_by=corrected_by,
            corrected_at=datetime.now(UTC),
        )
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise PipelineError(f"The correction can't be stored: {wrong}.") from error
    # The picture goes first, so that each correction has one. Written again, it would get a new etag: another image.
    with contextlib.suppress(ObjectChangedError):
        store.put(f"{layout.CORRECTIONS}{made.picture}", data, if_match=ABSENT)
    key = layout.correction(
        f"{made.corrected_at:%Y-%m-%d}", f"{made.corrected_at:%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}"
    )
    parquet.write(pa.Table.from_pylist([made.model_dump()], schema=SCHEMA), key, store)
    return made


def read(store: Bucket) -> pa.Table:
    """All corrections, the oldest first, as a table of schema ``SCHEMA``."""
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda key: parquet.read(key, store, columns=SCHEMA), _keys(store))
        return pa.concat_tables([SCHEMA.empty_table(), *parts])


def count(store: Bucket) -> int:
    """The number of corrections."""
    return sum(1 for _ in _keys(store))


def pictures(store: Bucket) -> Bucket:
    """The bucket to which the keys of the copied pictures are relative."""
    return open_bucket(store.url(layout.CORRECTIONS.rstrip("/")))


def _check_picture(data: bytes) -> None:
    with Decoders((8, 8)) as decoders:  # any size shows whether it can be decoded
        try:
            decoders.decode(data)
        except BadImageError as error:
            raise PipelineError(f"The picture can't be used: {error}.") from error


def _keys(store: Bucket) -> Iterator[str]:
    """The keys of the corrections; they begin with the time, by which a listing is sorted."""
    return (item.key for item in store.list(layout.CORRECTIONS) if item.key.endswith(".parquet"))

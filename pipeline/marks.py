"""Marks: captions that people have found wrong, and what they would have said instead, to be learned from.

A mark is one object, ``marks/<YYYY-MM-DD>/<time>-<random>.parquet``, written once and never changed: however many
people mark at once, nothing is lost. The picture may leave the inbox, so a copy of it is kept in ``marks/pictures/``.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated

import pyarrow as pa
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline import tables
from pipeline.bucket import is_utf8
from pipeline.decoders import Decoders
from pipeline.errors import PipelineError
from pipeline.images import BadImageError, suffix_of
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, open_bucket
from pipeline.vocabulary import clean

FOLDER = "marks/"

PICTURES = "pictures/"
"""Of the pictures' copies, in ``FOLDER``."""

MAX_LENGTH = 300
"""Characters of a better caption, at most."""

READERS = 16
"""Threads that read marks, each of which is an object of its own."""

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("caption", pa.string()),
        ("wrong_caption", pa.string()),
        ("image_key", pa.string()),
        ("image_etag", pa.string()),
        ("model_version", pa.string()),
        ("marked_by", pa.string()),
        ("marked_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""A mark. ``image`` is the key of the picture's copy in ``marks/``; ``image_key`` and ``image_etag`` say which image of
the inbox it was, and are null for one that was uploaded."""


def _better_caption(text: str) -> str:
    caption = text.strip()
    # What the vocabulary takes for no word would teach the captioner to say nothing.
    if len(caption) > MAX_LENGTH or not caption.isprintable() or not clean(caption):
        raise ValueError(
            f"expected one line of 1 to {MAX_LENGTH} printable characters, with a word in Latin letters among them"
        )
    return caption


def _utf8(text: str) -> str:
    if not is_utf8(text):
        raise ValueError("expected text that UTF-8 can encode")
    return text


Text = Annotated[str, Field(max_length=4096), AfterValidator(_utf8)]


class Mark(BaseModel):
    """What a person has marked; the content of its object, whose columns are those of ``SCHEMA``."""

    model_config = ConfigDict(frozen=True)

    image: str = Field(description="key of the picture's copy in marks/")
    caption: Annotated[str, AfterValidator(_better_caption)] = Field(description="the better caption")
    wrong_caption: Text = Field(description="what the model said")
    image_key: Text | None = Field(description="of the image in the inbox; None for one that was uploaded")
    image_etag: Text | None = Field(description="its version")
    model_version: Text = Field(description="of the model that said it")
    marked_by: Text = Field(description="who has marked it")
    marked_at: AwareDatetime = Field(description="when, UTC")


def mark(
    data: bytes,
    *,
    caption: str,
    wrong_caption: str,
    model_version: str,
    marked_by: str,
    store: Bucket,
    image_key: str | None = None,
    image_etag: str | None = None,
) -> Mark:
    """Keep a better caption of a picture, and the picture.

    Args:
        data: the picture's bytes.
        caption: what should have been said of it.
        wrong_caption: what was said.
        model_version: of the model that said it.
        marked_by: who marks it.
        store: the store.
        image_key: of the image in the inbox; None for one that was uploaded.
        image_etag: its version.

    Raises:
        PipelineError: the caption is empty, too long, not one line of printable characters or without a word, another
            text is too long or not UTF-8, or the bytes are not a picture.
    """
    _check_picture(data)
    try:
        made = Mark(
            image=f"{PICTURES}{digest(data)}{suffix_of(data)}",
            caption=caption,
            wrong_caption=wrong_caption,
            image_key=image_key,
            image_etag=image_etag,
            model_version=model_version,
            marked_by=marked_by,
            marked_at=datetime.now(UTC),
        )
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise PipelineError(f"This mark can't be kept: {wrong}.") from error
    # The picture goes first: whoever sees the mark sees it too. Written anew, it would be another image to a listing.
    with contextlib.suppress(ObjectChangedError):
        store.put(f"{FOLDER}{made.image}", data, if_match=ABSENT)
    name = f"{made.marked_at:%Y-%m-%d/%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}"
    tables.write(pa.Table.from_pylist([made.model_dump()], schema=SCHEMA), f"{FOLDER}{name}.parquet", store)
    return made


def read(store: Bucket) -> pa.Table:
    """All marks, oldest first: a table of schema ``SCHEMA``."""
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda key: tables.read(key, store, columns=SCHEMA.names), _keys(store))
        return pa.concat_tables([SCHEMA.empty_table(), *parts])


def count(store: Bucket) -> int:
    """How many marks there are."""
    return sum(1 for _ in _keys(store))


def pictures(store: Bucket) -> Bucket:
    """The bucket to whose URI the keys of the pictures' copies are relative."""
    return open_bucket(store.url(FOLDER.rstrip("/")))


def digest(data: bytes) -> str:
    """What a picture's copy is called, but for the suffix: a hash of its bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _check_picture(data: bytes) -> None:
    with Decoders((8, 8)) as decoders:  # whether, not what: any size will do
        try:
            decoders.decode(data)
        except BadImageError as error:
            raise PipelineError(f"This picture can't be marked: {error}.") from error


def _keys(store: Bucket) -> Iterator[str]:
    """Of the marks; they begin with the time, by which a listing is sorted."""
    return (item.key for item in store.list(FOLDER) if item.key.endswith(".parquet"))

"""The shadow: a candidate captions photographs of the inbox beside the champion, before a person decides on it.

The test split says how well a candidate captions the photographs of its dataset, but nights caption those of the inbox.
Both models therefore caption a sample of these, decoded as a night does, from stored features; only what the encoder of
a candidate has not seen yet is encoded. Readers notice nothing: the captions go into the folder of the candidate.
"""

import hashlib
import heapq
import logging
from functools import cache
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner import bundle
from pipeline.captioner.registry import find_champion
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import escape, tabulate
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.features.store import Features
from pipeline.nightly import current
from pipeline.nightly.current import PERSON
from pipeline.progress import counted
from pipeline.storage import Bucket, layout, open_bucket, parquet, source_name
from pipeline.storage.parquet import column
from pipeline.work import tombstones
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import IDENTITY

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        *IMAGES,
        column("caption", pa.string(), "the caption by the candidate"),
        column("champion_version", pa.string(), "the champion at that time"),
        column("champion_caption", pa.string(), "the caption by that champion, decoded in the same way"),
        column("person_caption", pa.string(), "the caption that a person wrote or confirmed; null if nobody did"),
    ]
)
"""A photograph of the sample."""

SHOWN = 10
"""Photographs that a person sees."""

CHARACTERS = 200
"""Of a caption or a key, at most, that a person sees."""

Sample = tuple[list[tuple[str, str]], Features]
"""Key and etag of N images, and their features."""


def compare(
    version: str, *, size: int, decoding: DecodingConfig, picture_page: str, inbox_uri: str, store: Bucket
) -> str:
    """The captions of a sample of the inbox by a candidate and the champion, as Markdown; also written to the store.

    Args:
        version: of the candidate.
        size: photographs of the sample, at most.
        decoding: how both decode.
        picture_page: begins the URL of the page of a picture, and its key ends it; empty for no links.
        inbox_uri: URI of the inbox.
        store: the store.

    Returns:
        How many captions differ, and some photographs, those first; or a sentence that says why there are none.
    """
    try:
        table = _caption_sample(version, size=size, decoding=decoding, inbox_uri=inbox_uri, store=store)
    except PipelineError as error:
        log.warning("no captions of the inbox are compared: %s", error)
        return f"No captions of photographs in the inbox are compared: {escape(str(error))}"
    table = tombstones.read(store).drop(table)  # as late as possible: images may be forgotten meanwhile
    parquet.write(table, layout.shadow(version), store)
    rows = sorted(table.to_pylist(), key=lambda row: row["caption"] == row["champion_caption"])
    different = sum(row["caption"] != row["champion_caption"] for row in rows)
    shown = rows[:SHOWN]
    names = {"candidate": "caption", "champion": "champion_caption", "person": "person_caption"}
    if not any(row["person_caption"] for row in shown):
        del names["person"]
    cells = [
        [_link(row["image_key"], picture_page), *(escape(_shorten(row[name] or "")) for name in names.values())]
        for row in shown
    ]
    head = f"Of {counted(len(rows), 'photograph')} in the inbox, {different} would get another caption ({decoding}):"
    return "\n".join([head, "", *tabulate(["photograph", *names], cells)])


def _caption_sample(version: str, *, size: int, decoding: DecodingConfig, inbox_uri: str, store: Bucket) -> pa.Table:
    """The sample with its captions, of schema ``SCHEMA``, without photographs that can't be encoded.

    Raises:
        PipelineError: there is nothing to compare, or it can't be read.
    """
    champion = find_champion(store)
    if champion is None:
        raise PipelineError("there is no champion yet.")
    if champion.version == version:
        raise PipelineError("this model is the champion already.")
    sample = _sample(current.read(store), size)
    if not len(sample):
        raise PipelineError("no night has captioned any yet.")
    inbox = open_bucket(inbox_uri)
    inbox.require()  # otherwise all that is missing would count as removed
    source = source_name(inbox, store)

    @cache  # most candidates have the champion's encoder
    def features(encoder_id: str, regions: bool) -> Sample:
        images = sample.select(IDENTITY)
        extraction.extract_missing(
            images, run=f"shadow-of-{version}", source=source, encoder_id=encoder_id, store=store
        )
        rows = feature_store.look_up(images, encoder_id=encoder_id, store=store).filter(pc.field("status") == "ok")
        read = feature_store.read_features(rows, encoder_id=encoder_id, store=store, regions=regions)
        return _identities(rows), read

    def captions(of_version: str) -> dict[tuple[str, str], str]:
        captioner, metadata = bundle.load(of_version, store)
        identities, of_sample = features(metadata.encoder_id, captioner.attends)
        found = captioner.caption(of_sample, decoding)
        return {identity: caption.text for identity, caption in zip(identities, found, strict=True)}

    ours, theirs = captions(version), captions(champion.version)
    by_person = zip(_identities(sample), sample["source"].to_pylist(), sample["caption"].to_pylist(), strict=True)
    rows = [
        (*identity, ours[identity], champion.version, theirs[identity], caption if who == PERSON else None)
        for identity, who, caption in by_person
        if identity in ours and identity in theirs
    ]
    if not rows:
        raise PipelineError("none of the sample can be encoded.")
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def _sample(table: pa.Table, size: int) -> pa.Table:
    """Photographs with a caption, of the current captions.

    A quarter, at most, are those about which people have said something last: their words tell which model is right.
    The others are drawn by a hash of their keys, so that all candidates get the same ones.
    """
    captioned = table.filter(pc.field("caption").is_valid())
    order = [("captioned_at", "descending"), ("image_key", "ascending")]
    told = captioned.filter(pc.field("source") == PERSON).sort_by(order).slice(0, size // 4)
    others = captioned.join(told.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    keys = others["image_key"].to_pylist()

    def digest(row: int) -> bytes:
        return hashlib.blake2b(keys[row].encode(), digest_size=8).digest()

    drawn = heapq.nsmallest(size - len(told), range(len(keys)), key=digest)
    return pa.concat_tables([told, others.take(pa.array(drawn, pa.int64())).select(told.column_names)])


def _identities(images: pa.Table) -> list[tuple[str, str]]:
    return list(zip(*(images[name].to_pylist() for name in IDENTITY), strict=True))


def _link(key: str, picture_page: str) -> str:
    name = escape(_shorten(key))
    return f"[{name}]({picture_page}{quote(key, safe='')})" if picture_page else name


def _shorten(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"

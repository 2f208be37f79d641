"""The nightly run: every new image in the inbox gets its caption, and every image is accounted for.

A night has these steps, each of which can be repeated: list the inbox and fix the champion for the whole night; plan
and extract the features that are missing; plan and write the captions that are missing (see ``captions``); reconcile,
which counts the images and compares the night with earlier ones (see ``reconcile``).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import read_champion
from pipeline.errors import PipelineError
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.nightly import captions
from pipeline.nightly.inbox import Patterns, check_size, list_photographs, read_looked_at, write_looked_at
from pipeline.storage import (
    Bucket,
    DamagedObjectError,
    ObjectNotFoundError,
    json,
    layout,
    parquet,
    source_name,
)
from pipeline.work import runs, shards, tombstones
from pipeline.work.listing import LISTING
from pipeline.work.outcomes import IDENTITY, latest_outcome, pending
from pipeline.work.runs import NightRecord

log = logging.getLogger(__name__)

NIGHT_LISTING = pa.schema(
    [
        *LISTING,
        parquet.column("requested", pa.bool_(), "whether the image is captioned again, on request"),
        parquet.column("postponed", pa.bool_(), "whether the image is left to later nights, by their limit"),
    ]
)
"""The photographs in the inbox, as a night has listed them."""

WORKED_ON = pa.schema([NIGHT_LISTING.field(name) for name in (*IDENTITY, "requested", "postponed")])
"""The columns that say which images a night works on."""

SHARD_FACTOR = 5
"""Shards of captions are this many times larger than shards of features: captioning is faster by about as much, and
each of its processes loads Keras."""


class Archive(StrEnum):
    """The images that a new champion captions: all that are listed, or only those that no model has captioned yet."""

    ALL = "all"
    NEW = "new"


@dataclass(frozen=True)
class NightOptions:
    """What a person or the settings decide about a night.

    Attributes:
        archive: which images a new champion captions.
        retry_failed: whether images that failed in earlier nights are tried again.
        patterns: which keys are captioned.
        limit: maximum images that the night captions, the newest first; 0 for no maximum. Images that are captioned
            again do not count.
        max_shrink_fraction: share of the photographs that may be missing since the last night.
        accept_smaller_inbox: whether more may be missing, or all.
        has_sidecars: whether the inbox holds the sidecars of its photographs.
        recaption: patterns, as those of ``Patterns``, of the keys that are captioned again; empty for none.
        recaption_keys: further keys that are captioned again.
    """

    archive: Archive = Archive.ALL
    retry_failed: bool = False
    patterns: Patterns = field(default_factory=Patterns)
    limit: int = 0
    max_shrink_fraction: float = 0.2
    accept_smaller_inbox: bool = False
    has_sidecars: bool = False
    recaption: str = ""
    recaption_keys: frozenset[str] = frozenset()

    def is_requested(self, key: str) -> bool:
        """Whether the image is captioned again."""
        return key in self.recaption_keys or (bool(self.recaption) and Patterns(self.recaption).match(key))


class Night(BaseModel):
    """The facts that are fixed for the whole night when the inbox is listed."""

    model_config = ConfigDict(frozen=True)

    inbox: str
    version: str = Field(description="of the champion")
    encoder_id: str
    archive: Archive
    retry_failed: bool = Field(description="whether images that failed in earlier nights are tried again")
    passed_over: dict[str, int] = Field({}, description="what the inbox holds besides the listed images, by kind")
    postponed: int = Field(0, description="images that are left to later nights, by the limit of a night")
    requested: int = Field(0, description="images that are captioned again, on request")
    requested_at: AwareDatetime | None = Field(
        None, description="time of that request: later attempts at these images fulfil it"
    )
    listed_at: AwareDatetime

    @property
    def captions_prefix(self) -> str:
        """Prefix of the captions that make an image done."""
        return layout.CAPTIONS if self.archive is Archive.NEW else layout.captions_of_model(self.version)


def list_inbox(run: str, *, inbox: Bucket, store: Bucket, options: NightOptions) -> dict[str, Any]:
    """List the photographs in the inbox, fix the model that captions them, and begin the record of the run.

    Returns:
        The number of images ``listed``, what was ``passed_over`` by kind, how many images are ``postponed``, how many
        are ``requested`` to be captioned again, and the ``version`` of the champion.

    Raises:
        PipelineError: there is no champion yet, the inbox does not exist or may not be listed, it has shrunk by more
            than allowed, or none of its images is one that is to be captioned again.
    """
    known = read_looked_at(inbox, store)
    night, listing, looked_at = choose_images(inbox, store, options, known)
    listed = len(listing)
    if night.requested:
        # A run that is repeated from its start does not caption again what it has captioned.
        night = night.model_copy(update={"requested_at": _earlier_request(run, store) or night.requested_at})
    if looked_at != known:
        write_looked_at(looked_at, inbox, store)
    if not options.accept_smaller_inbox:
        check_size(listed, night.passed_over, inbox=inbox, store=store, max_shrink_fraction=options.max_shrink_fraction)
    for stage in (runs.EXTRACTION, runs.CAPTIONS):
        runs.forget_shards(run, stage, store)
    parquet.write(listing, layout.run_listing(run), store, metadata={"night": night.model_dump_json()})
    runs.write_record(begin_record(run, night, listed=listed), store)
    log.info("%d images in %s, to be captioned by %s", listed, inbox.uri, night.version)
    return {
        "listed": listed,
        "passed_over": night.passed_over,
        "postponed": night.postponed,
        "requested": night.requested,
        "version": night.version,
    }


def choose_images(
    inbox: Bucket, store: Bucket, options: NightOptions, looked_at: pa.Table
) -> tuple[Night, pa.Table, pa.Table]:
    """The facts of a night, its listing of schema ``NIGHT_LISTING``, by key, and ``looked_at``.

    ``looked_at`` is that of ``list_photographs``.
    """
    version = read_champion(store).version
    listing, passed_over, looked_at = list_photographs(
        inbox,
        options.patterns,
        looked_at,
        has_sidecars=options.has_sidecars,
        forgotten=tombstones.read(store),
    )
    night = Night(
        inbox=source_name(inbox, store),
        version=version,
        encoder_id=load_metadata(version, store).encoder_id,
        archive=options.archive,
        retry_failed=options.retry_failed,
        passed_over=passed_over,
        listed_at=datetime.now(UTC),
    )
    listing = listing.append_column("requested", _requested(listing, options, inbox))
    if requested := pc.sum(listing["requested"]).as_py():
        night = night.model_copy(update={"requested": requested, "requested_at": night.listed_at})
    late = pa.repeat(False, len(listing))
    if options.limit:
        tried = list(attempts(night, store))
        waiting = not_done(listing, night, tried).filter(~pc.field("requested"))
        postponed = _by_urgency(waiting, outcomes(tried)).slice(options.limit)
        night = night.model_copy(update={"postponed": len(postponed)})
        late = pc.is_in(listing["image_key"], postponed["image_key"])
    return night, listing.append_column("postponed", late).cast(NIGHT_LISTING), looked_at


def _requested(listing: pa.Table, options: NightOptions, inbox: Bucket) -> pa.Array:
    """Which images of a listing a person has asked to caption again."""
    if not (options.recaption or options.recaption_keys):
        return pa.repeat(False, len(listing))
    keys = listing["image_key"].to_pylist()
    requested = [options.is_requested(key) for key in keys]
    if unknown := sorted(options.recaption_keys.difference(keys)):
        log.warning(
            "Keys that can't be captioned again, as they are not in %s: %d, %s", inbox.uri, len(unknown), unknown[:5]
        )
    if not any(requested):
        raise PipelineError(
            f"None of the {len(keys):,} photographs in {inbox.uri} is to be captioned again. Received: "
            f"{options.recaption or unknown[:5]!r}. Give whole keys, or patterns such as `folder/*`."
        )
    return pa.array(requested, pa.bool_())


def _earlier_request(run: str, store: Bucket) -> datetime | None:
    """When this run was first asked to caption images again; None if it was not."""
    try:
        return read_listing(run, store)[1].requested_at
    except (ObjectNotFoundError, DamagedObjectError):
        return None


def plan_extraction(run: str, *, store: Bucket, shard_size: int) -> list[str]:
    """The shards of images to be captioned that have no features of the champion's encoder yet."""
    images, night = _read_images(run, store)
    waiting = _still_waiting(images, night, store)
    requested = waiting.filter(pc.field("requested"))
    names = []
    for part, retry_failed in ((waiting.filter(~pc.field("requested")), night.retry_failed), (requested, True)):
        if len(part):
            names += extraction.plan_extraction(
                part,
                run=run,
                source=night.inbox,
                encoder_id=night.encoder_id,
                store=store,
                shard_size=shard_size,
                retry_failed=retry_failed,
            )
    return names


def plan_captions(run: str, *, store: Bucket, date: str, shard_size: int) -> list[str]:
    """The shards of images to be captioned; ``date`` (YYYY-MM-DD) names the partition of new ones.

    A repeated call finds the images that are still to be captioned; the shards recorded before still belong to the run.
    """
    images, night = _read_images(run, store)

    def find_pending() -> pa.Table:
        waiting = _still_waiting(images, night, store)
        found = feature_store.look_up(waiting, encoder_id=night.encoder_id, store=store)
        if night.requested_at is None:
            return found
        # A shard is named by its content. Without the time, it would be the one that captioned these images before.
        time = pa.scalar(night.requested_at, pa.timestamp("us", tz="UTC"))
        return found.append_column(shards.REQUESTED_AT, pc.if_else(waiting["requested"], time, None))

    names = shards.claim(
        find_pending,
        {
            "folder": layout.captions_folder(night.version, date),
            "version": night.version,
            "encoder_id": night.encoder_id,
        },
        product=shards.product_of_captions(night.version),
        # Images of the same features shard stay together, so that it is read only once.
        order=["shard", "image_key"],
        store=store,
        shard_size=SHARD_FACTOR * shard_size,
    )
    runs.record_shards(run, runs.CAPTIONS, names, store)
    log.info("images of the night: %d; shards of captions of %s to write: %d", len(images), night.version, len(names))
    return names


def read_listing(run: str, store: Bucket, *, columns: pa.Schema = NIGHT_LISTING) -> tuple[pa.Table, Night]:
    """The listing of a night, or some columns of ``NIGHT_LISTING``, and the facts that are fixed for it."""
    key, advice = layout.run_listing(run), "List the inbox again: `captioning night list RUN`."
    table = parquet.read(key, store, columns=columns, advice=advice)
    night = json.parse(Night, parquet.metadata(table).get("night", ""), store.url(key), advice=advice)
    return table, night


def worked_on(listing: pa.Table) -> pa.Table:
    """The images of a listing that its night works on: the columns ``IDENTITY`` and ``requested``."""
    return listing.select(WORKED_ON.names).filter(~pc.field("postponed")).drop_columns("postponed")


def _read_images(run: str, store: Bucket) -> tuple[pa.Table, Night]:
    """The images that a night works on, and its facts."""
    listing, night = read_listing(run, store, columns=WORKED_ON)
    return worked_on(listing), night


def begin_record(run: str, night: Night, *, listed: int) -> NightRecord:
    """The record of a night that has begun."""
    facts = night.model_dump(exclude={"listed_at", "requested_at"})
    return NightRecord(run=run, started_at=night.listed_at, listed=listed, **facts)


def attempts(night: Night, store: Bucket) -> Iterator[pa.Table]:
    """The attempts at images among the captions that make an image done, shard by shard."""
    return captions.read_each(shards.results(night.captions_prefix, store), store)


def outcomes(attempts: Iterable[pa.Table]) -> pa.Table:
    """The attempt that counts for each image."""
    return latest_outcome(pa.concat_tables([captions.OUTCOME.empty_table(), *attempts]), by="captioned_at")


def not_done(images: pa.Table, night: Night, attempts: Iterable[pa.Table]) -> pa.Table:
    """The listed images that are still to be captioned, for the first time or again."""
    if night.requested_at is None:
        return pending(images, attempts, by="captioned_at", retry_failed=night.retry_failed)
    attempts = list(attempts)
    others, requested = images.filter(~pc.field("requested")), images.filter(pc.field("requested"))
    since = [each.filter(pc.field("captioned_at") > pa.scalar(night.requested_at)) for each in attempts]
    return pa.concat_tables(
        [
            pending(others, attempts, by="captioned_at", retry_failed=night.retry_failed),
            pending(requested, since, by="captioned_at", retry_failed=False),
        ]
    )


def _still_waiting(images: pa.Table, night: Night, store: Bucket) -> pa.Table:
    """The listed images that are still to be captioned, without those that were forgotten since the listing."""
    return tombstones.read(store).drop(not_done(images, night, attempts(night, store)))


def _by_urgency(images: pa.Table, outcomes: pa.Table) -> pa.Table:
    """Images of a listing in the order in which nights with a limit take them: the newest first.

    Images that were tried before come last, first those whose attempt is the longest ago. Otherwise images that fail
    every night, such as those in an archive, would keep all older ones waiting.
    """
    tried = outcomes.select([*IDENTITY, "captioned_at"])
    order = [("captioned_at", "ascending", "at_start"), ("modified", "descending"), ("image_key", "ascending")]
    return images.join(tried, keys=IDENTITY, join_type="left outer").sort_by(order)

"""The nightly run: every new image in the inbox gets its caption, and every image is accounted for.

A night has these steps, each of which can be repeated: list the inbox and fix the champion for the whole night; plan
and extract the features that are missing; plan and write the captions that are missing (see ``captions``); reconcile,
which counts the images and compares the night with earlier ones (see ``reconcile``).
"""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import read_champion
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.nightly import captions
from pipeline.nightly.inbox import Patterns, check_size, list_photographs, read_looked_at, write_looked_at
from pipeline.storage import Bucket, json, layout, parquet, source_name
from pipeline.work import runs, shards
from pipeline.work.listing import IMAGES, LISTING
from pipeline.work.outcomes import IDENTITY, latest_outcome, pending
from pipeline.work.runs import NightRecord

log = logging.getLogger(__name__)

NIGHT_LISTING = pa.schema(
    [*LISTING, parquet.column("postponed", pa.bool_(), "whether the image is left to later nights, by their limit")]
)
"""The photographs in the inbox, as a night has listed them."""

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
        limit: maximum images that the night captions, the newest first; 0 for no maximum.
        max_shrink_fraction: share of the photographs that may be missing since the last night.
        accept_smaller_inbox: whether more may be missing, or all.
        has_sidecars: whether the inbox holds the sidecars of its photographs.
    """

    archive: Archive = Archive.ALL
    retry_failed: bool = False
    patterns: Patterns = field(default_factory=Patterns)
    limit: int = 0
    max_shrink_fraction: float = 0.2
    accept_smaller_inbox: bool = False
    has_sidecars: bool = False


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
    listed_at: AwareDatetime

    @property
    def captions_prefix(self) -> str:
        """Prefix of the captions that make an image done."""
        return layout.CAPTIONS if self.archive is Archive.NEW else layout.captions_of_model(self.version)


def list_inbox(run: str, *, inbox: Bucket, store: Bucket, options: NightOptions) -> dict[str, Any]:
    """List the photographs in the inbox, fix the model that captions them, and begin the record of the run.

    Returns:
        The number of images ``listed``, what was ``passed_over`` by kind, how many images are ``postponed``, and the
        ``version`` of the champion.

    Raises:
        PipelineError: there is no champion yet, the inbox does not exist or may not be listed, or it has shrunk by more
            than allowed.
    """
    known = read_looked_at(inbox, store)
    night, listing, looked_at = choose_images(inbox, store, options, known)
    listed = len(listing)
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
        inbox, options.patterns, looked_at, has_sidecars=options.has_sidecars
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
    postponed = listing.slice(0, 0)
    if options.limit:
        attempts = outcomes(night, store)
        waiting = pending(listing, attempts, retry_failed=night.retry_failed)
        postponed = _by_urgency(waiting, attempts).slice(options.limit)
        night = night.model_copy(update={"postponed": len(postponed)})
    marked = postponed.select(IDENTITY).append_column("postponed", pa.array([True] * len(postponed), pa.bool_()))
    listing = listing.join(marked, keys=IDENTITY, join_type="left outer").sort_by("image_key")
    column = listing.schema.get_field_index("postponed")
    listing = listing.set_column(column, "postponed", pc.fill_null(listing["postponed"], False))
    return night, listing.select(NIGHT_LISTING.names).cast(NIGHT_LISTING), looked_at


def plan_extraction(run: str, *, store: Bucket, shard_size: int) -> list[str]:
    """The shards of images to be captioned that have no features of the champion's encoder yet."""
    listing, night = read_listing(run, store)
    images = worked_on(listing)
    return extraction.plan_extraction(
        not_done(images, night, store),
        run=run,
        source=night.inbox,
        encoder_id=night.encoder_id,
        store=store,
        shard_size=shard_size,
        retry_failed=night.retry_failed,
    )


def plan_captions(run: str, *, store: Bucket, date: str, shard_size: int) -> list[str]:
    """The shards of images to be captioned; ``date`` (YYYY-MM-DD) names the partition of new ones.

    A repeated call finds the images that are still to be captioned; the shards recorded before still belong to the run.
    """
    listing, night = read_listing(run, store)
    images = worked_on(listing)
    names = shards.claim(
        lambda: feature_store.look_up(not_done(images, night, store), encoder_id=night.encoder_id, store=store),
        {
            "folder": layout.captions_folder(night.version, date),
            "version": night.version,
            "encoder_id": night.encoder_id,
        },
        product=f"captions-{night.version}",
        # Images of the same features shard stay together, so that it is read only once.
        order=["shard", "image_key"],
        store=store,
        shard_size=SHARD_FACTOR * shard_size,
    )
    runs.record_shards(run, runs.CAPTIONS, names, store)
    log.info("%d images: %d shards of captions of %s to write", len(images), len(names), night.version)
    return names


def read_listing(run: str, store: Bucket) -> tuple[pa.Table, Night]:
    """The listing of a night, of schema ``NIGHT_LISTING``, and the facts that are fixed for it."""
    key, advice = layout.run_listing(run), "List the inbox again: `captioning night list RUN`."
    table = parquet.read(key, store, columns=NIGHT_LISTING, advice=advice)
    night = json.parse(Night, parquet.metadata(table).get("night", ""), store.url(key), advice=advice)
    return table, night


def worked_on(listing: pa.Table) -> pa.Table:
    """The images of a listing that its night works on, as a table of schema ``IMAGES``."""
    return listing.filter(~pc.field("postponed")).select(IMAGES.names)


def begin_record(run: str, night: Night, *, listed: int) -> NightRecord:
    """The record of a night that has begun."""
    facts = night.model_dump(exclude={"listed_at"})
    return NightRecord(run=run, started_at=night.listed_at, listed=listed, **facts)


def not_done(images: pa.Table, night: Night, store: Bucket) -> pa.Table:
    """The listed images that are still to be captioned."""
    return pending(images, outcomes(night, store), retry_failed=night.retry_failed)


def outcomes(night: Night, store: Bucket) -> pa.Table:
    """The attempt that counts for each image among the captions that make an image done."""
    attempts = captions.read(shards.results(night.captions_prefix, store), store)
    return latest_outcome(attempts, by="captioned_at")


def _by_urgency(images: pa.Table, attempts: pa.Table) -> pa.Table:
    """Images of a listing in the order in which nights with a limit take them: the newest first.

    Images that were tried before come last, first those whose attempt is the longest ago. Otherwise images that fail
    every night, such as those in an archive, would keep all older ones waiting.
    """
    tried = attempts.select([*IDENTITY, "captioned_at"])
    order = [("captioned_at", "ascending", "at_start"), ("modified", "descending"), ("image_key", "ascending")]
    return images.join(tried, keys=IDENTITY, join_type="left outer").sort_by(order)

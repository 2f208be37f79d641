"""The nightly job: what is new in the inbox gets its caption, in the store, and every image is accounted for.

A night goes through five steps, each of which can be repeated: list the inbox and fix the champion for the whole
night; plan and extract what has no features; plan and write the captions that are wanted (see ``features`` and
``captions`` for how); count, and compare with other nights.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import captions, drift, features, plans, registry, runs, tables
from pipeline.captioner import load_metadata
from pipeline.drift import Profile
from pipeline.errors import PipelineError
from pipeline.images import is_image
from pipeline.plans import IDENTITY
from pipeline.storage import Bucket, open_bucket

log = logging.getLogger(__name__)

KIND = "caption_new_images"

PROFILE = "profile.json"
"""In a run's folder: what its pictures and captions were like."""

NIGHTS = 30
"""Earlier nights that a night is compared with."""

SHARDS = 5
"""Planned images make so many times as large shards as for extraction: captioning is as much quicker, and each of its
processes loads Keras."""


class Archive(StrEnum):
    """What a new champion captions: all that is listed, or only what no model has captioned yet."""

    ALL = "all"
    NEW = "new"


class Night(BaseModel):
    """What is fixed for a whole night when the inbox is listed."""

    model_config = ConfigDict(frozen=True)

    inbox: str
    version: str = Field(description="of the champion")
    encoder_id: str
    archive: Archive
    retry_failed: bool = Field(description="whether what failed in earlier nights is tried again")
    listed_at: AwareDatetime

    @property
    def writers(self) -> str:
        """Prefix of the captions that make an image done."""
        return "captions/" if self.archive is Archive.NEW else captions.folder(self.version)


def list_inbox(
    run: str, *, inbox: str, store: Bucket, archive: Archive = Archive.ALL, retry_failed: bool = False
) -> dict[str, Any]:
    """List the inbox's photographs and write down which model the night works with, and on what.

    Returns:
        The number of images ``listed``, and the champion's ``version``.

    Raises:
        PipelineError: there is no champion yet.
    """
    version = registry.champion(store).version
    night = Night(
        inbox=inbox,
        version=version,
        encoder_id=load_metadata(version, store).encoder_id,
        archive=archive,
        retry_failed=retry_failed,
        listed_at=datetime.now(UTC),
    )
    table = _photographs(inbox)
    for stage in (runs.EXTRACTION, runs.CAPTIONS):
        runs.forget_shards(run, stage, store)
    tables.write(table, _listing_key(run), store, about={"night": night.model_dump_json()})
    log.info("%d images in %s, to be captioned by %s", len(table), inbox, version)
    return {"listed": len(table), "version": version}


def plan_extraction(run: str, *, store: Bucket, shard_size: int) -> list[str]:
    """The shards of images that are to be captioned and have no features of the champion's encoder yet."""
    images, night = _listing(run, store)
    return features.plan(
        _not_done(images, night, store),
        run=run,
        source=night.inbox,
        encoder_id=night.encoder_id,
        store=store,
        shard_size=shard_size,
        retry_failed=night.retry_failed,
    )


def plan_captions(run: str, *, store: Bucket, date: str, shard_size: int) -> list[str]:
    """The shards of images that are to be captioned; ``date`` (YYYY-MM-DD) names the partition of new ones.

    Repeated, it finds what is still to be done, and what the run has written stays counted as the run's.
    """
    images, night = _listing(run, store)
    shards = plans.claim(
        lambda: features.look_up(_not_done(images, night, store), encoder_id=night.encoder_id, store=store),
        {
            "folder": f"{captions.folder(night.version)}date={date}",
            "version": night.version,
            "encoder_id": night.encoder_id,
        },
        product=f"captions-{night.version}",
        # Images of one shard of features stay together, so that each of those is read once.
        order=["shard", "key"],
        store=store,
        shard_size=SHARDS * shard_size,
    )
    runs.note_shards(run, runs.CAPTIONS, shards, store)
    log.info("%d images: captions of %s are to be written in %d shards", len(images), night.version, len(shards))
    return shards


def publish(run: str, *, store: Bucket, max_failed_fraction: float, drift_limit: float) -> dict[str, Any]:
    """Count the night, write its record, and fail where images are unaccounted for or too many failed.

    Returns:
        The record: how many images were listed, done before, extracted, captioned and failed, the errors by kind, the
        seconds by stage, the images a second from the listing to this count, how far the night lies from the model's
        test and from earlier nights (see ``drift``), and ``warnings`` about that.
    """
    images, night = _listing(run, store)
    shards = runs.planned_shards(run, runs.CAPTIONS, store)
    results = [plans.read(shard, store).result for shard in shards]
    written = captions.decided(captions.rows(results, store).join(images, keys=IDENTITY, join_type="inner"))
    elsewhere = captions.rows((item.key for item in store.list(night.writers) if item.key not in set(results)), store)
    before = images.join(written, keys=IDENTITY, join_type="left anti")
    missing = before.join(elsewhere, keys=IDENTITY, join_type="left anti")
    failed = written.filter(pc.field("status") == "failed")
    failures = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    extracted = runs.extracted(run, store)
    notes = plans.read_notes(shards, store)
    found, warnings = _drift(run, notes, night, failed=len(failures), limit=drift_limit, store=store)
    finished_at = datetime.now(UTC)
    record = {
        "kind": KIND,
        **night.model_dump(mode="json", exclude={"listed_at"}),
        "listed": len(images),
        "already_done": len(before) - len(missing),
        "extracted": extracted["extracted"],
        "captioned": len(written) - len(failures),
        "failed": len(failures),
        "errors": dict(Counter(error for _, error in failures).most_common()),
        "drift": found,
        "warnings": warnings,
        "seconds": Counter(extracted["seconds"]) + Counter(runs.seconds(notes)),
        "images_per_second": round(len(written) / max((finished_at - night.listed_at).total_seconds(), 1e-9), 2),
        "started_at": night.listed_at.isoformat(),
        "finished_at": finished_at.isoformat(),
    }
    runs.finish(run, record, store)
    log.info("%s", summary(record))
    for warning in warnings:
        log.warning("%s", warning)
    if len(missing):
        raise PipelineError(
            f"{len(images)} images were listed in {night.inbox}, but {record['captioned']} captioned + "
            f"{record['failed']} failed + {record['already_done']} done before are {len(images) - len(missing)}: "
            f"{', '.join(missing['key'].to_pylist()[:5])} and others have no row. Run the night again."
        )
    features.check_failures(failures, len(written), allowed_fraction=max_failed_fraction)
    return record


def summary(record: Mapping[str, Any]) -> str:
    """What a night's record says, in a line for people."""
    warnings = f"; warnings: {len(record['warnings'])}" if record["warnings"] else ""
    return (
        f"{record['listed']:,} images listed = {record['captioned']:,} captioned + {record['failed']:,} failed + "
        f"{record['already_done']:,} done before; features of {record['extracted']:,} extracted; "
        f"model {record['version']}{warnings}"
    )


@dataclass(frozen=True)
class Coverage:
    """What the champion has done of the inbox, as it is now.

    Attributes:
        listed: images in the inbox.
        captioned: how many of them have a caption.
        errors: how many failed, by kind.
        pending: what the next night will caption.
    """

    listed: int
    captioned: int
    errors: Mapping[str, int]
    pending: int


def coverage(version: str, *, inbox: str, store: Bucket) -> Coverage:
    """Compare the inbox with a model's captions."""
    images = _photographs(inbox)
    written = captions.rows((item.key for item in store.list(captions.folder(version))), store)
    here = captions.decided(written.join(images, keys=IDENTITY, join_type="inner"))
    done = here.join(features.settled(here, retry_failed=False), keys=IDENTITY, join_type="inner")
    errors = Counter(done.filter(pc.field("status") == "failed")["error"].to_pylist())
    return Coverage(len(images), len(done) - errors.total(), dict(errors.most_common()), len(images) - len(done))


def _listing_key(run: str) -> str:
    return f"{runs.folder(run)}/listing.parquet"


def _listing(run: str, store: Bucket) -> tuple[pa.Table, Night]:
    table = tables.read(_listing_key(run), store)
    return table, Night.model_validate_json(tables.about(table)["night"])


def _not_done(images: pa.Table, night: Night, store: Bucket) -> pa.Table:
    """The listed images that are still to be captioned."""
    written = captions.rows((item.key for item in store.list(night.writers)), store)
    return images.join(features.settled(written, retry_failed=night.retry_failed), keys=IDENTITY, join_type="left anti")


def _drift(
    run: str, notes: Sequence[Mapping[str, Any]], night: Night, *, failed: int, limit: float, store: Bucket
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """How far the night lies from the model's test and from earlier nights, and what of it deserves a warning."""
    profiles = [Profile.model_validate(note["profile"]) for note in notes if note["profile"]]
    if not profiles:
        return {}, []
    here = Profile.together(profiles).model_copy(update={"failed": failed})
    drift.save(_profile_key(run), here, store)
    earlier = [
        profile
        for record in islice(runs.finished(KIND, store), NIGHTS)
        if record["version"] == night.version and record["run"] != run
        if (profile := drift.load(_profile_key(record["run"]), store)) and profile.search == here.search
    ]
    references = {"the model's test": drift.load(drift.test_key(night.version), store)}
    if earlier:
        references["earlier nights"] = Profile.together(earlier)
    found: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    for name, reference in references.items():
        if reference is not None:
            found[name] = drift.differences(here, reference)
            warnings += drift.warnings(found[name], here, reference, name=name, limit=limit)
    return found, warnings


def _profile_key(run: str) -> str:
    return f"{runs.folder(run)}/{PROFILE}"


def _photographs(inbox: str) -> pa.Table:
    """The listing of an inbox, of schema ``features.IMAGES``."""
    return features.as_table(item for item in open_bucket(inbox).list() if is_image(item.key))

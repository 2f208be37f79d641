"""The end of a night: count its images, compare it with earlier nights, renew the current captions, write its record.

Every listed image must be captioned, failed, or done before; a night that has lost one fails.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner.metadata import load_metadata
from pipeline.config import SidecarPlace
from pipeline.errors import PipelineError
from pipeline.evaluation import drift
from pipeline.evaluation.drift import Profile
from pipeline.nightly import captions, current
from pipeline.nightly.captions import CaptionStats
from pipeline.nightly.night import Night, begin_record, read_listing, worked_on
from pipeline.storage import Bucket, json, layout
from pipeline.work import runs, shards, tombstones
from pipeline.work.outcomes import ARCHIVED, GONE, IDENTITY, check_failures, latest_outcome
from pipeline.work.runs import NightRecord

log = logging.getLogger(__name__)

NIGHTS = 30
"""Earlier nights with which a night is compared."""


def reconcile(
    run: str,
    *,
    store: Bucket,
    max_failed_fraction: float,
    max_shrink_fraction: float,
    drift_limit: float,
    review_below: float,
    sidecars: SidecarPlace = "none",
) -> NightRecord:
    """Count the images of a night and write its record, which it returns.

    Args:
        run: the run.
        store: the store.
        max_failed_fraction: share of the images that may fail.
        max_shrink_fraction: share of the images that may have been removed or replaced since the listing.
        drift_limit: standard deviations by which the night may differ from the model's test and from earlier nights
            without a warning.
        review_below: confidence below which a person should look at a caption.
        sidecars: where the captions are also written as sidecars.

    Raises:
        PipelineError: an image is unaccounted for, or too many failed or vanished; the record then has the status
            failed.
    """
    listing, night = read_listing(run, store)
    names = runs.recorded_shards(run, runs.CAPTIONS, store)
    results = {shard.result_key for shard in shards.read_existing(names, store)}
    damaged: list[str] = []
    written = captions.read(results, store, columns=current.ATTEMPT, damaged=damaged)
    earlier = set(shards.results(night.captions_prefix, store)) - results
    others = captions.read(earlier, store, columns=current.ATTEMPT, damaged=damaged)
    # Tombstones are written before rows are removed: whatever has lost its row to them is known now.
    listing = tombstones.read(store).drop(listing)
    images = worked_on(listing)
    attempts = written.join(images, keys=IDENTITY, join_type="inner")
    outcomes = latest_outcome(attempts, by="captioned_at")
    before = images.join(outcomes, keys=IDENTITY, join_type="left anti")
    missing = _without_row(before, others, night)
    gone = outcomes.filter(pc.field("error") == GONE)
    failed = outcomes.filter((pc.field("status") == "failed") & (pc.field("error") != GONE))
    failures = list(zip(failed["image_key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    extracted, seconds = runs.extraction_stats(run, store)
    stats = shards.read_stats(names, store, kind=CaptionStats)
    differences, warnings = _drift(run, stats, night, failed=len(failures), limit=drift_limit, store=store)
    finished_at = datetime.now(UTC)
    record = begin_record(run, night, listed=len(listing)).model_copy(
        update={
            "already_done": len(before) - len(missing),
            "extracted": extracted,
            "captioned": len(outcomes) - len(failures) - len(gone),
            "novel": pc.sum(outcomes["novel"], min_count=0).as_py(),
            "failed": len(failures),
            "gone": len(gone),
            "errors": dict(Counter(error for _, error in failures).most_common()),
            "drift": differences,
            "drifted": bool(warnings),
            "warnings": warnings,
            "seconds": dict(Counter(seconds) + Counter(runs.total_seconds(stats))),
            "images_per_second": _rate(len(outcomes), (finished_at - night.listed_at).total_seconds()),
            "finished_at": finished_at,
        }
    )
    log.info("%s", record)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        _check_complete(record, missing)
        _check_gone(record, max_shrink_fraction)
        current.refresh(
            listing,
            pa.concat_tables([written, others]),
            night={
                "run": run,
                "inbox": night.inbox,
                "version": night.version,
                "language": load_metadata(night.version, store).language,
                "listed_at": night.listed_at.isoformat(),
            },
            store=store,
            place=sidecars,
            damaged=damaged,
            review_below=review_below,
        )
        record = record.model_copy(update={"warnings": [*warnings, *damaged]})
        bad = [(key, error) for key, error in failures if error != ARCHIVED]
        check_failures(bad, record.captioned + len(bad), allowed_fraction=max_failed_fraction)
    except PipelineError as error:
        runs.write_failure(record, str(error), store)
        raise
    record = record.model_copy(update={"status": "succeeded"})
    runs.write_record(record, store)
    return record


def _without_row(images: pa.Table, others: pa.Table, night: Night) -> pa.Table:
    """The images that the attempts of other runs do not account for; ``images`` as ``worked_on`` gives them.

    An image that is to be captioned again is accounted for by an attempt since the request.
    """
    missing = images.join(others, keys=IDENTITY, join_type="left anti").sort_by("image_key")
    if night.requested_at is None:
        return missing
    since = others.filter(pc.field("captioned_at") > pa.scalar(night.requested_at))
    again = images.filter(pc.field("requested")).join(since, keys=IDENTITY, join_type="left anti")
    return pa.concat_tables([missing.filter(~pc.field("requested")), again]).sort_by("image_key")


def _check_complete(record: NightRecord, missing: pa.Table) -> None:
    """Raise ``PipelineError`` if a listed image has no row, or none since it was to be captioned again."""
    if len(missing):
        since = " since they were to be captioned again" if pc.any(missing["requested"]).as_py() else ""
        raise PipelineError(
            f"{record.listed} images were listed in {record.inbox}, but only {record.listed - len(missing)} are "
            f"accounted for ({record}). The others have no row{since}, such as "
            f"{', '.join(missing['image_key'].to_pylist()[:5])}. Run the night again."
        )


def _check_gone(record: NightRecord, allowed_fraction: float) -> None:
    """Raise ``PipelineError`` if far too many images have vanished since the listing, as from a disk that fell off."""
    if record.gone > math.ceil(record.listed * allowed_fraction):
        raise PipelineError(
            f"{record.gone:,} of {record.listed:,} images in {record.inbox} were removed or replaced after they were "
            f"listed, more than the allowed {allowed_fraction:.0%} (CAPTION_MAX_SHRINK_FRACTION). Check that the inbox "
            "is still there. The next night tries them again."
        )


def _rate(images: int, seconds: float) -> float:
    """Images per second; 0 where the clock was set back, and the time is not known."""
    return round(images / seconds, 2) if seconds > 0 else 0.0


def _drift(
    run: str, stats: Sequence[CaptionStats], night: Night, *, failed: int, limit: float, store: Bucket
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The differences of the night from the model's test and from earlier nights, and the warnings about them."""
    profiles = [each.profile for each in stats if each.profile is not None]
    if not profiles:
        return {}, []
    here = Profile.together(profiles).model_copy(update={"failed": failed})
    json.write(here, layout.run_profile(run), store)
    references = {"the model's test": drift.test_profile(night.version, here.decoding, store)}
    if earlier := _earlier_profiles(run, night.version, here, store):
        references["earlier nights"] = Profile.together(earlier)
    found: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    for name, reference in references.items():
        if reference is not None:
            found[name] = drift.differences(here, reference)
            warnings += drift.warnings(found[name], here, reference, name=name, limit=limit)
    return found, warnings


def _earlier_profiles(run: str, version: str, here: Profile, store: Bucket) -> list[Profile]:
    """The profiles of the last nights of the same model and decoding that succeeded."""
    return list(islice(_profiles(run, version, here, store), NIGHTS))


def _profiles(run: str, version: str, here: Profile, store: Bucket) -> Iterator[Profile]:
    for record in runs.list_records(runs.NIGHT, store):
        if not isinstance(record, NightRecord) or record.status != "succeeded":
            continue
        if record.version != version or record.run == run:
            continue
        profile = json.find(Profile, layout.run_profile(record.run), store)
        # A night with nothing to caption has none.
        if profile is not None and profile.decoding == here.decoding:
            yield profile

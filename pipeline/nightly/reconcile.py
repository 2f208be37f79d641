"""The end of a night: count its images, compare it with earlier nights, and write its record.

Every listed image must be captioned, failed, or done before; a night that has lost one fails.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.evaluation import drift
from pipeline.evaluation.drift import Profile
from pipeline.nightly import captions
from pipeline.nightly.night import Night, begin_record, read_listing
from pipeline.storage import Bucket, ObjectNotFoundError, json, layout
from pipeline.work import runs, shards
from pipeline.work.outcomes import IDENTITY, check_failures, latest_outcome
from pipeline.work.runs import NightRecord
from pipeline.work.shards import ShardStats

log = logging.getLogger(__name__)

NIGHTS = 30
"""Earlier nights with which a night is compared."""


def reconcile(run: str, *, store: Bucket, max_failed_fraction: float, drift_limit: float) -> NightRecord:
    """Count the images of a night and write its record, which it returns.

    Args:
        run: the run.
        store: the store.
        max_failed_fraction: share of the images that may fail.
        drift_limit: standard deviations by which the night may differ from the model's test and from earlier nights
            without a warning.

    Raises:
        PipelineError: an image is unaccounted for, or too many failed; the record then has the status failed.
    """
    images, night = read_listing(run, store)
    names = runs.recorded_shards(run, runs.CAPTIONS, store)
    results = [shards.read(name, store).result_key for name in names]
    attempts = captions.read(results, store).join(images, keys=IDENTITY, join_type="inner")
    outcomes = latest_outcome(attempts, by="captioned_at")
    others = captions.read(
        (item.key for item in store.list(night.captions_prefix) if item.key not in set(results)), store
    )
    before = images.join(outcomes, keys=IDENTITY, join_type="left anti")
    missing = before.join(others, keys=IDENTITY, join_type="left anti")
    failed = outcomes.filter(pc.field("status") == "failed")
    failures = list(zip(failed["image_key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    extracted, seconds = runs.extraction_stats(run, store)
    stats = shards.read_stats(names, store)
    differences, warnings = _drift(run, stats, night, failed=len(failures), limit=drift_limit, store=store)
    finished_at = datetime.now(UTC)
    record = begin_record(run, night, listed=len(images)).model_copy(
        update={
            "already_done": len(before) - len(missing),
            "extracted": extracted,
            "captioned": len(outcomes) - len(failures),
            "failed": len(failures),
            "errors": dict(Counter(error for _, error in failures).most_common()),
            "drift": differences,
            "warnings": warnings,
            "seconds": dict(Counter(seconds) + Counter(runs.total_seconds(stats))),
            "images_per_second": round(len(outcomes) / max((finished_at - night.listed_at).total_seconds(), 1e-9), 2),
            "finished_at": finished_at,
        }
    )
    log.info("%s", record)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        _check_complete(record, missing)
        check_failures(failures, len(outcomes), allowed_fraction=max_failed_fraction)
    except PipelineError as error:
        runs.write_failure(record, str(error), store)
        raise
    record = record.model_copy(update={"status": "succeeded"})
    runs.write_record(record, store)
    return record


def _check_complete(record: NightRecord, missing: pa.Table) -> None:
    """Raise ``PipelineError`` if a listed image has no row."""
    if len(missing):
        raise PipelineError(
            f"{record.listed} images were listed in {record.inbox}, but {record.captioned} captioned + {record.failed} "
            f"failed + {record.already_done} done before are {record.listed - len(missing)}. The others have no row, "
            f"such as {', '.join(missing['image_key'].to_pylist()[:5])}. Run the night again."
        )


def _drift(
    run: str, stats: Sequence[ShardStats], night: Night, *, failed: int, limit: float, store: Bucket
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The differences of the night from the model's test and from earlier nights, and the warnings about them."""
    profiles = [Profile.model_validate(each.profile) for each in stats if each.profile]
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
        if record.status != "succeeded" or record.version != version or record.run == run:
            continue
        try:
            profile = json.read(Profile, layout.run_profile(record.run), store)
        except ObjectNotFoundError:  # a night with nothing to caption
            continue
        if profile.decoding == here.decoding:
            yield profile

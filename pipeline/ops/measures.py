"""The measures that a run leaves for monitoring, when it has ended: numbers by name.

There are as many names as docs/operations.md lists, whatever is captioned by whichever model: a system of metrics keeps
a series for each name that it has ever seen. Times are in Unix seconds.
"""

import logging

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import find_champion
from pipeline.data import corrections
from pipeline.errors import PipelineError
from pipeline.evaluation.results import latest_metrics
from pipeline.nightly import current
from pipeline.ops import acceptance
from pipeline.ops.review import Queue
from pipeline.storage import Bucket
from pipeline.work.runs import AnyRecord, NightRecord

log = logging.getLogger(__name__)

Measures = dict[str, float]

COUNTS = ("listed", "already_done", "postponed", "requested", "captioned", "novel", "failed", "gone")
"""The counts of a night's record that are measures."""


def of_run(record: AnyRecord) -> Measures:
    """The measures of a run that has ended, from its record; without counts if a night failed before it was counted."""
    succeeded = record.status == "succeeded"
    found: Measures = {"succeeded": int(succeeded), "extracted": record.extracted}
    if record.finished_at:
        found["duration"] = (record.finished_at - record.started_at).total_seconds()
        if succeeded:
            found["succeeded_at"] = record.finished_at.timestamp()
    found |= {f"seconds.{section}": seconds for section, seconds in record.seconds.items()}
    if not isinstance(record, NightRecord):
        found["promoted"] = int(record.promoted)
    elif succeeded or record.already_done + record.captioned + record.failed + record.gone:
        found |= {name: getattr(record, name) for name in COUNTS}
        found["passed_over"] = sum(record.passed_over.values())
        found["images_per_second"] = record.images_per_second
        found["drifted"] = int(record.drifted)
    return {f"{record.kind}.{name}": value for name, value in found.items()}


def of_store(store: Bucket) -> Measures:
    """The measures of the current captions and of the champion; what can't be read is logged, and left out."""
    found: Measures = {}
    for part in (_of_captions, _of_champion):
        try:
            found |= part(store)
        except PipelineError as error:
            log.warning("some measures are missing: %s", error)
    return found


def _of_captions(store: Bucket) -> Measures:
    """The measures of the current captions; none before the first night has ended."""
    if (covered := current.coverage(store)) is None:
        return {}
    found: Measures = {
        "images": covered.images,
        "captioned": covered.captioned,
        "waiting": covered.waiting,
        "to_review": Queue().count(store, damaged=[]),
    }
    if covered.newest_at:
        found["newest_at"] = covered.newest_at.timestamp()
    return {f"captions.{name}": value for name, value in found.items()}


def _of_champion(store: Bucket) -> Measures:
    """The champion's scores on its test split, and how people judged its captions; none without a champion."""
    if (champion := find_champion(store)) is None:
        return {}
    found: Measures = {}
    if metrics := latest_metrics(load_metadata(champion.version, store), store):
        found |= {name.lower().replace("-", "_"): score for name, score in metrics.summary.items()}
    weeks = acceptance.by_week(corrections.read(store, damaged=[]))
    judged = acceptance.by_model(weeks).get(champion.version)
    found["judged"] = judged.judged if judged else 0
    if judged:
        found["acceptance"] = judged.share
    return {f"champion.{name}": value for name, value in found.items()}

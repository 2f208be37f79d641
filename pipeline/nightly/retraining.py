"""Whether a retraining is due after a night: people have corrected many captions, or nights drift one after the other.

Both are counted since the last retraining began, and nothing is due while one runs or waits for an approval: each
reason leads to one retraining.
"""

from datetime import UTC, datetime
from itertools import islice

import pyarrow.compute as pc

from pipeline.data import corrections
from pipeline.progress import counted
from pipeline.storage import Bucket
from pipeline.work import runs
from pipeline.work.runs import NightRecord

RETRAININGS = 10
"""Retrainings, the last written, among which one may still run."""


def retraining_due(night: NightRecord, *, after_corrections: int, after_drift: int, store: Bucket) -> str:
    """Why a retraining is due; empty if none is.

    Args:
        night: the record of a night that has ended.
        after_corrections: number of corrections after which one is due; 0 for never.
        after_drift: number of nights in a row with warnings of drift after which one is due; 0 for never.
        store: the store.
    """
    if not after_corrections and not after_drift:
        return ""
    retrainings = list(islice(runs.list_records(runs.RETRAINING, store), RETRAININGS))
    if any(record.status == "running" for record in retrainings):
        return ""
    began = max((record.started_at for record in retrainings), default=datetime.min.replace(tzinfo=UTC))
    reasons = []
    if after_corrections and (count := _count_corrections(began, store)) >= after_corrections:
        reasons.append(f"{counted(count, 'correction')} since the last retraining")
    if after_drift and _have_drifted(night.version, since=began, nights=after_drift, store=store):
        reasons.append(f"warnings of drift in the last {after_drift:,} nights")
    return " and ".join(reasons)


def _count_corrections(since: datetime, store: Bucket) -> int:
    """The better captions since a time that still count, one an image. Confirmed ones have nothing to teach."""
    # The night has warned of damaged ones.
    counting = corrections.latest(corrections.read(store, damaged=[]))
    corrected = counting.filter(pc.field("action") == "corrected")
    return sum(time > since for time in corrected["corrected_at"].to_pylist())


def _have_drifted(version: str, *, since: datetime, nights: int, store: Bucket) -> bool:
    """Whether so many nights of a model have drifted, without one between them that has not."""
    drifted = 0
    for record in runs.list_records(runs.NIGHT, store):
        # A night that failed, or had nothing to caption, says nothing.
        if not isinstance(record, NightRecord) or record.status != "succeeded" or not record.drift:
            continue
        if record.version != version or record.started_at <= since or not record.drifted:
            return False
        drifted += 1
        if drifted == nights:
            return True
    return False

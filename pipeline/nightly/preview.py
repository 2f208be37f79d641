"""A preview: what a night would do now, without doing it."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pyarrow.compute as pc

from pipeline.features import store as feature_store
from pipeline.nightly.inbox import read_looked_at
from pipeline.nightly.night import SHARD_FACTOR, NightOptions, attempts, choose_images, not_done, outcomes, worked_on
from pipeline.progress import counted
from pipeline.storage import Bucket
from pipeline.work import runs
from pipeline.work.outcomes import IDENTITY, pending
from pipeline.work.runs import NightRecord

NIGHTS = 30
"""Earlier nights among which the largest one tells the pace."""


@dataclass(frozen=True)
class Preview:
    """What a night would do.

    Attributes:
        version: of the champion, which would caption the images.
        listed: photographs in the inbox.
        passed_over: what else the inbox holds, by kind.
        done: listed images that are captioned, or have failed and are not tried again.
        errors: those of them that have failed, by error.
        pending: images that the night would caption.
        postponed: images that would be left to later nights.
        to_extract: pending images that have no features yet.
        shards: tasks of the extraction and of the captioning.
        images_per_second: pace of the largest of the last nights; None if there was none.
        hours: the night would take, at that pace.
    """

    version: str
    listed: int
    passed_over: dict[str, int]
    done: int
    errors: dict[str, int]
    pending: int
    postponed: int
    to_extract: int
    shards: tuple[int, int]
    images_per_second: float | None
    hours: float | None

    def __str__(self) -> str:
        duration = "an unknown time" if self.hours is None else f"{self.hours:.2f} hours"
        postponed = f" + {self.postponed:,} postponed" if self.postponed else ""
        return (
            f"{counted(self.listed, 'image')} listed = {self.done:,} done before + "
            f"{self.pending:,} pending{postponed}; "
            f"{self.to_extract:,} without features; {counted(sum(self.shards), 'shard')}; {duration}"
            f"{runs.describe_passed_over(self.passed_over)}"
        )


def preview(*, inbox: Bucket, store: Bucket, options: NightOptions, shard_size: int) -> Preview:
    """Say what a night with these options would do now. Nothing is written, and shards in progress are not counted.

    Raises:
        PipelineError: there is no champion yet, or the inbox does not exist or may not be listed.
    """
    night, listing, _ = choose_images(inbox, store, options, read_looked_at(inbox, store))
    images, listed = worked_on(listing), len(listing)
    tried = list(attempts(night, store))
    waiting = not_done(images, night, tried)
    known = [feature_store.index(night.encoder_id, store, images=waiting)]
    to_extract = sum(
        len(pending(waiting.filter(pc.field("requested") == requested), known, by="attempt", retry_failed=retry_failed))
        for requested, retry_failed in ((False, night.retry_failed), (True, True))
    )
    counted = outcomes(tried).join(images, keys=IDENTITY, join_type="inner")
    settled = counted.join(waiting.select(IDENTITY), keys=IDENTITY, join_type="left anti")
    errors = Counter(settled.filter(pc.field("status") == "failed")["error"].to_pylist())
    pace = _pace(store)
    return Preview(
        version=night.version,
        listed=listed,
        passed_over=night.passed_over,
        done=listed - len(waiting) - night.postponed,
        errors=dict(errors.most_common()),
        pending=len(waiting),
        postponed=night.postponed,
        to_extract=to_extract,
        shards=(-(-to_extract // shard_size), -(-len(waiting) // (SHARD_FACTOR * shard_size))),
        images_per_second=pace,
        hours=None if pace is None else round(len(waiting) / pace / 3600, 3),
    )


def _pace(store: Bucket) -> float | None:
    """Images per second of the largest of the last nights: small ones spend their time on starting."""
    records = islice(runs.list_records(runs.NIGHT, store), NIGHTS)
    ended = [record for record in records if isinstance(record, NightRecord) and record.images_per_second > 0]
    return max(ended, key=lambda record: record.captioned).images_per_second if ended else None

"""Photographs that come into the inbox while a night runs: too late for its listing, and for it to be started by them.

A night lists the inbox once. Whoever reports a photograph after that may be too early to start the next night, because
only one runs at a time, so a night that can be started by a report looks once more at its end.
"""

from pipeline.nightly.inbox import list_photographs, read_looked_at
from pipeline.nightly.night import NightOptions, attempts, read_listing
from pipeline.storage import Bucket
from pipeline.work import tombstones
from pipeline.work.outcomes import IDENTITY, pending


def count_arrivals(run: str, *, inbox: Bucket, store: Bucket, options: NightOptions) -> int:
    """The number of photographs that were written since a night listed the inbox, and that the next one would caption.

    Photographs of its listing never count, whatever became of them, so the next night can't be started by the same ones
    again. None counts if the night has left some to later nights: its limit has been reached, and they wait together.

    Args:
        run: the night, after its last step.
        inbox: the inbox.
        store: the store.
        options: how the inbox is listed.

    Raises:
        PipelineError: the inbox does not exist any more, or may not be listed.
    """
    listing, night = read_listing(run, store)
    if night.postponed:
        return 0
    listed_now, _, _ = list_photographs(
        inbox,
        options.patterns,
        read_looked_at(inbox, store),
        has_sidecars=options.has_sidecars,
        forgotten=tombstones.read(store),
    )
    # The time tells a photograph that was removed and written again with the same bytes, too late for the night.
    arrived = listed_now.join(listing, keys=[*IDENTITY, "modified"], join_type="left anti")
    if not len(arrived):
        return 0
    # One that came back may have its caption already.
    return len(pending(arrived, attempts(night, store), by="captioned_at", retry_failed=False))

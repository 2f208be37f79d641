"""The listing of the inbox: which objects are photographs to be captioned, and what is passed over."""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.data.images import is_image
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject, source_name
from pipeline.work import runs
from pipeline.work.listing import tabulate
from pipeline.work.runs import NightRecord

ARCHIVED, EXCLUDED, OTHERS = "archived", "excluded", "other files"
"""Kinds of objects that are passed over, besides those of ``storage.bucket`` and the suffixes of files."""

KINDS = 12
"""Suffixes that are counted one by one, the most frequent ones."""

LISTINGS = 50
"""Listings of any inbox that are searched for an earlier one of the same inbox."""


@dataclass(frozen=True)
class Patterns:
    """Which keys are captioned: those that match a pattern of ``include``, if there is one, and none of ``exclude``.

    Attributes:
        include: patterns as of shells, separated by commas; ``*`` matches slashes, too.
        exclude: the same.
    """

    include: str = ""
    exclude: str = ""

    def match(self, key: str) -> bool:
        """Whether the key is captioned."""
        return (not self.include or _matches(key, self.include)) and not _matches(key, self.exclude)


def list_photographs(inbox: Bucket, patterns: Patterns) -> tuple[pa.Table, dict[str, int]]:
    """List the photographs of an inbox.

    Returns:
        A listing of schema ``LISTING``, and what was passed over, by kind, the most frequent first.

    Raises:
        PipelineError: there is no such bucket or folder, or it may not be listed.
    """
    inbox.require()
    passed_over: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()

    def photographs() -> Iterator[StoredObject]:
        for item in inbox.list(passed_over=passed_over):
            if not is_image(item.key):
                suffixes[_suffix(item.key)] += 1
            elif not patterns.match(item.key):
                passed_over[EXCLUDED] += 1
            elif item.archived:
                passed_over[ARCHIVED] += 1
            else:
                yield item

    table = tabulate(photographs())
    frequent = dict(suffixes.most_common(KINDS))
    passed_over.update(frequent)
    passed_over[OTHERS] += suffixes.total() - sum(frequent.values())
    return table, {kind: count for kind, count in passed_over.most_common() if count}


def check_size(
    listed: int, passed_over: Mapping[str, int], *, inbox: Bucket, store: Bucket, max_shrink_fraction: float
) -> None:
    """Raise ``PipelineError`` if the inbox holds no photograph, or far fewer than at its last listing.

    A mistyped prefix, or a disk that is not mounted, looks like an inbox from which all photographs were removed.

    Args:
        listed: photographs that were listed now.
        passed_over: what was passed over, by kind.
        inbox: the inbox.
        store: the store, whose records of nights tell the last listing.
        max_shrink_fraction: share of the photographs that may be missing.
    """
    before = _last_listed(source_name(inbox, store), store)
    if listed >= (1 - max_shrink_fraction) * max(before, 1):
        return
    found = f"{inbox.uri} holds {listed:,} photographs{runs.describe_passed_over(passed_over)}"
    if before:
        found += (
            f". The last night listed {before:,}, and at most {max_shrink_fraction:.0%} may be missing "
            "(CAPTION_MAX_SHRINK_FRACTION)"
        )
    raise PipelineError(
        f"{found}. Check CAPTION_INBOX, CAPTION_INBOX_INCLUDE and CAPTION_INBOX_EXCLUDE, and that the disk is mounted. "
        "If these are all photographs, run the night again with “Accept a smaller inbox” (--accept-smaller-inbox)."
    )


def _last_listed(inbox: str, store: Bucket) -> int:
    """How many photographs the last night listed in this inbox; 0 if no recent one did."""
    records = (record for record in runs.list_records(runs.NIGHT, store) if isinstance(record, NightRecord))
    # The record of a night that failed before its listing names no inbox. Any number of them may follow a listing.
    listings = islice((record for record in records if record.inbox), LISTINGS)
    return next((record.listed for record in listings if record.inbox == inbox), 0)


def _matches(key: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern.strip()) for pattern in patterns.split(","))


def _suffix(key: str) -> str:
    """The suffix of a file, in lower case; other names are of one kind."""
    match = re.search(r"[^/](\.[A-Za-z0-9]{1,8})\Z", key)
    return match[1].lower() if match else OTHERS

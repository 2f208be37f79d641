"""The listing of the inbox: which objects are photographs to be captioned, and what is passed over."""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.images import content_hash, is_image
from pipeline.data.recognition import PAGE, identity, recognize
from pipeline.errors import PipelineError
from pipeline.progress import counted
from pipeline.storage import (
    Bucket,
    StoredObject,
    layout,
    parquet,
    source_name,
)
from pipeline.work import runs
from pipeline.work.listing import IMAGES, tabulate
from pipeline.work.runs import NightRecord
from pipeline.work.tombstones import FORGOTTEN, Tombstones

ARCHIVED, EXCLUDED, OTHERS = "archived", "excluded", "other files"
"""Kinds of objects that are passed over, besides those of ``storage.bucket`` and the suffixes of files."""

LOOKED_AT = pa.schema([*IMAGES, parquet.column("is_photograph", pa.bool_(), "whether its first bytes are a picture's")])
"""Files whose suffix says nothing."""

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


def list_photographs(
    inbox: Bucket,
    patterns: Patterns,
    looked_at: pa.Table,
    *,
    has_sidecars: bool = False,
    forgotten: Tombstones | None = None,
) -> tuple[pa.Table, dict[str, int], pa.Table]:
    """List the photographs of an inbox, as ``recognize`` finds them.

    Args:
        inbox: the inbox.
        patterns: which keys are captioned.
        looked_at: what earlier listings have found out by looking at objects, of schema ``LOOKED_AT``.
        has_sidecars: whether the sidecars of listed photographs belong to the inbox, and are not counted.
        forgotten: the photographs that are passed over, because they were forgotten.

    Returns:
        A listing of schema ``LISTING``; what was passed over, by kind, the most frequent first; and ``looked_at`` with
        all objects that this listing had to look at, or had to know.

    Raises:
        PipelineError: there is no such bucket or folder, or it may not be listed.
    """
    inbox.require()
    passed_over: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    of_sidecars: list[str] = []
    known: dict[int, bool] = {}
    for batch in looked_at.to_batches(PAGE):
        keys, etags, answers = (column.to_pylist() for column in batch.columns)
        known.update(zip(map(identity, keys, etags), answers, strict=True))
    pages = [LOOKED_AT.empty_table()]

    def candidates() -> Iterator[StoredObject]:
        for item in inbox.list(passed_over=passed_over):
            if has_sidecars and (photograph := layout.photograph_of(item.key)) is not None:
                of_sidecars.append(photograph)
            elif is_image(item.key) is False:
                suffixes[_suffix(item.key)] += 1
            elif not patterns.match(item.key):
                passed_over[EXCLUDED] += 1
            elif forgotten is not None and forgotten.has("key", item.key):
                passed_over[FORGOTTEN] += 1
            elif item.archived:
                passed_over[ARCHIVED] += 1
            else:
                yield item

    def photographs() -> Iterator[StoredObject]:
        for page in recognize(candidates(), inbox, known):
            answered = [(item, found) for item, found in page if found is not None and is_image(item.key) is None]
            columns = [[item.key for item, _ in answered], [item.etag for item, _ in answered]]
            pages.append(pa.table([*columns, [found for _, found in answered]], schema=LOOKED_AT))
            for item, found in page:
                if found:
                    yield item
                else:
                    suffixes[_suffix(item.key)] += 1

    table = tabulate(photographs())
    # The sidecars are the set, because an inbox without any has none: Arrow copies a set.
    have_one = pc.is_in(table["image_key"], pa.array(of_sidecars, pa.string()))
    if alone := len(of_sidecars) - (pc.sum(have_one).as_py() or 0):
        suffixes[layout.SIDECAR_SUFFIX] += alone
    frequent = dict(suffixes.most_common(KINDS))
    passed_over.update(frequent)
    passed_over[OTHERS] += suffixes.total() - sum(frequent.values())
    counts = {kind: count for kind, count in passed_over.most_common() if count}
    return table, counts, pa.concat_tables(pages)


def read_looked_at(inbox: Bucket, store: Bucket) -> pa.Table:
    """What earlier nights have found out about the files of an inbox, of schema ``LOOKED_AT``."""
    found = parquet.read_all([_looked_at_key(inbox, store)], store, columns=LOOKED_AT)
    return next((table for _, table in found), LOOKED_AT.empty_table())


def write_looked_at(looked_at: pa.Table, inbox: Bucket, store: Bucket) -> None:
    """Write it for the nights to come. Of two nights at once, one only forgets what the other has found out."""
    parquet.write(looked_at, _looked_at_key(inbox, store), store)


def _looked_at_key(inbox: Bucket, store: Bucket) -> str:
    return layout.looked_at(content_hash(source_name(inbox, store).encode()))


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
    # Those that were forgotten since then are still there.
    if listed + passed_over.get(FORGOTTEN, 0) >= (1 - max_shrink_fraction) * max(before, 1):
        return
    found = f"{inbox.uri} holds {counted(listed, 'photograph')}{runs.describe_passed_over(passed_over)}"
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
    match = re.search(r"[^/](\.[A-Za-z0-9]{1,12})\Z", key)
    return match[1].lower() if match else OTHERS

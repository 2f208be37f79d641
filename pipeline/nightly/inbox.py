"""The listing of the inbox: which objects are photographs to be captioned, and what is passed over."""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.images import OTHER_SUFFIXES, START_BYTES, content_hash, format_of, is_image
from pipeline.errors import PipelineError
from pipeline.storage import (
    Bucket,
    ObjectDeniedError,
    ObjectNotFoundError,
    StoredObject,
    layout,
    parquet,
    source_name,
)
from pipeline.work import runs
from pipeline.work.listing import IMAGES, PAGE, tabulate
from pipeline.work.runs import NightRecord

ARCHIVED, EXCLUDED, OTHERS = "archived", "excluded", "other files"
"""Kinds of objects that are passed over, besides those of ``storage.bucket`` and the suffixes of files."""

LOOKED_AT = pa.schema([*IMAGES, parquet.column("is_photograph", pa.bool_(), "whether its first bytes are a picture's")])
"""Files whose suffix says nothing."""

READERS = 32
"""Files that are looked at at once."""

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
    looked_at: MutableMapping[tuple[str, str], bool],
    *,
    has_sidecars: bool = False,
) -> tuple[pa.Table, dict[str, int]]:
    """List the photographs of an inbox.

    A key with an unknown suffix, or none, is a photograph if the first bytes of the object are those of a picture.

    Args:
        inbox: the inbox.
        patterns: which keys are captioned.
        looked_at: whether objects that earlier listings have looked at are photographs, by key and etag, as
            ``read_looked_at`` gives it; afterwards, that of all objects that this listing would have looked at.
        has_sidecars: whether the sidecars of listed photographs belong to the inbox, and are not counted.

    Returns:
        A listing of schema ``LISTING``, and what was passed over, by kind, the most frequent first.

    Raises:
        PipelineError: there is no such bucket or folder, or it may not be listed.
    """
    inbox.require()
    passed_over: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()

    of_sidecars: list[str] = []

    known: dict[tuple[str, str], bool | None] = {**looked_at}
    looked_at.clear()

    def candidates() -> Iterator[StoredObject]:
        for item in inbox.list(passed_over=passed_over):
            if has_sidecars and (photograph := layout.photograph_of(item.key)) is not None:
                of_sidecars.append(photograph)
            elif (suffix := _suffix(item.key)) in OTHER_SUFFIXES:
                suffixes[suffix] += 1
            elif not patterns.match(item.key):
                passed_over[EXCLUDED] += 1
            elif item.archived:
                passed_over[ARCHIVED] += 1
            else:
                yield item

    def photographs() -> Iterator[StoredObject]:
        items = candidates()
        with ThreadPoolExecutor(READERS) as threads:
            while page := list(islice(items, PAGE)):
                unclear = [item for item in page if not is_image(item.key)]
                new = [item for item in unclear if _identity(item) not in known]
                known.update(
                    zip(map(_identity, new), threads.map(lambda item: _look_at(item, inbox), new), strict=True)
                )
                for item in unclear:
                    if (found := known[_identity(item)]) is not None:
                        looked_at[_identity(item)] = found
                for item in page:
                    if is_image(item.key) or known[_identity(item)]:
                        yield item
                    else:
                        suffixes[_suffix(item.key)] += 1

    table = tabulate(photographs())
    are_listed = pc.is_in(pa.array(of_sidecars, pa.string()), table["image_key"])
    if alone := len(of_sidecars) - (pc.sum(are_listed).as_py() or 0):
        suffixes[layout.SIDECAR_SUFFIX] += alone
    frequent = dict(suffixes.most_common(KINDS))
    passed_over.update(frequent)
    passed_over[OTHERS] += suffixes.total() - sum(frequent.values())
    return table, {kind: count for kind, count in passed_over.most_common() if count}


def _identity(item: StoredObject) -> tuple[str, str]:
    return item.key, item.etag


def _look_at(item: StoredObject, inbox: Bucket) -> bool | None:
    """Whether an object is a photograph; ``None`` if it can't be read, which may be different another time."""
    try:
        return item.size > 0 and format_of(inbox.first_bytes(item.key, START_BYTES)) is not None
    except (ObjectDeniedError, ObjectNotFoundError):
        return None


def read_looked_at(inbox: Bucket, store: Bucket) -> dict[tuple[str, str], bool]:
    """What earlier nights have found out about the files of an inbox, by key and etag: whether they are photographs."""
    found = {}
    for _, table in parquet.read_all([_looked_at_key(inbox, store)], store, columns=LOOKED_AT):
        keys, etags, are_photographs = (table[name].to_pylist() for name in LOOKED_AT.names)
        found = dict(zip(zip(keys, etags, strict=True), are_photographs, strict=True))
    return found


def write_looked_at(looked_at: Mapping[tuple[str, str], bool], inbox: Bucket, store: Bucket) -> None:
    """Write it for the nights to come. Of two nights at once, one only forgets what the other has found out."""
    keys, etags = [key for key, _ in looked_at], [etag for _, etag in looked_at]
    table = pa.table([keys, etags, list(looked_at.values())], schema=LOOKED_AT)
    parquet.write(table, _looked_at_key(inbox, store), store)


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

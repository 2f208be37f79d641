"""Backups: a store is copied to another bucket while it is in use, to back it up, to restore it, or to move it.

Nearly all objects of a store are written once, after the objects that they point to. All objects that exist at one
moment are therefore consistent. The few mutable ones are read before that moment, and written last. Only ``prune``
and ``forget``, which remove objects, must not run at the same time.

What the store has forgotten since the last backup is removed from the target, too. The tombstones are among the mutable
objects, so an interrupted backup does this again.

A check reads back what was copied, and what a restored store needs first: the champion, its encoder, and the current
captions.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner import bundle, registry
from pipeline.captioner.metadata import load_metadata
from pipeline.errors import PipelineError
from pipeline.features import encoder as encoders
from pipeline.nightly import current
from pipeline.ops.sweep import sweep
from pipeline.progress import counted, track
from pipeline.storage import Bucket, ObjectNotFoundError, StoredObject, layout
from pipeline.work import tombstones

log = logging.getLogger(__name__)

WORKERS = 16


class Checked(BaseModel):
    """What was found in a backup when it was read back."""

    model_config = ConfigDict(frozen=True)

    objects: int = Field(description="objects of the store that are in the backup")
    read_back: int = Field(description="objects that were copied, and whose SHA-256 is that of what was copied")
    champion: str | None = Field(description="version of the model whose files, and those of its encoder, are intact")
    captions: int = Field(description="rows of the current captions")

    def __str__(self) -> str:
        champion = f"champion {self.champion}" if self.champion else "no champion yet"
        return (
            f"{counted(self.read_back, 'object')} read back; {champion}; "
            f"{counted(self.captions, 'current caption')} in the backup"
        )


class Copied(BaseModel):
    """The result of a backup."""

    model_config = ConfigDict(frozen=True)

    objects: int = Field(description="in the store when the backup began")
    copied: int = Field(description="objects that the target lacked")
    bytes: int = Field(description="bytes copied")
    checked: Checked | None = Field(None, description="what was found when it was read back; null if it was not")

    def __str__(self) -> str:
        copied = f"{counted(self.objects, 'object')}, {self.copied:,} of them copied ({self.bytes / 1e6:,.1f} MB)"
        return f"{copied}; {self.checked}" if self.checked else copied


def back_up(source: Bucket, target: Bucket, *, check: bool = False) -> Copied:
    """Copy the objects that the target lacks, or has with another size or an older time.

    Nothing is removed there except what was forgotten. After an interruption, it can be repeated.

    Args:
        source: the store.
        target: the backup.
        check: whether what was copied, the champion and the current captions are read back.

    Raises:
        PipelineError: source and target are the same, or one is inside the other, or there is nothing in the source; or
            the check has found something that is missing, or is not what was copied.
    """
    if f"{source.uri}/".startswith(f"{target.uri}/") or f"{target.uri}/".startswith(f"{source.uri}/"):
        raise PipelineError(
            f"The backup of {source.uri} must not be in the same place, or inside it. Received: {target.uri}"
        )
    mutable = {
        item.key: source.get(item.key)
        for prefix in layout.MUTABLE_PREFIXES
        for item in source.list(prefix)
        if layout.is_mutable(item.key)
    }
    # The parts of all that is complete now are in the listing that follows. Times can't tell: the storage has its own
    # clock, and a clock may be set back.
    complete = {item.key for prefix in layout.MARKED_PREFIXES for item in source.list(prefix)}
    immutable = [
        item
        for item in source.list()
        if item.key not in mutable and (item.key in complete or not layout.is_completion_marker(item.key))
    ]
    known = {item.key: item for item in target.list()}
    if not immutable and not mutable:
        raise PipelineError(
            f"{source.uri} is empty, so there is nothing to back up. Check CAPTION_STORE and, if it is on another "
            "disk, that the disk is mounted."
        )
    # The records of runs are shown in the order in which they were written.
    wanted = sorted((item for item in immutable if _differs(item, known.get(item.key))), key=lambda item: item.modified)

    written: dict[str, str] = {}

    def carry(key: str, data: bytes) -> int:
        target.put(key, data)
        written[key] = hashlib.sha256(data).hexdigest()
        return len(data)

    with ThreadPoolExecutor(WORKERS) as pool:
        sizes = pool.map(lambda item: carry(item.key, source.get(item.key)), wanted)
        size = sum(track(sizes, total=len(wanted), unit="objects", log=log))
    if (forgotten := tombstones.read(source)) != tombstones.read(target):
        for key in sweep(forgotten, target, remove=True):
            written.pop(key, None)
    size += sum(carry(key, data) for key, data in mutable.items())
    copied = Copied(objects=len(immutable) + len(mutable), copied=len(wanted) + len(mutable), bytes=size)
    if not check:
        return copied
    return copied.model_copy(update={"checked": _check([*(item.key for item in immutable), *mutable], written, target)})


def _check(keys: Iterable[str], written: Mapping[str, str], target: Bucket) -> Checked:
    """Read a backup back.

    Args:
        keys: of the objects that must be there.
        written: the SHA-256 of those that were copied.
        target: the backup.
    """
    there = {item.key for item in target.list()}
    expected = set(keys)
    if missing := sorted(expected - there):
        raise PipelineError(
            f"{target.uri} lacks {counted(len(missing), 'object')} of the store, such as {missing[0]}. Check who else "
            "writes there, and repeat the backup."
        )

    def is_intact(key: str) -> bool:
        try:
            return hashlib.sha256(target.get(key)).hexdigest() == written[key]
        except ObjectNotFoundError:
            return False

    with ThreadPoolExecutor(WORKERS) as pool:
        intact = track(pool.map(is_intact, written), total=len(written), unit="objects", log=log)
        damaged = [key for key, found in zip(written, intact, strict=True) if not found]
    if damaged:
        raise PipelineError(
            f"{counted(len(damaged), 'object')} in {target.uri} {'is' if len(damaged) == 1 else 'are'} not what was "
            f"copied, such as {damaged[0]}. Check its disk, delete what is damaged there, and repeat the backup."
        )
    champion = registry.find_champion(target)
    if champion:
        metadata = load_metadata(champion.version, target)
        bundle.check(metadata, target)
        encoders.check(metadata.encoder_id, target)
    return Checked(
        objects=len(expected),
        read_back=len(written),
        champion=champion and champion.version,
        captions=len(current.read(target)),
    )


def _differs(item: StoredObject, known: StoredObject | None) -> bool:
    return known is None or known.size != item.size or known.modified < item.modified

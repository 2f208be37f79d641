"""Backups: a store is copied to another bucket while it is in use, to back it up, to restore it, or to move it.

Nearly all objects of a store are written once, after the objects that they point to. All objects that exist at one
moment are therefore consistent. The few mutable ones are read before that moment, and written last. Only ``prune``
and ``forget``, which remove objects, must not run at the same time.

What the store has forgotten since the last backup is removed from the target, too. The tombstones are among the mutable
objects, so an interrupted backup does this again.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError
from pipeline.ops.sweep import sweep
from pipeline.progress import track
from pipeline.storage import Bucket, StoredObject, layout
from pipeline.work import tombstones

log = logging.getLogger(__name__)

WORKERS = 16


class Copied(BaseModel):
    """The result of a backup."""

    model_config = ConfigDict(frozen=True)

    objects: int = Field(description="in the store when the backup began")
    copied: int = Field(description="objects that the target lacked")
    bytes: int = Field(description="bytes copied")


def back_up(source: Bucket, target: Bucket) -> Copied:
    """Copy the objects that the target lacks, or has with another size or an older time.

    Nothing is removed there except what was forgotten. After an interruption, it can be repeated.

    Raises:
        PipelineError: source and target are the same, or one is inside the other, or there is nothing in the source.
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

    def carry(item: StoredObject) -> int:
        data = source.get(item.key)
        target.put(item.key, data)
        return len(data)

    with ThreadPoolExecutor(WORKERS) as pool:
        size = sum(track(pool.map(carry, wanted), total=len(wanted), unit="objects", log=log))
    if (forgotten := tombstones.read(source)) != tombstones.read(target):
        sweep(forgotten, target, remove=True)
    for key, data in mutable.items():
        target.put(key, data)
        size += len(data)
    return Copied(objects=len(immutable) + len(mutable), copied=len(wanted) + len(mutable), bytes=size)


def _differs(item: StoredObject, known: StoredObject | None) -> bool:
    return known is None or known.size != item.size or known.modified < item.modified

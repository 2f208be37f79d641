"""A store copied to another bucket while it is worked on: to back it up, to restore it, to move it.

Nearly all objects of a store are written once, after what they point to. So all that was there at a moment is whole;
and the few that are written anew under their old name are read before that moment, and written last. What removes
objects, ``prune``, must wait meanwhile.
"""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError
from pipeline.progress import track
from pipeline.storage import Bucket, StoredObject

log = logging.getLogger(__name__)

CHANGING = re.compile(r"models/champion\.json|plans/open/.*|encoders/[^/]+/files\.json")
"""What is written anew, and points to other objects."""

WORKERS = 16


class Copied(BaseModel):
    """What a copy has done."""

    model_config = ConfigDict(frozen=True)

    objects: int = Field(description="in the store when the copy began")
    copied: int = Field(description="of them; the others were there already")
    bytes: int = Field(description="copied")


def copy(source: Bucket, target: Bucket) -> Copied:
    """Copy what the target lacks, or has in another size or from an older time. Nothing is removed from it.

    Interrupted and repeated, it goes on.

    Raises:
        PipelineError: source and target are the same, or one lies in the other.
    """
    if f"{source.uri}/".startswith(f"{target.uri}/") or f"{target.uri}/".startswith(f"{source.uri}/"):
        raise PipelineError(f"A copy of {source.uri} can't lie in the same place, or inside it. Received: {target.uri}")
    prefixes = ("models/", "plans/open/", "encoders/")
    changing = {
        item.key: source.get(item.key)
        for prefix in prefixes
        for item in source.list(prefix)
        if CHANGING.fullmatch(item.key)
    }
    began = datetime.now(UTC)
    whole = [item for item in source.list() if item.modified <= began and item.key not in changing]
    known = {item.key: item for item in target.list()}
    wanted = [item for item in whole if _differs(item, known.get(item.key))]

    def carry(item: StoredObject) -> int:
        data = source.get(item.key)
        target.put(item.key, data)
        return len(data)

    with ThreadPoolExecutor(WORKERS) as pool:
        size = sum(track(pool.map(carry, wanted), total=len(wanted), unit="objects", log=log))
    for key, data in changing.items():
        target.put(key, data)
        size += len(data)
    return Copied(objects=len(whole) + len(changing), copied=len(wanted) + len(changing), bytes=size)


def _differs(item: StoredObject, known: StoredObject | None) -> bool:
    return known is None or known.size != item.size or known.modified < item.modified

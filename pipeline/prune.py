"""Pruning: what no champion of late needs any more goes, and nothing else.

Kept are the models of the last champions and those made since the last promotion, which may still become one; their
encoders and features; every caption that is an image's only one; datasets, marks, sidecars and the records of runs.
Nothing younger than a given time is touched, so that what is being made is safe.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import captions, night, plans, registry
from pipeline.captioner import Metadata, list_models
from pipeline.progress import track
from pipeline.storage import Bucket, StoredObject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removable:
    """Objects that may go together: all of ``kind`` ``name``."""

    kind: str
    name: str
    objects: Sequence[StoredObject]

    @property
    def size(self) -> int:
        """Of all objects, in bytes."""
        return sum(item.size for item in self.objects)


def find(store: Bucket, *, keep: int, before: datetime) -> list[Removable]:
    """What may be removed.

    Args:
        store: the store.
        keep: champions, the present one among them, whose models, encoders and features stay.
        before: only what was written earlier.

    Raises:
        PipelineError: there is no champion yet.
    """
    champion = registry.champion(store)
    last = list(dict.fromkeys(promotion.version for promotion in reversed(champion.history)))[:keep]
    since = champion.history[-1].promoted_at
    kept = [model for model in list_models(store) if model.version in last or model.created_at > since]
    found = [
        *_models(store, kept),
        *_captions(store, kept),
        *_encoders(store, kept),
        *_checkpoints(store),
        *_plans(store),
        *_runs(store),
    ]
    old = [Removable(each.kind, each.name, [item for item in each.objects if item.modified < before]) for each in found]
    return [each for each in old if each.objects]


def remove(removable: Sequence[Removable], *, before: datetime, store: Bucket) -> None:
    """Remove it, and what writes that were interrupted before then have left. Interrupted and repeated, it goes on."""
    objects = [item for each in removable for item in each.objects]
    for item in track(objects, total=len(objects), unit="objects", log=log):
        store.delete(item.key)
    store.clean(before)


def _models(store: Bucket, kept: Sequence[Metadata]) -> Iterator[Removable]:
    versions = {model.version for model in kept}
    for version, objects in _by_folder(item for item in store.list("models/") if item.key.count("/") > 1):
        if version not in versions:
            yield Removable("models", version, _marker_first(objects, "metadata.json"))


def _captions(store: Bucket, kept: Sequence[Metadata]) -> Iterator[Removable]:
    """Captions of other models, shard by shard: those whose images all have one of a kept model too."""
    versions = {f"model={model.version}" for model in kept}
    folders = dict(_by_folder(store.list("captions/")))
    theirs = (item.key for version in versions for item in folders.get(version, []))
    captioned = captions.rows(theirs, store).filter(pc.field("status") == "ok").select(["key"])
    for version, objects in folders.items():
        if version not in versions:
            redundant = [item for item in objects if _all_in(captions.rows([item.key], store), captioned)]
            yield Removable("captions", version.removeprefix("model="), redundant)


def _all_in(rows: pa.Table, captioned: pa.Table) -> bool:
    """Whether each image that these rows caption is captioned there too."""
    here = rows.filter(pc.field("status") == "ok").select(["key"])
    return len(here.join(captioned, keys=["key"], join_type="left anti")) == 0


def _encoders(store: Bucket, kept: Sequence[Metadata]) -> Iterator[Removable]:
    encoder_ids = {model.encoder_id for model in kept}
    for encoder_id, objects in _by_folder(store.list("features/")):
        if encoder_id not in encoder_ids:
            yield Removable("features", encoder_id, objects)
    for encoder_id, objects in _by_folder(store.list("encoders/")):
        if encoder_id not in encoder_ids:
            yield Removable("encoders", encoder_id, _marker_first(objects, "files.json"))


def _plans(store: Bucket) -> Iterator[Removable]:
    """Plans and notes of shards that are done."""
    still_open = plans.open_shards(store)
    of_shards = (item for item in store.list("plans/") if item.key.count("/") == 1)
    done = [item for item in of_shards if item.key.split("/")[1].partition(".")[0] not in still_open]
    yield Removable("plans", "of shards that are done", done)


def _runs(store: Bucket) -> Iterator[Removable]:
    """What runs needed on their way; what they did, and what their pictures were like, is kept."""
    in_folders = (item for item in store.list("runs/") if item.key.count("/") > 1)
    on_the_way = [item for item in in_folders if not item.key.endswith(night.PROFILE)]
    yield Removable("runs", "listings and notes", on_the_way)


def _checkpoints(store: Bucket) -> Iterator[Removable]:
    yield Removable("training", "checkpoints", list(store.list("training/")))


def _by_folder(objects: Iterable[StoredObject]) -> Iterator[tuple[str, list[StoredObject]]]:
    """Objects by the second part of their keys."""
    for name, of_folder in groupby(objects, lambda item: item.key.split("/")[1]):
        yield name, list(of_folder)


def _marker_first(objects: Iterable[StoredObject], marker: str) -> list[StoredObject]:
    """What makes the rest a whole goes first: half of it must not look like one."""
    return sorted(objects, key=lambda item: not item.key.endswith(marker))

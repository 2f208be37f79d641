"""Pruning: remove the objects that no recent champion needs.

Kept are the models of the last champions and those trained since the last promotion, which may still be promoted; their
encoders and features; every caption that is the only one of its image; datasets, corrections, sidecars and the newest
records of runs. Nothing younger than a given time is removed, so that work in progress is safe.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner.metadata import ModelMetadata, list_models
from pipeline.captioner.registry import read_champion
from pipeline.nightly import captions
from pipeline.progress import track
from pipeline.storage import Bucket, StoredObject, layout
from pipeline.work import runs, shards

log = logging.getLogger(__name__)

RECORDS = 100
"""Records of each kind of run that are kept, whatever their age: nights compare themselves with earlier ones."""


@dataclass(frozen=True)
class Removable:
    """Objects that can be removed together."""

    kind: str
    name: str
    objects: Sequence[StoredObject]

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(item.size for item in self.objects)


def find(store: Bucket, *, keep: int, before: datetime, records_before: datetime) -> list[Removable]:
    """Find the objects that can be removed.

    Args:
        store: the store.
        keep: number of champions, the present one among them, whose models, encoders and features are kept.
        before: only objects written before this time are removed.
        records_before: the records and profiles of runs must have been written before this time, too.

    Raises:
        PipelineError: there is no champion yet.
    """
    champion = read_champion(store)
    last = list(dict.fromkeys(promotion.version for promotion in reversed(champion.history)))[:keep]
    since = champion.history[-1].promoted_at
    kept = [model for model in list_models(store) if model.version in last or model.created_at > since]
    found = [
        *_models(store, kept),
        *_captions(store, kept),
        *_encoders(store, kept),
        *_checkpoints(store),
        *_shards(store, kept),
        *_steps(store),
        *_records(store, records_before),
    ]
    old = [Removable(each.kind, each.name, [item for item in each.objects if item.modified < before]) for each in found]
    return [each for each in old if each.objects]


def remove(removable: Sequence[Removable], *, before: datetime, store: Bucket) -> None:
    """Remove the objects, and the remains of writes interrupted before then. It can be interrupted and repeated."""
    objects = [item for each in removable for item in each.objects]
    for item in track(objects, total=len(objects), unit="objects", log=log):
        store.delete(item.key)
    store.clean(before)


def _models(store: Bucket, kept: Sequence[ModelMetadata]) -> Iterator[Removable]:
    versions = {model.version for model in kept}
    # Outside of all folders are the champion's pointer and its signatures.
    in_folders = (item for item in store.list(layout.MODELS) if item.key.count("/") > 1)
    for version, objects in _by_folder(in_folders):
        if version not in versions:
            yield Removable("models", version, _marker_first(objects))


def _captions(store: Bucket, kept: Sequence[ModelMetadata]) -> Iterator[Removable]:
    """Captions of other models, shard by shard, if kept models have captioned all their images, too."""
    versions = {model.version for model in kept}
    parsed = ((layout.parse_caption_shard(item.key), item) for item in store.list(layout.CAPTIONS))
    by_version: dict[str, list[StoredObject]] = {}
    for found, item in parsed:
        if found is not None:
            by_version.setdefault(found[0], []).append(item)
    theirs = (item.key for version in versions for item in by_version.get(version, []))
    captioned = captions.read(theirs, store).filter(pc.field("status") == "ok").select(["image_key"])
    for version, objects in by_version.items():
        if version not in versions:
            yield Removable("captions", version, [item for item in objects if _all_in(item.key, captioned, store)])


def _all_in(key: str, captioned: pa.Table, store: Bucket) -> bool:
    """Whether every image that a shard captions is among the captioned ones; not known of a damaged shard."""
    damaged: list[str] = []
    rows = captions.read([key], store, damaged=damaged)
    if damaged:
        return False
    here = rows.filter(pc.field("status") == "ok").select(["image_key"])
    return len(here.join(captioned, keys=["image_key"], join_type="left anti")) == 0


def _encoders(store: Bucket, kept: Sequence[ModelMetadata]) -> Iterator[Removable]:
    encoder_ids = {model.encoder_id for model in kept}
    for encoder_id, objects in _by_folder(store.list(layout.FEATURES)):
        if encoder_id not in encoder_ids:
            yield Removable("features", encoder_id, objects)
    for encoder_id, objects in _by_folder(store.list(layout.ENCODERS)):
        if encoder_id not in encoder_ids:
            yield Removable("encoders", encoder_id, _marker_first(objects))


def _shards(store: Bucket, kept: Sequence[ModelMetadata]) -> Iterator[Removable]:
    """Finished shards with their statistics, and the claimed ones of models and encoders that are not kept."""
    needed = {shards.product_of_captions(model.version) for model in kept}
    needed |= {shards.product_of_features(model.encoder_id) for model in kept}
    still_open = shards.open_shards(store, products=sorted(needed))
    of_shards = ((layout.shard_of_key(item.key), item) for item in store.list(layout.SHARDS))
    done = [item for shard, item in of_shards if shard is not None and shard not in still_open]
    yield Removable("shards", "finished, or of models that are gone", done)
    lists = {layout.open_shards(product) for product in needed}
    gone = [item for item in store.list(layout.OPEN_SHARDS) if item.key not in lists]
    yield Removable("shards", "lists of models that are gone", gone)


def _steps(store: Bucket) -> Iterator[Removable]:
    """The intermediate objects of runs."""
    yield Removable("runs", "listings and lists of shards", list(store.list(layout.STEPS)))


def _records(store: Bucket, before: datetime) -> Iterator[Removable]:
    """The records of old runs, and the profiles of nights that have no record then."""
    for kind in runs.RECORDS:
        records = sorted(store.list(layout.run_records(kind)), key=lambda item: item.modified)
        old = [item for item in records[:-RECORDS] if item.modified < before]
        yield Removable("runs", f"records of the kind {kind}", old)
        if kind == runs.NIGHT:
            # The oldest come first, so what is kept is the rest.
            kept = {layout.profile_of_record(item.key) for item in records[len(old) :]}
            profiles = [item for item in store.list(layout.PROFILES) if item.modified < before and item.key not in kept]
            yield Removable("runs", "profiles of nights", profiles)


def _checkpoints(store: Bucket) -> Iterator[Removable]:
    yield Removable("training", "checkpoints", list(store.list(layout.TRAINING)))


def _by_folder(objects: Iterable[StoredObject]) -> Iterator[tuple[str, list[StoredObject]]]:
    """Objects by the second part of their keys, which names a model or an encoder."""
    for name, of_folder in groupby(objects, lambda item: item.key.split("/")[1]):
        yield name, list(of_folder)


def _marker_first(objects: Iterable[StoredObject]) -> list[StoredObject]:
    """The completion marker goes first, so that an interrupted removal leaves nothing that looks complete.

    That of a model goes before those of its evaluations, which are in folders below.
    """
    return sorted(objects, key=lambda item: (not layout.is_completion_marker(item.key), item.key.count("/")))

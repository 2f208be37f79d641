"""Import: a model moves from one store to another, as from staging to production, and becomes the champion there.

The other store is only read. The import copies all that the champion needs: its encoder; the dataset that it was
trained on, as a table of captions and names, with the features of its images; its files; and its evaluations on this
dataset. A night, the promotion gate, drift, the gallery, ``forget`` and a retraining by default then work as in the
other store. Photographs are not copied, nor is anything that is about the inbox of the other store.

Each object is written after those that it refers to: the metadata make the model complete, and the champion's pointer
is last. An interrupted import can therefore be repeated, and copies nothing twice.
"""

import logging

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner import bundle, registry
from pipeline.captioner.metadata import ModelMetadata, load_metadata
from pipeline.data import dataset as datasets
from pipeline.errors import PipelineError
from pipeline.evaluation import card
from pipeline.evaluation.drift import Profile
from pipeline.evaluation.results import CAPTIONS, Metrics
from pipeline.features import encoder as encoders
from pipeline.features import store as feature_store
from pipeline.ops.sweep import sweep
from pipeline.progress import counted
from pipeline.storage import ABSENT, Bucket, ObjectNotFoundError, json, layout, parquet, signatures
from pipeline.work import tombstones
from pipeline.work.tombstones import Tombstones, facts_of_row

log = logging.getLogger(__name__)


class Imported(BaseModel):
    """The result of an import."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="of the model")
    champion: str | None = Field(description="version of the champion now; None if there is none")
    copied: int = Field(description="objects that the store lacked")

    def __str__(self) -> str:
        role = "is the champion" if self.version == self.champion else "can be promoted"
        return f"{self.version} {role}; {counted(self.copied, 'object')} copied"


def import_model(version: str | None, *, source: Bucket, target: Bucket, promote: bool = True) -> Imported:
    """Copy a model from another store, and promote it.

    What the store has forgotten is not brought back. The reason of the promotion there goes into the history here.

    Args:
        version: of the model; None for the champion of the other store.
        source: the other store.
        target: the store.
        promote: whether the model becomes the champion.

    Raises:
        PipelineError: the stores are the same; the other one can't be read, has no champion, or no such model; what
            the model needs is missing or damaged there; or the store has another model of this version, or another
            encoder of this id. Then nothing of the model can be seen in the store.
        ObjectChangedError: another promotion happened at the same moment.
    """
    if source.location == target.location:
        raise PipelineError(
            f"{source.uri} is the store itself: give the address of the other store, or set CAPTION_STORE to the one "
            "that gets the model."
        )
    source.require()
    if promote:
        signatures.require_signing_key("promote the imported model")
    version = _find_version(version, source)
    metadata = load_metadata(version, source)
    is_new = _check_version(metadata, source, target)
    dataset = datasets.load(metadata.dataset, source)
    forgotten = _mark_forgotten(dataset.table, target)
    log.info("importing %s from %s: encoder %s, dataset %s", version, source.uri, metadata.encoder_id, metadata.dataset)
    copied = (
        encoders.copy_encoder(metadata.encoder_id, source, target)
        + _copy_dataset(dataset.id, source, target)
        + feature_store.copy_features(
            datasets.listing(dataset.table), encoder_id=metadata.encoder_id, source=source, target=target
        )
        + bundle.copy_files(metadata, source, target)
        + _copy_evaluations(metadata, source, target)
    )
    key = layout.model_metadata(version)
    data = source.get(key)
    copied += signatures.copy_signature(key, data, source, target)
    if is_new:
        target.put(key, data, if_match=ABSENT)
    # The one there may name evaluations that are not copied.
    card.write(metadata, target)
    # Reports are rendered again without forgotten photographs, which needs the model.
    places = (layout.model_folder(version), layout.dataset_folder(dataset.id))
    sweep(forgotten, target, remove=True, prefixes=[f"{place}/" for place in places])
    if promote:
        registry.promote(version, target, reason=_reason(version, source))
    champion = registry.find_champion(target)
    return Imported(version=version, champion=champion.version if champion else None, copied=copied + is_new)


def _find_version(version: str | None, source: Bucket) -> str:
    """The version to import, which the source has. Raises ``PipelineError`` if it has no such model or no champion."""
    if version is None:
        if (champion := registry.find_champion(source)) is None:
            raise PipelineError(
                f"No model has been promoted in {source.uri}: check that this is the address of the other store, or "
                "give the version of a model to copy."
            )
        return champion.version
    if not source.exists(layout.model_metadata(version)):
        raise PipelineError(
            f"There is no model {version!r} in {source.uri}: check the address, and list the models there with "
            f"`CAPTION_STORE={source.uri} captioning status`."
        )
    return version


def _check_version(metadata: ModelMetadata, source: Bucket, target: Bucket) -> bool:
    """Whether the target has no model of this version yet. Raises ``PipelineError`` if it has another one."""
    key = layout.model_metadata(metadata.version)
    try:
        known = json.read(ModelMetadata, key, target, advice="Delete it, and import the model again.")
    except ObjectNotFoundError:
        return True
    if known != metadata:
        raise PipelineError(
            f"{target.url(key)} describes another model than {source.url(key)}: one of them was changed. Find out "
            "which one is right, delete the folder of the other, and import the model again."
        )
    return False


def _mark_forgotten(table: pa.Table, target: Bucket) -> Tombstones:
    """The tombstones of the target, with those of the rows of a dataset that are copies of forgotten photographs."""
    forgotten = tombstones.read(target)
    rows = table.filter(forgotten.mask(table)).to_pylist()
    return tombstones.add((fact for row in rows for fact in facts_of_row(row)), target) if rows else forgotten


def _copy_dataset(dataset_id: str, source: Bucket, target: Bucket) -> int:
    """Copy a dataset, unless the target has it, and return the number of objects written."""
    if target.exists(layout.dataset_table(dataset_id)):
        return 0
    keys = [item.key for item in source.list(f"{layout.dataset_folder(dataset_id)}/")]
    return _copy_objects(sorted(keys, key=layout.is_completion_marker), source, target)


def _copy_evaluations(metadata: ModelMetadata, source: Bucket, target: Bucket) -> int:
    """Copy the evaluations of a model on its dataset that the target lacks; return the number of objects written."""
    copied = 0
    for item in list(source.list(layout.evaluations_on(metadata.version, metadata.dataset))):
        keys = layout.evaluation_of_metrics(item.key)
        if keys is None or target.exists(keys.metrics):
            continue
        advice = f"Delete {source.url(keys.metrics)}, and run `captioning evaluate {metadata.version}` again there."
        json.read(Metrics, keys.metrics, source, advice=advice)
        json.read(Profile, keys.profile, source, advice=advice)
        parquet.read(keys.captions, source, columns=CAPTIONS, advice=advice)
        copied += _copy_objects([keys.profile, keys.captions, keys.report, keys.metrics], source, target)
    return copied


def _copy_objects(keys: list[str], source: Bucket, target: Bucket) -> int:
    """Copy objects in this order, and return their number."""
    for key in keys:
        target.put(key, source.get(key))
    return len(keys)


def _reason(version: str, source: Bucket) -> str:
    """The reason of a promotion in the target: the last one in the source, if the model was promoted there."""
    champion = registry.find_champion(source)
    reasons = [promotion.reason for promotion in champion.history if promotion.version == version] if champion else []
    return f"imported: {reasons[-1]}" if reasons else "imported"

"""The metadata of a model: what it was trained on, how, and which files belong to it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.config import ENGLISH, TrainingConfig
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError, json, layout, signatures
from pipeline.storage.artifacts import Checksums

READERS = 8
"""Documents that are read in parallel."""

PhaseName = Literal["cross_entropy", "scst"]


class Epoch(BaseModel):
    """The measurements of an epoch of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(description="counted from 1 through all phases")
    phase: PhaseName
    loss: float | None = Field(None, description="of the next word, nats; only in cross-entropy epochs")
    reward: float | None = Field(None, description="mean CIDEr-D of the sampled captions; only in SCST epochs")
    dev_loss: float = Field(description="of the next word, nats, after the epoch")
    dev_cider: float = Field(description="of greedy captions, after the epoch")
    seconds: float


class EnsembleMember(BaseModel):
    """How one model of an ensemble was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    best_epoch: int = Field(description="the epoch whose weights were kept")
    epochs: list[Epoch]


class ModelMetadata(BaseModel):
    """The metadata of a captioner in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    created_at: AwareDatetime
    encoder_id: str
    dataset: str = Field(description="id of the dataset that it was trained on")
    language: str = Field(ENGLISH, description="language of its captions, a BCP 47 code")
    max_length: int = Field(description="maximum words of a caption")
    config: TrainingConfig
    ensemble: list[EnsembleMember] = Field(description="the models whose probabilities are averaged")
    tracking_page: str = Field("", description="address of its run in MLflow; empty if no server has recorded it")
    files: Checksums = Field({}, description="the SHA-256 of each file of the model")


def load_metadata(version: str, store: Bucket) -> ModelMetadata:
    """The metadata of a model.

    Raises:
        PipelineError: there is no such model.
        SignatureError: the settings ask for a signature, and it has none of a trusted key.
    """
    key, advice = layout.model_metadata(version), "Delete the folder of the model, and train it again."
    try:
        return json.parse(ModelMetadata, signatures.get(key, store), store.url(key), advice=advice)
    except ObjectNotFoundError:
        raise PipelineError(
            f"There is no model {version!r} in {store.uri}: `captioning status` lists the models."
        ) from None


def list_models(store: Bucket, *, limit: int | None = None, damaged: list[str] | None = None) -> list[ModelMetadata]:
    """The models in the store, the newest first.

    Args:
        store: the store.
        limit: only the last models, by their versions.
        damaged: the messages of damaged models are added here, and the models are left out.

    Raises:
        DamagedObjectError: a model's metadata is damaged, and there is no ``damaged`` to say so.
    """

    def load(version: str) -> ModelMetadata | None:
        try:
            return load_metadata(version, store)
        except DamagedObjectError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            return None

    found = (layout.model_of_metadata(item.key) for item in store.list(layout.MODELS))
    versions = sorted(filter(None, found), reverse=True)[:limit]
    with ThreadPoolExecutor(READERS) as pool:
        models = filter(None, pool.map(load, versions))
        return sorted(models, key=lambda model: model.created_at, reverse=True)

"""The metadata of a model: what it was trained on, how, and which files belong to it."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.config import TrainingConfig
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError, json, layout
from pipeline.storage.artifacts import Checksums

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
    max_length: int = Field(description="maximum words of a caption")
    config: TrainingConfig
    ensemble: list[EnsembleMember] = Field(description="the models whose probabilities are averaged")
    files: Checksums = Field({}, description="the SHA-256 of each file of the model")


def load_metadata(version: str, store: Bucket) -> ModelMetadata:
    """The metadata of a model. Raises ``PipelineError`` if there is no such model."""
    advice = "Delete the folder of the model, and train it again."
    try:
        return json.read(ModelMetadata, layout.model_metadata(version), store, advice=advice)
    except ObjectNotFoundError:
        raise PipelineError(
            f"There is no model {version!r} in {store.uri}: `captioning status` lists the models."
        ) from None


def list_models(store: Bucket) -> list[ModelMetadata]:
    """Every model in the store, the newest first."""
    versions = (layout.model_of_metadata(item.key) for item in store.list(layout.MODELS))
    models = [load_metadata(version, store) for version in versions if version is not None]
    return sorted(models, key=lambda model: model.created_at, reverse=True)

"""Training of captioners: each model of an ensemble by cross-entropy on whole captions, then self-critically (SCST)."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.captioner.bundle import save
from pipeline.captioner.merge_model import build
from pipeline.captioner.metadata import EnsembleMember, Epoch, ModelMetadata, load_metadata
from pipeline.captioner.neighbours import Neighbours
from pipeline.config import TrainingConfig
from pipeline.data.text import is_english
from pipeline.data.vocabulary import embedding_matrix
from pipeline.evaluation import calibration, card
from pipeline.features import encoder as encoders
from pipeline.features.crops import mean_crop
from pipeline.storage import ABSENT, Bucket, DamagedObjectError, ObjectChangedError, layout, signatures
from pipeline.training import loop, scst
from pipeline.training import mlflow as tracking
from pipeline.training.batches import TrainingData

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


def train_captioner(
    dataset_id: str,
    vocabulary_key: str,
    *,
    encoder_id: str,
    config: TrainingConfig,
    store: Bucket,
    max_failed_fraction: float,
    tracking_uri: str = "",
) -> ModelMetadata:
    """Train a captioner on the features of a dataset, and put it in the store as a candidate.

    A model that was trained from the same inputs before is returned unchanged. An interrupted training continues after
    its last epoch, with the same result, and phases that another training shares are not repeated.

    Args:
        dataset_id: of the dataset.
        vocabulary_key: key of the vocabulary in the store.
        encoder_id: encoder of the features, which must have been extracted.
        config: sizes and schedule; the heads of attention are 0 for an encoder without regions, and fine-tuning is 0
            for a model without the encoder's last stage.
        store: the store.
        max_failed_fraction: share of the images that may have no features because their extraction failed.
        tracking_uri: where MLflow records the training; empty for no tracking.

    Raises:
        PipelineError: too many images without features, an empty split, or a loss that is not finite.
    """
    if not encoders.has_regions(encoder_id):
        config = config.model_copy(update={"attention_heads": 0})
    if not config.attention_heads or not encoders.has_last_stage(encoder_id, store):
        config = config.model_copy(update={"fine_tuning": 0.0})
    inputs = (dataset_id, vocabulary_key, encoder_id)
    digest = _hash(*inputs, config.model_dump_json())
    if (known := _find(digest, store)) is not None:
        log.info("model %s was trained from the same inputs: nothing to do (another seed gives another)", known.version)
        if not store.exists(layout.model_card(known.version)):
            card.write(known, store)  # that training was interrupted before its last write
        return known
    import keras  # where it is missing, that is said before anything is read

    signatures.require_signing_key("train a model")

    version = _version(digest, store)
    models: list[keras.Model] = []
    ensemble: list[EnsembleMember] = []
    with tracking.Run(tracking_uri, version) as run:
        run.parameters(tracking.inputs(dataset_id, encoder_id, config))
        data = TrainingData.read(
            dataset_id,
            vocabulary_key,
            encoder_id=encoder_id,
            regions=config.attention_heads > 0,
            store=store,
            max_failed_fraction=max_failed_fraction,
        )
        for single in config.single_models:
            log.info("model %d of %d: seed %d", len(models) + 1, config.ensemble_size, single.seed)
            model, member = _train_model(
                single,
                data,
                # Each model tunes one of its own.
                last_stage=encoders.load_last_stage(encoder_id, store) if config.attention_heads else None,
                inputs=inputs,
                store=store,
                report=partial(_record, run, config, single.seed),
            )
            models.append(model)
            ensemble.append(member)
    metadata = ModelMetadata(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset=dataset_id,
        language=data.language,
        max_length=data.max_length,
        config=config,
        ensemble=ensemble,
        tracking_page=run.address(),
    )
    captions = data.train_captions
    neighbours = Neighbours.build(mean_crop(captions.features).vectors, captions.ids, captions.image)
    log.info("calibrating the confidence of its captions on dev")
    fit = partial(calibration.fit, dev=data.dev)
    metadata = save(models, data.vocabulary, neighbours, metadata, store, fit=fit)
    run.card(card.write(metadata, store))
    log.info("model %s is in %s", version, store.url(layout.model_folder(version)))
    return metadata


def _train_model(
    config: TrainingConfig,
    data: TrainingData,
    *,
    last_stage: "keras.Model | None",
    inputs: tuple[str, ...],
    store: Bucket,
    report: Callable[[Sequence[Epoch]], None],
) -> tuple["keras.Model", EnsembleMember]:
    """Train one model through all phases."""
    embeddings = None
    if config.embedding == "glove" and not is_english(data.language):
        log.info("the packaged GloVe vectors are of English words: the word vectors are learned")
    elif config.embedding != "learned":
        embeddings, covered = embedding_matrix(
            data.vocabulary, config.embedding, seed=config.seed, size=config.embedding_size
        )
        log.info("GloVe has vectors for %.1f %% of the words of the vocabulary", 100 * covered)
    model = build(len(data.vocabulary), data.train.features, config, embeddings, last_stage)
    # The name of a phase's checkpoint is a hash of all that its result depends on, and no more: trainings that begin in
    # the same way share it. Another release may build another model of the same configuration.
    inputs = (*inputs, repr([variable.shape for variable in model.variables]))
    phases: list[tuple[Callable[[TrainingConfig, TrainingData], loop.Phase], str]] = [
        (loop.cross_entropy, config.model_dump_json(exclude={"scst_epochs", "scst_learning_rate"}))
    ]
    if config.scst_epochs:
        phases.append((partial(scst.phase, model), config.model_dump_json()))
    epochs: list[Epoch] = []
    for make_phase, depends_on in phases:
        epochs = loop.train_phase(
            model,
            make_phase(config, data),
            checkpoint_key=layout.checkpoint(_hash(*inputs, depends_on)),
            seed=config.seed,
            data=data,
            earlier=epochs,
            store=store,
            report=report,
        )
    # The state of the optimizer would triple the size of the file, and nothing uses it.
    model.compile(optimizer=None)
    return model, EnsembleMember(seed=config.seed, best_epoch=loop.best_epoch(epochs).epoch, epochs=epochs)


def _record(run: tracking.Run, config: TrainingConfig, seed: int, epochs: Sequence[Epoch]) -> None:
    run.curves(tracking.points(config, seed, epochs))


def _version(digest: str, store: Bucket) -> str:
    """The version of the model: chosen when its training starts, and kept when it is started again."""
    key = layout.training_version(digest)
    # Of two trainings that start at once, both take the version of the first.
    with contextlib.suppress(ObjectChangedError):
        store.put(key, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{digest}".encode(), if_match=ABSENT)
    version = store.get(key).decode(errors="replace")
    if not version.endswith(f"-{digest}"):
        raise DamagedObjectError(f"{store.url(key)} is damaged, or not ours. Delete it, and train again.")
    return version


def _find(digest: str, store: Bucket) -> ModelMetadata | None:
    """The model that was trained from the same inputs, if there is one."""
    versions = filter(None, (layout.model_of_metadata(item.key) for item in store.list(layout.MODELS)))
    found = next((version for version in versions if version.endswith(f"-{digest}")), None)
    return load_metadata(found, store) if found else None


def _hash(*inputs: str) -> str:
    return hashlib.sha256(repr((__version__, *inputs)).encode()).hexdigest()[:8]

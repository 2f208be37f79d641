"""Training of captioners: by cross-entropy on whole captions, then self-critically; of one member, or of several."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pipeline import __version__, gpu, self_critical, stages, tracking
from pipeline.captioner import Captioner, Description, Epoch, Member, Metadata, build, list_models, save
from pipeline.examples import Examples
from pipeline.recipe import Recipe
from pipeline.storage import Bucket
from pipeline.vocabulary import embedding_matrix

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


def train(
    dataset_uri: str,
    vocabulary_uri: str,
    *,
    encoder_id: str,
    recipe: Recipe,
    store: Bucket,
    max_failed_fraction: float,
    devices: int = 1,
    tracking_uri: str = "",
) -> Metadata:
    """Train a captioner on a dataset's features and put it in the store as a candidate.

    A model that was trained from the same inputs before is returned as it is. A training that was interrupted goes on
    after its last epoch, to the same result, and what another training has done alike is not done again. On how many
    devices makes no difference.

    Args:
        dataset_uri: of ``dataset.parquet``.
        vocabulary_uri: of the vocabulary's JSON.
        encoder_id: whose features to train on; they must have been extracted.
        recipe: sizes and schedule.
        store: where features lie, and checkpoints and models go.
        max_failed_fraction: share of the images that may lack features because they could not be read.
        devices: GPUs that each batch is split over.
        tracking_uri: of the MLflow that is told of it; empty for none.

    Raises:
        PipelineError: too many images without features, an empty split, a loss that is not finite, or fewer devices.
    """
    inputs = (dataset_uri, vocabulary_uri, encoder_id)
    recipe_hash = _hash(*inputs, recipe.model_dump_json())
    if (known := _find(recipe_hash, store)) is not None:
        log.info("model %s was trained from the same inputs: nothing to do (another seed gives another)", known.version)
        return known
    names = gpu.devices(devices)
    version = _version(recipe_hash, store)
    models: list[keras.Model] = []
    members: list[Member] = []
    with tracking.Run(tracking_uri, version) as run:
        run.parameters(tracking.inputs(dataset_uri, encoder_id, recipe))
        examples = Examples.read(
            dataset_uri, vocabulary_uri, encoder_id=encoder_id, store=store, max_failed_fraction=max_failed_fraction
        )
        for single in recipe.each:
            log.info("member %d of %d: seed %d", len(members) + 1, recipe.members, single.seed)
            model, member = _train_member(
                single,
                examples,
                inputs=inputs,
                store=store,
                devices=names,
                report=partial(_record, run, recipe, single.seed),
            )
            models.append(model)
            members.append(member)
    description = Description(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset=dataset_uri,
        max_length=examples.longest,
        recipe=recipe,
        members=members,
    )
    metadata = save(Captioner(models, examples.vocabulary, max_length=examples.longest), description, store)
    log.info("model %s is in %s", version, store.url(f"models/{version}"))
    return metadata


def _train_member(
    recipe: Recipe,
    examples: Examples,
    *,
    inputs: tuple[str, ...],
    store: Bucket,
    devices: Sequence[str],
    report: Callable[[Sequence[Epoch]], None],
) -> tuple["keras.Model", Member]:
    """One model, trained in all stages."""
    embeddings = None
    if recipe.embedding != "learned":
        embeddings, covered = embedding_matrix(
            examples.vocabulary, recipe.embedding, seed=recipe.seed, size=recipe.embedding_size
        )
        log.info("GloVe has %.1f %% of the vocabulary's words", 100 * covered)
    model = build(len(examples.vocabulary), examples.training.vectors, recipe, embeddings)
    # A stage's name in the store says all that it depends on, and no more: trainings that begin alike share it.
    plan: list[tuple[Callable[[Recipe, Examples], stages.Stage], str]] = [
        (stages.cross_entropy, recipe.model_dump_json(exclude={"self_critical_epochs", "self_critical_learning_rate"}))
    ]
    if recipe.self_critical_epochs:
        plan.append((partial(self_critical.stage, model), recipe.model_dump_json()))
    epochs: list[Epoch] = []
    for make_stage, depends_on in plan:
        epochs = stages.fit(
            model,
            make_stage(recipe, examples),
            key=f"training/{_hash(*inputs, depends_on)}.npz",
            seed=recipe.seed,
            examples=examples,
            before=epochs,
            store=store,
            devices=devices,
            report=report,
        )
    # Nobody goes on with its optimizer, whose state makes a file three times as large.
    model.compile(optimizer=None)
    return model, Member(seed=recipe.seed, best_epoch=stages.best(epochs).epoch, epochs=epochs)


def _record(run: tracking.Run, recipe: Recipe, seed: int, epochs: Sequence[Epoch]) -> None:
    run.curves(tracking.points(recipe, seed, epochs))


def _version(recipe_hash: str, store: Bucket) -> str:
    """The version that the model will have: chosen when its training starts, and kept when it starts again."""
    key = f"training/{recipe_hash}.version"
    if not store.exists(key):
        store.put(key, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{recipe_hash}".encode())
    return store.get(key).decode()


def _find(recipe_hash: str, store: Bucket) -> Metadata | None:
    """The model that was trained from the same inputs, if there is one."""
    return next((model for model in list_models(store) if model.version.endswith(f"-{recipe_hash}")), None)


def _hash(*inputs: str) -> str:
    return hashlib.sha256(repr((__version__, *inputs)).encode()).hexdigest()[:8]

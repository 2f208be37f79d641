"""Training of the merge model: whole captions in one pass, best epoch by CIDEr on dev."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from pipeline import __version__
from pipeline import dataset as datasets
from pipeline.captioner import Captioner, Metadata, build, list_models, save
from pipeline.errors import PipelineError
from pipeline.examples import Batch, encode_captions, split_features
from pipeline.metrics import cider
from pipeline.progress import track
from pipeline.recipe import Recipe
from pipeline.storage import Bucket, open_object
from pipeline.vocabulary import Vocabulary, embedding_matrix

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
) -> Metadata:
    """Train a captioner on a dataset's features and put it in the store as a candidate.

    A model that was trained from the same inputs before is returned as it is.

    Args:
        dataset_uri: of ``dataset.parquet``.
        vocabulary_uri: of the vocabulary's JSON.
        encoder_id: whose features to train on; they must have been extracted.
        recipe: sizes and schedule.
        store: where features lie and models go.
        max_failed_fraction: share of the images that may lack features because they could not be read.

    Raises:
        PipelineError: too many images without features, an empty split, or a loss that is not finite.
    """
    recipe_hash = _hash(dataset_uri, vocabulary_uri, encoder_id, recipe.model_dump_json())
    if (known := _find(recipe_hash, store)) is not None:
        log.info("model %s was trained from the same inputs: nothing to do (another seed gives another)", known.version)
        return known
    import keras

    bucket, key = open_object(vocabulary_uri)
    vocabulary = Vocabulary.from_json(bucket.get(key), origin=vocabulary_uri)
    dataset = datasets.load(dataset_uri)
    training, development = (
        split_features(dataset, split, encoder_id=encoder_id, store=store, max_failed_fraction=max_failed_fraction)
        for split in ("train", "dev")
    )
    captions, longest = encode_captions(training, vocabulary)
    dev_captions, _ = encode_captions(development, vocabulary, longest)
    embeddings = None
    if recipe.embedding != "learned":
        embeddings, covered = embedding_matrix(
            vocabulary, recipe.embedding, seed=recipe.seed, size=recipe.embedding_size
        )
        log.info("GloVe has %.1f %% of the vocabulary's words", 100 * covered)
    model = build(len(vocabulary), training.vectors, recipe, embeddings)
    steps = math.ceil(len(captions.ids) / recipe.batch_size)
    compile_for_training(model, keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps * recipe.epochs))
    captioner = Captioner(model, vocabulary, max_length=longest)
    log.info(
        "training on %d captions of %d images, %d words, %d weights",
        len(captions.ids),
        len(training.vectors),
        len(vocabulary),
        model.count_params(),
    )

    rng = np.random.default_rng(recipe.seed)
    curves: list[dict[str, float]] = []
    best_weights = None
    for epoch in range(1, recipe.epochs + 1):
        start = time.monotonic()
        loss = _mean_loss(
            model.train_on_batch,
            track(captions.batches(recipe.batch_size, rng), total=steps, unit=f"batches of epoch {epoch}", log=log),
        )
        dev_loss = _mean_loss(model.test_on_batch, dev_captions.batches(recipe.batch_size))
        if not math.isfinite(loss + dev_loss):
            raise PipelineError(
                f"The loss is {loss} in epoch {epoch}, and {dev_loss} on dev: lower the learning rate (now "
                f"{recipe.learning_rate}), or look for features that are not finite."
            )
        written = captioner.caption(development.vectors, beam_width=1)
        score = cider({str(i): caption.text for i, caption in enumerate(written)}, development.references)
        seconds = time.monotonic() - start
        curves.append(
            {"epoch": epoch, "loss": loss, "dev_loss": dev_loss, "dev_cider": score, "seconds": round(seconds, 2)}
        )
        log.info(
            "epoch %d of %d: loss %.3f, dev loss %.3f, dev CIDEr %.3f, %.0f captions a second, %.0f s left",
            epoch,
            recipe.epochs,
            loss,
            dev_loss,
            score,
            len(captions.ids) / seconds,
            seconds * (recipe.epochs - epoch),
        )
        # Captions are what is wanted: a lower loss does not mean better ones, so CIDEr chooses. Between equals, such as
        # the zeros of the first epochs on a small dataset, the loss does: it tells that the model still learns.
        best_epoch = max(curves, key=lambda point: (point["dev_cider"], -point["dev_loss"]))["epoch"]
        if best_epoch == epoch:
            best_weights = model.get_weights()
        elif epoch - best_epoch >= recipe.patience:
            log.info("no better CIDEr on dev for %d epochs: stopping", recipe.patience)
            break

    model.set_weights(best_weights)
    created_at = datetime.now(UTC)
    metadata = Metadata(
        version=f"{created_at:%Y%m%dT%H%M%S}-{recipe_hash}",
        created_at=created_at,
        encoder_id=encoder_id,
        dataset=dataset_uri,
        max_length=longest,
        recipe=recipe,
        best_epoch=int(best_epoch),
        curves=curves,
    )
    save(captioner, metadata, store)
    log.info("model %s, of epoch %d, is in %s", metadata.version, best_epoch, store.url(f"models/{metadata.version}"))
    return metadata


def compile_for_training(
    model: "keras.Model", learning_rate: "float | keras.optimizers.schedules.LearningRateSchedule"
) -> None:
    """Adam on the next word's negative log likelihood, averaged over the words that are no padding."""
    import keras

    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        # XLA halves the speed of an LSTM on a CPU; JAX knows no other way.
        jit_compile=keras.backend.backend() == "jax",
    )


def _mean_loss(on_batch: Callable[..., float], batches: Iterable[Batch]) -> float:
    """The mean over all words of what ``on_batch`` gives as each batch's mean; ends early where that is not finite."""
    total = words = 0.0
    for inputs, targets, weights in batches:
        count = float(weights.sum())
        total += float(on_batch(inputs, targets, weights)) * count
        words += count
        if not math.isfinite(total):
            break
    return total / words


def _find(recipe_hash: str, store: Bucket) -> Metadata | None:
    """The model that was trained from the same inputs, if there is one."""
    return next((model for model in list_models(store) if model.version.endswith(f"-{recipe_hash}")), None)


def _hash(*inputs: str) -> str:
    return hashlib.sha256(repr((__version__, *inputs)).encode()).hexdigest()[:8]

"""A stage of training: epochs of one kind, of which the best by CIDEr on dev is kept.

A stage has a checkpoint in the store, written after every epoch. Interrupted, it goes on from there to the same result;
finished, it is not done again, by whatever training it is part of.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.captioner import Captioner, Epoch, StageName
from pipeline.checkpoints import Checkpoint, assign, values
from pipeline.errors import PipelineError
from pipeline.examples import Batch, Examples
from pipeline.metrics import cider
from pipeline.progress import track
from pipeline.recipe import GREEDY, Recipe
from pipeline.storage import Bucket

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

DEV_BATCH = 256
"""Captions in one step of measuring the loss on dev."""


OnBatch = Callable[..., float]
"""``train_on_batch`` or ``test_on_batch``: inputs, targets and weights to the loss."""


@dataclass(frozen=True)
class Stage:
    """A way to train a model.

    Attributes:
        name: what it is called in curves.
        epochs: how many there are, at most.
        patience: epochs without a better CIDEr or a lower loss on dev after which it stops.
        steps: of one epoch.
        learning_rate: Adam's at the first step; it falls to zero over all of them by a cosine.
        run: trains for one epoch and returns its mean ``loss`` or ``reward``; takes ``train_on_batch``, the random
            generator that decides the order, and what to call the epoch where progress is shown.
    """

    name: StageName
    epochs: int
    patience: int
    steps: int
    learning_rate: float
    run: Callable[[OnBatch, np.random.Generator, str], dict[str, float]]


def cross_entropy(recipe: Recipe, examples: Examples) -> Stage:
    """Training for the next word of the captions by people."""
    captions = examples.captions
    steps = math.ceil(len(captions.ids) / recipe.batch_size)

    def run(learn: OnBatch, rng: np.random.Generator, name: str) -> dict[str, float]:
        batches = captions.batches(recipe.batch_size, rng)
        return {"loss": mean_loss(learn, track(batches, total=steps, unit=f"batches of {name}", log=log))}

    return Stage("cross_entropy", recipe.epochs, recipe.patience, steps, recipe.learning_rate, run)


def fit(
    model: "keras.Model",
    stage: Stage,
    *,
    key: str,
    seed: int,
    examples: Examples,
    before: Sequence[Epoch],
    store: Bucket,
    devices: Sequence[str],
    report: Callable[[Sequence[Epoch]], None],
) -> list[Epoch]:
    """Train a model in a stage, and leave it as it was at its best.

    That may be as it came: a stage that spoils a model changes nothing.

    Args:
        model: to be trained.
        stage: how.
        key: of the stage's checkpoint; says all that the result depends on.
        seed: of the order of the examples.
        examples: what the epochs are judged on.
        before: the epochs of the stages before.
        store: where the checkpoint lies.
        devices: what each batch is split over.
        report: told of all epochs so far, after each.

    Returns:
        All epochs so far, ``before`` among them.

    Raises:
        PipelineError: a loss or reward that is not finite; the checkpoint is that of the epoch before.
    """
    import keras

    compile_for_training(model, keras.optimizers.schedules.CosineDecay(stage.learning_rate, stage.steps * stage.epochs))
    model.optimizer.build(model.trainable_variables)
    start = values(model.variables)
    checkpoint = Checkpoint.load(key, store) or Checkpoint([], start, start, values(model.optimizer.variables))
    if checkpoint.epochs:
        log.info("%s: goes on after %d epochs that were done before", stage.name, len(checkpoint.epochs))
        report([*before, *checkpoint.epochs])
    if not checkpoint.finished:
        assign(model.variables, checkpoint.model)
        assign(model.optimizer.variables, checkpoint.optimizer)
    learn = model.train_on_batch
    if len(devices) > 1:
        from pipeline.parallel import Split

        log.info("%s: each batch is split over %s", stage.name, ", ".join(devices))
        learn = Split(model, devices).train_on_batch
    judge = Captioner([model], examples.vocabulary, max_length=examples.longest)
    while not checkpoint.finished:
        done = [*before, *checkpoint.epochs]
        done.append(_run_epoch(model, stage, learn, seed=seed, examples=examples, judge=judge, number=len(done) + 1))
        chosen = best(done)
        epochs = done[len(before) :]
        ended = len(epochs) == stage.epochs
        # CIDEr is noisy: where it stands still for some epochs, a loss that falls says that the model still learns.
        lowest = min(epochs, key=lambda epoch: epoch.dev_loss)
        if not ended and len(done) - max(chosen.epoch, lowest.epoch) >= stage.patience:
            log.info("neither a better CIDEr nor a lower loss on dev for %d epochs: stopping", stage.patience)
            ended = True
        checkpoint = Checkpoint(
            epochs,
            best=values(model.variables) if chosen is done[-1] else checkpoint.best,
            model=[] if ended else values(model.variables),
            optimizer=[] if ended else values(model.optimizer.variables),
        )
        checkpoint.save(key, store)
        report(done)
    assign(model.variables, checkpoint.best)
    return [*before, *checkpoint.epochs]


def best(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are kept.

    Captions are what is wanted: a lower loss does not mean better ones, so CIDEr chooses. Between equals, such as the
    zeros of the first epochs on a small dataset, the loss does: it tells that the model still learns.
    """
    return max(epochs, key=lambda epoch: (epoch.dev_cider, -epoch.dev_loss))


def _run_epoch(
    model: "keras.Model",
    stage: Stage,
    learn: OnBatch,
    *,
    seed: int,
    examples: Examples,
    judge: Captioner,
    number: int,
) -> Epoch:
    """Train for an epoch, and see what it brought."""
    start = time.monotonic()
    # A generator for each epoch, so that it is the same whether or not this process has seen those before.
    measured = stage.run(learn, np.random.default_rng((seed, number)), f"epoch {number}")
    trained = time.monotonic() - start
    dev_loss = mean_loss(model.test_on_batch, examples.dev_captions.batches(DEV_BATCH))
    for name, value in {**measured, "loss on dev": dev_loss}.items():
        if not math.isfinite(value):
            raise PipelineError(
                f"The {name} is {value} in epoch {number} ({stage.name}): lower its learning rate (now "
                f"{stage.learning_rate}), or look for features that are not finite."
            )
    development = examples.development
    written = judge.caption(development.vectors, GREEDY)
    epoch = Epoch(
        epoch=number,
        stage=stage.name,
        dev_loss=dev_loss,
        dev_cider=cider({str(i): caption.text for i, caption in enumerate(written)}, development.references),
        seconds=round(time.monotonic() - start, 2),
        **measured,
    )
    log.info(
        "epoch %d (%s): %s, dev loss %.3f, dev CIDEr %.3f, %.0f captions a second",
        number,
        stage.name,
        ", ".join(f"{name} {value:.3f}" for name, value in measured.items()),
        dev_loss,
        epoch.dev_cider,
        len(examples.captions.ids) / trained,
    )
    return epoch


def compile_for_training(
    model: "keras.Model", learning_rate: "float | keras.optimizers.schedules.LearningRateSchedule"
) -> None:
    """Adam on the next word's negative log likelihood, summed with the words' weights."""
    import keras

    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        # XLA halves the speed of an LSTM on a CPU; JAX knows no other way.
        jit_compile=keras.backend.backend() == "jax",
    )


def mean_loss(on_batch: OnBatch, batches: Iterable[Batch]) -> float:
    """The mean loss of a word that is no padding.

    Each step takes the mean of its own batch. Ends early where that is not finite.
    """
    total = words = 0.0
    for inputs, targets, weights in batches:
        count = float(weights.sum())
        total += float(on_batch(inputs, targets, weights / count)) * count
        words += count
        if not math.isfinite(total):
            break
    return total / words

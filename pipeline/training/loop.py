"""The training loop: the epochs of a training phase, of which the best by CIDEr on dev is kept.

A phase has a checkpoint in the store, written after every epoch. An interrupted phase continues from there with the
same result, and a finished one is not repeated, even in another training.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.merge_model import last_stage
from pipeline.captioner.metadata import Epoch, PhaseName
from pipeline.config import GREEDY, TrainingConfig
from pipeline.errors import PipelineError
from pipeline.features.splits import SplitFeatures
from pipeline.metrics.coco import cider
from pipeline.progress import track
from pipeline.storage import Bucket
from pipeline.training.batches import Batch, TrainingData
from pipeline.training.checkpoints import Checkpoint, assign, values

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

DEV_BATCH = 256
"""Captions per step when the loss on dev is measured."""


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
        name: its name in curves.
        epochs: maximum number of epochs.
        patience: epochs without a better CIDEr or a lower loss on dev after which it stops.
        steps: steps per epoch.
        learning_rate: initial learning rate of Adam; a cosine decays it to zero over all steps.
        fine_tuning: learning rate of the encoder's last stage, relative to the other one.
        train_epoch: trains the model for one epoch and returns its mean ``loss`` or ``reward``; takes the model, the
            random generator that determines the order, and the name of the epoch for the progress report.
    """

    name: PhaseName
    epochs: int
    patience: int
    steps: int
    learning_rate: float
    fine_tuning: float
    train_epoch: Callable[["keras.Model", np.random.Generator, str], dict[str, float]]


def cross_entropy(config: TrainingConfig, data: TrainingData) -> Phase:
    """Training to predict the next word of the human captions."""
    captions = data.train_captions
    steps = math.ceil(len(captions.ids) / config.batch_size)

    def train(model: "keras.Model", rng: np.random.Generator, name: str) -> dict[str, float]:
        batches = captions.training_batches(config.batch_size, rng)
        return {"loss": train_epoch(model, track(batches, total=steps, unit=f"batches of {name}", log=log))}

    return Phase(
        "cross_entropy", config.epochs, config.patience, steps, config.learning_rate, config.fine_tuning, train
    )


def train_phase(
    model: "keras.Model",
    phase: Phase,
    *,
    checkpoint_key: str,
    seed: int,
    data: TrainingData,
    earlier: Sequence[Epoch],
    store: Bucket,
    report: Callable[[Sequence[Epoch]], None],
) -> list[Epoch]:
    """Train a model in a phase, and leave it with its best weights.

    These may be the initial ones: a phase that makes a model worse changes nothing.

    Args:
        model: the model.
        phase: the phase.
        checkpoint_key: key of the phase's checkpoint; depends on all that the result depends on.
        seed: seed of the order of the captions.
        data: training data, of which dev judges the epochs.
        earlier: the epochs of earlier phases.
        store: where the checkpoint is stored.
        report: called with all epochs so far, after each.

    Returns:
        All epochs so far, ``earlier`` among them.

    Raises:
        PipelineError: a loss or reward that is not finite; the checkpoint is that of the epoch before.
    """
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(phase.learning_rate, phase.steps * phase.epochs)
    compile_for_training(model, schedule, fine_tuning=phase.fine_tuning)
    model.optimizer.build(model.trainable_variables)
    start = values(model.variables)
    checkpoint = Checkpoint.load(checkpoint_key, store) or Checkpoint(
        [], start, start, values(model.optimizer.variables)
    )
    if checkpoint.epochs:
        log.info("%s: continues after %d earlier epochs", phase.name, len(checkpoint.epochs))
        report([*earlier, *checkpoint.epochs])
    if not checkpoint.finished:
        assign(model.variables, checkpoint.model)
        assign(model.optimizer.variables, checkpoint.optimizer)
    captioner = Captioner(KerasDecoder([model]), data.vocabulary, max_length=data.max_length, language=data.language)
    while not checkpoint.finished:
        done = [*earlier, *checkpoint.epochs]
        done.append(_run_epoch(model, phase, seed=seed, data=data, captioner=captioner, number=len(done) + 1))
        chosen = best_epoch(done)
        epochs = done[len(earlier) :]
        ended = len(epochs) == phase.epochs
        # CIDEr is noisy: if it stagnates for some epochs, a falling loss shows that the model still learns.
        lowest = min(epochs, key=lambda epoch: epoch.dev_loss)
        if not ended and len(done) - max(chosen.epoch, lowest.epoch) >= phase.patience:
            log.info("neither a better CIDEr nor a lower loss on dev for %d epochs: stopping", phase.patience)
            ended = True
        checkpoint = Checkpoint(
            epochs,
            best=values(model.variables) if chosen is done[-1] else checkpoint.best,
            model=[] if ended else values(model.variables),
            optimizer=[] if ended else values(model.optimizer.variables),
        )
        checkpoint.save(checkpoint_key, store)
        report(done)
    assign(model.variables, checkpoint.best)
    return [*earlier, *checkpoint.epochs]


def best_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are kept: the one with the best CIDEr on dev.

    A lower loss does not mean better captions, so CIDEr chooses. The loss decides between equals, such as the zeros of
    the first epochs on a small dataset.
    """
    return max(epochs, key=lambda epoch: (epoch.dev_cider, -epoch.dev_loss))


def _run_epoch(
    model: "keras.Model", phase: Phase, *, seed: int, data: TrainingData, captioner: Captioner, number: int
) -> Epoch:
    """Train for an epoch, and measure the model on dev."""
    start = time.monotonic()
    # A generator of its own for each epoch: the order is the same after an interruption.
    measured = phase.train_epoch(model, np.random.default_rng((seed, number)), f"epoch {number}")
    trained = time.monotonic() - start
    dev_loss = evaluate_loss(model, data.dev_captions.evaluation_batches(DEV_BATCH))
    for name, value in {**measured, "loss on dev": dev_loss}.items():
        if not math.isfinite(value):
            raise PipelineError(
                f"The {name} is {value} in epoch {number} ({phase.name}): lower its learning rate (now "
                f"{phase.learning_rate}), or look for features that are not finite."
            )
    epoch = Epoch(
        epoch=number,
        phase=phase.name,
        dev_loss=dev_loss,
        dev_cider=dev_cider(captioner, data.dev, data.language),
        seconds=round(time.monotonic() - start, 2),
        **measured,
    )
    log.info(
        "epoch %d (%s): %s, dev loss %.3f, dev CIDEr %.3f, %.0f captions a second",
        number,
        phase.name,
        ", ".join(f"{name} {value:.3f}" for name, value in measured.items()),
        dev_loss,
        epoch.dev_cider,
        len(data.train_captions.ids) / trained,
    )
    return epoch


def dev_cider(captioner: Captioner, dev: SplitFeatures, language: str) -> float:
    """CIDEr of the captions that greedy search gives the images of dev."""
    captions = captioner.caption(dev.features, GREEDY)
    written = dict(zip(dev.image_ids, (caption.text for caption in captions), strict=True))
    return cider(written, dev.references, language=language)


def compile_for_training(
    model: "keras.Model",
    learning_rate: "float | keras.optimizers.schedules.LearningRateSchedule",
    *,
    fine_tuning: float = 1.0,
) -> None:
    """Compile a model with Adam and the negative log likelihood of the next words, summed with their weights.

    Args:
        model: the model.
        learning_rate: of Adam.
        fine_tuning: learning rate of the encoder's last stage, if the model has it, relative to the other one.
    """
    import keras

    part = last_stage(model)
    # TensorFlow updates the variable that is the value of the one of Keras.
    slower = {
        id(each) for variable in (part.trainable_variables if part else ()) for each in (variable, variable.value)
    }

    class Adam(keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            rate = learning_rate * fine_tuning if id(variable) in slower else learning_rate
            super().update_step(gradient, variable, rate)

    model.compile(
        optimizer=Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        # XLA halves the speed of an LSTM on a CPU; JAX always compiles.
        jit_compile=keras.backend.backend() == "jax",
    )


def train_epoch(model: "keras.Model", batches: Iterable[Batch]) -> float:
    """Train on each batch once and return the mean loss per word; each step takes the mean loss of its batch."""
    return _mean_loss(model.train_on_batch, batches)


def evaluate_loss(model: "keras.Model", batches: Iterable[Batch]) -> float:
    """The mean loss per word, without training."""
    return _mean_loss(model.test_on_batch, batches)


def _mean_loss(loss_of: Callable[..., float], batches: Iterable[Batch]) -> float:
    """The mean loss of the words that are not padding; ends early if it is not finite."""
    total = words = 0.0
    for inputs, targets, weights in batches:
        count = float(weights.sum())
        total += float(loss_of(inputs, targets, weights / count)) * count
        words += count
        if not math.isfinite(total):
            break
    return total / words

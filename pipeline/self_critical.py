"""Self-critical training: sampled captions are rewarded by how much better their CIDEr-D is than their siblings'.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning" (https://arxiv.org/abs/1612.00563), with the
baseline of Luo 2020, "A Better Variant of Self-Critical Sequence Training" (https://arxiv.org/abs/2003.09971): a sample
is compared with the mean of the other samples of its image. The end of a caption is a word like others, so that no
caption is rewarded for breaking off.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline import views
from pipeline.captioner import initial_state, next_words
from pipeline.cider import CiderD, Ids
from pipeline.examples import Batch, Captions, Examples, pad_length
from pipeline.progress import track
from pipeline.recipe import Recipe
from pipeline.stages import OnBatch, Stage
from pipeline.vocabulary import PAD, START

if TYPE_CHECKING:
    import keras

    from pipeline.decoding import Compiled, Tensor

log = logging.getLogger(__name__)

SAMPLES = 5
"""Captions sampled of each image."""

IMAGES = 64
"""Images in one step."""

CROSS_ENTROPY = 0.2
"""Weight of the loss on captions by people; without it captions become alike and short, as CIDEr alone rewards that."""


def leave_one_out(rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much better each sample is than the mean of the others of its image: (B, S) to (B, S)."""
    of_others = (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    advantages: npt.NDArray[np.float32] = (rewards - of_others).astype(np.float32)
    return advantages


def sampler(model: "keras.Model", *, max_length: int, seed: "keras.random.SeedGenerator") -> "Compiled":
    """A compiled function of features (B, D) to the ids of ``SAMPLES`` captions of each image (B, SAMPLES, T)."""
    from keras import ops
    from keras.random import uniform

    from pipeline.decoding import Compiled, sample

    def draw(features: "Tensor") -> "Tensor":
        numbers = uniform((ops.shape(features)[0], SAMPLES, max_length), seed=seed)
        return sample(partial(next_words, [model]), initial_state([model], features), numbers=numbers).ids

    return Compiled(draw, [model, seed])


def batches(
    captions: Captions, references: Ids, draw: "Compiled", reward: CiderD, rng: np.random.Generator
) -> Iterator[tuple[Batch, float]]:
    """Sampled captions of all images once, shuffled, ``IMAGES`` at a time; with each batch the samples' mean reward.

    The weight of a sample's word is the sample's advantage, over the number of sampled words: the sum of the weighted
    losses has the policy gradient. Of each image one caption by people stands beside the samples. As the model changes
    between batches, so do the samples.
    """
    first, count = np.searchsorted(captions.image, np.arange(len(captions.features))), np.bincount(captions.image)
    features = views.draw(captions.features, rng)
    order = rng.permutation(len(features))
    for start in range(0, len(order), IMAGES):
        images = order[start : start + IMAGES]
        sampled = np.asarray(draw.predict_on_batch(features[images])).reshape(-1, references.shape[1])
        repeated = np.repeat(images, SAMPLES)
        rewards = reward(sampled, repeated).reshape(-1, SAMPLES)
        people = references[first[images] + rng.integers(count[images])]
        targets = np.concatenate([sampled, people])
        # The last words of the few longest captions teach little, and would double the work in padding.
        targets = targets[:, : pad_length(np.percentile((targets != PAD).sum(axis=1), 95))]
        words = np.concatenate([np.full((len(targets), 1), START, np.int32), targets[:, :-1]], axis=1)
        written = (targets != PAD).astype(np.float32)
        by_model, by_people = written[: len(sampled)], written[len(sampled) :]
        weights = np.concatenate(
            [
                leave_one_out(rewards).reshape(-1, 1) * by_model / by_model.sum(),
                CROSS_ENTROPY * by_people / by_people.sum(),
            ]
        )
        inputs = {"features": features[np.concatenate([repeated, images])], "words": words}
        yield (inputs, targets, weights), float(rewards.mean())


def stage(model: "keras.Model", recipe: Recipe, examples: Examples) -> Stage:
    """Training for CIDEr-D itself; the model should write passable captions already."""
    import keras

    captions = examples.captions
    generator = keras.random.SeedGenerator(0)
    draw = sampler(model, max_length=examples.longest + 1, seed=generator)
    references = padded(captions.ids, examples.longest + 1)
    # Made when it is first needed: a stage that was finished before needs none.
    reward = cache(lambda: CiderD(references, captions.image, len(examples.vocabulary)))
    steps = math.ceil(len(captions.features) / IMAGES)

    def run(learn: OnBatch, rng: np.random.Generator, name: str) -> dict[str, float]:
        generator.state.assign(rng.integers(2**31, size=2))
        rewards = []
        drawn = batches(captions, references, draw, reward(), rng)
        for batch, mean_reward in track(drawn, total=steps, unit=f"batches of {name}", log=log):
            # The loss of a policy gradient has no meaning but this: where it is no number, the weights are none either.
            if not math.isfinite(learn(*batch)):
                return {"reward": math.nan}
            rewards.append(mean_reward)
        return {"reward": float(np.mean(rewards))}

    epochs = recipe.self_critical_epochs
    return Stage("self_critical", epochs, epochs, steps, recipe.self_critical_learning_rate, run)


def padded(ids: Sequence[Sequence[int]], width: int) -> Ids:
    """Captions from ``<start>`` to ``<end>`` as the rows of an array of ``width`` columns, without their start."""
    rows = np.full((len(ids), width), PAD, np.int32)
    for row, caption in zip(rows, ids, strict=True):
        row[: len(caption) - 1] = caption[1:]
    return rows

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
from pipeline.examples import Batch, Captions, Examples, pad_length
from pipeline.progress import track
from pipeline.recipe import Recipe
from pipeline.stages import Stage
from pipeline.vocabulary import PAD, START

if TYPE_CHECKING:
    import keras

    from pipeline.decoding import Compiled, Tensor

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]

ORDERS = 4
"""CIDEr compares n-grams of 1 to this many words."""

SIGMA = 6.0
"""CIDEr-D's tolerance of a difference in length, in words."""

SAMPLES = 5
"""Captions sampled of each image."""

IMAGES = 64
"""Images in one step."""

CROSS_ENTROPY = 0.05
"""Weight of the loss on captions by people; without it captions become alike and short, as CIDEr alone rewards that."""


class CiderReward:
    """CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726) of captions in ids, thousands a second.

    Equal to ``pycocoevalcap``'s where that gets the same words, the end among them. Document frequencies are those of
    the references.

    Args:
        references: (R, T) ids without the start, ``PAD`` after the end; those of an image stand side by side.
        image: (R,) the number of each reference's image, from 0 without a gap.
        vocabulary_size: all ids are below.
    """

    def __init__(self, references: Ids, image: npt.NDArray[np.intp], vocabulary_size: int) -> None:
        self._first = np.searchsorted(image, np.arange(image[-1] + 1))
        self._count = np.bincount(image)
        self._base = vocabulary_size
        row, key, count = _n_grams(references, self._base)
        self._keys, gram = np.unique(key, return_inverse=True)
        # In how many images' references an n-gram stands.
        pairs = np.unique(image[row] * len(self._keys) + gram)
        frequency = np.bincount(pairs % len(self._keys), minlength=len(self._keys))
        self._weights = math.log(len(self._first)) - np.log(frequency)
        value = self._weights[gram] * count
        self._norms = _norms(row, key, value, len(references), self._base)
        self._lengths = _lengths(references)
        place = row * len(self._keys) + gram
        order = np.argsort(place)
        self._places, self._values = place[order], value[order]

    def __call__(self, captions: Ids, image: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Reward of each caption, between 0 and 10: captions (M, T) as the references, image (M,), to (M,) float32."""
        row, key, count = _n_grams(captions, self._base)
        gram = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        known = self._keys[gram] == key
        # An n-gram of no reference counts in the caption's norm, as one that stands in the references of one image.
        value = count * np.where(known, self._weights[gram], math.log(len(self._first)))
        norms, lengths = _norms(row, key, value, len(captions), self._base), _lengths(captions)
        row, gram, order, value = row[known], gram[known], _order(key[known], self._base), value[known]
        total = np.zeros(len(captions))
        for number in range(self._count[image].max()):
            reference = self._first[image] + number
            present = number < self._count[image]
            reference[~present] = 0
            place = reference[row] * len(self._keys) + gram
            found = np.searchsorted(self._places, place).clip(max=len(self._places) - 1)
            theirs = np.where(self._places[found] == place, self._values[found], 0.0)
            product = np.bincount(
                row * ORDERS + order, np.minimum(value, theirs) * theirs, minlength=len(captions) * ORDERS
            ).reshape(-1, ORDERS)
            scale = norms * self._norms[reference]
            similarity = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0).mean(axis=1)
            difference = lengths - self._lengths[reference]
            total += np.where(present, similarity * np.exp(-(difference**2) / (2 * SIGMA**2)), 0.0)
        return (10 * total / self._count[image]).astype(np.float32)


def _n_grams(ids: Ids, base: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each n-gram of each row once: its row, its key (the words as digits of a number), and how often it stands there.

    Ids are below ``base`` and ``PAD`` is 0, so that a longer n-gram has a greater key than any shorter one.
    """
    rows, keys = [], []
    key = np.zeros_like(ids, np.int64)
    for n in range(min(ORDERS, ids.shape[1])):
        key = key[:, : ids.shape[1] - n] * base + ids[:, n:]
        # Padding is at the end: an n-gram whose last word is none is no n-gram.
        row, column = np.nonzero(ids[:, n:] != PAD)
        rows.append(row)
        keys.append(key[row, column])
    row, key = np.concatenate(rows), np.concatenate(keys)
    distinct, number = np.unique(key, return_inverse=True)
    pair, count = np.unique(row * len(distinct) + number, return_counts=True)
    return pair // len(distinct), distinct[pair % len(distinct)], count


def _order(key: npt.NDArray[np.int64], base: int) -> npt.NDArray[np.intp]:
    """How many words an n-gram has, less one."""
    return np.searchsorted([base**n for n in range(1, ORDERS)], key, side="right")


def _norms(
    row: npt.NDArray[np.intp],
    key: npt.NDArray[np.int64],
    value: npt.NDArray[np.number],
    rows: int,
    base: int,
) -> npt.NDArray[np.float64]:
    """The Euclidean norms of the rows' n-grams of each order: (rows, ORDERS)."""
    squares = np.bincount(row * ORDERS + _order(key, base), value**2, minlength=rows * ORDERS)
    return np.sqrt(squares).reshape(-1, ORDERS)


def _lengths(ids: Ids) -> npt.NDArray[np.int64]:
    """The number of pairs of words in each row, which the toolkit takes for its length."""
    lengths: npt.NDArray[np.int64] = (ids != PAD).sum(axis=1) - 1
    return lengths


def leave_one_out(rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much better each sample is than the mean of the others of its image: (B, S) to (B, S)."""
    of_others = (rewards.sum(axis=1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    advantages: npt.NDArray[np.float32] = (rewards - of_others).astype(np.float32)
    return advantages


def sampler(model: "keras.Model", *, max_length: int, seed: "keras.random.SeedGenerator") -> "Compiled":
    """A compiled function of features (B, D) to the ids of ``SAMPLES`` captions of each image (B, SAMPLES, T)."""
    from pipeline.decoding import Compiled, sample

    def draw(features: "Tensor") -> "Tensor":
        state = initial_state([model], features)
        return sample(partial(next_words, [model]), state, count=SAMPLES, max_length=max_length, seed=seed).ids

    return Compiled(draw, [model, seed])


def batches(
    captions: Captions, references: Ids, draw: "Compiled", reward: CiderReward, rng: np.random.Generator
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
    reward = cache(lambda: CiderReward(references, captions.image, len(examples.vocabulary)))
    steps = math.ceil(len(captions.features) / IMAGES)

    def run(rng: np.random.Generator, name: str) -> dict[str, float]:
        generator.state.assign(rng.integers(2**31, size=2))
        rewards = []
        drawn = batches(captions, references, draw, reward(), rng)
        for batch, mean_reward in track(drawn, total=steps, unit=f"batches of {name}", log=log):
            # The loss of a policy gradient has no meaning but this: where it is no number, the weights are none either.
            if not math.isfinite(model.train_on_batch(*batch)):
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

"""Minimum Bayes risk (MBR) decoding: rerank a beam by the expected score of its captions.

The most probable caption can be an outlier beside many less probable ones that agree with each other. MBR decoding
(Kumar and Byrne 2004, https://aclanthology.org/N04-1022) prefers the caption with the best expected score if the
references came from the model: the mean CIDEr-D against captions sampled from it, or against the captions of the most
similar training photographs, or both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.captioner.sentences import Sentences
from pipeline.metrics.cider import CiderD, Ids

PROBABILITY_WEIGHT = 0.1
"""Weight of the mean log probability per word, relative to the expected score, which is between 0 and 1."""


class Voters(NamedTuple):
    """Captions that those of a beam are compared with.

    Attributes:
        ids: (R, T) int32 ids without the start token, ``PAD`` after the end token.
        image: (R,) the image of each, counted from 0, in order; each has one or more.
    """

    ids: Ids
    image: npt.NDArray[np.intp]

    @classmethod
    def sampled(cls, samples: Ids) -> "Voters":
        """The samples (B, S, T) of B images."""
        images, count, length = samples.shape
        return cls(samples.reshape(-1, length), np.repeat(np.arange(images), count))


def rerank(beam: Sentences, voters: Sequence[Voters], information: npt.NDArray[np.float64]) -> Sentences:
    """Order the sentences of a beam by their expected score and their probability, the best first.

    Args:
        beam: (B, K) sentences.
        voters: one or more groups of voters, which count alike.
        information: (V,) information content of each word, the weight of n-grams.
    """
    images, width, length = beam.ids.shape
    captions, image = beam.ids.reshape(-1, length), np.repeat(np.arange(images), width)
    scores = [CiderD(*group, len(information), information)(captions, image) for group in voters]
    expected = np.mean(scores, axis=0)
    per_word = beam.log_probs / np.maximum(beam.lengths, 1)
    order = np.argsort(-(expected.reshape(images, width) / 10 + PROBABILITY_WEIGHT * per_word), axis=1, kind="stable")
    return Sentences(
        np.take_along_axis(beam.ids, order[..., None], axis=1),
        np.take_along_axis(beam.lengths, order, axis=1),
        np.take_along_axis(beam.log_probs, order, axis=1),
    )


def stratified_uniforms(samples: int, length: int) -> npt.NDArray[np.float32]:
    """Random numbers in [0, 1) for sampling, (samples, length) float32, always the same, stratified in each column.

    All images use the same numbers, so that a caption does not depend on the other images of its batch. Stratification
    (a Latin hypercube: McKay, Beckman and Conover 1979, https://doi.org/10.2307/1268522) needs fewer samples for the
    same precision.
    """
    generator = np.random.default_rng(0)
    strata = generator.permuted(np.tile(np.arange(samples)[:, None], length), axis=0)
    # Rounded to float32, the last number of the last stratum could be 1.
    return np.minimum((strata + generator.random((samples, length))) / samples, 1 - 2**-24).astype(np.float32)

"""Of a beam's captions, the one that is most like all that the captioner might say: the consensus.

The most probable caption can be one of a kind, beside many less probable ones that all say the same. Minimum Bayes risk
decoding (Kumar and Byrne 2004, https://aclanthology.org/N04-1022) takes the caption whose expected score is best where
people say what the captioner would: its mean CIDEr-D to samples.
"""

import numpy as np
import numpy.typing as npt

from pipeline.cider import CiderD, Ids
from pipeline.decoding import Sentences

PROBABILITY = 0.1
"""Weight of a caption's mean log probability a word, beside its likeness to the samples, which is between 0 and 1."""


def rank(beam: Sentences, samples: Ids, information: npt.NDArray[np.float64]) -> Sentences:
    """The beam's sentences in another order: the most like the samples, and the most probable, first.

    Args:
        beam: (B, K) sentences.
        samples: (B, S, T) ids.
        information: (V,) what each word tells, by which n-grams weigh.
    """
    images, width, length = beam.ids.shape
    likeness = CiderD(
        samples.reshape(-1, samples.shape[-1]),
        np.repeat(np.arange(images), samples.shape[1]),
        len(information),
        information,
    )(beam.ids.reshape(-1, length), np.repeat(np.arange(images), width))
    per_word = beam.log_probs / np.maximum(beam.lengths, 1)
    order = np.argsort(-(likeness.reshape(images, width) / 10 + PROBABILITY * per_word), axis=1, kind="stable")
    return Sentences(
        np.take_along_axis(beam.ids, order[..., None], axis=1),
        np.take_along_axis(beam.lengths, order, axis=1),
        np.take_along_axis(beam.log_probs, order, axis=1),
    )


def spread(samples: int, length: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1) to draw samples by, (samples, length), always the same and evenly spread over each column.

    That each image's samples are drawn by the same numbers makes its caption independent of the others of its batch;
    that they are spread evenly (a Latin hypercube: McKay, Beckman and Conover 1979, https://doi.org/10.2307/1268522)
    makes fewer of them stand for the distribution.
    """
    generator = np.random.default_rng(0)
    strata = generator.permuted(np.tile(np.arange(samples)[:, None], length), axis=0)
    # Rounded to float32 the last number of the last stratum could be 1.
    return np.minimum((strata + generator.random((samples, length))) / samples, 1 - 2**-24).astype(np.float32)

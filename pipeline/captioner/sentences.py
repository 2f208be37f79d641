"""Sentences that are decoded, and the rows of a step: what both searches share, in arrays of NumPy or tensors of Keras.

A batch has B sequences, one for each image. Each has K adjacent rows, its beams or its samples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.vocabulary import PAD, START, UNKNOWN
from pipeline.errors import PipelineError

Tensor = Any
"""An array of NumPy, or a tensor of the Keras backend."""

State = tuple[Tensor, ...]
"""The state of a model after the words so far; each tensor has one row per sentence."""


NEVER_WRITTEN = (PAD, START, UNKNOWN)
"""The special words that no search generates."""


class Rows(NamedTuple):
    """The S rows of a step, among the rows of all sentences.

    What belongs to a sequence, such as its image, has B rows, and is not copied for each of its sentences.

    Attributes:
        indices: (S,) int32: the rows, of B * K.
        slots: (B, K) int32: the place of each row among the S; arbitrary for a row that is not one of them.
    """

    indices: Tensor
    slots: Tensor


class Sentences(NamedTuple):
    """K sentences for each of B sequences.

    Attributes:
        ids: (B, K, T) int32: the words, then ``END`` unless the sentence was cut, then ``PAD``.
        lengths: (B, K) int32: the number of words, including the end.
        log_probs: (B, K) float32: the sum of the words' log probabilities. ``-inf`` marks an empty place in the beam,
            where the vocabulary allows fewer than K sentences.
    """

    ids: Tensor
    lengths: Tensor
    log_probs: Tensor


Decoded = tuple[Sentences, Tensor | None]
"""The beams of a batch and, for MBR decoding, the ids of the samples (B, S, T) int32."""


def require_positive(count: int, max_length: int) -> None:
    """Raise ``PipelineError`` unless there is a sentence to decode, and a word in it."""
    if count < 1 or max_length < 1:
        raise PipelineError(f"Number of sentences and length must be at least 1. Received: {count} and {max_length}.")


def padded(ids: Sequence[Sequence[int]], width: int) -> npt.NDArray[np.int32]:
    """Captions from ``<start>`` to ``<end>`` as the rows of an array of ``width`` columns, without their start."""
    rows = np.full((len(ids), width), PAD, np.int32)
    for row, caption in zip(rows, ids, strict=True):
        row[: len(caption) - 1] = caption[1:]
    return rows

"""Greedy and beam search over a next-word model, a whole batch at once.

The search knows no model: it asks a step function for the next word's log probabilities. It runs on arrays of
(sequences × beams) rows whose number never changes, so that a compiled step function is compiled once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

Array = npt.NDArray[np.float32]
State = tuple[Array, ...]
Step = Callable[[npt.NDArray[np.int32], State], tuple[Array, State]]
"""(last words (M,), state) to (log probabilities (M, V), next state); each array of a state has M rows."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished search's sentence: its ids without start and end, and the mean log probability of its words.

    The end counts as a word, unless the longest allowed sentence was reached without it.
    """

    ids: tuple[int, ...]
    log_prob: float


def beam_search(
    step: Step,
    state: State,
    *,
    start: int,
    end: int,
    forbidden: Sequence[int],
    beam_width: int,
    max_length: int,
    length_exponent: float = 1.0,
) -> list[list[Hypothesis]]:
    """The ``beam_width`` best sentences of each sequence, best first. A width of 1 is greedy search.

    Sentences are ranked by their log probability divided by ``length ** length_exponent`` (1: the mean a word; 0: the
    plain sum, which favours short ones). A finished sentence keeps its place in the beam but is not extended. No word
    directly follows itself.

    Args:
        step: the model.
        state: what it starts from; the rows are the sequences.
        start: id that stands before the first word.
        end: id that finishes a sentence.
        forbidden: ids never emitted.
        beam_width: sentences kept for each sequence, K.
        max_length: words after which a sentence is cut.
        length_exponent: see above.
    """
    if beam_width < 1 or max_length < 1:
        raise PipelineError(f"Beam width and length must be at least 1. Received: {beam_width} and {max_length}.")
    sequences, beams = len(state[0]), beam_width
    state = tuple(np.repeat(array, beams, axis=0) for array in state)
    words = np.zeros((sequences, beams, 0), np.int32)
    last = np.full((sequences, beams), start, np.int32)
    # All beams of a sequence start equal: only the first may be extended, or each would hold the same sentence.
    scores = np.full((sequences, beams), -np.inf, np.float32)
    scores[:, 0] = 0.0
    lengths = np.zeros((sequences, beams), np.int32)
    finished = np.zeros((sequences, beams), bool)
    origin = np.arange(sequences)[:, None]

    for _ in range(max_length):
        log_probs, state = step(last.reshape(-1), state)
        log_probs = np.array(log_probs, np.float32).reshape(sequences, beams, -1)
        log_probs[:, :, list(forbidden)] = -np.inf
        np.put_along_axis(log_probs, last[:, :, None], -np.inf, axis=2)
        log_probs[finished] = -np.inf
        log_probs[finished, end] = 0.0

        totals = scores[:, :, None] + log_probs
        next_lengths = lengths + ~finished
        ranks = (totals / next_lengths[:, :, None] ** length_exponent).reshape(sequences, -1)
        best = _top(ranks, beams)
        beam, word = best // log_probs.shape[2], (best % log_probs.shape[2]).astype(np.int32)

        scores = totals.reshape(sequences, -1)[origin, best]
        words = np.concatenate([words[origin, beam], word[:, :, None]], axis=2)
        lengths, finished, last = next_lengths[origin, beam], finished[origin, beam] | (word == end), word
        state = tuple(array[(origin * beams + beam).reshape(-1)] for array in state)
        if finished.all():
            break

    return [
        [
            Hypothesis(tuple(_until(row_words, end)), float(score / length))
            for row_words, score, length in zip(words[i].tolist(), scores[i], lengths[i], strict=True)
            if np.isfinite(score)
        ]
        for i in range(sequences)
    ]


def _top(ranks: Array, count: int) -> npt.NDArray[np.intp]:
    """Columns of the ``count`` highest values of each row, highest first; of equal ones the lower column."""
    # Partition before sorting: a row has beams × vocabulary entries, and only a few are wanted.
    candidates = np.argpartition(-ranks, min(count, ranks.shape[1] - 1), axis=1)[:, :count]
    candidates.sort(axis=1)
    order = np.argsort(-np.take_along_axis(ranks, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def _until(words: list[int], end: int) -> list[int]:
    return words[: words.index(end)] if end in words else words

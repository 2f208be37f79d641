"""Greedy search, beam search and sampling with a next-word model in NumPy, by the rules of ``decoding``.

Nights and `captioning caption` use it on CPUs, where it starts without Keras. The step is called only for the sentences
that are not finished, however many these are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.captioner.sentences import NEVER_WRITTEN, Rows, Sentences, require_positive
from pipeline.data.vocabulary import END, PAD, START

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
State = tuple[npt.NDArray[Any], ...]

BLOCK = 64
"""Words of the vocabulary in a block. Sampling selects a block, then a word within it."""

GROUPS = 256
"""Groups of words. The largest value of each bounds the best words from below, in less time than a partition."""

Step = Callable[[Ids, State, Rows], tuple[Floats, State]]
"""(last words (S,) int32, state of S rows, these rows) to (log probabilities (S, V), which the search may overwrite,
and the next state)."""


def beam_search(
    step: Step,
    state: State,
    *,
    beam_width: int,
    max_length: int,
    allow_repeats: bool = False,
    forbidden_words: Sequence[int] = (),
) -> Sentences:
    """The ``beam_width`` best sentences of each sequence, best first, as ``decoding.beam_search`` finds them.

    Args:
        step: the model.
        state: the initial state, with one row for each of the B sequences.
        beam_width: sentences kept for each sequence, K.
        max_length: words after which a sentence is cut, T.
        allow_repeats: whether words and trigrams may repeat.
        forbidden_words: further words that are never generated.

    Raises:
        PipelineError: ``beam_width`` or ``max_length`` is below 1.
    """
    require_positive(beam_width, max_length)
    first_row = np.arange(len(state[0]))[:, None] * beam_width
    forbidden = [*NEVER_WRITTEN, *forbidden_words]

    def propose(position: int, log_probs: Floats, rows: Indices, last: Ids, ids: Ids) -> tuple[Floats, Ids]:
        _forbid(log_probs, last, forbidden, allow_repeats=allow_repeats)
        if not allow_repeats and position > 2:
            repeats = _trigram_repeats(ids, position)
            log_probs[np.arange(len(ids))[:, None], repeats] = -np.inf
        # The K best extensions of a sequence are among the K best of each of its beams.
        return top_k(log_probs, min(beam_width, log_probs.shape[1]))

    def choose(gains: Floats, words: Ids, rows: Sentences, finished: npt.NDArray[np.bool_]) -> tuple[Any, Any, Any]:
        extensions = words.shape[1]
        # A finished sentence has a single extension, itself.
        unchanged = np.where(np.arange(extensions) == 0, np.float32(0), np.float32(-np.inf))
        totals = rows.log_probs[:, None] + np.where(finished[:, None], unchanged, gains)
        means = totals / (rows.lengths + ~finished)[:, None].astype(np.float32)
        # Ties go to the better beam, then to the lower id.
        best = np.argsort(-means.reshape(-1, beam_width * extensions), axis=1, kind="stable")[:, :beam_width]
        best = (best + first_row * extensions).ravel()
        return best // extensions, words.ravel()[best], totals.ravel()[best]

    # The beams of a sequence start equal: unless only the first is extended, they would all hold the same sentence.
    start = [0.0] + [-np.inf] * (beam_width - 1)
    return _decode(step, state, propose, choose, start=start, max_length=max_length)


def sample(
    step: Step,
    state: State,
    *,
    uniforms: Floats,
    allow_repeats: bool = False,
    forbidden_words: Sequence[int] = (),
) -> Ids:
    """Sample K sentences of each sequence, word by word, as ``decoding.sample`` does.

    Args:
        step: the model.
        state: the initial state, with one row for each of the B sequences.
        uniforms: (K, T) float32, uniform random numbers in [0, 1), one per word, the same for all sequences.
        allow_repeats: whether a word may directly follow itself.
        forbidden_words: further words that are never generated.

    Returns:
        The ids, (B, K, T) int32.

    Raises:
        PipelineError: K or T is below 1.
    """
    count, max_length = uniforms.shape
    require_positive(count, max_length)
    every_row = np.arange(len(state[0]) * count)
    forbidden = [*NEVER_WRITTEN, *forbidden_words]

    def propose(position: int, log_probs: Floats, rows: Indices, last: Ids, ids: Ids) -> tuple[Floats, Ids]:
        _forbid(log_probs, last, forbidden, allow_repeats=allow_repeats)
        words = _sample_index(log_probs, uniforms[rows % count, position])[:, None]
        return np.zeros(words.shape, np.float32), words

    def choose(gains: Floats, words: Ids, rows: Sentences, finished: npt.NDArray[np.bool_]) -> tuple[Any, Any, Any]:
        return every_row, words[:, 0], rows.log_probs

    return _decode(step, state, propose, choose, start=[0.0] * count, max_length=max_length).ids  # type: ignore[no-any-return]


def _decode(
    step: Step,
    state: State,
    propose: Callable[[int, Floats, Indices, Ids, Ids], tuple[Floats, Ids]],
    choose: Callable[[Floats, Ids, Sentences, npt.NDArray[np.bool_]], tuple[Any, Any, Any]],
    *,
    start: list[float],
    max_length: int,
) -> Sentences:
    """Decode word by word, until all sentences are finished or ``max_length`` is reached.

    ``propose``, ``choose`` and ``start`` are those of ``decoding``.
    """
    count, sequences = len(start), len(state[0])
    parents = np.repeat(np.arange(sequences), count)  # the rows of the state that belong to the sentences
    rows = Sentences(
        ids=np.full((sequences * count, max_length), PAD, np.int32),
        lengths=np.zeros(sequences * count, np.int32),
        log_probs=np.tile(np.array(start, np.float32), sequences),
    )
    last = np.full(sequences * count, START, np.int32)
    for position in range(max_length):
        finished = (last == END) | (last == PAD)
        # Extending an empty place in the beam can't give a sentence.
        active = np.flatnonzero(~finished & (rows.log_probs > -np.inf))
        if not len(active):
            break
        slots = np.zeros(len(last), np.int32)
        slots[active] = np.arange(len(active))
        log_probs, state = step(
            last[active],
            tuple(array[parents[active]] for array in state),
            Rows(active.astype(np.int32), slots.reshape(sequences, count)),
        )
        gains, words = propose(position, log_probs, active, last[active], rows.ids[active])
        origin, last, totals = choose(gains[slots], words[slots], rows, finished)
        finished = finished[origin]
        last = np.where(finished, np.int32(PAD), last)
        ids = rows.ids[origin]
        ids[:, position] = last
        rows = Sentences(ids, rows.lengths[origin] + ~finished, totals)
        parents = slots[origin]
    return Sentences(
        ids=rows.ids.reshape(-1, count, max_length),
        lengths=rows.lengths.reshape(-1, count),
        log_probs=rows.log_probs.reshape(-1, count),
    )


def _forbid(log_probs: Floats, last: Ids, forbidden: Sequence[int], *, allow_repeats: bool) -> None:
    """Set the log probabilities (S, V) of words that must not follow the last ones (S,) to ``-inf``."""
    log_probs[:, forbidden] = -np.inf
    if not allow_repeats:
        log_probs[np.arange(len(last)), last] = -np.inf


def _trigram_repeats(ids: Ids, position: int) -> Ids:
    """The words that would repeat a trigram of the sentences (S, T): (S, position - 2), ``PAD`` where there is none."""
    before_last, last = ids[:, position - 2, None], ids[:, position - 1, None]
    occurred = (ids[:, : position - 2] == before_last) & (ids[:, 1 : position - 1] == last)
    return np.where(occurred, ids[:, 2:position], np.int32(PAD))


def top_k(values: Floats, count: int) -> tuple[Floats, Ids]:
    """The largest values (S, count) of each row and their columns; ties go to the first."""
    if count == 1:
        columns = values.argmax(axis=1)[:, None]
        return np.take_along_axis(values, columns, axis=1), columns.astype(np.int32)
    size = values.shape[1]
    # As many groups of columns as are asked for have a value that is not below the bound.
    width = max(GROUPS, count)
    largest = values[:, : size // width * width].reshape(len(values), -1, width).max(axis=1) if size > width else values
    bound = np.partition(largest, -count, axis=1)[:, -count, None]
    # In the order of rows and columns, which the sorting keeps for ties; mostly more than asked for.
    places = np.flatnonzero(values >= bound)
    rows = places // size
    places = places[np.lexsort((-values.ravel()[places], rows))]
    first = np.searchsorted(rows, np.arange(len(values)))
    places = places[first[:, None] + np.arange(count)]
    return values.ravel()[places], (places % size).astype(np.int32)


def _sample_index(log_probs: Floats, uniforms: Floats) -> Ids:
    """Sample a column of each row of log probabilities (S, V), from uniform random numbers (S,) in [0, 1): (S,)."""
    rows, size = log_probs.shape
    weights = np.zeros((rows, -(-size // BLOCK), BLOCK), np.float32)
    np.exp(log_probs, out=weights.reshape(rows, -1)[:, :size])
    sums = weights.sum(axis=-1)
    block, remainder = _inverse_cdf(sums, uniforms * sums.sum(axis=-1))
    column, _ = _inverse_cdf(weights[np.arange(rows), block], remainder)
    return (block * BLOCK + column).astype(np.int32)


def _inverse_cdf(weights: Floats, thresholds: Floats) -> tuple[Indices, Floats]:
    """The first column of each row (S, N) where the cumulative sum exceeds the threshold (S,), and the threshold less
    the sum before this column."""
    sums = weights.cumsum(axis=-1)
    possible = (sums > thresholds[:, None]) & (weights > 0)
    # Because of rounding, a sum may never exceed its threshold: take the largest weight then. Never take a weight of 0.
    column = np.where(possible.any(axis=-1), possible.argmax(axis=-1), weights.argmax(axis=-1))
    before = np.take_along_axis(sums - weights, column[:, None], axis=1)[:, 0]
    return column, thresholds - before

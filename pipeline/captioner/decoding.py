"""Greedy search, beam search and sampling with a next-word model in Keras: a whole batch at once, on the device.

It is for training and accelerators; ``search`` does the same in NumPy, by the same rules. The loop is independent of
the model: it calls a step function for the log probabilities of the next word. Each sequence has K adjacent rows, its
beams or its samples. The number of rows is constant, but the model is called only for those that are not finished.
Everything is written in ``keras.ops``, so a search can be compiled together with its model.

This module imports Keras, which is slow to load: import it only to decode.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from pipeline.captioner.sentences import NEVER_WRITTEN, Rows, Sentences, State, Tensor, require_positive
from pipeline.data.vocabulary import END, PAD, START

BATCH_SIZES = 8
"""Batch sizes of the calls of the model, multiples of an eighth of all rows. The step is compiled once for each."""

BLOCK = 64
"""Words of the vocabulary in a block. The search for a word first selects blocks, then words within these."""

Step = Callable[[Tensor, State, Rows], tuple[Tensor, State]]
"""(last words (S,) int32, state of S rows, these rows) to (log probabilities (S, V), next state)."""


def beam_search(
    step: Step,
    state: State,
    *,
    beam_width: int,
    max_length: int,
    allow_repeats: bool = False,
    forbidden_words: Sequence[int] = (),
) -> Sentences:
    """The ``beam_width`` best sentences of each sequence, best first. A width of 1 is greedy search.

    Sentences are ranked by the mean log probability of their words. A finished sentence stays in the beam but is not
    extended. Padding, the start and the unknown word are never generated. Unless repeats are allowed, no word directly
    follows itself, and no trigram is repeated (Paulus et al. 2017, https://arxiv.org/abs/1705.04304), because the
    probability of "and a hat and a hat" can grow with each repetition. Ties go to the better beam, then to the lower
    id.

    Args:
        step: the model.
        state: the initial state, with one row for each of the B sequences.
        beam_width: sentences kept for each sequence, K.
        max_length: words after which a sentence is cut, T.
        allow_repeats: for languages that repeat words where English does not.
        forbidden_words: further words that are never generated.

    Raises:
        PipelineError: ``beam_width`` or ``max_length`` is below 1.
    """
    require_positive(beam_width, max_length)
    first_row = ops.arange(ops.shape(state[0])[0], dtype="int32")[:, None] * beam_width

    def propose(position: Tensor, log_probs: Tensor, rows: Tensor, last: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        forbidden = _forbidden_words(last, forbidden_words, allow_repeats=allow_repeats)
        if not allow_repeats:
            forbidden = ops.concatenate([forbidden, _trigram_repeats(ids, position)], axis=1)
        # The K best extensions of a sequence are among the K best of each of its beams.
        return _top_k(_mask_words(log_probs, forbidden), min(beam_width, log_probs.shape[1]))

    def choose(gains: Tensor, words: Tensor, rows: Sentences, finished: Tensor) -> tuple[Tensor, ...]:
        extensions = words.shape[1]
        # A finished sentence has a single extension, itself.
        unchanged = ops.where(ops.arange(extensions) == 0, 0.0, -float("inf"))
        totals = rows.log_probs[:, None] + ops.where(finished[:, None], unchanged, gains)
        lengths = rows.lengths + ops.cast(~finished, "int32")
        means = totals / ops.cast(lengths, "float32")[:, None]
        _, best = ops.top_k(ops.reshape(means, (-1, beam_width * extensions)), beam_width)
        best = ops.reshape(best + first_row * extensions, (-1,))
        return best // extensions, ops.take(ops.reshape(words, (-1,)), best), ops.take(ops.reshape(totals, (-1,)), best)

    # The beams of a sequence start equal: unless only the first is extended, they would all hold the same sentence.
    start = [0.0] + [-float("inf")] * (beam_width - 1)
    return _decode(step, state, propose, choose, start=start, max_length=max_length)


def sample(
    step: Step,
    state: State,
    *,
    uniforms: Tensor,
    allow_repeats: bool = False,
    forbidden_words: Sequence[int] = (),
) -> Sentences:
    """Sample K sentences of each sequence, word by word, from the distribution of the model.

    The probability of forbidden words (padding, start, unknown, a repeated word, and those that are named) is
    redistributed over the others; ``log_probs`` are those of the model, before this redistribution.

    Args:
        step: the model.
        state: the initial state, with one row for each of the B sequences.
        uniforms: (B, K, T) float32, uniform random numbers in [0, 1), one per word; the samples are cut after T words.
        allow_repeats: whether a word may directly follow itself.
        forbidden_words: further words that are never generated.

    Raises:
        PipelineError: K or T is below 1.
    """
    count, max_length = uniforms.shape[1:]
    require_positive(count, max_length)
    uniforms = ops.reshape(uniforms, (-1, max_length))
    every_row = ops.arange(ops.shape(uniforms)[0], dtype="int32")

    def propose(position: Tensor, log_probs: Tensor, rows: Tensor, last: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        chosen = ops.take(ops.take(uniforms, position, axis=1), rows)
        allowed = _mask_words(log_probs, _forbidden_words(last, forbidden_words, allow_repeats=allow_repeats))
        words = _sample_index(ops.softmax(allowed), chosen)[:, None]
        return ops.take_along_axis(log_probs, words, axis=1), words

    def choose(gains: Tensor, words: Tensor, rows: Sentences, finished: Tensor) -> tuple[Tensor, ...]:
        return every_row, words[:, 0], rows.log_probs + ops.where(finished, 0.0, gains[:, 0])

    return _decode(step, state, propose, choose, start=[0.0] * count, max_length=max_length)


class CompiledFunction(keras.Model):  # type: ignore[misc]
    """A function of a batch, which ``predict_on_batch`` compiles once for each shape of its input.

    Args:
        function: from a tensor to a structure of tensors, in ``keras.ops``.
        uses: the models, layers and seed generators whose variables the function reads.
    """

    def __init__(self, function: Callable[[Tensor], Any], uses: Sequence[Any]) -> None:
        super().__init__()
        self.function, self.uses = function, list(uses)
        self.built = True
        # XLA makes TensorFlow slower on a CPU; JAX always compiles.
        self.jit_compile = keras.backend.backend() == "jax"

    def call(self, inputs: Tensor) -> Any:
        """Call the function."""
        return self.function(inputs)


def _decode(
    step: Step,
    state: State,
    propose: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    choose: Callable[[Tensor, Tensor, Sentences, Tensor], tuple[Tensor, ...]],
    *,
    start: list[float],
    max_length: int,
) -> Sentences:
    """Decode word by word, until all sentences are finished or ``max_length`` is reached.

    Args:
        step: the model.
        state: the initial state, with B rows.
        propose: (position, log probabilities (S, V) of S active rows, their indices among all M rows (S,), their last
            words (S,), the ids of their sentences so far (S, T)) to E possible extensions of each: (their log
            probabilities (S, E), their words (S, E)).
        choose: (the log probabilities (M, E) and words (M, E) proposed, the sentences so far in M rows, whether each is
            finished (M,)) to (the row that each row continues (M,), its next word (M,), its new sum of log
            probabilities (M,)). The proposals of inactive rows are arbitrary and must be ignored.
        start: the sums with which the K rows of each sequence start.
        max_length: T.
    """
    count = len(start)
    sequences = ops.shape(state[0])[0]
    state = tuple(ops.repeat(tensor, count, axis=0) for tensor in state)
    rows = Sentences(
        ids=ops.full((sequences * count, max_length), PAD, dtype="int32"),
        lengths=ops.zeros((sequences * count,), dtype="int32"),
        log_probs=ops.tile(ops.convert_to_tensor(start, dtype="float32"), (sequences,)),
    )
    last = ops.full((sequences * count,), START, dtype="int32")

    def is_active(rows: Sentences, last: Tensor) -> Tensor:
        # Extending an empty place in the beam can't give a sentence.
        return ~_is_finished(last) & (rows.log_probs > -float("inf"))

    def any_active(position: Tensor, rows: Sentences, last: Tensor, state: State) -> Tensor:
        return ops.any(is_active(rows, last))

    def decode_word(position: Tensor, rows: Sentences, last: Tensor, state: State) -> tuple[Any, ...]:
        def extend(indices: Tensor, places: Tensor) -> tuple[Tensor, ...]:
            words = ops.take(last, indices)
            active = tuple(ops.take(tensor, indices, axis=0) for tensor in state)
            log_probs, following = step(words, active, Rows(indices, ops.reshape(places, (-1, count))))
            return (*propose(position, log_probs, indices, words, ops.take(rows.ids, indices, axis=0)), *following)

        gains, words, *following = _compute_selected(is_active(rows, last), extend)
        finished = _is_finished(last)
        origin, words, totals = choose(gains, words, rows, finished)
        finished = ops.take(finished, origin)
        words = ops.where(finished, PAD, words)
        at_position = ops.arange(max_length) == position
        rows = Sentences(
            ids=ops.where(at_position, words[:, None], ops.take(rows.ids, origin, axis=0)),
            lengths=ops.take(rows.lengths, origin) + ops.cast(~finished, "int32"),
            log_probs=totals,
        )
        return position + 1, rows, words, tuple(ops.take(tensor, origin, axis=0) for tensor in following)

    position = ops.convert_to_tensor(0, dtype="int32")
    _, rows, _, _ = ops.while_loop(
        any_active, decode_word, (position, rows, last, state), maximum_iterations=max_length
    )
    return Sentences(
        ids=ops.reshape(rows.ids, (-1, count, max_length)),
        lengths=ops.reshape(rows.lengths, (-1, count)),
        log_probs=ops.reshape(rows.log_probs, (-1, count)),
    )


def _compute_selected(selected: Tensor, compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tensors of M rows, computed for the selected rows only; the values of the others are arbitrary.

    Args:
        selected: (M,) bool, at least one true.
        compute: from the indices of S rows (S,), and the place of each of the M rows among them (M,), to tensors of S
            rows.
    """
    rows = ops.shape(selected)[0]
    counts = ops.cumsum(ops.cast(selected, "int32"))

    def compute_batch(eighths: int) -> tuple[Tensor, ...]:
        size = -(-rows * eighths // BATCH_SIZES)
        # The indices of the selected rows, filled up with the last row.
        indices = ops.minimum(ops.searchsorted(counts, ops.arange(1, size + 1)), rows - 1)
        places = ops.clip(counts - 1, 0, size - 1)
        return tuple(ops.take(values, places, axis=0) for values in compute(indices, places))

    # A compiled function has fixed shapes, hence a branch for each batch size; the smallest sufficient one is taken.
    smallest = (counts[-1] * BATCH_SIZES - 1) // rows
    return tuple(ops.switch(smallest, [partial(compute_batch, number + 1) for number in range(BATCH_SIZES)]))


def _is_finished(last: Tensor) -> Tensor:
    """Whether a sentence has ended: its last word is the end, or the padding after it."""
    return (last == END) | (last == PAD)


def _forbidden_words(last: Tensor, forbidden_words: Sequence[int], *, allow_repeats: bool) -> Tensor:
    """The words that must not follow the last ones (M,): N that must not be written at all, (M, N), or with the last
    ones themselves (M, N + 1)."""
    always = ops.convert_to_tensor([*NEVER_WRITTEN, *forbidden_words], dtype="int32")
    always = ops.broadcast_to(always, (ops.shape(last)[0], always.shape[0]))
    return always if allow_repeats else ops.concatenate([always, last[:, None]], axis=1)


def _trigram_repeats(ids: Tensor, position: Tensor) -> Tensor:
    """The words that would repeat a trigram of the sentences (M, T): (M, T - 2), with ``PAD`` where there is none."""
    longest = ids.shape[1]
    if longest < 4:
        return ids[:, :0]
    before_last, last = (ops.take(ids, ops.maximum(position - back, 0), axis=1)[:, None] for back in (2, 1))
    occurred = (ids[:, :-2] == before_last) & (ids[:, 1:-1] == last) & (ops.arange(longest - 2) < position - 2)
    return ops.where(occurred, ids[:, 2:], PAD)


def _mask_words(log_probs: Tensor, words: Tensor) -> Tensor:
    """The log probabilities (M, V) with ``-inf`` for the words (M, W) of each row."""
    rows, size = ops.shape(log_probs)[0], log_probs.shape[1]
    places = ops.reshape(words + ops.arange(rows, dtype="int32")[:, None] * size, (-1, 1))
    masked = ops.full((rows * words.shape[1],), -float("inf"), dtype=log_probs.dtype)
    return ops.reshape(ops.scatter_update(ops.reshape(log_probs, (-1,)), places, masked), (-1, size))


def _top_k(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values (M, count) of each row and their columns; ties go to the first. Faster than ``ops.top_k``.

    The ``count`` largest are all in the ``count`` blocks with the largest maxima. No block is padding only, so padding
    is never among them.
    """
    blocks = _split_blocks(values, -float("inf"))
    if count == 1 or blocks.shape[1] <= count:
        found, column = ops.top_k(values, count)
        return found, column
    _, best = ops.top_k(ops.max(blocks, axis=-1), count)
    # In their original order, so that ties go to the first.
    best = ops.sort(best, axis=-1)
    candidates = ops.reshape(_take_blocks(blocks, best), (-1, count * BLOCK))
    found, column = ops.top_k(candidates, count)
    return found, ops.take_along_axis(best, column // BLOCK, axis=1) * BLOCK + column % BLOCK


def _sample_index(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Sample a column of each row of probabilities (M, V), from uniform random numbers (M,) in [0, 1): (M,) int32."""
    blocks = _split_blocks(probabilities, 0.0)
    sums = ops.sum(blocks, axis=-1)
    block, remainder = _inverse_cdf(sums, uniforms * ops.sum(sums, axis=-1))
    column, _ = _inverse_cdf(_take_blocks(blocks, block[:, None])[:, 0], remainder)
    return block * BLOCK + column


def _inverse_cdf(weights: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The first column of each row (M, N) where the cumulative sum exceeds the threshold (M,), and the threshold less
    the sum before this column."""
    above = ops.cumsum(weights, axis=-1) > thresholds[:, None]
    # Because of rounding, a sum may never exceed its threshold: take the largest weight then. Never take a weight of 0.
    possible = ops.where(
        ops.any(above, axis=-1, keepdims=True),
        above & (weights > 0),
        weights == ops.max(weights, axis=-1, keepdims=True),
    )
    column = ops.cast(ops.argmax(ops.cast(possible, "int32"), axis=-1), "int32")
    before = ops.sum(ops.where(ops.arange(weights.shape[1]) < column[:, None], weights, 0.0), axis=-1)
    return column, thresholds - before


def _split_blocks(values: Tensor, padding: float) -> Tensor:
    """Split rows (M, V) into blocks (M, N, ``BLOCK``), with padding in the last one."""
    missing = -values.shape[1] % BLOCK
    padded = ops.pad(values, ((0, 0), (0, missing)), constant_values=padding)
    return ops.reshape(padded, (-1, padded.shape[1] // BLOCK, BLOCK))


def _take_blocks(blocks: Tensor, indices: Tensor) -> Tensor:
    """The blocks with these indices (M, K) of each row (M, N, ``BLOCK``): (M, K, ``BLOCK``)."""
    first = ops.arange(ops.shape(blocks)[0], dtype="int32")[:, None] * blocks.shape[1]
    # Copies whole blocks, where `take_along_axis` would copy number by number.
    return ops.take(ops.reshape(blocks, (-1, BLOCK)), first + indices, axis=0)

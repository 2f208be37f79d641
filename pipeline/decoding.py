"""Greedy search, beam search and sampling over a next-word model: a whole batch at once, on the device.

The loop knows no model: it asks a step function for the next word's log probabilities. It runs on rows, of which each
sequence has K that stand side by side (its beams, or its samples); their number never changes. All is written in
``keras.ops``, so that a search can be compiled as one function, together with its model.

This module loads Keras: whoever does not decode should not import it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from pipeline.errors import PipelineError
from pipeline.vocabulary import END, PAD, START, UNKNOWN

Tensor = Any
"""A tensor of the Keras backend."""

State = tuple[Tensor, ...]
"""What a model remembers of the words so far; each tensor has a row for each row of words."""

BLOCK = 64
"""Words of a vocabulary that are looked at together: the blocks first, then within those that matter."""

Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""(last words (M,) int32, state) to (log probabilities (M, V), next state)."""


class Sentences(NamedTuple):
    """K sentences for each of B sequences.

    Attributes:
        ids: (B, K, T) int32. ``END`` stands after the last word unless the sentence was cut, then ``PAD``.
        lengths: (B, K) int32: the number of words; the end counts as one.
        log_probs: (B, K) float32: the sum of the words' log probabilities. ``-inf`` marks a place in the beam for which
            there was no sentence left, as the vocabulary allows only so many.
    """

    ids: Tensor
    lengths: Tensor
    log_probs: Tensor


def beam_search(
    step: Step, state: State, *, beam_width: int, max_length: int, length_exponent: float = 1.0
) -> Sentences:
    """The ``beam_width`` best sentences of each sequence, best first. A width of 1 is greedy search.

    Sentences are ranked by their log probability divided by ``length ** length_exponent`` (1: the mean a word; 0: the
    plain sum, which favours short ones). A finished sentence keeps its place in the beam but is not extended. Padding,
    start and unknown word are never written, no word directly follows itself, and no three words come back in the same
    order (Paulus et al. 2017, https://arxiv.org/abs/1705.04304): a model can like "and a hat and a hat" more with each
    repetition. Of equals, the one of the better beam wins, then the one of the lower id.

    Args:
        step: the model.
        state: what it starts from; the rows are the B sequences.
        beam_width: sentences kept for each sequence, K.
        max_length: words after which a sentence is cut, T.
        length_exponent: see above.

    Raises:
        PipelineError: a width or a length below 1.
    """
    _require_positive(beam_width, max_length)
    first_row = ops.arange(ops.shape(state[0])[0], dtype="int32")[:, None] * beam_width

    def choose(position: Tensor, log_probs: Tensor, rows: Sentences, last: Tensor) -> tuple[Tensor, ...]:
        finished = _finished(last)
        forbidden = ops.concatenate([_never(last), _repeats(rows.ids, position)], axis=1)
        # The K best of a sequence are among the K best of each of its beams.
        extensions = min(beam_width, log_probs.shape[1])
        gains, words = _top(_without(log_probs, forbidden), extensions)
        # A finished sentence has one extension, which adds nothing.
        nothing = ops.where(ops.arange(extensions) == 0, 0.0, -float("inf"))
        totals = rows.log_probs[:, None] + ops.where(finished[:, None], nothing, gains)
        lengths = rows.lengths + ops.cast(~finished, "int32")
        ranks = totals / ops.cast(lengths, "float32")[:, None] ** length_exponent
        _, best = ops.top_k(ops.reshape(ranks, (-1, beam_width * extensions)), beam_width)
        best = ops.reshape(best + first_row * extensions, (-1,))
        return best // extensions, ops.take(ops.reshape(words, (-1,)), best), ops.take(ops.reshape(totals, (-1,)), best)

    # All beams of a sequence start equal: only the first may be extended, or each would hold the same sentence.
    start = [0.0] + [-float("inf")] * (beam_width - 1)
    return _write(step, state, choose, start=start, max_length=max_length)


def sample(step: Step, state: State, *, numbers: Tensor) -> Sentences:
    """K sentences of each sequence, each word drawn with the probability that the model gives it.

    What is never written (see ``beam_search``) leaves its share to the other words; ``log_probs`` are the model's own,
    without that share.

    Args:
        step: the model.
        state: what it starts from; the rows are the B sequences.
        numbers: (B, K, T) float32, uniform in [0, 1): the chance in each word of the samples, which are cut after T.

    Raises:
        PipelineError: a count or a length below 1.
    """
    count, max_length = numbers.shape[1:]
    _require_positive(count, max_length)
    numbers = ops.reshape(numbers, (-1, max_length))
    every_row = ops.arange(ops.shape(numbers)[0], dtype="int32")

    def choose(position: Tensor, log_probs: Tensor, rows: Sentences, last: Tensor) -> tuple[Tensor, ...]:
        words = _draw(ops.softmax(_without(log_probs, _never(last))), ops.take(numbers, position, axis=1))
        gains = ops.take_along_axis(log_probs, words[:, None], axis=1)[:, 0]
        return every_row, words, rows.log_probs + ops.where(_finished(last), 0.0, gains)

    return _write(step, state, choose, start=[0.0] * count, max_length=max_length)


class Compiled(keras.Model):  # type: ignore[misc]
    """A function of a batch, compiled where it is called by ``predict_on_batch``; once for each shape of its input.

    Args:
        function: from a tensor to a structure of tensors, in ``keras.ops``.
        uses: the models, layers and seed generators whose variables the function reads.
    """

    def __init__(self, function: Callable[[Tensor], Any], uses: Sequence[Any]) -> None:
        super().__init__()
        self.function, self.uses = function, list(uses)
        self.built = True
        # On a CPU XLA makes TensorFlow slower; JAX knows no other way.
        self.jit_compile = keras.backend.backend() == "jax"

    def call(self, inputs: Tensor) -> Any:
        """The function's value."""
        return self.function(inputs)


def _write(
    step: Step,
    state: State,
    choose: Callable[[Tensor, Tensor, Sentences, Tensor], tuple[Tensor, ...]],
    *,
    start: list[float],
    max_length: int,
) -> Sentences:
    """Write word after word, until every sentence has ended or ``max_length`` is reached.

    Args:
        step: the model.
        state: of B rows.
        choose: (position, log probabilities (M, V), sentences so far in M rows, their last words (M,)) to (the row that
            each row goes on from (M,), its next word (M,), its new sum of log probabilities (M,)).
        start: the sums that the K rows of each sequence start with.
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

    def unfinished(position: Tensor, rows: Sentences, last: Tensor, state: State) -> Tensor:
        # A row without a sentence can't come to one from itself: nobody waits for it.
        return ops.any(~_finished(last) & (rows.log_probs > -float("inf")))

    def write(position: Tensor, rows: Sentences, last: Tensor, state: State) -> tuple[Any, ...]:
        log_probs, state = step(last, state)
        finished = _finished(last)
        origin, words, totals = choose(position, log_probs, rows, last)
        finished = ops.take(finished, origin)
        words = ops.where(finished, PAD, words)
        here = ops.arange(max_length) == position
        rows = Sentences(
            ids=ops.where(here, words[:, None], ops.take(rows.ids, origin, axis=0)),
            lengths=ops.take(rows.lengths, origin) + ops.cast(~finished, "int32"),
            log_probs=totals,
        )
        return position + 1, rows, words, tuple(ops.take(tensor, origin, axis=0) for tensor in state)

    position = ops.convert_to_tensor(0, dtype="int32")
    _, rows, _, _ = ops.while_loop(unfinished, write, (position, rows, last, state), maximum_iterations=max_length)
    return Sentences(
        ids=ops.reshape(rows.ids, (-1, count, max_length)),
        lengths=ops.reshape(rows.lengths, (-1, count)),
        log_probs=ops.reshape(rows.log_probs, (-1, count)),
    )


def _require_positive(count: int, max_length: int) -> None:
    if count < 1 or max_length < 1:
        raise PipelineError(f"Number of sentences and length must be at least 1. Received: {count} and {max_length}.")


def _finished(last: Tensor) -> Tensor:
    """Whether the end has been written: the last word is the end, or the padding after it."""
    return (last == END) | (last == PAD)


def _never(last: Tensor) -> Tensor:
    """The words that must not be written after the last ones (M,): (M, 4)."""
    return ops.stack([*(ops.full_like(last, word) for word in (PAD, START, UNKNOWN)), last], axis=1)


def _repeats(ids: Tensor, position: Tensor) -> Tensor:
    """The words that would repeat three words of their sentences (M, T): (M, T - 2), ``PAD`` where there is none."""
    longest = ids.shape[1]
    if longest < 4:
        return ids[:, :0]
    before_last, last = (ops.take(ids, ops.maximum(position - back, 0), axis=1)[:, None] for back in (2, 1))
    stood_before = (ids[:, :-2] == before_last) & (ids[:, 1:-1] == last) & (ops.arange(longest - 2) < position - 2)
    return ops.where(stood_before, ids[:, 2:], PAD)


def _without(log_probs: Tensor, words: Tensor) -> Tensor:
    """The log probabilities (M, V), ``-inf`` at each row's words (M, W)."""
    rows, size = ops.shape(log_probs)[0], log_probs.shape[1]
    places = ops.reshape(words + ops.arange(rows, dtype="int32")[:, None] * size, (-1, 1))
    nothing = ops.full((rows * words.shape[1],), -float("inf"), dtype=log_probs.dtype)
    return ops.reshape(ops.scatter_update(ops.reshape(log_probs, (-1,)), places, nothing), (-1, size))


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest values (M, count) of each row, and their places; of equals the first. As ``ops.top_k``, but quicker.

    The ``count`` greatest lie in the ``count`` blocks with the greatest maxima; so many hold more than padding.
    """
    blocks = _blocks(values, -float("inf"))
    if count == 1 or blocks.shape[1] <= count:
        found, place = ops.top_k(values, count)
        return found, place
    _, best = ops.top_k(ops.max(blocks, axis=-1), count)
    # In their order, so that of equals the first is still the first.
    best = ops.sort(best, axis=-1)
    candidates = ops.reshape(_pick(blocks, best), (-1, count * BLOCK))
    found, place = ops.top_k(candidates, count)
    return found, ops.take_along_axis(best, place // BLOCK, axis=1) * BLOCK + place % BLOCK


def _draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """A place for each row (M, V), with the probability that it has there, by numbers (M,) in [0, 1): (M,)."""
    blocks = _blocks(probabilities, 0.0)
    of_blocks = ops.sum(blocks, axis=-1)
    block, within = _first_above(of_blocks, numbers * ops.sum(of_blocks, axis=-1))
    place, _ = _first_above(_pick(blocks, block[:, None])[:, 0], within)
    return block * BLOCK + place


def _first_above(shares: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each row (M, N) where the sum so far is above the threshold (M,), and what was left for it."""
    above = ops.cumsum(shares, axis=-1) > thresholds[:, None]
    # A sum that is rounded may never come above: then the likeliest. A place without a share is never taken.
    possible = ops.where(
        ops.any(above, axis=-1, keepdims=True), above & (shares > 0), shares == ops.max(shares, axis=-1, keepdims=True)
    )
    place = ops.cast(ops.argmax(ops.cast(possible, "int32"), axis=-1), "int32")
    before = ops.sum(ops.where(ops.arange(shares.shape[1]) < place[:, None], shares, 0.0), axis=-1)
    return place, thresholds - before


def _blocks(values: Tensor, padding: float) -> Tensor:
    """The rows (M, V) cut into blocks (M, N, ``BLOCK``), the last one padded."""
    missing = -values.shape[1] % BLOCK
    padded = ops.pad(values, ((0, 0), (0, missing)), constant_values=padding)
    return ops.reshape(padded, (-1, padded.shape[1] // BLOCK, BLOCK))


def _pick(blocks: Tensor, which: Tensor) -> Tensor:
    """Some blocks (M, K) of each row (M, N, ``BLOCK``): (M, K, ``BLOCK``)."""
    first = ops.arange(ops.shape(blocks)[0], dtype="int32")[:, None] * blocks.shape[1]
    # Whole blocks at a time: `take_along_axis` would gather number by number.
    return ops.take(ops.reshape(blocks, (-1, BLOCK)), first + which, axis=0)

"""Greedy search, beam search and sampling over a next-word model: a whole batch at once, on the device.

The loop knows no model: it asks a step function for the next word's log probabilities. It runs on rows, of which each
sequence has K that stand side by side (its beams, or its samples); their number never changes, but the model is asked
only about those that go on. All is written in ``keras.ops``, so that a search can be compiled as one function, together
with its model.

This module loads Keras: whoever does not decode should not import it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
from keras import ops

from pipeline.errors import PipelineError
from pipeline.vocabulary import END, PAD, START, UNKNOWN

Tensor = Any
"""A tensor of the Keras backend."""

State = tuple[Tensor, ...]
"""What a model remembers of the words so far; each tensor has a row for each row of words."""

PORTIONS = 8
"""Parts of all rows. The model is asked about a whole number of them; for each number, a step is compiled once more."""

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

    def propose(position: Tensor, log_probs: Tensor, rows: Tensor, last: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        forbidden = ops.concatenate([_never(last), _repeats(ids, position)], axis=1)
        # The K best of a sequence are among the K best of each of its beams.
        return _top(_without(log_probs, forbidden), min(beam_width, log_probs.shape[1]))

    def choose(gains: Tensor, words: Tensor, rows: Sentences, finished: Tensor) -> tuple[Tensor, ...]:
        extensions = words.shape[1]
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
    return _write(step, state, propose, choose, start=start, max_length=max_length)


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

    def propose(position: Tensor, log_probs: Tensor, rows: Tensor, last: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        chance = ops.take(ops.take(numbers, position, axis=1), rows)
        words = _draw(ops.softmax(_without(log_probs, _never(last))), chance)[:, None]
        return ops.take_along_axis(log_probs, words, axis=1), words

    def choose(gains: Tensor, words: Tensor, rows: Sentences, finished: Tensor) -> tuple[Tensor, ...]:
        return every_row, words[:, 0], rows.log_probs + ops.where(finished, 0.0, gains[:, 0])

    return _write(step, state, propose, choose, start=[0.0] * count, max_length=max_length)


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
    propose: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    choose: Callable[[Tensor, Tensor, Sentences, Tensor], tuple[Tensor, ...]],
    *,
    start: list[float],
    max_length: int,
) -> Sentences:
    """Write word after word, until every sentence has ended or ``max_length`` is reached.

    Args:
        step: the model.
        state: of B rows.
        propose: (position, log probabilities (S, V), the numbers of these S of all M rows, their last words (S,), their
            sentences' ids so far (S, T)) to (log probabilities (S, E), words (S, E)) with which they may go on.
        choose: (the same of all rows (M, E) twice, sentences so far in M rows, whether each is finished (M,)) to (the
            row that each row goes on from (M,), its next word (M,), its new sum of log probabilities (M,)). What is
            proposed to a row that does not go on is another's, and means nothing.
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

    def goes_on(rows: Sentences, last: Tensor) -> Tensor:
        # A row without a sentence can't come to one from itself: nobody waits for it.
        return ~_finished(last) & (rows.log_probs > -float("inf"))

    def unfinished(position: Tensor, rows: Sentences, last: Tensor, state: State) -> Tensor:
        return ops.any(goes_on(rows, last))

    def write(position: Tensor, rows: Sentences, last: Tensor, state: State) -> tuple[Any, ...]:
        def extend(chosen: Tensor) -> tuple[Tensor, ...]:
            words = ops.take(last, chosen)
            log_probs, following = step(words, tuple(ops.take(tensor, chosen, axis=0) for tensor in state))
            return (*propose(position, log_probs, chosen, words, ops.take(rows.ids, chosen, axis=0)), *following)

        gains, words, *following = _of_some(goes_on(rows, last), extend)
        finished = _finished(last)
        origin, words, totals = choose(gains, words, rows, finished)
        finished = ops.take(finished, origin)
        words = ops.where(finished, PAD, words)
        here = ops.arange(max_length) == position
        rows = Sentences(
            ids=ops.where(here, words[:, None], ops.take(rows.ids, origin, axis=0)),
            lengths=ops.take(rows.lengths, origin) + ops.cast(~finished, "int32"),
            log_probs=totals,
        )
        return position + 1, rows, words, tuple(ops.take(tensor, origin, axis=0) for tensor in following)

    position = ops.convert_to_tensor(0, dtype="int32")
    _, rows, _, _ = ops.while_loop(unfinished, write, (position, rows, last, state), maximum_iterations=max_length)
    return Sentences(
        ids=ops.reshape(rows.ids, (-1, count, max_length)),
        lengths=ops.reshape(rows.lengths, (-1, count)),
        log_probs=ops.reshape(rows.log_probs, (-1, count)),
    )


def _of_some(wanted: Tensor, values_of: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tensors of M rows, worked out for the wanted ones (M,) alone; the others have values of any of these.

    Args:
        wanted: whether a row is; at least one must be.
        values_of: the numbers of S rows (S,) to tensors of S rows.
    """
    rows = ops.shape(wanted)[0]
    so_far = ops.cumsum(ops.cast(wanted, "int32"))

    def of_portion(portion: int) -> tuple[Tensor, ...]:
        size = -(-rows * portion // PORTIONS)
        # The first, second, … wanted row; where they are fewer than the size, the last row again and again.
        chosen = ops.minimum(ops.searchsorted(so_far, ops.arange(1, size + 1)), rows - 1)
        place = ops.clip(so_far - 1, 0, size - 1)
        return tuple(ops.take(values, place, axis=0) for values in values_of(chosen))

    # Shapes are fixed in a compiled function: it has a branch for each size, and takes the least that holds all.
    least = (so_far[-1] * PORTIONS - 1) // rows
    return tuple(ops.switch(least, [partial(of_portion, number + 1) for number in range(PORTIONS)]))


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

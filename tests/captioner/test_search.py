"""The search in NumPy: the rules of the one in Keras, on the models of its tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captioner import decoding, search
from pipeline.captioner.sentences import Sentences
from pipeline.data.vocabulary import END, PAD
from pipeline.errors import PipelineError
from tests.support.effort import random_inputs


def tables(seed, *, sequences, words, longest, ties):
    """A random next-word model by sequence, position and last word, as steps in Keras and in NumPy, and its state.

    With ties, many words are equally probable, and many are impossible.
    """
    size = 4 + words
    rng = np.random.default_rng(seed)
    shape = sequences, longest, size, size
    if ties:
        table = np.where(rng.random(shape) < 0.3, -np.inf, rng.integers(-3, 0, shape)).astype(np.float32)
        table[..., END] = np.maximum(table[..., END], -3)
    else:
        logits = rng.normal(size=shape) * 2
        table = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
    rows = table.reshape(-1, size)

    def in_keras(last, state, _):
        from keras import ops

        sequence, position = state
        return ops.take(rows, (sequence * longest + position) * size + last, axis=0), (sequence, position + 1)

    def in_numpy(last, state, _):
        sequence, position = state
        return rows[(sequence * longest + position) * size + last], (sequence, position + 1)

    return in_keras, in_numpy, (np.arange(sequences, dtype=np.int32), np.zeros(sequences, np.int32))


@settings(max_examples=random_inputs(15))
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.fixed_dictionaries({"words": st.integers(1, 6), "longest": st.integers(1, 9)}),
    beam_width=st.integers(1, 7),
    allow_repeats=st.booleans(),
    forbidden=st.sets(st.integers(4, 9), max_size=3),
    ties=st.booleans(),
)
def test_beams_are_those_of_keras(seed, size, ties, forbidden, **rules):
    """For any model: the same sentences in the same order, with the same lengths and sums; the same empty places."""
    in_keras, in_numpy, state = tables(seed, sequences=3, ties=ties, **size)
    rules["max_length"] = size["longest"]
    rules["forbidden_words"] = [word for word in forbidden if word < 4 + size["words"]]
    expected = Sentences(*map(np.asarray, decoding.beam_search(in_keras, state, **rules)))
    found = search.beam_search(in_numpy, state, **rules)
    possible = np.isfinite(expected.log_probs)
    np.testing.assert_array_equal(np.isfinite(found.log_probs), possible)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours[possible], theirs[possible])


@pytest.mark.parametrize("rules", [{}, {"allow_repeats": True}, {"forbidden_words": range(10, 140)}])
@pytest.mark.parametrize("seed", range(6))
def test_samples_are_those_of_keras(seed, rules):
    """The same random numbers give the same samples."""
    in_keras, in_numpy, state = tables(seed, sequences=4, words=150, longest=9, ties=False)
    uniforms = np.random.default_rng(seed).random((5, 9), dtype=np.float32)
    expected = decoding.sample(in_keras, state, uniforms=np.broadcast_to(uniforms, (4, 5, 9)), **rules)
    found = search.sample(in_numpy, state, uniforms=uniforms, **rules)
    np.testing.assert_array_equal(found, np.asarray(expected.ids))


@pytest.mark.parametrize("beam_width", [1, 3])
def test_the_model_sees_only_unfinished_sentences(beam_width):
    """Of two sequences, the one that has ended is not asked again; of equal beams one is; then the search stops."""
    sizes = []

    def step(last, state, rows):
        sequence, position = state
        log_probs = np.full((len(last), 6), -np.inf, np.float32)
        # The first writes four words in turn, the second none.
        following = np.where((sequence == 1) | (position == 4), END, 4 + position % 2)
        log_probs[np.arange(len(last)), following] = 0
        sizes.append(len(last))
        np.testing.assert_array_equal(rows.indices // beam_width, sequence)
        np.testing.assert_array_equal(rows.slots.ravel()[rows.indices], np.arange(len(last)))
        return log_probs, (sequence, position + 1)

    state = np.arange(2, dtype=np.int32), np.zeros(2, np.int32)
    found = search.beam_search(step, state, beam_width=beam_width, max_length=50, allow_repeats=True)
    assert sizes == [2, 1, 1, 1, 1]
    assert found.ids[:, 0, :6].tolist() == [[4, 5, 4, 5, END, PAD], [END] + [PAD] * 5]
    assert found.lengths[:, 0].tolist() == [5, 1]
    assert not np.isfinite(found.log_probs[:, 1:]).any()


@settings(max_examples=random_inputs(100))
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40) | st.integers(search.GROUPS - 1, 3 * search.GROUPS + 1),
    count=st.integers(1, 40) | st.integers(search.GROUPS - 1, search.GROUPS + 1),
    largest=st.sampled_from([3, 1000]),
)
def test_top_k(seed, size, count, largest):
    """The result is that of sorting each row; of equal values the first wins. Some values, or nearly all, are equal."""
    values = np.random.default_rng(seed).integers(-3, largest, (4, size)).astype(np.float32)
    values[values == -3] = -np.inf
    count = min(count, size)
    found, columns = search.top_k(values, count)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=1))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("words", [11, 200])
def test_an_impossible_word_is_never_sampled(number, words):
    """It is not sampled at the ends of the interval either, where a rounded sum may be on the wrong side."""
    rng = np.random.default_rng(0)
    probabilities = rng.random((500, words)).astype(np.float32) * (rng.random((500, words)) < 0.3)
    probabilities = probabilities[probabilities.any(axis=1)]
    with np.errstate(divide="ignore"):
        drawn = search._sample_index(np.log(probabilities), np.full(len(probabilities), number, np.float32))
    assert (np.take_along_axis(probabilities, drawn[:, None], axis=1) > 0).all()


@pytest.mark.parametrize(("count", "max_length"), [(0, 3), (2, 0)])
def test_refuses_impossible_settings(count, max_length):
    """A number of sentences or a length below one is an error that names both numbers."""
    state = (np.zeros(1, np.int32),)
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        search.beam_search(pytest.fail, state, beam_width=count, max_length=max_length)
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        search.sample(pytest.fail, state, uniforms=np.zeros((count, max_length), np.float32))

"""Greedy search, beam search and sampling, with step functions whose sentences and probabilities are known."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from pipeline.captioner import decoding
from pipeline.captioner.decoding import CompiledFunction, beam_search, sample
from pipeline.captioner.sentences import Sentences
from pipeline.data.vocabulary import END, PAD, START, UNKNOWN
from pipeline.errors import PipelineError
from tests.support.effort import STRESS, random_inputs

BLOCKS = {"many blocks": 2, "one block": 64} if STRESS else {"many blocks": 2}


@pytest.fixture(scope="module", autouse=True, params=BLOCKS.values(), ids=BLOCKS)
def _blocks(request):
    """Run all tests with blocks so small that even small vocabularies have several. Other tests have one block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", request.param)
        yield


LETTERS = "__$_abcdefghijklmnopqrstuvwxyz"  # ids 0 to 3 are special, 2 is the end, 4 is "a"
LOG_HALF = np.log(0.5)


def arrays(sentences):
    """The sentences as arrays."""
    return Sentences(*map(ops.convert_to_numpy, sentences))


def sample_with(step, state, *, count, max_length, seed=0, **rules):
    """Samples of each sequence, with the random numbers of a seed."""
    return sample(step, state, uniforms=keras.random.uniform((len(state[0]), count, max_length), seed=seed), **rules)


def written(sentences, sequence=0):
    """The words of a sequence's sentences, without end and padding, in order."""
    return [
        tuple(ids[: length - (END in ids)].tolist())
        for ids, length, log_prob in zip(*(array[sequence] for array in arrays(sentences)), strict=True)
        if np.isfinite(log_prob)
    ]


def spelling(*words):
    """A step function that spells one word per sequence; its state is the sequence and the number of letters so far."""
    longest = max(map(len, words))
    paths = np.full((len(words), longest + 3), PAD, np.int32)
    for row, word in enumerate(words):
        paths[row, : len(word) + 2] = [START, *map(LETTERS.index, word), END]

    def step(last, state, rows):
        sequence, position = state
        path = ops.take(ops.convert_to_tensor(paths), sequence, axis=0)
        here, following = (
            ops.take_along_axis(path, ops.minimum(position + offset, longest + 2)[:, None], axis=1)[:, 0]
            for offset in (0, 1)
        )
        expected = ops.one_hot(following, len(LETTERS)) * ops.cast(last == here, "float32")[:, None]
        return ops.log_softmax(10 * expected), (sequence, position + 1)

    return step, (np.arange(len(words), dtype=np.int32), np.zeros(len(words), np.int32))


def constant(logits):
    """A step function that always returns the same logits, for one sequence."""

    def step(last, state, rows):
        rows = ops.ones_like(last, dtype="float32")[:, None]
        return ops.log_softmax(rows * ops.convert_to_tensor(logits, dtype="float32")), state

    return step, (np.zeros((1, 1), np.float32),)


def tables(seed, *, sequences, words, longest):
    """Random log probabilities by sequence, position and last word (S, T, V, V), and their step function."""
    size = 4 + words
    logits = np.random.default_rng(seed).normal(size=(sequences, longest, size, size)) * 2
    table = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)

    def step(last, state, rows):
        sequence, position = state
        row = (sequence * longest + position) * size + last
        return ops.take(ops.convert_to_tensor(table.reshape(-1, size)), row, axis=0), (sequence, position + 1)

    return table, step, (np.arange(sequences, dtype=np.int32), np.zeros(sequences, np.int32))


def log_probs_by_hand(table, ids):
    """The log probability of a sentence, with its end unless it was cut."""
    path = [START, *ids, END][: len(table) + 1]
    return sum(table[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path)))


def allowed_sentences(words, longest):
    """Every sentence in which no word follows itself and no trigram occurs twice."""
    return [
        ids
        for length in range(longest + 1)
        for ids in itertools.product(range(4, 4 + words), repeat=length)
        if all(a != b for a, b in itertools.pairwise(ids)) and not repeats(ids)
    ]


def repeats(ids):
    """Whether a trigram occurs twice in a sentence."""
    triples = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(triples)) < len(triples)


@pytest.mark.parametrize("beam_width", [1, 2, 5])
def test_spells_the_words(beam_width):
    """Each sequence of a batch gets its own word from the compiled search, for any width and different lengths."""
    step, state = spelling("kite", "a", "sandwich")

    def search(state):
        return beam_search(step, tuple(state), beam_width=beam_width, max_length=12)

    found = CompiledFunction(search, []).predict_on_batch(list(state))
    assert ["".join(LETTERS[i] for i in written(found, row)[0]) for row in range(3)] == ["kite", "a", "sandwich"]
    assert [array.shape for array in found] == [(3, beam_width, 12), (3, beam_width), (3, beam_width)]
    assert found.lengths[:, 0].tolist() == [5, 2, 9]
    assert found.ids[1, 0].tolist() == [LETTERS.index("a"), END] + [PAD] * 10


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 2}), (sample_with, {"count": 2})])
def test_stops_when_all_sentences_have_ended(decode, count):
    """The step function is not called after every sentence has ended."""
    step, state = spelling("of", "it")
    calls = []

    def counted(last, state, rows):
        calls.append(last)
        log_probs, state = step(last, state, rows)
        # No other word is possible, so the second place in the beam stays empty.
        return ops.where(log_probs > LOG_HALF, 0.0, -float("inf")), state

    found = decode(counted, state, max_length=50, **count)
    assert [written(found, row)[0] for row in (0, 1)] == [tuple(map(LETTERS.index, word)) for word in ("of", "it")]
    if keras.backend.backend() == "tensorflow":  # other backends trace a step once, however often it is taken
        assert len(calls) == 3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others trace a step for every number of rows")
@pytest.mark.parametrize(
    ("beam_width", "expected"), [(1, [16, 16, 16, 2, 2, 2, 2, 2, 2]), (3, [18, 36, 36])], ids=["greedy", "beam"]
)
def test_the_model_sees_only_unfinished_rows(beam_width, expected):
    """A step gets the unfinished rows, rounded up to an eighth of all; of equal beams it gets one."""
    step, state = spelling("sandwich", *["of"] * 15)
    sizes = []

    def counted(last, state, rows):
        sizes.append(len(last))
        return step(last, state, rows)

    beam_search(counted, state, beam_width=beam_width, max_length=12)
    assert sizes[: len(expected)] == expected


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 3}), (sample, {})])
def test_the_other_sequences_of_a_batch_change_nothing(decode, count):
    """Each sequence is decoded as it is alone, however many others there are and whenever they end."""
    _, step, state = tables(6, sequences=21, words=5, longest=9)
    numbers = np.random.default_rng(0).random((21, 4, 9), dtype=np.float32)

    def write(rows):
        settings = {"max_length": 9} if count else {"uniforms": numbers[rows]}
        return arrays(decode(step, tuple(tensor[rows] for tensor in state), **count, **settings))

    together = write(slice(None))
    for sequence in range(0, 21, 1 if STRESS else 5):
        for whole, alone in zip(together, write(slice(sequence, sequence + 1)), strict=True):
            np.testing.assert_array_equal(whole[sequence], alone[0])


def test_cuts_at_the_maximum_length():
    """A sentence that never ends is cut, and its log probability is the sum over its words."""
    step, state = constant([-30, -30, -30, -30, 0, 0])
    found = arrays(beam_search(step, state, beam_width=1, max_length=4))
    assert found.ids[0, 0].tolist() == [4, 5, 4, 5]
    assert found.lengths[0, 0] == 4
    assert found.log_probs[0, 0] == pytest.approx(4 * LOG_HALF, abs=1e-4)


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 3}), (sample_with, {"count": 50})])
def test_never_writes_forbidden_words_nor_a_word_twice_in_a_row(decode, count):
    """Forbidden words are not written even where they are the most probable by far; nor does a word follow itself."""
    step, state = constant([90, 90, -9, 90, 5, 1])
    for ids in written(decode(step, state, max_length=8, **count)):
        assert not {PAD, START, UNKNOWN} & set(ids)
        assert all(a != b for a, b in itertools.pairwise(ids))


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 3}), (sample_with, {"count": 50})])
def test_further_words_may_be_forbidden(decode, count):
    """They are not written; the other words are, and if none is left, the sentence is empty."""
    step, state = constant([-9, -9, -9, -9, 90, 1, 1])
    found = written(decode(step, state, max_length=8, forbidden_words=[4], **count))
    assert {word for ids in found for word in ids} == {5, 6}
    assert set(written(decode(step, state, max_length=8, forbidden_words=[4, 5, 6], **count))) == {()}


@pytest.mark.parametrize("beam_width", [1, 4])
def test_no_trigram_is_repeated(beam_width):
    """A model that would repeat three words for ever writes them once, and then something else."""
    cycle = np.full((7, 7), -3.0, np.float32)
    for word, following in ((START, 4), (4, 5), (5, 6), (6, 4)):
        cycle[word, following] = 3

    def step(last, state, rows):
        return ops.log_softmax(ops.take(ops.convert_to_tensor(cycle), last, axis=0)), state

    found = beam_search(step, (np.zeros((2, 1), np.float32),), beam_width=beam_width, max_length=14)
    for sequence in (0, 1):
        sentences = written(found, sequence)
        assert sentences
        assert not any(repeats(ids) for ids in sentences)
    assert written(found)[0][:5] == (4, 5, 6, 4, 5)


def test_repeats_may_be_allowed():
    """Then a word may follow itself, in beams and in samples, and trigrams recur; the special words stay forbidden."""
    step, state = constant([90, 90, -9, 90, 5, 1])
    assert written(beam_search(step, state, beam_width=1, max_length=8, allow_repeats=True)) == [(4,) * 8]
    uniforms = np.full((1, 1, 8), 0.5, np.float32)
    assert written(sample(step, state, uniforms=uniforms, allow_repeats=True)) == [(4,) * 8]


def test_ties_go_to_the_lower_id():
    """Of equally probable words the one with the lower id is taken, so that results are reproducible."""
    step, state = constant([0] * 6)
    assert written(beam_search(step, state, beam_width=1, max_length=1)) == [()]
    assert written(beam_search(step, state, beam_width=3, max_length=1)) == [(), (4,), (5,)]


def test_ties_go_to_the_better_beam():
    """Of equally probable sentences, the one that extends the better beam comes first."""
    step, state = constant([-30, -30, -30, -30, 0, 0, 0])
    assert written(beam_search(step, state, beam_width=4, max_length=2)) == [(4, 5), (4, 6), (5, 4), (5, 6)]


def test_a_beam_as_wide_as_the_space_finds_the_best_sentences():
    """Where nothing is pruned, beam search and exhaustive search find the same sentences in the same order."""
    longest, sequences = 4, 5
    table, step, state = tables(0, sequences=sequences, words=3, longest=longest)
    every = allowed_sentences(3, longest)
    found = beam_search(step, state, beam_width=60, max_length=longest)
    for sequence in range(sequences):

        def mean_log_prob(ids, table=table[sequence]):
            return log_probs_by_hand(table, ids) / min(len(ids) + 1, longest)

        assert written(found, sequence)[:5] == sorted(every, key=mean_log_prob, reverse=True)[:5]
        assert sorted(written(found, sequence)) == sorted(every)


@settings(max_examples=random_inputs(15))
@given(
    seed=st.integers(0, 2**32 - 1),
    words=st.integers(1, 6),
    longest=st.integers(1, 5),
    beam_width=st.integers(1, 7),
)
def test_lengths_and_log_probabilities_are_those_of_the_sentences(seed, words, longest, beam_width):
    """For any model, the sentences differ, are sorted by their mean, and have the returned lengths and sums."""
    table, step, state = tables(seed, sequences=2, words=words, longest=longest)
    found = arrays(beam_search(step, state, beam_width=beam_width, max_length=longest))
    for sequence in (0, 1):
        sentences = written(found, sequence)
        assert len(set(sentences)) == len(sentences) == min(beam_width, len(allowed_sentences(words, longest)))
        log_probs = found.log_probs[sequence, : len(sentences)]
        lengths = [min(len(ids) + 1, longest) for ids in sentences]
        assert found.lengths[sequence, : len(sentences)].tolist() == lengths
        np.testing.assert_allclose(
            log_probs, [log_probs_by_hand(table[sequence], ids) for ids in sentences], rtol=1e-4, atol=1e-5
        )
        means = log_probs / np.array(lengths)
        assert (np.diff(means) <= 1e-5).all()


@settings(max_examples=random_inputs(30))
@given(
    st.integers(1, 40).flatmap(
        lambda size: st.lists(st.lists(st.integers(-3, 3), min_size=size, max_size=size), min_size=1, max_size=5)
    ),
    st.integers(1, 40),
)
def test_top_k_by_blocks(values, count):
    """The result is that of sorting each row; of equal values the first wins, in whichever blocks they are."""
    values = np.array(values, np.float32)
    values[values == -3] = -np.inf
    count = min(count, values.shape[1])
    found, places = map(ops.convert_to_numpy, decoding._top_k(ops.convert_to_tensor(values), count))
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=1))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
def test_an_impossible_word_is_never_sampled(number):
    """It is not sampled at the ends of the interval either, where a rounded sum may be on the wrong side."""
    rng = np.random.default_rng(0)
    probabilities = rng.random((500, 11)).astype(np.float32) * (rng.random((500, 11)) < 0.3)
    probabilities = probabilities[probabilities.any(axis=1)]
    drawn = ops.convert_to_numpy(decoding._sample_index(probabilities, np.full(len(probabilities), number, np.float32)))
    assert (np.take_along_axis(probabilities, drawn[:, None], axis=1) > 0).all()


def test_samples_are_as_frequent_as_probable():
    """The frequency of a sentence is the product of its words' probabilities, without the share of forbidden ones."""
    longest, count = 3, 20_000
    table, step, state = tables(1, sequences=2, words=2, longest=longest)
    found = sample_with(step, state, count=count, max_length=longest, seed=3)
    for sequence in (0, 1):
        drawn = written(found, sequence)
        for ids in allowed_sentences(2, longest):
            probability = 1.0
            for t, (last, word) in enumerate(itertools.pairwise([START, *ids, END][: longest + 1])):
                allowed = [i for i in (END, 4, 5) if i != last]
                among = np.exp(table[sequence, t, last])
                probability *= float(among[word] / among[allowed].sum())
            error = np.sqrt(probability * (1 - probability) / count)
            assert drawn.count(ids) / count == pytest.approx(probability, abs=4 * error + 1e-9), ids


def test_samples_have_the_log_probabilities_of_the_model():
    """The log probability of a sample is that of the model, up to the end of the sentence."""
    table, step, state = tables(2, sequences=1, words=3, longest=4)
    found = arrays(sample_with(step, state, count=30, max_length=4))
    expected = [log_probs_by_hand(table[0], ids) for ids in written(found)]
    np.testing.assert_allclose(found.log_probs[0], expected, rtol=1e-4)


def test_the_same_random_numbers_give_the_same_samples():
    """Samples depend on the random numbers alone; a generator gives others each time, in a compiled function too."""
    _, step, state = tables(4, sequences=2, words=5, longest=6)

    def drawn(seed):
        return arrays(sample_with(step, state, count=20, max_length=6, seed=seed)).ids.tolist()

    assert drawn(1) == drawn(1) != drawn(2)

    def drawn_twice(seed):
        generator = keras.random.SeedGenerator(seed)

        def once(state):
            return sample(step, tuple(state), uniforms=keras.random.uniform((2, 20, 6), seed=generator))

        function = CompiledFunction(once, [generator])
        return [function.predict_on_batch(list(state)).ids.tolist() for _ in range(2)]

    first, second = drawn_twice(5)
    assert first != second
    assert drawn_twice(5) == [first, second]


@pytest.mark.parametrize(("count", "max_length"), [(0, 3), (2, 0)])
def test_refuses_impossible_settings(count, max_length):
    """A number of sentences or a length below one is an error that names both numbers."""
    step, state = spelling("a")
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        beam_search(step, state, beam_width=count, max_length=max_length)
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        sample_with(step, state, count=count, max_length=max_length)

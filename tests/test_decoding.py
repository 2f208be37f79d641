"""The searches and the sampler, with step functions whose sentences and probabilities are known."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from pipeline import decoding
from pipeline.decoding import Compiled, Sentences, beam_search, sample
from pipeline.errors import PipelineError
from pipeline.vocabulary import END, PAD, START, UNKNOWN


@pytest.fixture(scope="module", autouse=True, params=[2, 64], ids=["many blocks", "one block"])
def _blocks(request):
    """Small vocabularies are cut into blocks too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BLOCK", request.param)
        yield


LETTERS = "__$_abcdefghijklmnopqrstuvwxyz"  # ids 0 to 3 are special, 2 is the end, 4 is "a"
LOG_HALF = np.log(0.5)


def arrays(sentences):
    """The sentences as arrays."""
    return Sentences(*map(ops.convert_to_numpy, sentences))


def draw(step, state, *, count, max_length, seed=0):
    """Samples of each sequence, from the numbers of a seed."""
    return sample(step, state, numbers=keras.random.uniform((len(state[0]), count, max_length), seed=seed))


def written(sentences, sequence=0):
    """The words of a sequence's sentences, without end and padding, in their order."""
    return [
        tuple(ids[: length - (END in ids)].tolist())
        for ids, length, log_prob in zip(*(array[sequence] for array in arrays(sentences)), strict=True)
        if np.isfinite(log_prob)
    ]


def spelling(*words):
    """A step function that spells one word per sequence; its state is the sequence and the letters written."""
    longest = max(map(len, words))
    paths = np.full((len(words), longest + 3), PAD, np.int32)
    for row, word in enumerate(words):
        paths[row, : len(word) + 2] = [START, *map(LETTERS.index, word), END]

    def step(last, state):
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
    """A step function that always says the same, for one sequence."""

    def step(last, state):
        rows = ops.ones_like(last, dtype="float32")[:, None]
        return ops.log_softmax(rows * ops.convert_to_tensor(logits, dtype="float32")), state

    return step, (np.zeros((1, 1), np.float32),)


def tables(seed, *, sequences, words, longest):
    """For each sequence, place and last word, random log probabilities (S, T, V, V); and their step function."""
    size = 4 + words
    logits = np.random.default_rng(seed).normal(size=(sequences, longest, size, size)) * 2
    table = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)

    def step(last, state):
        sequence, position = state
        row = (sequence * longest + position) * size + last
        return ops.take(ops.convert_to_tensor(table.reshape(-1, size)), row, axis=0), (sequence, position + 1)

    return table, step, (np.arange(sequences, dtype=np.int32), np.zeros(sequences, np.int32))


def log_probs_by_hand(table, ids):
    """The log probability of a sentence, its end with it unless it was cut."""
    path = [START, *ids, END][: len(table) + 1]
    return sum(table[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path)))


def sentences_that_may_be(words, longest):
    """Every sentence without a word right after itself, and without three words that stand in it twice."""
    return [
        ids
        for length in range(longest + 1)
        for ids in itertools.product(range(4, 4 + words), repeat=length)
        if all(a != b for a, b in itertools.pairwise(ids)) and not repeats(ids)
    ]


def repeats(ids):
    """Whether three words stand twice in a sentence, in the same order."""
    triples = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(triples)) < len(triples)


@pytest.mark.parametrize("beam_width", [1, 2, 5])
def test_spells_the_words(beam_width):
    """Each sequence of a batch gets its own word, compiled too, whatever the width and however their lengths differ."""
    step, state = spelling("kite", "a", "sandwich")

    def search(state):
        return beam_search(step, tuple(state), beam_width=beam_width, max_length=12)

    found = Compiled(search, []).predict_on_batch(list(state))
    assert ["".join(LETTERS[i] for i in written(found, row)[0]) for row in range(3)] == ["kite", "a", "sandwich"]
    assert [array.shape for array in found] == [(3, beam_width, 12), (3, beam_width), (3, beam_width)]
    assert found.lengths[:, 0].tolist() == [5, 2, 9]
    assert found.ids[1, 0].tolist() == [LETTERS.index("a"), END] + [PAD] * 10


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 2}), (draw, {"count": 2})])
def test_stops_when_all_have_ended(decode, count):
    """No step is taken after every sentence has ended."""
    step, state = spelling("of", "it")
    calls = []

    def counted(last, state):
        calls.append(last)
        log_probs, state = step(last, state)
        # Not a second sentence: with nothing else possible, the other place in the beam stays empty.
        return ops.where(log_probs > LOG_HALF, 0.0, -float("inf")), state

    found = decode(counted, state, max_length=50, **count)
    assert [written(found, row)[0] for row in (0, 1)] == [tuple(map(LETTERS.index, word)) for word in ("of", "it")]
    if keras.backend.backend() == "tensorflow":  # others trace a step once, however often it is taken
        assert len(calls) == 3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others trace a step for every number of rows")
@pytest.mark.parametrize(
    ("beam_width", "asked"), [(1, [16, 16, 16, 2, 2, 2, 2, 2, 2]), (3, [18, 36, 36])], ids=["greedy", "beam"]
)
def test_asks_only_about_what_goes_on(beam_width, asked):
    """A step has the rows that are not finished, rounded up to an eighth of all; of beams that are equal, one."""
    step, state = spelling("sandwich", *["of"] * 15)
    rows = []

    def counted(last, state):
        rows.append(len(last))
        return step(last, state)

    beam_search(counted, state, beam_width=beam_width, max_length=12)
    assert rows[: len(asked)] == asked


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 3}), (sample, {})])
def test_a_sequence_is_written_as_if_it_were_alone(decode, count):
    """Whichever of its neighbours have ended, and however many they are."""
    _, step, state = tables(6, sequences=21, words=5, longest=9)
    numbers = np.random.default_rng(0).random((21, 4, 9), dtype=np.float32)

    def write(rows):
        settings = {"max_length": 9} if count else {"numbers": numbers[rows]}
        return arrays(decode(step, tuple(tensor[rows] for tensor in state), **count, **settings))

    together = write(slice(None))
    for sequence in range(21):
        for whole, alone in zip(together, write(slice(sequence, sequence + 1)), strict=True):
            np.testing.assert_array_equal(whole[sequence], alone[0])


def test_cuts_at_the_longest_length():
    """A model that never ends is cut, and the sum of its log probabilities is that of the words written."""
    step, state = constant([-30, -30, -30, -30, 0, 0])
    found = arrays(beam_search(step, state, beam_width=1, max_length=4))
    assert found.ids[0, 0].tolist() == [4, 5, 4, 5]
    assert found.lengths[0, 0] == 4
    assert found.log_probs[0, 0] == pytest.approx(4 * LOG_HALF, abs=1e-4)


@pytest.mark.parametrize(("decode", "count"), [(beam_search, {"beam_width": 3}), (draw, {"count": 50})])
def test_never_emits_forbidden_words_nor_a_word_twice_in_a_row(decode, count):
    """Forbidden words are not written even where the model wants nothing else; nor is a word right after itself."""
    step, state = constant([90, 90, -9, 90, 5, 1])
    for ids in written(decode(step, state, max_length=8, **count)):
        assert not {PAD, START, UNKNOWN} & set(ids)
        assert all(a != b for a, b in itertools.pairwise(ids))


@pytest.mark.parametrize("beam_width", [1, 4])
def test_three_words_do_not_come_back(beam_width):
    """A model that would say a-b-c for ever is held to say it once, and then whatever else it can."""
    cycle = np.full((7, 7), -3.0, np.float32)
    for word, following in ((START, 4), (4, 5), (5, 6), (6, 4)):
        cycle[word, following] = 3

    def step(last, state):
        return ops.log_softmax(ops.take(ops.convert_to_tensor(cycle), last, axis=0)), state

    found = beam_search(step, (np.zeros((2, 1), np.float32),), beam_width=beam_width, max_length=14)
    for sequence in (0, 1):
        sentences = written(found, sequence)
        assert sentences
        assert not any(repeats(ids) for ids in sentences)
    assert written(found)[0][:5] == (4, 5, 6, 4, 5)


def test_ties_go_to_the_lower_word():
    """Of equally probable words the one with the lower id is taken, so that a search can be repeated."""
    step, state = constant([0] * 6)
    assert written(beam_search(step, state, beam_width=1, max_length=1)) == [()]
    assert written(beam_search(step, state, beam_width=3, max_length=1)) == [(), (4,), (5,)]


def test_ties_go_to_the_better_beam():
    """Of equally ranked sentences, the one that goes on from the better beam comes first."""
    step, state = constant([-30, -30, -30, -30, 0, 0, 0])
    assert written(beam_search(step, state, beam_width=4, max_length=2)) == [(4, 5), (4, 6), (5, 4), (5, 6)]


@pytest.mark.parametrize("length_exponent", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_the_space_finds_the_best_sentences(length_exponent):
    """With nothing pruned, the search finds what trying every sentence finds, in the same order."""
    longest, sequences = 4, 5
    table, step, state = tables(0, sequences=sequences, words=3, longest=longest)
    every = sentences_that_may_be(3, longest)
    found = beam_search(step, state, beam_width=60, max_length=longest, length_exponent=length_exponent)
    for sequence in range(sequences):

        def rank(ids, table=table[sequence]):
            return log_probs_by_hand(table, ids) / min(len(ids) + 1, longest) ** length_exponent

        assert written(found, sequence)[:5] == sorted(every, key=rank, reverse=True)[:5]
        assert sorted(written(found, sequence)) == sorted(every)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    words=st.integers(1, 6),
    longest=st.integers(1, 5),
    beam_width=st.integers(1, 7),
    length_exponent=st.floats(0, 2),
)
def test_every_sentence_is_what_it_is_said_to_be(seed, words, longest, beam_width, length_exponent):
    """Whatever the model: sentences differ, come by rank, and have the lengths and log probabilities that are given."""
    table, step, state = tables(seed, sequences=2, words=words, longest=longest)
    found = arrays(beam_search(step, state, beam_width=beam_width, max_length=longest, length_exponent=length_exponent))
    for sequence in (0, 1):
        sentences = written(found, sequence)
        assert len(set(sentences)) == len(sentences) == min(beam_width, len(sentences_that_may_be(words, longest)))
        log_probs = found.log_probs[sequence, : len(sentences)]
        lengths = [min(len(ids) + 1, longest) for ids in sentences]
        assert found.lengths[sequence, : len(sentences)].tolist() == lengths
        np.testing.assert_allclose(
            log_probs, [log_probs_by_hand(table[sequence], ids) for ids in sentences], rtol=1e-4, atol=1e-5
        )
        ranks = log_probs / np.array(lengths) ** length_exponent
        assert (np.diff(ranks) <= 1e-5).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda size: st.lists(st.lists(st.integers(-3, 3), min_size=size, max_size=size), min_size=1, max_size=5)
    ),
    st.integers(1, 40),
)
def test_the_greatest_are_found_by_blocks(values, count):
    """As by sorting each row; of equals the first, however they lie in the blocks."""
    values = np.array(values, np.float32)
    values[values == -3] = -np.inf
    count = min(count, values.shape[1])
    found, places = map(ops.convert_to_numpy, decoding._top(ops.convert_to_tensor(values), count))
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=1))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
def test_what_has_no_probability_is_never_drawn(number):
    """Not at the ends of the interval either, where a sum that is rounded may lie on the wrong side."""
    rng = np.random.default_rng(0)
    probabilities = rng.random((500, 11)).astype(np.float32) * (rng.random((500, 11)) < 0.3)
    probabilities = probabilities[probabilities.any(axis=1)]
    drawn = ops.convert_to_numpy(decoding._draw(probabilities, np.full(len(probabilities), number, np.float32)))
    assert (np.take_along_axis(probabilities, drawn[:, None], axis=1) > 0).all()


def test_samples_are_as_frequent_as_they_are_probable():
    """Each sentence is drawn with the product of its words' probabilities, the forbidden ones' share left out."""
    longest, count = 3, 20_000
    table, step, state = tables(1, sequences=2, words=2, longest=longest)
    found = draw(step, state, count=count, max_length=longest, seed=3)
    for sequence in (0, 1):
        drawn = written(found, sequence)
        for ids in sentences_that_may_be(2, longest):
            probability = 1.0
            for t, (last, word) in enumerate(itertools.pairwise([START, *ids, END][: longest + 1])):
                allowed = [i for i in (END, 4, 5) if i != last]
                among = np.exp(table[sequence, t, last])
                probability *= float(among[word] / among[allowed].sum())
            error = np.sqrt(probability * (1 - probability) / count)
            assert drawn.count(ids) / count == pytest.approx(probability, abs=4 * error + 1e-9), ids


def test_samples_have_the_models_log_probabilities():
    """A sample's sum is that of the model, and stops at its end."""
    table, step, state = tables(2, sequences=1, words=3, longest=4)
    found = arrays(draw(step, state, count=30, max_length=4))
    expected = [log_probs_by_hand(table[0], ids) for ids in written(found)]
    np.testing.assert_allclose(found.log_probs[0], expected, rtol=1e-4)


def test_the_same_numbers_draw_the_same_samples():
    """All chance is in the numbers; a generator draws others each time, in a compiled function too."""
    _, step, state = tables(4, sequences=2, words=5, longest=6)

    def drawn(seed):
        return arrays(draw(step, state, count=20, max_length=6, seed=seed)).ids.tolist()

    assert drawn(1) == drawn(1) != drawn(2)

    def drawn_twice(seed):
        generator = keras.random.SeedGenerator(seed)

        def once(state):
            return sample(step, tuple(state), numbers=keras.random.uniform((2, 20, 6), seed=generator))

        function = Compiled(once, [generator])
        return [function.predict_on_batch(list(state)).ids.tolist() for _ in range(2)]

    first, second = drawn_twice(5)
    assert first != second
    assert drawn_twice(5) == [first, second]


@pytest.mark.parametrize(("count", "max_length"), [(0, 3), (2, 0)])
def test_refuses_impossible_settings(count, max_length):
    """A number of sentences or a length below one is an error that names both."""
    step, state = spelling("a")
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        beam_search(step, state, beam_width=count, max_length=max_length)
    with pytest.raises(PipelineError, match=f"at least 1. Received: {count} and {max_length}"):
        draw(step, state, count=count, max_length=max_length)

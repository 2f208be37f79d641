"""The search, with step functions whose best sentence is known."""

import itertools

import numpy as np
import pytest

from pipeline.decoding import beam_search
from pipeline.errors import PipelineError

START, END = 1, 2
LETTERS = "__^$abcdefghijklmnopqrstuvwxyz"  # ids 0..3 are special, 4 is "a"


def log_softmax(logits):
    """Log probabilities of the last axis."""
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def spelling(*words):
    """A step function that spells one word per sequence; its state counts letters and remembers the sequence."""
    targets = [[LETTERS.index(letter) for letter in word] + [END] for word in words]

    def step(last, state):
        sequence, position = state
        logits = np.zeros((len(last), len(LETTERS)), np.float32)
        for row, (i, t) in enumerate(zip(sequence, position, strict=True)):
            expected = START if t == 0 else targets[i][min(t, len(targets[i])) - 1]
            if last[row] == expected and t < len(targets[i]):
                logits[row, targets[i][t]] = 10
        return log_softmax(logits), (sequence, position + 1)

    return step, (np.arange(len(words)), np.zeros(len(words), int))


def search(step, state, **overrides):
    """Search with the settings of these tests."""
    settings = {"start": START, "end": END, "forbidden": (0, START, 3), "beam_width": 3, "max_length": 12}
    return beam_search(step, state, **(settings | overrides))


@pytest.mark.parametrize("beam_width", [1, 2, 5])
def test_spells_the_words(beam_width):
    """Each sequence of a batch gets its own word, whatever the width and however their lengths differ."""
    step, state = spelling("kite", "a", "sandwich")
    best = [hypotheses[0] for hypotheses in search(step, state, beam_width=beam_width)]
    assert ["".join(LETTERS[i] for i in h.ids) for h in best] == ["kite", "a", "sandwich"]


def test_stops_when_all_have_ended():
    """No step is taken after every beam has finished."""
    calls = []

    def step(last, state):
        calls.append(len(last))
        logits = np.full((len(last), 6), -20.0, np.float32)
        logits[:, END] = 0
        return log_softmax(logits), state

    found = search(step, (np.zeros((2, 1), np.float32),), beam_width=1, max_length=50)
    assert [h[0].ids for h in found] == [(), ()]
    assert calls == [2]


def test_cuts_at_the_longest_length():
    """A model that never ends is cut, and its log probability is the mean of the words written."""

    def step(last, state):
        logits = np.full((len(last), 6), -30.0, np.float32)
        logits[:, 4] = np.where(last == 4, -30, 0)
        logits[:, 5] = np.where(last == 5, -30, 0)
        return log_softmax(logits), state

    hypothesis = search(step, (np.zeros((1, 1), np.float32),), beam_width=1, max_length=5)[0][0]
    assert len(hypothesis.ids) == 5
    assert hypothesis.log_prob == pytest.approx(np.log(0.5) / 5, abs=1e-4)


def test_never_emits_forbidden_words_nor_a_word_twice_in_a_row():
    """Forbidden words are not written even where the model wants nothing else; nor is a word right after itself."""

    def step(last, state):
        logits = np.tile(np.array([9, 9, -9, 9, 5, 1], np.float32), (len(last), 1))
        return log_softmax(logits), state

    for hypothesis in search(step, (np.zeros((1, 1), np.float32),), max_length=8)[0]:
        assert not {0, START, 3} & set(hypothesis.ids)
        assert all(a != b for a, b in itertools.pairwise(hypothesis.ids))


def test_ties_go_to_the_lower_word():
    """Of equally probable words the one with the lower id is taken, so that a search can be repeated."""

    def step(last, state):
        return log_softmax(np.zeros((len(last), 6), np.float32)), state

    assert search(step, (np.zeros((1, 1), np.float32),), beam_width=1, max_length=1)[0][0].ids == ()
    assert [h.ids for h in search(step, (np.zeros((1, 1), np.float32),), max_length=1)[0]] == [(), (4,), (5,)]


@pytest.mark.parametrize("length_exponent", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_as_wide_as_the_space_finds_the_best_sentence(seed, length_exponent):
    """With nothing pruned, the search finds what trying every sentence finds, in the same order."""
    words, longest = 3, 4
    vocabulary = 4 + words
    table = log_softmax(
        np.random.default_rng(seed).normal(size=(longest, vocabulary, vocabulary)).astype(np.float32) * 2
    )

    def step(last, state):
        (position,) = state
        return table[position[:, 0].astype(int), last], (position + 1,)

    def rank(ids):
        path = [START, *ids, END][: longest + 1]
        total = sum(table[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path)))
        return total / (len(path) - 1) ** length_exponent

    sentences = [
        ids
        for length in range(longest + 1)
        for ids in itertools.product(range(4, vocabulary), repeat=length)
        if all(a != b for a, b in itertools.pairwise(ids))
    ]
    expected = sorted(sentences, key=rank, reverse=True)[:5]
    found = search(
        step,
        (np.zeros((1, 1), np.float32),),
        beam_width=200,
        max_length=longest,
        length_exponent=length_exponent,
    )[0]
    assert [h.ids for h in found[:5]] == expected
    assert len({h.ids for h in found}) == len(found) == len(sentences)


@pytest.mark.parametrize("wrong", [{"beam_width": 0}, {"max_length": 0}])
def test_refuses_impossible_settings(wrong):
    """A width or a length below one is an error that names both."""
    step, state = spelling("a")
    with pytest.raises(PipelineError, match="at least 1"):
        search(step, state, **wrong)

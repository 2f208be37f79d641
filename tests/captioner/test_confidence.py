"""Confidence: the regression finds known probabilities, and the index finds what is alike and what is novel."""

import numpy as np
import pytest

from pipeline.captioner.captioner import Caption
from pipeline.captioner.confidence import DIRECTIONS, Confidence, TrainingIndex, fit_logistic, logistic
from pipeline.data.images import decode
from pipeline.data.vocabulary import Vocabulary
from pipeline.errors import PipelineError
from pipeline.features import openvino
from pipeline.storage import keras_files

VOCABULARY = Vocabulary.build(["a dog runs", "a cat sits"], min_count=1)


def ids(text):
    """The ids of the words of a text, each once."""
    return np.unique(VOCABULARY.encode(text))


def kinds(count, *, seed=0, kind=None):
    """Vectors of two kinds of photographs, with some noise, and their kinds."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(2, size=count) if kind is None else np.full(count, kind)
    vectors = rng.normal(scale=0.1, size=(count, 20)).astype(np.float32)
    vectors[:, 0] += np.where(chosen, 3, -3)
    return vectors, chosen


@pytest.fixture(scope="module")
def index():
    """Photographs of dogs and of cats."""
    vectors, chosen = kinds(200)
    return TrainingIndex.build(vectors, [ids("a dog runs" if dog else "a cat sits") for dog in chosen])


def test_the_regression_recovers_probabilities():
    """From outcomes that were drawn with known ones."""
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(20_000, 3))
    truth = np.array([0.5, 1.0, -2.0, 0.0])
    outcome = rng.random(len(evidence)) < logistic(evidence, truth)
    found = fit_logistic(evidence, outcome)
    np.testing.assert_allclose(found, truth, atol=0.08)
    np.testing.assert_allclose(logistic(evidence, found), logistic(evidence, truth), atol=0.05)


@pytest.mark.parametrize("outcome", [True, False])
def test_outcomes_that_are_all_alike(outcome):
    """The probabilities stay a little below certainty, the less the more captions there are."""
    found = logistic(np.zeros((9, 2)), fit_logistic(np.zeros((9, 2)), np.full(9, outcome)))
    np.testing.assert_allclose(found, 10 / 11 if outcome else 1 / 11, rtol=1e-6)


def test_the_nearest_photographs_are_of_the_same_kind(index):
    """And their captions have the words of the kind."""
    vectors, chosen = kinds(50, seed=1)
    rows, cosines = index.neighbours(vectors)
    assert rows.shape == cosines.shape == (50, 5)
    assert cosines.min() > 0.9
    for nearest, dog in zip(rows, chosen, strict=True):
        for photograph in nearest:
            np.testing.assert_array_equal(index.words_of(photograph), ids("a dog runs" if dog else "a cat sits"))


def test_a_photograph_in_another_direction_is_unexplained(index):
    """Far more than those of the known kinds; a vector without length is explained by nothing, and no error."""
    known, _ = kinds(50, seed=1)
    other = np.zeros((2, 20), np.float32)
    other[0] = np.random.default_rng(2).normal(size=20)
    other[0, 0] = 0
    assert index.unexplained(known).max() < 0.05
    assert index.unexplained(other)[0] > 0.2


def test_the_index_is_small():
    """At the sizes of a real encoder, less than two bytes a number, and no more directions than its bound."""
    vectors = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    built = TrainingIndex.build(vectors, [np.array([4])] * 300)
    assert built.directions.shape == (400, DIRECTIONS)
    assert (built.photographs.shape, built.photographs.dtype) == ((300, 64), np.float16)


@pytest.fixture(scope="module")
def confidence(index):
    """Fitted to captions of cats and dogs, half of which name the wrong animal."""
    vectors, chosen = kinds(400, seed=3)
    wrong = np.random.default_rng(4).random(400) < 0.5
    captions = [Caption("a dog runs" if dog else "a cat sits", -1.0, 0.1) for dog in chosen != wrong]
    return Confidence.fit(index, vectors, [captions], [~wrong], VOCABULARY)


def test_a_caption_that_the_neighbours_support_is_surer(confidence):
    """The caption's own probability says nothing here."""
    vectors, _ = kinds(10, seed=5, kind=1)
    right, wrong = (
        [caption.confidence for caption in confidence.judge(vectors, [Caption(text, -1.0, 0.1)] * 10, VOCABULARY)]
        for text in ("a dog runs", "a cat sits")
    )
    assert min(right) > 0.9
    assert max(wrong) < 0.1
    assert confidence.judge(vectors[:0], [], VOCABULARY) == []


def test_a_twentieth_of_the_photographs_that_it_was_fitted_to_is_novel(confidence):
    """And so is every photograph in another direction."""
    fitted, _ = kinds(400, seed=3)
    captions = [Caption("a dog runs", -1.0, 0.1)] * 400
    assert sum(caption.novel for caption in confidence.judge(fitted, captions, VOCABULARY)) == 20
    other = np.random.default_rng(6).normal(size=(10, 20)).astype(np.float32)
    assert all(caption.novel for caption in confidence.judge(other, captions[:10], VOCABULARY))


def test_a_caption_without_a_known_word(confidence):
    """It has no information that neighbours could share, and is no error."""
    [judged] = confidence.judge(kinds(1)[0], [Caption("", -1.0, 0.1)], VOCABULARY)
    assert 0 <= judged.confidence <= 1


def test_a_stored_confidence_is_the_same(confidence):
    """Its file has no pickled objects, and another file is an error that names it."""
    vectors, _ = kinds(10, seed=7)
    captions = [Caption("a dog runs", -1.0, 0.1)] * 10
    loaded = Confidence.from_bytes(confidence.to_bytes(), origin="f.npz")
    assert loaded.judge(vectors, captions, VOCABULARY) == confidence.judge(vectors, captions, VOCABULARY)
    for data in (b"", b"PK", confidence.to_bytes()[:-100]):
        with pytest.raises(PipelineError, match=r"f\.npz is not the confidence"):
            Confidence.from_bytes(data, origin="f.npz")


def test_noise_is_novel_beside_real_photographs(flickr8k, real_encoder):
    """All of it, and few photographs that the index does not have: the encoder's features tell them apart."""
    model = keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder))
    network = openvino.EncoderNetwork(openvino.convert(model))
    files = sorted((flickr8k / "images").iterdir())[:240]
    photographs = [decode(file.read_bytes(), network.size).pixels for file in files]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, photographs[0].shape, np.uint8) for _ in range(5)]
    pictures = np.stack([*photographs, *noise])
    vectors = np.concatenate([network(batch)[0] for batch in np.array_split(pictures, 20)])
    vectors = (vectors - vectors[:160].mean(axis=0)) / vectors[:160].std(axis=0)
    index = TrainingIndex.build(vectors[:160], [ids("a dog")] * 160)
    caption = Caption("a dog", -1.0, 0.1)
    fitted = Confidence.fit(index, vectors[160:200], [[caption] * 40], [np.ones(40, bool)], VOCABULARY)
    novel = [judged.novel for judged in fitted.judge(vectors[200:], [caption] * 45, VOCABULARY)]
    assert sum(novel[:40]) <= 8
    assert all(novel[40:])

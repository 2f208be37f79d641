"""Confidence: the regression finds known probabilities; neighbours support captions; other pictures are novel."""

import numpy as np
import pytest

from pipeline.captioner.captioner import Caption
from pipeline.captioner.confidence import Confidence, Evidence, fit_logistic, logistic
from pipeline.captioner.neighbours import COMPONENTS, Neighbours
from pipeline.data.images import decode
from pipeline.data.vocabulary import Vocabulary
from pipeline.features import openvino
from pipeline.storage import keras_files

VOCABULARY = Vocabulary.build(["a dog runs", "a cat sits"], min_count=1)

SIZE = COMPONENTS + 100
"""Numbers of a vector: more than there are components."""

DOG, CAT = "a dog runs", "a cat sits"


def kinds(count, *, seed=0, kind=None):
    """Vectors of dogs and cats, which vary in twenty directions only, but for some noise; and which are dogs."""
    rng = np.random.default_rng(seed)
    dogs = rng.random(count) < 0.5 if kind is None else np.full(count, kind)
    factors = rng.normal(scale=0.3, size=(count, 20))
    factors[:, 0] += np.where(dogs, 3, -3)
    directions = np.random.default_rng(99).normal(size=(20, SIZE))
    return (factors @ directions + rng.normal(scale=0.5, size=(count, SIZE))).astype(np.float32), dogs


@pytest.fixture(scope="module")
def neighbours():
    """Photographs of dogs and of cats."""
    vectors, dogs = kinds(300)
    ids = [VOCABULARY.encode(DOG if dog else CAT) for dog in dogs]
    return Neighbours.build(vectors, ids, np.arange(300))


@pytest.fixture(scope="module")
def gather(neighbours):
    """The evidence for captions of vectors."""
    known, _ = kinds(300)

    def of(vectors, texts):
        captions = [Caption(text, -1.0, 0.1) for text in texts]
        standardized = (vectors - known.mean(axis=0)) / known.std(axis=0)
        return captions, Evidence.gather(captions, vectors, standardized, neighbours, VOCABULARY)

    return of


@pytest.fixture(scope="module")
def confidence(gather):
    """Fitted to captions of dogs and cats, half of which name the wrong animal."""
    vectors, dogs = kinds(400, seed=3)
    wrong = np.random.default_rng(4).random(400) < 0.5
    _, evidence = gather(vectors, [DOG if dog else CAT for dog in dogs != wrong])
    return Confidence.fit([evidence], [~wrong])


def test_the_regression_recovers_probabilities():
    """From outcomes that were drawn with known ones."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(20_000, 3))
    truth = np.array([0.5, 1.0, -2.0, 0.0])
    outcome = rng.random(len(numbers)) < logistic(numbers, truth)
    found = fit_logistic(numbers, outcome)
    np.testing.assert_allclose(found, truth, atol=0.08)
    np.testing.assert_allclose(logistic(numbers, found), logistic(numbers, truth), atol=0.05)


@pytest.mark.parametrize("outcome", [True, False])
def test_outcomes_that_are_all_alike(outcome):
    """The probabilities stay a little below certainty, the less the more captions there are."""
    found = logistic(np.zeros((9, 2)), fit_logistic(np.zeros((9, 2)), np.full(9, outcome)))
    np.testing.assert_allclose(found, 10 / 11 if outcome else 1 / 11, rtol=1e-6)


def test_the_evidence(gather):
    """Of a caption that says what its neighbours show, one that is half wrong, and one without a word."""
    vectors, _ = kinds(3, seed=1, kind=True)
    _, evidence = gather(vectors, [DOG, "a cat runs", ""])
    assert evidence.numbers[:, :2].tolist() == [[-1, 3], [-1, 3], [-1, 0]]
    full, half, none = evidence.numbers[:, 2]
    assert (full, none) == (pytest.approx(1), 0)
    assert 0.5 < half < 1  # "a" and "runs" of three words
    assert (evidence.numbers[:, 3] > 0.7).all()


def test_many_photographs_are_compared_in_batches(gather, monkeypatch):
    """It makes no difference."""
    vectors, dogs = kinds(50, seed=2)
    texts = [DOG if dog else CAT for dog in dogs]
    _, whole = gather(vectors, texts)
    monkeypatch.setattr("pipeline.captioner.confidence.BATCH", 7)
    _, parts = gather(vectors, texts)
    np.testing.assert_allclose(parts.numbers, whole.numbers, rtol=1e-5)
    np.testing.assert_allclose(parts.explained, whole.explained, rtol=1e-5)


def test_a_caption_that_the_neighbours_support_is_surer(confidence, gather):
    """The caption's own probability says nothing here."""
    vectors, _ = kinds(10, seed=5, kind=True)
    right, wrong = (
        [caption.confidence for caption in confidence.judge(*gather(vectors, [text] * 10))] for text in (DOG, CAT)
    )
    assert min(right) > 0.9
    assert max(wrong) < 0.1
    assert confidence.judge(*gather(vectors[:0], [])) == []


def test_photographs_in_other_directions_are_novel(confidence, gather):
    """So is a twentieth of those that the limit comes from."""
    fitted, _ = kinds(400, seed=3)
    assert sum(caption.novel for caption in confidence.judge(*gather(fitted, [DOG] * 400))) == 20
    other = np.random.default_rng(6).normal(scale=3, size=(10, SIZE)).astype(np.float32)
    assert all(caption.novel for caption in confidence.judge(*gather(other, [DOG] * 10)))


def test_nothing_is_novel_where_everything_is_explained():
    """An encoder of fewer numbers than there are components: rounding makes no photograph novel."""
    vectors = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    index = Neighbours.build(vectors[:100], [VOCABULARY.encode(DOG)] * 100, np.arange(100))
    standardized = (vectors - vectors[:100].mean(axis=0)) / vectors[:100].std(axis=0)
    captions = [Caption(DOG, -1.0, 0.1)] * 100
    dev, test = (
        Evidence.gather(captions, vectors[part], standardized[part], index, VOCABULARY)
        for part in (slice(100), slice(100, 200))
    )
    fitted = Confidence.fit([dev], [np.ones(100, bool)])
    assert not any(caption.novel for evidence in (dev, test) for caption in fitted.judge(captions, evidence))


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
    standardized = (vectors - vectors[:160].mean(axis=0)) / vectors[:160].std(axis=0)
    index = Neighbours.build(vectors[:160], [VOCABULARY.encode(DOG)] * 160, np.arange(160))

    def evidence(part):
        captions = [Caption(DOG, -1.0, 0.1)] * len(vectors[part])
        return captions, Evidence.gather(captions, vectors[part], standardized[part], index, VOCABULARY)

    fitted = Confidence.fit([evidence(slice(160, 200))[1]], [np.ones(40, bool)])
    novel = [judged.novel for judged in fitted.judge(*evidence(slice(200, None)))]
    assert sum(novel[:40]) <= 8
    assert all(novel[40:])

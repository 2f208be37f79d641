"""The merge model: its stepwise form, and its embedding."""

import numpy as np

from pipeline.captioner.merge_model import build, decode_step, initial_state
from pipeline.data.vocabulary import START
from tests.support.small_captioner import CONFIG, FEATURES, VOCABULARY, next_probabilities


def test_a_step_averages_the_probabilities_of_the_models(model, other_model):
    """Along a sentence, the probabilities of a step are the mean of those of the whole models."""
    models, ids = [model, other_model], [START, 5, 4, 7]
    state = initial_state(models, FEATURES)
    for length in range(1, len(ids) + 1):
        log_probs, state = decode_step(models, np.full(len(FEATURES), ids[length - 1], np.int32), state)
        for row, vector in enumerate(FEATURES):
            expected = next_probabilities(models, vector, ids[:length])
            np.testing.assert_allclose(np.exp(log_probs[row]), expected, rtol=1e-4)


def test_glove_vectors_initialize_the_embedding():
    """The embedding starts with the given vectors, and remains trainable."""
    vectors = np.random.default_rng(3).normal(size=(len(VOCABULARY), 7)).astype(np.float32)
    model = build(len(VOCABULARY), FEATURES, CONFIG, vectors)
    np.testing.assert_array_equal(model.get_layer("embedding").get_weights()[0], vectors)
    assert model.get_layer("embedding").trainable


def test_the_features_of_all_crops_set_the_scale():
    """The input is standardized by mean and variance over images and crops alike."""
    crops = np.random.default_rng(4).normal(3, 2, size=(50, 6, 5)).astype(np.float32)
    standardized = np.asarray(build(len(VOCABULARY), crops, CONFIG).get_layer("scale")(crops.reshape(-1, 5)))
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(standardized.std(axis=0), 1, atol=1e-4)

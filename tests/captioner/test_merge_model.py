"""The merge model: its stepwise form, with and without attention, and its embedding."""

import numpy as np

from pipeline.captioner.merge_model import (
    attends,
    build,
    decode_step,
    encode_image,
    encode_images,
    last_stage,
    predict,
)
from pipeline.captioner.sentences import Rows
from pipeline.data.vocabulary import PAD, START
from pipeline.features.store import Features
from tests.support.small_captioner import (
    CONFIG,
    FEATURES,
    REGIONS,
    VOCABULARY,
    build_last_stage,
    build_model,
    inputs_of,
    next_probabilities,
    softmax,
)


def one_each(images):
    """The rows of one sentence for each image."""
    every_row = np.arange(images, dtype=np.int32)
    return Rows(every_row, every_row[:, None])


def test_a_step_averages_the_probabilities_of_the_models(ensemble):
    """Along a sentence, the probabilities of a step are the mean of those of the whole models."""
    models, features = ensemble
    ids, rows = [START, 5, 4, 7], one_each(len(features))
    images, state = encode_images(models, features.inputs)
    for length in range(1, len(ids) + 1):
        words = np.full(len(features), ids[length - 1], np.int32)
        log_probs, state = decode_step(models, images, words, state, rows)
        for row in range(len(features)):
            expected = next_probabilities(models, features[[row]], ids[:length])
            np.testing.assert_allclose(np.exp(log_probs[row]), expected, rtol=1e-4)


def test_each_row_of_a_step_has_the_image_of_its_sequence(ensemble):
    """Of three images with two sentences each, a step of some rows in any order gives those of their own images."""
    models, features = ensemble
    rows = Rows(np.array([4, 1, 2], np.int32), np.array([[0, 1], [2, 0], [0, 0]], np.int32))
    images, state = encode_images(models, features.inputs)
    states = tuple(np.zeros((3, tensor.shape[1]), np.float32) for tensor in state)
    log_probs, _ = decode_step(models, images, np.full(3, START, np.int32), states, rows)
    for row, image in enumerate((2, 0, 1)):
        expected = next_probabilities(models, features[[image]], [START])
        np.testing.assert_allclose(np.exp(log_probs[row]), expected, rtol=1e-4)


def test_padding_changes_nothing(ensemble):
    """The predictions after each word are the same, whatever padding follows."""
    [model, _], features = ensemble
    words = np.array([[START, 5, 4, 7]] * len(features), np.int32)
    padded = np.pad(words, ((0, 0), (0, 3)), constant_values=PAD)
    alone, followed = (np.asarray(model(inputs_of(features, each), training=False)) for each in (words, padded))
    np.testing.assert_allclose(followed[:, : words.shape[1]], alone, rtol=1e-5, atol=1e-6)


def test_captions_share_images(ensemble):
    """Of captions that name the rows of their images, in any order, each has the predictions of its own."""
    [model, _], features = ensemble
    rows = np.array([2, 0, 2, 1, 0], np.int32)
    words = np.random.default_rng(0).integers(4, len(VOCABULARY), (len(rows), 3)).astype(np.int32)
    found = model({**features.inputs, "words": words, "rows": rows}, training=False)
    expected = model(inputs_of(features[rows], words), training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_finds_the_region(attending):
    """Other regions give other predictions, and their order does not matter."""
    words = np.full((len(REGIONS), 1), START, np.int32)
    reversed_ = Features(REGIONS.vectors, REGIONS.regions[:, ::-1])
    other = Features(REGIONS.vectors, REGIONS.regions[::-1])
    found, same, changed = (np.asarray(attending(inputs_of(each, words))) for each in (REGIONS, reversed_, other))
    np.testing.assert_allclose(same, found, rtol=1e-4, atol=1e-5)
    assert not np.allclose(changed[0], found[0], rtol=1e-2)


def test_the_last_stage_of_the_encoder(tuning):
    """It is as in the encoder: the states attend to the places of its map, whose mean is the image vector."""
    part, layer = build_last_stage(), tuning.get_layer
    assert last_stage(tuning).trainable_variables and not part.trainable_variables
    places = np.asarray(part(REGIONS.regions.reshape(-1, 2, 3, 4).astype(np.float32))).reshape(-1, 6, 5)
    image = encode_image(tuning, REGIONS.inputs)
    np.testing.assert_allclose(image.projected, layer("image")(layer("scale")(places.mean(axis=1))), rtol=1e-5)
    np.testing.assert_allclose(image.places, np.swapaxes(layer("places")(places), 1, 2), rtol=1e-5)
    other = Features(REGIONS.vectors + 1, REGIONS.regions)
    np.testing.assert_array_equal(encode_image(tuning, other.inputs).projected, image.projected)


def test_the_weights_of_a_step_are_what_it_looks_at(attending, other_attending):
    """They add up to 1 over the regions, and what they find gives the predictions of the step."""
    words, rows = np.array([START, 5, 4], np.int32), one_each(len(REGIONS))
    for model, heads in ((attending, 4), (other_attending, 3)):
        image = encode_image(model, REGIONS.inputs)
        state = (np.zeros_like(image.projected),) * 2
        log_probs, state, weights = predict(model, image, words, state, rows)
        assert weights.shape == (len(REGIONS), heads, 1, REGIONS.regions.shape[1])
        np.testing.assert_allclose(np.asarray(weights).sum(axis=-1), 1, rtol=1e-5)
        found = np.einsum("bhkr,bhrd->bkhd", weights, image.places)
        layer = model.get_layer
        parts = [state[0], image.projected, layer("context")(found)[:, 0]]
        expected = softmax(np.asarray(layer("logits")(layer("hidden")(layer("merge")(parts)))))
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-4)


def test_attention_needs_regions_and_heads():
    """Without regions the heads change nothing, to the bit; without heads the regions change nothing."""
    pooled = build_model(attention_heads=0)
    for model in (build_model(), build_model(REGIONS, attention_heads=0)):
        assert not attends(model)
        for one, other in zip(model.get_weights(), pooled.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert attends(build_model(REGIONS))


def test_glove_vectors_initialize_the_embedding():
    """The embedding starts with the given vectors, and remains trainable."""
    vectors = np.random.default_rng(3).normal(size=(len(VOCABULARY), 7)).astype(np.float32)
    model = build(len(VOCABULARY), FEATURES, CONFIG, vectors)
    np.testing.assert_array_equal(model.get_layer("embedding").get_weights()[0], vectors)
    assert model.get_layer("embedding").trainable


def test_the_features_of_all_crops_set_the_scale():
    """The input is standardized by mean and variance over images and crops alike."""
    crops = np.random.default_rng(4).normal(3, 2, size=(50, 6, 5)).astype(np.float32)
    model = build(len(VOCABULARY), Features(crops), CONFIG)
    standardized = np.asarray(model.get_layer("scale")(crops.reshape(-1, 5)))
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(standardized.std(axis=0), 1, atol=1e-4)

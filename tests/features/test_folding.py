"""Folded batch normalizations: the same numbers, in fewer layers."""

import keras
import numpy as np
import pytest
from keras import layers

from pipeline.features import applications
from pipeline.features.folding import fold_batch_norms
from tests.support.effort import STRESS

KEPT = {
    "mobilenetv3small": 0,
    "mobilenetv2": 0,
    "vgg16": 0,
    "mobilenet": 0,
    "convnext-tiny": 0,
    "densenet121": 62,
    "efficientnetb0": 0,
    "efficientnetv2-b0": 0,
    "inception-resnet-v2": 0,
    "inception-v3": 0,
    "nasnet-mobile": 4,
    "resnet50": 0,
    "resnet50v2": 17,
    "vgg19": 0,
    "xception": 0,
}
"""A network of each family, and its batch normalizations that follow no layer into which they can be folded."""

QUICK = 3
"""The first networks of these are folded by `make test`; `make stress` folds all."""

SIDE = 80
"""Side of the pictures: not less than any network takes, and small, because the layers are the same for all sizes."""


def leaves(model):
    """All layers, those of models within it among them."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def norms(model):
    """Its batch normalizations."""
    return [layer for layer in leaves(model) if isinstance(layer, layers.BatchNormalization)]


def trained(model):
    """The model with statistics and scales as if it had been trained."""
    rng = np.random.default_rng(0)
    for norm in norms(model):
        for variable in norm.variables:
            is_positive = variable.name in ("gamma", "moving_variance")
            drawn = rng.uniform(0.5, 1.5, variable.shape) if is_positive else rng.normal(0, 0.3, variable.shape)
            variable.assign(drawn)
    return model


def assert_equal_features(model, folded, size):
    """Both give the same to the rounding of 32 bits."""
    pictures = np.random.default_rng(1).integers(0, 256, (3, *size, 3)).astype(np.float32)
    expected, found = (keras.tree.flatten(each.predict_on_batch(pictures)) for each in (model, folded))
    for one, other in zip(expected, found, strict=True):
        assert one.std() > 0
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("name", list(KEPT) if STRESS else list(KEPT)[:QUICK])
def test_a_network_of_keras(name, monkeypatch):
    """A network of each family computes the same, without all batch normalizations that follow a convolution."""
    monkeypatch.setattr(applications, "_size", lambda _: (SIDE, SIDE))
    model = trained(applications.build(name, None))
    weights = model.get_weights()
    folded = fold_batch_norms(model)
    assert len(norms(folded)) == KEPT[name]
    assert_equal_features(model, folded, (SIDE, SIDE))
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


KINDS = {
    "Conv2D": lambda: layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
    "groups": lambda: layers.Conv2D(6, 3, groups=3),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "SeparableConv2D": lambda: layers.SeparableConv2D(6, 3, depth_multiplier=2, use_bias=False),
    "Dense": lambda: layers.Dense(6),
}


@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False, "epsilon": 0.1}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer(kind, norm):
    """With a bias or without, and with each kind of batch normalization."""
    pictures = keras.Input((8, 8, 3))
    folding = layers.BatchNormalization(**norm)(KINDS[kind]()(pictures))
    model = trained(keras.Model(pictures, layers.GlobalAveragePooling2D()(layers.ReLU()(folding))))
    folded = fold_batch_norms(model)
    assert norms(folded) == []
    assert_equal_features(model, folded, (8, 8))


def unfoldable():
    """Models whose batch normalizations must stay, by the reason."""

    def model(output):
        return keras.Model(pictures, output)

    pictures = keras.Input((8, 8, 3))
    convolved = layers.Conv2D(3, 3, padding="same")(pictures)
    yield "read by two", model(layers.Add()([convolved, layers.BatchNormalization()(convolved)]))
    yield "an output", model([layers.BatchNormalization()(convolved), convolved])
    yield "activation", model(layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(pictures)))
    yield "another axis", model(layers.BatchNormalization(axis=1)(convolved))
    yield "no layer before it", model(layers.BatchNormalization()(pictures))
    shared = layers.Conv2D(3, 3, padding="same")
    yield "shared layer", model(layers.BatchNormalization()(shared(shared(pictures))))
    norm = layers.BatchNormalization()
    yield "shared norm", model(norm(layers.Conv2D(3, 3)(norm(layers.Conv2D(3, 3)(pictures)))))


@pytest.mark.parametrize(
    ("reason", "model"), list(unfoldable()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_cannot_be_folded_stays(reason, model):
    """Where a folded layer would change something else, or the constants differ from place to place."""
    trained(model)
    folded = fold_batch_norms(model)
    assert len(norms(folded)) == 1
    assert_equal_features(model, folded, (8, 8))


def test_models_within_models():
    """A sequential one, one that is used twice, and one with two outputs, whose order stays."""
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()])
    pictures = keras.Input((8, 8, 3))
    within = keras.Model(pictures, inner(pictures + 1.0))
    twice = within(within(pictures))
    outputs = [layers.GlobalAveragePooling2D()(twice), layers.Reshape((-1, 3))(within(twice))]
    model = trained(keras.Model(pictures, outputs))
    folded = fold_batch_norms(model)
    assert norms(folded) == []
    assert_equal_features(model, folded, (8, 8))


@keras.saving.register_keras_serializable()
class Doubled(keras.Model):
    """A model whose graph is not all that it does."""

    def call(self, inputs, **options):
        """Twice what the graph gives."""
        return 2 * super().call(inputs, **options)


def test_a_model_of_a_class_of_its_own_stays():
    """Alone, and within another model."""
    pictures = keras.Input((8, 8, 3))
    doubled = Doubled(pictures, layers.BatchNormalization()(layers.Conv2D(3, 3)(pictures)))
    for model in (doubled, keras.Model(pictures, doubled(pictures))):
        trained(model)
        folded = fold_batch_norms(model)
        assert len(norms(folded)) == 1
        assert_equal_features(model, folded, (8, 8))

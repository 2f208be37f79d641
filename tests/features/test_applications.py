"""Encoders by the names of keras.applications: a network of each family."""

import inspect

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.features import applications, encoder, regions
from pipeline.storage import open_bucket
from tests.support.effort import STRESS

FAMILIES = {
    "mobilenetv3small": (224, 576, 7, 96),
    "mobilenetv2": (224, 1280, 7, 160),
    "mobilenet": (224, 1024, 7, 0),
    "convnext-tiny": (224, 768, 7, 0),
    "densenet121": (224, 1024, 7, 0),
    "efficientnetb0": (224, 1280, 7, 192),
    "efficientnetv2-b0": (224, 1280, 7, 192),
    "inception-resnet-v2": (299, 1536, 8, 0),
    "inception-v3": (299, 2048, 8, 0),
    "nasnet-mobile": (224, 1056, 7, 0),
    "resnet50": (224, 2048, 7, 0),
    "resnet50v2": (224, 2048, 7, 0),
    "vgg16": (224, 512, 7, 0),
    "vgg19": (224, 512, 7, 0),
    "xception": (299, 2048, 10, 0),
}
"""A network of each family: the side of its pictures, the length of its vectors, the side of its map, and the channels
that its last stage reads, 0 if it has none."""

QUICK = 2
"""The first networks of these, which are the smallest, are tried by `make test`; `make stress` tries all."""


@pytest.fixture
def store(tmp_path):
    """A folder: what is stored of an encoder is the same in all buckets."""
    return open_bucket(str(tmp_path))


def test_each_family_has_a_network_in_the_table():
    """The table has a network of each module of keras.applications, under its name."""
    networks = applications.networks()
    modules = [inspect.getmodule(networks[name]) for name in FAMILIES]
    assert {inspect.getmodule(function) for function in networks.values()} == set(modules)
    assert len(modules) == len(set(modules))
    assert {"resnet152", "convnext-base", "efficientnetv2-s", "mobilenetv3large"} <= networks.keys()


@pytest.mark.parametrize("name", list(FAMILIES) if STRESS else list(FAMILIES)[:QUICK])
def test_a_network_is_that_of_keras(store, monkeypatch, name):
    """Registered, with Keras and with OpenVINO, it is Keras's network behind its preprocessing, and can have regions.

    The model is loaded in safe mode, which knows no custom objects.
    """
    import keras

    side, length, places, reads = FAMILIES[name]
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    encoder_id = encoder.save_model(applications.build(name, None), name, store)
    loaded = encoder.load(encoder_id, store)
    assert (loaded.size, loaded.shape) == ((side, side), (length,))

    keras.utils.set_random_seed(applications.RANDOM_SEED)
    function = applications.networks()[name]
    theirs = function(include_top=False, weights=None, pooling="avg", input_shape=(side, side, 3))
    preprocess_input = inspect.getmodule(function).preprocess_input
    expected = theirs.predict_on_batch(preprocess_input(pictures.astype("float32")))
    # Random weights give large vectors or very small ones.
    scale = np.abs(expected).max()
    with_keras = encoder.load_model(encoder_id, store).predict_on_batch(pictures)
    np.testing.assert_allclose(with_keras / scale, expected / scale, atol=1e-3)
    np.testing.assert_allclose(loaded.encode(pictures).vectors / scale, expected / scale, atol=1e-3)

    monkeypatch.setattr(regions, "training_pictures", lambda *_, **__: pictures)
    with_regions = encoder.load(regions.add_regions(encoder_id, "any/0123456789abcdef", store), store)
    assert encoder.has_last_stage(with_regions.encoder_id, store) == (reads > 0)
    count = places * places
    numbers = reads or min(regions.NUMBERS // count, length)
    assert (with_regions.shape, with_regions.regions) == ((length,), (count, numbers))
    assert np.isfinite(with_regions.encode(pictures).regions).all()


def test_weights_of_efficientnet_in_a_file():
    """Keras leaves out a step of the preprocessing of these, so they are refused rather than wrong; V2 is not."""
    import keras

    def layers(name, weights):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: "downloaded.h5")
            patch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
            build = applications.networks()[name]
            return [type(each) for each in build(include_top=False, weights=weights).layers]

    assert layers("efficientnetb0", "imagenet") != layers("efficientnetb0", None)
    assert layers("efficientnetv2-b0", "imagenet") == layers("efficientnetv2-b0", None)
    with pytest.raises(PipelineError, match=r"step of its preprocessing if the weights are in a file: put .*models"):
        applications.build("efficientnetb0", "weights.h5")

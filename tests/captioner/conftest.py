"""Models that the tests of this folder share; no test changes their weights."""

import pytest

from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.networks import NetworkDecoder, export
from tests.support.small_captioner import FEATURES, REGIONS, VOCABULARY, build_last_stage, build_model


@pytest.fixture(scope="session")
def model():
    """An untrained model."""
    return build_model()


@pytest.fixture(scope="session")
def other_model():
    """A model with other weights, wider than the first."""
    return build_model(seed=1, units=20)


@pytest.fixture(scope="session")
def attending():
    """An untrained model that attends to regions."""
    return build_model(REGIONS)


@pytest.fixture(scope="session")
def other_attending():
    """Another one, wider, with fewer heads, whose widths do not add up to its own."""
    return build_model(REGIONS, seed=1, units=20, attention_heads=3)


@pytest.fixture(scope="session")
def tuning():
    """An untrained model that begins with the last stage of the encoder."""
    return build_model(REGIONS, build_last_stage())


@pytest.fixture(scope="session")
def other_tuning():
    """Another one, wider."""
    return build_model(REGIONS, build_last_stage(), seed=1, units=20)


@pytest.fixture(params=["vectors", "regions", "last stage"])
def ensemble(request):
    """Two models, and the features that they need."""
    names, features = {
        "vectors": (("model", "other_model"), FEATURES),
        "regions": (("attending", "other_attending"), REGIONS),
        "last stage": (("tuning", "other_tuning"), REGIONS),
    }[request.param]
    return [request.getfixturevalue(name) for name in names], features


@pytest.fixture(scope="session")
def networks():
    """The networks of a model, exported once."""
    exported = {}

    def of(model):
        if id(model) not in exported:
            exported[id(model)] = model, export(model)
        return exported[id(model)][1]

    return of


@pytest.fixture(params=["keras", "networks"])
def captioner_of(request, networks):
    """Makes a captioner of six words of Keras models: with these, and with their networks."""

    def make(*models):
        decoder = (
            KerasDecoder(models)
            if request.param == "keras"
            else NetworkDecoder([networks(model) for model in models], advice="")
        )
        return Captioner(decoder, VOCABULARY, max_length=6)

    return make

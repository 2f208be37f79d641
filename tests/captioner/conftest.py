"""Models that the tests of this folder share; no test changes their weights."""

import pytest

from tests.support.small_captioner import build_model


@pytest.fixture(scope="session")
def model():
    """An untrained model."""
    return build_model()


@pytest.fixture(scope="session")
def other_model():
    """A model with other weights, wider than the first."""
    return build_model(seed=1, units=20)

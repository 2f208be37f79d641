"""Models that the tests of this folder share; no test changes their weights."""

import pytest

from tests.support.small_captioner import REGIONS, build_model


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

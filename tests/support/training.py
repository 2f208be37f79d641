"""Short trainings of the toy world, and what they leave."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.captioner.bundle import load_models
from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import TrainingConfig
from pipeline.storage import Bucket
from tests.support import toy


def short(**changes: Any) -> TrainingConfig:
    """The configuration of the toy world with one epoch, unless changed."""
    return toy.CONFIG.model_copy(update={"epochs": 1, **changes})


def weights(model: ModelMetadata, store: Bucket) -> list[Any]:
    """The weights of all models of an ensemble in the store."""
    return [array for single in load_models(model, store) for array in single.get_weights()]


def assert_same_weights(ones: Iterable[Any], others: Iterable[Any]) -> None:
    """Every array is the same, bit by bit."""
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)

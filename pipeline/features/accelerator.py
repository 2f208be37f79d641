"""Encoders on a GPU: Keras in mixed precision, with the largest batches that fit its memory.

The code is the same for all backends of Keras.
"""

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

LARGEST_BATCH = 256
"""Maximum pictures per batch: larger batches are no faster."""


def present() -> bool:
    """Whether Keras has a GPU. Loads Keras only if the machine has one and Keras is installed."""
    if shutil.which("nvidia-smi") is None or importlib.util.find_spec("keras") is None:
        return False
    import keras

    return bool(keras.distribution.list_devices("gpu"))


def prepare(model: "keras.Model") -> None:
    """Switch the model to 16-bit computation in place; its weights stay in 32 bits (https://arxiv.org/abs/1710.03740)."""
    import keras

    # Not bfloat16, which can't represent all 256 values of a pixel.
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    for layer in _layers(model):
        layer.dtype_policy = policy


def largest_batch(run: Callable[[npt.NDArray[np.uint8]], Any], size: tuple[int, int]) -> int:
    """The largest batch that fits the memory of the device, a power of two, found by trying; compiles for that size.

    Args:
        run: encodes (N, height, width, 3) pictures, and raises if memory runs out.
        size: (height, width).
    """
    batch = LARGEST_BATCH
    while True:
        try:
            run(np.zeros((batch, *size, 3), np.uint8))
        except Exception as error:  # each backend has its own exception for this
            exhausted = any(sign in str(error).lower() for sign in ("out of memory", "oom", "resource_exhausted"))
            if not exhausted or batch == 1:
                raise
            log.info("batches of %d pictures do not fit the memory of the GPU", batch)
            batch //= 2
        else:
            return batch


def in_full_batches(
    run: Callable[[npt.NDArray[np.uint8]], Any], size: int
) -> Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[np.floating]]]:
    """The same function, always called with ``size`` pictures: any other number would be compiled again.

    Args:
        run: encodes (``size``, H, W, 3) pictures: an array, or a list of arrays.
        size: smaller batches are padded with black pictures, whose features are dropped.
    """

    def padded(pictures: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.floating]]:
        missing = size - len(pictures)
        outputs = run(np.pad(pictures, ((0, missing), (0, 0), (0, 0), (0, 0))))
        return [output[: len(pictures)] for output in (outputs if isinstance(outputs, list) else [outputs])]

    return padded


def _layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)

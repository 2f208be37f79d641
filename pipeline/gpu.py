"""Encoders on a GPU: Keras, in mixed precision, with batches as large as its memory takes.

Which of Keras's backends computes makes no difference here.
"""

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
"""Pictures in one pass, at most: larger batches are no faster."""


def present() -> bool:
    """Whether Keras has a GPU to compute on. Loads Keras only where the machine has one."""
    if shutil.which("nvidia-smi") is None:
        return False
    import keras

    return bool(keras.distribution.list_devices("gpu"))


def prepare(model: "keras.Model") -> None:
    """Let the model compute in 16-bit floats, in place; its weights stay in 32 (https://arxiv.org/abs/1710.03740)."""
    import keras

    # Pixels have 256 steps, of which bfloat16 tells only some apart.
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    for layer in _layers(model):
        layer.dtype_policy = policy


def largest_batch(run: Callable[[npt.NDArray[np.uint8]], Any], size: tuple[int, int]) -> int:
    """The pictures that the device takes at once, a power of two, found by trying; compiles for that size on the way.

    Args:
        run: encodes (N, height, width, 3) pictures, and fails where memory does not suffice.
        size: (height, width).
    """
    batch = LARGEST_BATCH
    while True:
        try:
            run(np.zeros((batch, *size, 3), np.uint8))
        except Exception as error:  # each backend has a class of its own for it
            exhausted = any(sign in str(error).lower() for sign in ("out of memory", "oom", "resource_exhausted"))
            if not exhausted or batch == 1:
                raise
            log.info("%d pictures at once are more than the GPU's memory takes", batch)
            batch //= 2
        else:
            return batch


def in_full_batches(run: Callable[[npt.NDArray[np.uint8]], Any], size: int) -> Callable[[npt.NDArray[np.uint8]], Any]:
    """The same function, asked for ``size`` pictures each time: for another number it would be compiled anew.

    Args:
        run: encodes (``size``, H, W, 3) pictures.
        size: what is missing to it is filled up with black pictures, of which nothing is returned.
    """

    def filled_up(pictures: npt.NDArray[np.uint8]) -> Any:
        missing = size - len(pictures)
        return run(np.pad(pictures, ((0, missing), (0, 0), (0, 0), (0, 0))))[: len(pictures)]

    return filled_up


def _layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)

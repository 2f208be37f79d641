"""Which GPUs there are, and encoders on one: Keras, in mixed precision, with batches as large as its memory takes.

To encoders it makes no difference which of Keras's backends computes.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

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


def devices(count: int) -> list[str]:
    """What Keras calls the first ``count`` GPUs; where there is none at all, the CPU.

    Raises:
        PipelineError: there are fewer, or several are asked for and the backend is not TensorFlow.
    """
    import keras

    backend = keras.backend.backend()
    if count > 1 and backend != "tensorflow":
        raise PipelineError(
            f"CAPTION_DEVICES is {count}, and with KERAS_BACKEND={backend} training knows only one device: unset "
            "KERAS_BACKEND, so that TensorFlow trains on all, or CAPTION_DEVICES."
        )
    found: list[str] = keras.distribution.list_devices()
    if count > len(found):
        raise PipelineError(
            f"CAPTION_DEVICES is {count}, and Keras finds {len(found)} here: {', '.join(found)}. Set it to at most "
            "that, or look why the others are not to be seen: by `nvidia-smi`, and in CUDA_VISIBLE_DEVICES."
        )
    return found[:count]


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

"""Encoders on a GPU: Keras in mixed precision, with large batches, several of which are on their way at once.

While the GPU computes a batch, the next one is copied to it, so that it does not wait for its host.
"""

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

LARGEST_BATCH = 256
"""Maximum pictures per batch: larger batches are no faster."""

IN_FLIGHT = 3
"""Batches on their way at once: one is computed, while another is copied to the GPU, and features return."""

Run = Callable[[npt.NDArray[np.uint8]], list[Any]]
"""From (N, height, width, 3) pictures to the tensors of their features, which the GPU may still be computing."""


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


def compiled(model: "keras.Model") -> Run:
    """The model as a function that may be called from several threads, and does not wait for the GPU.

    Not ``predict_on_batch``, which waits. On JAX it also copies all variables, and must not be called from two threads.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        # As arguments, or else JAX would put them into the compiled code.
        state = [[each.value for each in some] for some in (model.trainable_variables, model.non_trainable_variables)]
        stateless = jax.jit(lambda state, pictures: model.stateless_call(*state, pictures, training=False)[0])
        return lambda pictures: keras.tree.flatten(stateless(state, pictures))
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda pictures: model(pictures, training=False), jit_compile=model.jit_compile)
        return lambda pictures: keras.tree.flatten(function(tf.convert_to_tensor(pictures)))
    raise PipelineError(
        f"On a GPU, encoders run with TensorFlow or JAX: set KERAS_BACKEND to tensorflow or jax, not {backend}."
    )


def largest_batch(run: Run, size: tuple[int, int]) -> int:
    """The largest batch that fits the memory of the device, a power of two, found by trying; compiles for that size.

    Args:
        run: encodes (N, height, width, 3) pictures, and raises if memory runs out.
        size: (height, width).
    """
    batch = LARGEST_BATCH
    while True:
        pictures = np.zeros((batch, *size, 3), np.uint8)
        try:
            # The first call compiles; then as many as there will be at once.
            in_full_batches(run, batch)(pictures)
            with ThreadPoolExecutor(IN_FLIGHT) as threads:
                list(threads.map(in_full_batches(run, batch), [pictures] * IN_FLIGHT))
        except Exception as error:  # each backend has its own exception for this
            exhausted = any(sign in str(error).lower() for sign in ("out of memory", "oom", "resource_exhausted"))
            if not exhausted or batch == 1:
                raise
            log.info("batches of %d pictures do not fit the memory of the GPU", batch)
            batch //= 2
        else:
            return batch


def in_full_batches(run: Run, size: int) -> Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[np.floating]]]:
    """The features themselves, by a function that is always called with ``size`` pictures: any other is compiled again.

    Args:
        run: encodes (``size``, H, W, 3) pictures.
        size: smaller batches are padded with black pictures, whose features are dropped.
    """
    import keras

    def padded(pictures: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.floating]]:
        count = len(pictures)
        if count < size:
            pictures = np.pad(pictures, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        # Here the thread waits for the GPU.
        return [keras.ops.convert_to_numpy(output)[:count] for output in run(pictures)]

    return padded


def _layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)

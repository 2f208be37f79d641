"""Training on several GPUs: each learns from a part of every batch, and their gradients are added up.

The result is that of one device, up to rounding: a word has the weight that it has in the whole batch, and dropout is
drawn for the whole batch. So neither recipes nor checkpoints know of devices. ``tf.distribute`` can't promise that:
there each device draws its own dropout.

This module loads Keras and TensorFlow: whoever trains on one device should not import it.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from pipeline.decoding import Tensor


class Split:
    """A model that learns from each batch on several devices; its variables and its optimizer stay on the first.

    Args:
        model: functional, and compiled with an optimizer and a loss that is a sum.
        devices: what Keras calls them.
    """

    def __init__(self, model: keras.Model, devices: Sequence[str]) -> None:
        self._model = model
        self._devices = devices
        self._dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        self._masks = [_Mask() for _ in self._dropouts]
        instead = dict(zip(self._dropouts, self._masks, strict=True))
        # The other layers are the model's own, and so are its variables.
        self._masked = keras.models.clone_model(model, clone_function=lambda layer: instead.get(layer, layer))
        self._learn = tf.function(self._learn_parts, reduce_retracing=True)

    def train_on_batch(
        self,
        inputs: dict[str, npt.NDArray[np.generic]],
        targets: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
    ) -> float:
        """Learn from a batch, as the model's own ``train_on_batch`` does; its loss."""
        *words, targets_of_parts, weights_of_parts = (
            self._parts(array) for array in (*inputs.values(), targets, weights)
        )
        inputs_of_parts = [dict(zip(inputs, arrays, strict=True)) for arrays in zip(*words, strict=True)]
        return float(self._learn(inputs_of_parts, targets_of_parts, weights_of_parts))

    def _parts(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The rows for each device, equally many; rows of zeros fill the last one up, which have no weight."""
        missing = -len(array) % len(self._devices)
        padded = np.pad(array, ((0, missing), *((0, 0) for _ in array.shape[1:])))
        return np.split(padded, len(self._devices))

    def _learn_parts(self, inputs: list[dict[str, Tensor]], targets: list[Tensor], weights: list[Tensor]) -> Tensor:
        rows, length = ops.shape(targets[0])
        with keras.device(self._devices[0]):
            masks = [self._draw(dropout, rows, length) for dropout in self._dropouts]
        variables = self._model.trainable_variables
        losses, gradients = [], []
        for number, device in enumerate(self._devices):
            # Gradients are worked out where they are asked for, whatever device the loss is from.
            with keras.device(device):
                for layer, drawn in zip(self._masks, masks, strict=True):
                    layer.drawn = drawn[number]
                with tf.GradientTape() as tape:
                    logits = self._masked(inputs[number], training=True)
                    losses.append(self._model.loss(targets[number], logits, weights[number]))
                gradients.append(tape.gradient(losses[-1], variables))
        with keras.device(self._devices[0]):
            summed = [_sum(of_variable) for of_variable in zip(*gradients, strict=True)]
            self._model.optimizer.apply_gradients(zip(summed, variables, strict=True))
            return tf.add_n(losses)

    def _draw(self, dropout: keras.layers.Dropout, rows: Tensor, length: Tensor) -> list[Tensor]:
        """The factors of a dropout's input in each part: those that a single device draws for the whole batch.

        The rows that fill up the last part come after all others, and so change nothing for them.
        """
        *_, size = dropout.input.shape
        count = rows * len(self._devices)
        shape = (count, size) if len(dropout.input.shape) == 2 else (count, length, size)
        return list(ops.split(dropout(ops.ones(shape), training=True), len(self._devices)))


class _Mask(keras.layers.Layer):  # type: ignore[misc]
    """Stands for a dropout in the clone; multiplies by ``drawn``, the factors of the part that is computed."""

    drawn: Tensor = 1.0

    def call(self, inputs: Tensor) -> Tensor:
        return inputs * self.drawn


def _sum(gradients: Sequence[Tensor]) -> Tensor:
    first = gradients[0]
    if not isinstance(first, tf.IndexedSlices):
        return tf.add_n(gradients)
    # An embedding's gradient has a slice for each word. Keras's Adam squares slice by slice: they must stay apart.
    values, indices = (tf.concat([getattr(part, name) for part in gradients], axis=0) for name in ("values", "indices"))
    return tf.IndexedSlices(values, indices, first.dense_shape)

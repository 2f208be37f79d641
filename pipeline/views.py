"""Several views of a picture: the whole, its mirror image and its corners, encoded each for itself.

A captioner learns from a view at a time, drawn anew in each epoch, and writes from their mean: more to learn from where
photographs are few, and steadier vectors (the crops of Krizhevsky, Sutskever and Hinton 2012,
https://papers.nips.cc/paper/4824, taken of features). Vectors are (N, D) where an encoder has one view, and (N, V, D)
where it has V.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

CORNER = 0.8
"""Side of a corner's view, as a share of the picture's."""


def several(model: "keras.Model", size: tuple[int, int]) -> "keras.Model":
    """An encoder of one view, (N, H, W, 3) to (N, D), as one of six, to (N, 6, D).

    The six are the whole picture, its mirror image and its four corners. Built of layers of Keras alone, so that it is
    saved and loaded without this module.

    Args:
        model: the encoder.
        size: (height, width) of the pictures, and of what each view is scaled to.
    """
    import keras
    from keras import layers, ops

    height, width = size
    top, left = round(height * (1 - CORNER)), round(width * (1 - CORNER))
    pictures = keras.Input((height, width, 3), name="pictures")
    corners = [
        layers.Resizing(height, width)(layers.Cropping2D((rows, columns))(pictures))
        for rows in ((0, top), (top, 0))
        for columns in ((0, left), (left, 0))
    ]
    views = [pictures, ops.flip(pictures, axis=2), *corners]
    return keras.Model(pictures, ops.stack([model(view) for view in views], axis=1), name=f"{model.name}_views")


def average(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of each picture's views: (N, D) or (N, V, D) to (N, D)."""
    if vectors.ndim == 2:
        return vectors
    mean: npt.NDArray[np.float32] = vectors.mean(axis=1)
    return mean


def draw(vectors: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """One view of each picture by chance: (N, D) or (N, V, D) to (N, D)."""
    if vectors.ndim == 2:
        return vectors
    count, views, _ = vectors.shape
    drawn: npt.NDArray[np.float32] = vectors[np.arange(count), rng.integers(views, size=count)]
    return drawn

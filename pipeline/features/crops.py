"""Multi-crop features: the picture, its mirror image and its four corners, each encoded separately.

A captioner is trained on one crop at a time, sampled again in each epoch, and captions the mean of the crops. This
augments small training sets, and the mean is a more stable vector (multi-crop evaluation of Krizhevsky, Sutskever and
Hinton 2012, https://papers.nips.cc/paper/4824, applied to features). Vectors are (N, D) for a plain encoder, and
(N, C, D) for an encoder of C crops, which has no regions.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipeline.features.store import Features

if TYPE_CHECKING:
    import keras

CORNER = 0.8
"""Side of a corner crop, as a share of the side of the picture."""


def multi_crop(model: "keras.Model", size: tuple[int, int]) -> "keras.Model":
    """A six-crop version of an encoder: (N, H, W, 3) to (N, 6, D).

    It is built only from layers of Keras, so it is saved and loaded without this module.

    Args:
        model: the encoder, (N, H, W, 3) to (N, D).
        size: (height, width) of the pictures, to which each crop is resized.
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
    crops = [pictures, ops.flip(pictures, axis=2), *corners]
    return keras.Model(pictures, ops.stack([model(crop) for crop in crops], axis=1), name=f"{model.name}_crops")


def mean_crop(features: Features) -> Features:
    """The mean of the crops of each picture: vectors (N, D) or (N, C, D) to (N, D)."""
    if features.vectors.ndim == 2:
        return features
    return Features(features.vectors.mean(axis=1, dtype=np.float32))


def sample_crop(features: Features, rng: np.random.Generator) -> Features:
    """A random crop of each picture: vectors (N, D) or (N, C, D) to (N, D)."""
    if features.vectors.ndim == 2:
        return features
    count, crops, _ = features.vectors.shape
    return Features(features.vectors[np.arange(count), rng.integers(crops, size=count)])

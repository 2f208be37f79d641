"""Regions: the map of an encoder before its pooling, a vector for each place of a picture. A captioner attends to them.

The map comes from the same pass as the pooled vector, so regions cost no time, but room: ResNet50's map of 7×7 places
has 49 times the numbers of its vector. A 1×1 convolution, which is part of the encoder, reduces it to the principal
components of training photographs (PCA). They are not whitened, which makes no difference to a captioner.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.features import encoder as encoders
from pipeline.features.extraction import training_pictures
from pipeline.storage import Bucket, layout, names

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

PICTURES = 1000
"""Training pictures whose principal components are taken. Of EfficientNet-Lite2's 1,280 components, the first 256 of
1,000 pictures have 66 % of the variance of other pictures; those of 300 pictures have 62 %."""

NUMBERS = 49 * 256
"""Numbers of a picture's regions at most: 25 KB in 16 bits."""

LARGEST_MAP = 256
"""Places of a map at most: with more, little would remain of each."""

REGIONS = "regions"
"""The layer of an encoder that makes the regions of a map."""


def add_regions(encoder_id: str, dataset_id: str, store: Bucket) -> str:
    """Register an encoder that yields regions beside the vectors of a registered one, and return its id.

    The projection is learnt once: if the store has such an encoder, it is this one, whatever the dataset.

    Args:
        encoder_id: of a registered encoder; one that has regions is returned unchanged.
        dataset_id: the dataset from whose training pictures the projection is learnt.
        store: the store.

    Raises:
        PipelineError: the encoder encodes crops, is quantized, or pools no map; or no training picture can be read.
    """
    if encoders.has_regions(encoder_id):
        return encoder_id
    parts = names.ENCODER_ID.pattern.fullmatch(encoder_id)
    if parts and parts["int8"]:
        exact = parts["exact"]
        raise PipelineError(
            f"{encoder_id} is quantized and can't get regions: use --regions with {exact}, then quantize."
        )
    if known := _find(encoder_id, store):
        return known
    model = encoders.load_model(encoder_id, store)
    size, shape, _ = encoders.dimensions(model, encoder_id)
    if len(shape) > 1:
        raise PipelineError(f"{encoder_id} encodes crops, to which regions are an alternative: leave out one of them.")
    with_map = _with_map(model, size)
    if with_map is None:
        raise PipelineError(
            f"{encoder_id} has no regions, which are the map that the last global pooling of a model pools: leave out "
            "--regions, or end the model in GlobalAveragePooling2D."
        )
    height, width, channels = with_map.outputs[1].shape[1:]
    places = height * width
    if not 1 < places <= LARGEST_MAP:
        raise PipelineError(
            f"The last global pooling of {encoder_id} pools {height}×{width} places, and regions are 2 to "
            f"{LARGEST_MAP}: leave out --regions, or end the model in another map."
        )
    pictures = training_pictures(dataset_id, store, size=size, count=PICTURES)
    log.info("%s: learning the projection of its %d regions from %d pictures", encoder_id, places, len(pictures))
    batches = np.array_split(pictures, -(-len(pictures) // encoders.CPU_BATCH))
    maps = (with_map.predict_on_batch(batch)[1].reshape(-1, channels) for batch in batches)
    matrix, shift = principal_components(maps, NUMBERS // places)
    return encoders.save_model(_project(with_map, matrix, shift), f"{encoder_id}-regions", store)


def grid(encoder_id: str, store: Bucket) -> tuple[int, int]:
    """The rows and columns of the map whose places are the regions of a picture, row by row from its top left.

    Raises:
        PipelineError: the encoder, or the one that it is the quantized version of, is missing, damaged, or without such
            a map.
    """
    parts = names.ENCODER_ID.pattern.fullmatch(encoder_id)
    exact = parts["exact"] if parts else encoder_id
    layers = {layer.name: layer for layer in encoders.load_model(exact, store).layers}
    if REGIONS not in layers or len(layers[REGIONS].input.shape) != 4:
        raise PipelineError(f"The regions of {exact} are not the places of a map that `--regions` added.")
    _, height, width, _ = layers[REGIONS].input.shape
    return height, width


def principal_components(
    batches: Iterable[npt.NDArray[np.float32]], count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The projection of vectors to their principal components, ``count`` of them, or C if these are fewer.

    Args:
        batches: the vectors (N, C) of each batch; all of them would need too much memory.
        count: K.

    Returns:
        A matrix (C, K), and what is added to the product with it, (K,): the components have a mean of 0, and a mean
        square of 1 over all of them together.
    """
    number, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for vectors in batches:
        exact = vectors.astype(np.float64)
        number, total, products = number + len(exact), total + exact.sum(axis=0), products + exact.T @ exact
    mean = total / number
    variances, axes = np.linalg.eigh(products / number - np.outer(mean, mean))
    kept, axes = variances[::-1][:count], axes[:, ::-1][:, :count]
    share = kept.sum() / variances.sum()
    log.info("%d of %d principal components have %.1f %% of the variance", len(kept), len(variances), 100 * share)
    # The sign of an axis is arbitrary: the largest number of each is made positive, so that it is always the same.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    matrix = axes * signs / np.sqrt(kept.mean() + 1e-12)
    return matrix.astype(np.float32), (-mean @ matrix).astype(np.float32)


def _find(encoder_id: str, store: Bucket) -> str | None:
    """The encoder with regions that was made of this one before."""
    keys = (item.key for item in store.list(layout.encoder_folder(f"{encoder_id}-regions-")))
    ids = sorted({key.removeprefix(layout.ENCODERS).split("/")[0] for key in keys})
    return next((each for each in ids if not each.endswith("-int8") and encoders.exists(each, store)), None)


def _with_map(model: "keras.Model", size: tuple[int, int]) -> "keras.Model | None":
    """The same model of pictures of this size, with what its last global pooling pools as a second output.

    None if it pools nothing.
    """
    import keras
    from keras import layers

    def with_map(model: keras.Model) -> keras.Model | None:
        maps = []

        def call(layer: Any, *inputs: Any, **options: Any) -> Any:
            if isinstance(layer, layers.GlobalAveragePooling2D | layers.GlobalMaxPooling2D):
                maps.append(inputs[0])
            elif isinstance(layer, keras.Model) and (inner := with_map(layer)) is not None:
                output, pooled = inner(*inputs)
                maps.append(pooled)
                return output
            return layer(*inputs, **options)

        # Follows the graph, with the same layers.
        graph = keras.Model(model.inputs, model.outputs[0])
        copy = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
        return keras.Model(copy.inputs, [copy.outputs[0], maps[-1]]) if maps else None

    found = with_map(model)
    if found is None:
        return None
    pictures = keras.Input((*size, 3), name="pictures")
    return keras.Model(pictures, found(pictures), name=f"{model.name}_regions")


def _project(with_map: "keras.Model", matrix: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]) -> "keras.Model":
    """The model with regions (N, R, K) in place of its map (N, H, W, C)."""
    import keras
    from keras import layers

    vectors, pooled = with_map.outputs
    projection = layers.Conv2D(matrix.shape[1], 1, name="projection")
    regions = layers.Reshape((-1, matrix.shape[1]), name=REGIONS)(projection(pooled))
    projection.set_weights([matrix[None, None], shift])
    return keras.Model(with_map.inputs, [vectors, regions], name=with_map.name)

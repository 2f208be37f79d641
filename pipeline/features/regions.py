"""Regions: the map of an encoder before its pooling, a vector for each place of a picture. A captioner attends to them.

The map comes from the same pass as the pooled vector, so regions cost no time, but room: ResNet50's map of 7×7 places
has 49 times the numbers of its vector. The store holds one of two smaller forms instead:

- what the last stage of the encoder reads, if this has fewer channels. The stage is stored beside the encoder; a
  captioner computes the map with it, and tunes it to what captions say (see ``captioner.merge_model``).
- the principal components of training photographs (PCA), by a 1×1 convolution that is part of the encoder. They are not
  whitened, which makes no difference to a captioner.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
SAMPLES = 4
"""Pictures on which the pooled vector is compared with the mean of the map."""


def add_regions(encoder_id: str, dataset_id: str, store: Bucket) -> str:
    """Register an encoder that yields regions beside the vectors of a registered one, and return its id.

    This is done once: if the store has such an encoder, it is this one, whatever the dataset.

    Args:
        encoder_id: of a registered encoder; one that has regions is returned unchanged.
        dataset_id: the dataset from whose training pictures a projection is learnt, if one is needed.
        store: the store.

    Raises:
        PipelineError: the encoder encodes crops, is quantized, or pools no map; or no training picture can be read.
    """
    if encoders.has_regions(encoder_id):
        return encoder_id
    import keras

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
    found = split(model, size)
    if found is None:
        raise PipelineError(
            f"{encoder_id} has no regions, which are the map that the last global pooling of a model pools: leave out "
            "--regions, or end the model in GlobalAveragePooling2D."
        )
    height, width, channels = found.model.outputs[1].shape[1:]
    places = height * width
    if not 1 < places <= LARGEST_MAP:
        raise PipelineError(
            f"The last global pooling of {encoder_id} pools {height}×{width} places, and regions are 2 to "
            f"{LARGEST_MAP}: leave out --regions, or end the model in another map."
        )
    name = f"{encoder_id}-regions"
    if found.last_stage is not None and _pools_the_mean(found.model, size):
        vectors, _, regions = found.model.outputs
        flat = keras.layers.Reshape((places, -1), name="regions")(regions)
        log.info("%s: its %d regions are what its last stage reads", encoder_id, places)
        with_regions = keras.Model(found.model.inputs, [vectors, flat], name=found.model.name)
        return encoders.save_model(with_regions, name, store, grid=(height, width), last_stage=found.last_stage)
    with_map = keras.Model(found.model.inputs, found.model.outputs[:2], name=found.model.name)
    pictures = training_pictures(dataset_id, store, size=size, count=PICTURES)
    log.info("%s: learning the projection of its %d regions from %d pictures", encoder_id, places, len(pictures))
    batches = np.array_split(pictures, -(-len(pictures) // encoders.CPU_BATCH))
    maps = (with_map.predict_on_batch(batch)[1].reshape(-1, channels) for batch in batches)
    matrix, shift = principal_components(maps, NUMBERS // places)
    return encoders.save_model(_project(with_map, matrix, shift), name, store, grid=(height, width))


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


class SplitModel(NamedTuple):
    """A model, split before its last global pooling.

    Attributes:
        model: from pictures to what the model yields, to the map that it pools and, with a last stage, to what this
            reads.
        last_stage: from what it reads (N, H, W, C) to the map (N, H, W, D); None if there is none.
    """

    model: "keras.Model"
    last_stage: "keras.Model | None"


def split(model: "keras.Model", size: tuple[int, int]) -> SplitModel | None:
    """The model of pictures of this size, split; None if it pools nothing."""
    import keras
    from keras import layers

    def of_graph(model: keras.Model) -> SplitModel | None:
        outputs: list[Any] = []
        pooled: list[tuple[list[Any], keras.Model | None]] = []

        def call(layer: Any, *inputs: Any, **options: Any) -> Any:
            if isinstance(layer, layers.GlobalAveragePooling2D | layers.GlobalMaxPooling2D):
                pooled.append(([inputs[0]], None))
            elif isinstance(layer, keras.Model) and (inner := of_graph(layer)) is not None:
                output, *maps = inner.model(*inputs)
                pooled.append((maps, inner.last_stage))
                return output
            outputs.append(layer(*inputs, **options))
            return outputs[-1]

        # Follows the graph, with the same layers.
        graph = keras.Model(model.inputs, model.outputs[0])
        copy = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
        if not pooled:
            return None
        maps, last_stage = pooled[-1]
        if last_stage is None and (tensor := _read_by_last_stage(maps[0], outputs)) is not None:
            maps, last_stage = [*maps, tensor], keras.Model(tensor, maps[0])
        return SplitModel(keras.Model(copy.inputs, [copy.outputs[0], *maps]), last_stage)

    found = of_graph(model)
    if found is None:
        return None
    pictures = keras.Input((*size, 3), name="pictures")
    return SplitModel(keras.Model(pictures, found.model(pictures), name=f"{model.name}_regions"), found.last_stage)


def _read_by_last_stage(pooled: Any, outputs: Sequence[Any]) -> Any:
    """What the last stage of a model reads: the shortest part that ends in a map and learns more than scales.

    It reads few enough numbers, of the height and width of the map, and the map depends on nothing else.

    Args:
        pooled: the map, a symbolic tensor.
        outputs: those of the layers of the model, in their order.

    Returns:
        One of the outputs, or None.
    """
    for tensor in reversed(outputs):
        shape = getattr(tensor, "shape", ())
        if len(shape) == 4 and shape[:3] == pooled.shape[:3] and None not in shape[1:]:
            layers = _layers_between(tensor, pooled) if math.prod(shape[1:]) <= NUMBERS else None
            if layers and any(
                len(variable.shape) > 1 for layer in layers for variable in getattr(layer, "variables", ())
            ):
                return tensor
    return None


def _layers_between(start: Any, end: Any) -> list[Any] | None:
    """The layers from one tensor to another; None if the other one also depends on what does not pass the first."""
    found, seen, tensors = [], {id(start)}, [end]
    while tensors:
        tensor = tensors.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node, _ = tensor._keras_history
        inputs = operation._inbound_nodes[node].input_tensors
        if not inputs:
            return None  # an input of the model
        found.append(operation)
        tensors += inputs
    return found


def _pools_the_mean(model: "keras.Model", size: tuple[int, int]) -> bool:
    """Whether the vectors of a split model are the mean of its map, as a captioner takes them."""
    pictures = np.random.default_rng(0).integers(0, 256, (SAMPLES, *size, 3)).astype(np.float32)
    vectors, pooled, _ = model.predict_on_batch(pictures)
    mean = pooled.mean(axis=(1, 2))
    return vectors.shape == mean.shape and bool(np.allclose(vectors, mean, rtol=1e-3, atol=1e-3 * np.abs(mean).max()))


def _project(with_map: "keras.Model", matrix: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]) -> "keras.Model":
    """The model with regions (N, R, K) in place of its map (N, H, W, C)."""
    import keras
    from keras import layers

    vectors, pooled = with_map.outputs
    projection = layers.Conv2D(matrix.shape[1], 1, name="projection")
    regions = layers.Reshape((-1, matrix.shape[1]), name="regions")(projection(pooled))
    projection.set_weights([matrix[None, None], shift])
    return keras.Model(with_map.inputs, [vectors, regions], name=with_map.name)

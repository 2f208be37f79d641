"""The merge model: the network that predicts the next word of a caption from the words so far and the image.

It is the variant *merge* of Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator"
(https://arxiv.org/abs/1703.09137): the LSTM reads only words, and its state is merged with the image vector just before
the softmax. The state after a prefix depends on the prefix alone, so one pass over a caption gives the predictions for
all its prefixes. If the encoder yields regions, the state also attends to them (scaled dot products by several heads:
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), and what it finds is merged with state and vector.

If the regions are what the encoder's last stage reads, the model begins with this stage, which is tuned with the rest
(Vinyals et al. 2017, https://arxiv.org/abs/1609.06647, tune the whole encoder). Its map has the places that the states
attend to, and the image vector is their mean, as in the encoder.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config import TrainingConfig
from pipeline.features.store import Features

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.sentences import Rows, State, Tensor

LAST_STAGE = "last_stage"
"""The layer of a model that is the encoder's last stage."""


def build(
    vocabulary_size: int,
    features: Features,
    config: TrainingConfig,
    embeddings: npt.NDArray[np.float32] | None = None,
    last_stage: "keras.Model | None" = None,
) -> "keras.Model":
    """The untrained merge model, as a plain functional Keras model.

    Args:
        vocabulary_size: V.
        features: those of the training images: the model standardizes its vectors by their mean and variance.
        config: sizes, heads of the attention to regions if the features have them, dropout and seed.
        embeddings: (V, embedding_size) float32, initial values of the embedding, which is trained further.
        last_stage: of the encoder, from the regions as a map to the map that the encoder pools, if the regions are
            what it reads; it becomes a part of the model.

    Returns:
        A model of ``{"features": (N, D), "words": (B, T) int, "rows": (B,) int}``, with attention also ``"regions":
        (N, R, K)``, to logits (B, T, V) of each next word. ``rows`` are those of each caption's image among the N.
        With a last stage, ``features`` makes no difference.
    """
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(config.seed)
    vectors = features.vectors.reshape(-1, features.vectors.shape[-1])
    inputs = {
        "features": keras.Input((vectors.shape[1],), name="features"),
        "words": keras.Input((None,), dtype="int32", name="words"),
        "rows": keras.Input((), dtype="int32", name="rows"),
    }

    standardized = layers.Normalization(mean=vectors.mean(axis=0), variance=vectors.var(axis=0) + 1e-6, name="scale")
    # Without this layer norm (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450) the model overfits sooner.
    project = keras.Sequential([layers.Dense(config.units), layers.LayerNormalization(), layers.ReLU()], name="image")
    pooled, places = inputs["features"], None
    if config.attention_heads and features.regions is not None:
        places = inputs["regions"] = keras.Input(features.regions.shape[1:], name="regions")
        if last_stage is not None:
            places = _last_stage(last_stage, config)(places)
            pooled = ops.mean(places, axis=1)
    projected = project(layers.Dropout(config.dropout, name="image_dropout")(standardized(pooled)))
    projected = ops.take(projected, inputs["rows"], axis=0)
    embedding = layers.Embedding(vocabulary_size, config.embedding_size, name="embedding")
    embedded = layers.Dropout(config.dropout, name="word_dropout")(embedding(inputs["words"]))
    # Padding is at the end, where the loss masks it and no word follows it: the LSTM needs no mask.
    states, _, _ = layers.LSTM(config.units, return_sequences=True, return_state=True, name="lstm")(embedded)
    states = layers.Dropout(config.dropout, name="state_dropout")(states)
    parts = [states, layers.Reshape((1, config.units), name="broadcast")(projected)]
    if places is not None:
        parts.append(_attention(states, places, inputs["rows"], config))
    merged = layers.Add(name="merge")(parts)
    hidden = layers.Dense(config.units, activation="relu", name="hidden")(merged)
    logits = layers.Dense(vocabulary_size, name="logits")(layers.Dropout(config.dropout, name="hidden_dropout")(hidden))
    model = keras.Model(inputs, logits, name="merge_captioner")
    if embeddings is not None:
        embedding.set_weights([embeddings])
    return model


def _last_stage(part: "keras.Model", config: TrainingConfig) -> "keras.Model":
    """The encoder's last stage, from regions (N, R, K) to the places of its map (N, R, C), ready to be tuned."""
    import keras
    from keras import layers

    # Batch normalizations keep their statistics, which are of far more pictures, only if they are not trained at all.
    for layer in part._flatten_layers():
        layer.trainable = config.fine_tuning > 0 and not isinstance(layer, layers.BatchNormalization)
    around = [layers.Reshape(part.input.shape[1:]), part, layers.Reshape((-1, part.output.shape[-1]))]
    return keras.Sequential(around, name=LAST_STAGE)


def _attention(states: "Tensor", regions: "Tensor", rows: "Tensor", config: TrainingConfig) -> "Tensor":
    """The context of each state: states (B, T, units) ask regions (N, R, K) of rows (B,), by heads; (B, T, units)."""
    import keras
    from keras import layers, ops

    heads, width = config.attention_heads, config.units // config.attention_heads
    # The same numbers are dropped from all regions of a picture.
    dropped = layers.Dropout(config.dropout, noise_shape=(None, 1, regions.shape[-1]), name="region_dropout")(regions)
    # They are projected as the image's vector is. The projections are both keys and values: projections of their own
    # for each are no better.
    project = [
        layers.Dense(heads * width),
        layers.LayerNormalization(),
        layers.ReLU(),
        layers.Reshape((-1, heads, width)),
    ]
    places = ops.take(keras.Sequential(project, name="places")(dropped), rows, axis=0)
    ask = [layers.Dense(heads * width), layers.Reshape((-1, heads, width))]
    found = ops.dot_product_attention(keras.Sequential(ask, name="queries")(states), places, places)
    return keras.Sequential([layers.Reshape((-1, heads * width)), layers.Dense(config.units)], name="context")(found)


def last_stage(model: "keras.Model") -> "keras.Model | None":
    """The layer of a model that is the encoder's last stage; None if it has none."""
    return next((layer for layer in model.layers if layer.name == LAST_STAGE), None)


def attends(model: "keras.Model") -> bool:
    """Whether the model attends to the regions of an image."""
    return any(tensor.name == "regions" for tensor in model.inputs)


class Image(NamedTuple):
    """What a model needs of B images, computed once.

    Attributes:
        projected: (B, units), the projected vectors.
        places: (B, heads, R, width), the projected regions; None for a model without attention.
    """

    projected: "Tensor"
    places: "Tensor | None" = None


def encode_image(model: "keras.Model", inputs: Mapping[str, "Tensor"]) -> Image:
    """What a model needs of images: ``features`` (B, D) and, for attention, ``regions`` (B, R, K)."""
    from keras import ops

    vectors, regions = inputs["features"], inputs["regions"] if attends(model) else None
    if (part := last_stage(model)) is not None:
        regions = part(regions)
        vectors = ops.mean(regions, axis=1)
    projected = model.get_layer("image")(standardize(model, vectors))
    if regions is None:
        return Image(projected)
    # By heads, as the products of each step need them.
    return Image(projected, ops.transpose(model.get_layer("places")(regions), (0, 2, 1, 3)))


def standardize(model: "keras.Model", vectors: "Tensor") -> "Tensor":
    """Vectors (B, D) in standard deviations from the mean of the training images."""
    return model.get_layer("scale")(vectors)


def predict(
    model: "keras.Model", image: Image, words: "Tensor", state: "State", rows: "Rows"
) -> tuple["Tensor", "State", "Tensor | None"]:
    """One decoding step of one model: last words (S,) and state to what follows.

    Returns:
        The log probabilities (S, V) of the next words; the next state; and with attention, how much each head attends
        to each region for them, (B, heads, K, R), which adds up to 1, else None.
    """
    from keras import ops

    layer = model.get_layer
    # One word at a time: the cell of the LSTM without its loop.
    output, state = layer("lstm").cell(layer("embedding")(words), state)
    parts = [output, ops.take(image.projected, rows.indices // ops.shape(rows.slots)[1], axis=0)]
    weights = None
    if image.places is not None:
        # The sentences of an image ask its regions together. As ``dot_product_attention`` does, which keeps its weights
        # to itself; but what is transposed are the few queries and scores, not the many regions.
        queries = ops.transpose(layer("queries")(ops.take(output, rows.slots, axis=0)), (0, 2, 3, 1))
        scores = ops.transpose(ops.matmul(image.places, queries), (0, 1, 3, 2))
        weights = ops.softmax(scores / math.sqrt(image.places.shape[-1]))
        found = layer("context")(ops.transpose(ops.matmul(weights, image.places), (0, 2, 1, 3)))
        parts.append(ops.take(ops.reshape(found, (-1, found.shape[-1])), rows.indices, axis=0))
    logits = layer("logits")(layer("hidden")(layer("merge")(parts)))
    return ops.log_softmax(logits), tuple(state), weights


def encode_images(models: Sequence["keras.Model"], inputs: Mapping[str, "Tensor"]) -> tuple[list[Image], "State"]:
    """What decoding with models begins with.

    Returns:
        The images as each model sees them, and the state at the start of a caption: the tensors of all models in one
        tuple, B rows each.
    """
    from keras import ops

    images = [encode_image(model, inputs) for model in models]
    return images, tuple(ops.zeros_like(image.projected) for image in images for _ in range(2))


def decode_step(
    models: Sequence["keras.Model"], images: Sequence[Image], words: "Tensor", state: "State", rows: "Rows"
) -> tuple["Tensor", "State"]:
    """One decoding step: last words (S,) and state to log probabilities (S, V) of the next words, and the next state.

    The probabilities of several models are averaged.
    """
    from keras import ops

    log_probs_of_models: list[Tensor] = []
    next_state: list[Tensor] = []
    for number, (model, image) in enumerate(zip(models, images, strict=True)):
        log_probs, following, _ = predict(model, image, words, state[2 * number : 2 * number + 2], rows)
        log_probs_of_models.append(log_probs)
        next_state += following
    if len(models) == 1:
        return log_probs_of_models[0], tuple(next_state)
    return ops.logsumexp(ops.stack(log_probs_of_models), axis=0) - math.log(len(models)), tuple(next_state)

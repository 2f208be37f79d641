"""The merge model: the network that predicts the next word of a caption from the words so far and the image.

It is the variant *merge* of Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator"
(https://arxiv.org/abs/1703.09137): the LSTM reads only words, and its state is merged with the image vector just before
the softmax. The state after a prefix depends on the prefix alone, so one pass over a caption gives the predictions for
all its prefixes. If the encoder yields regions, the state also attends to them (scaled dot products by several heads:
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), and what it finds is merged with state and vector.
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

    from pipeline.captioner.decoding import Rows, State, Tensor


def build(
    vocabulary_size: int,
    features: Features,
    config: TrainingConfig,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> "keras.Model":
    """The untrained merge model, as a plain functional Keras model.

    Args:
        vocabulary_size: V.
        features: those of the training images: the model standardizes its vectors by their mean and variance.
        config: sizes, heads of the attention to regions if the features have them, dropout and seed.
        embeddings: (V, embedding_size) float32, initial values of the embedding, which is trained further.

    Returns:
        A model of ``{"features": (B, D), "words": (B, T) int}``, with attention also ``"regions": (B, R, K)``, to
        logits (B, T, V) of each next word.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(config.seed)
    vectors = features.vectors.reshape(-1, features.vectors.shape[-1])
    inputs = {
        "features": keras.Input((vectors.shape[1],), name="features"),
        "words": keras.Input((None,), dtype="int32", name="words"),
    }

    standardized = layers.Normalization(mean=vectors.mean(axis=0), variance=vectors.var(axis=0) + 1e-6, name="scale")
    # Without this layer norm (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450) the model overfits sooner.
    project = keras.Sequential([layers.Dense(config.units), layers.LayerNormalization(), layers.ReLU()], name="image")
    projected = project(layers.Dropout(config.dropout, name="image_dropout")(standardized(inputs["features"])))
    embedding = layers.Embedding(vocabulary_size, config.embedding_size, name="embedding")
    embedded = layers.Dropout(config.dropout, name="word_dropout")(embedding(inputs["words"]))
    # Padding is at the end, where the loss masks it and no word follows it: the LSTM needs no mask.
    states, _, _ = layers.LSTM(config.units, return_sequences=True, return_state=True, name="lstm")(embedded)
    states = layers.Dropout(config.dropout, name="state_dropout")(states)
    parts = [states, layers.Reshape((1, config.units), name="broadcast")(projected)]
    if config.attention_heads and features.regions is not None:
        inputs["regions"] = keras.Input(features.regions.shape[1:], name="regions")
        parts.append(_attention(states, inputs["regions"], config))
    merged = layers.Add(name="merge")(parts)
    hidden = layers.Dense(config.units, activation="relu", name="hidden")(merged)
    logits = layers.Dense(vocabulary_size, name="logits")(layers.Dropout(config.dropout, name="hidden_dropout")(hidden))
    model = keras.Model(inputs, logits, name="merge_captioner")
    if embeddings is not None:
        embedding.set_weights([embeddings])
    return model


def _attention(states: "Tensor", regions: "Tensor", config: TrainingConfig) -> "Tensor":
    """The context of each state: states (B, T, units) ask regions (B, R, K), by several heads; (B, T, units)."""
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
    places = keras.Sequential(project, name="places")(dropped)
    ask = [layers.Dense(heads * width), layers.Reshape((-1, heads, width))]
    found = ops.dot_product_attention(keras.Sequential(ask, name="queries")(states), places, places)
    return keras.Sequential([layers.Reshape((-1, heads * width)), layers.Dense(config.units)], name="context")(found)


def attends(model: "keras.Model") -> bool:
    """Whether the model attends to the regions of an image."""
    return any(tensor.name == "regions" for tensor in model.inputs)


def attention_weights(model: "keras.Model", regions: "Tensor", words: "Tensor") -> "Tensor":
    """How much each head attends to each region for each next word of captions.

    The state that asks has read the words up to and including its own, and predicts the one after it.

    Args:
        model: a model with attention.
        regions: (B, R, K).
        words: (B, T) int32, the first of which is the start.

    Returns:
        (B, T, heads, R), which add up to 1 over the regions.
    """
    from keras import ops

    layer = model.get_layer
    states, _, _ = layer("lstm")(layer("embedding")(words))
    queries, places = layer("queries")(states), layer("places")(regions)
    # As ``dot_product_attention`` does, which keeps its weights to itself.
    scores = ops.einsum("bthd,brhd->bthr", queries, places) / math.sqrt(places.shape[-1])
    return ops.softmax(scores)


class Image(NamedTuple):
    """What a model needs of B images, computed once.

    Attributes:
        projected: (B, units).
        places: (B, R, heads, width), the projected regions; None for a model without attention.
    """

    projected: "Tensor"
    places: "Tensor | None"


def encode_images(models: Sequence["keras.Model"], inputs: Mapping[str, "Tensor"]) -> tuple[list[Image], "State"]:
    """What decoding begins with.

    Args:
        models: the models.
        inputs: ``features`` (B, D) and, for attention, ``regions`` (B, R, K).

    Returns:
        The images as each model sees them, and the state at the start of a caption: the tensors of all models in one
        tuple, B rows each.
    """
    from keras import ops

    images: list[Image] = []
    state: list[Tensor] = []
    for model in models:
        layer = model.get_layer
        projected = layer("image")(layer("scale")(inputs["features"]))
        images.append(Image(projected, layer("places")(inputs["regions"]) if attends(model) else None))
        state += [ops.zeros_like(projected), ops.zeros_like(projected)]
    return images, tuple(state)


def decode_step(
    models: Sequence["keras.Model"], images: Sequence[Image], words: "Tensor", state: "State", rows: "Rows"
) -> tuple["Tensor", "State"]:
    """One decoding step: last words (S,) and state to log probabilities (S, V) of the next words, and the next state.

    The probabilities of several models are averaged.
    """
    from keras import ops

    log_probs_of_models, next_state = [], []
    for number, (model, image) in enumerate(zip(models, images, strict=True)):
        layer = model.get_layer
        # One word at a time: the cell of the LSTM without its loop.
        output, recurrent = layer("lstm").cell(layer("embedding")(words), state[2 * number : 2 * number + 2])
        parts = [output, rows.of_sequences(image.projected)]
        if image.places is not None:
            queries = layer("queries")(rows.by_sequence(output))
            found = ops.dot_product_attention(queries, image.places, image.places)
            parts.append(rows.from_sequences(layer("context")(found)))
        log_probs_of_models.append(ops.log_softmax(layer("logits")(layer("hidden")(layer("merge")(parts)))))
        next_state += recurrent
    if len(models) == 1:
        return log_probs_of_models[0], tuple(next_state)
    return ops.logsumexp(ops.stack(log_probs_of_models), axis=0) - math.log(len(models)), tuple(next_state)

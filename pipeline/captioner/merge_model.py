"""The merge model: the network that predicts the next word of a caption from the words so far and the image.

It is the variant *merge* of Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator"
(https://arxiv.org/abs/1703.09137): the LSTM reads only words, and its state is merged with the image vector just before
the softmax. The state after a prefix depends on the prefix alone, so one pass over a caption gives the predictions for
all its prefixes.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.config import TrainingConfig

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.decoding import State, Tensor


def build(
    vocabulary_size: int,
    features: npt.NDArray[np.float32],
    config: TrainingConfig,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> "keras.Model":
    """The untrained merge model, as a plain functional Keras model.

    Args:
        vocabulary_size: V.
        features: (N, D), or (N, C, D) of C crops, float32, the vectors of the training images: the model standardizes
            its input by their mean and variance.
        config: sizes, dropout and seed.
        embeddings: (V, embedding_size) float32, initial values of the embedding, which is trained further.

    Returns:
        A model of ``{"features": (B, D), "words": (B, T) int}`` to logits (B, T, V) of each next word.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(config.seed)
    features = features.reshape(-1, features.shape[-1])
    image = keras.Input((features.shape[1],), name="features")
    words = keras.Input((None,), dtype="int32", name="words")

    standardized = layers.Normalization(mean=features.mean(axis=0), variance=features.var(axis=0) + 1e-6, name="scale")
    # Without this layer norm (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450) the model overfits sooner.
    project = keras.Sequential([layers.Dense(config.units), layers.LayerNormalization(), layers.ReLU()], name="image")
    projected = project(layers.Dropout(config.dropout, name="image_dropout")(standardized(image)))
    embedding = layers.Embedding(vocabulary_size, config.embedding_size, name="embedding")
    embedded = layers.Dropout(config.dropout, name="word_dropout")(embedding(words))
    # Padding is at the end, where the loss masks it and no word follows it: the LSTM needs no mask.
    states, _, _ = layers.LSTM(config.units, return_sequences=True, return_state=True, name="lstm")(embedded)
    states = layers.Dropout(config.dropout, name="state_dropout")(states)
    merged = layers.Add(name="merge")([states, layers.Reshape((1, config.units), name="broadcast")(projected)])
    hidden = layers.Dense(config.units, activation="relu", name="hidden")(merged)
    logits = layers.Dense(vocabulary_size, name="logits")(layers.Dropout(config.dropout, name="hidden_dropout")(hidden))
    model = keras.Model({"features": image, "words": words}, logits, name="merge_captioner")
    if embeddings is not None:
        embedding.set_weights([embeddings])
    return model


def initial_state(models: Sequence["keras.Model"], features: "Tensor") -> "State":
    """The state at the start of a caption: features (B, D) to the states of all models, one tuple, B rows each."""
    from keras import ops

    state: list[Tensor] = []
    for model in models:
        image = model.get_layer("image")(model.get_layer("scale")(features))
        state += [image, ops.zeros_like(image), ops.zeros_like(image)]
    return tuple(state)


def decode_step(models: Sequence["keras.Model"], words: "Tensor", state: "State") -> tuple["Tensor", "State"]:
    """One decoding step: last words (M,) and state to log probabilities (M, V) of the next words, and the next state.

    The probabilities of several models are averaged.
    """
    from keras import ops

    log_probs_of_models, next_state = [], []
    for number, model in enumerate(models):
        layer = model.get_layer
        image, *recurrent = state[3 * number : 3 * number + 3]
        # One word at a time: the cell of the LSTM without its loop.
        output, recurrent = layer("lstm").cell(layer("embedding")(words), recurrent)
        logits = layer("logits")(layer("hidden")(layer("merge")([output, image])))
        log_probs_of_models.append(ops.log_softmax(logits))
        next_state += [image, *recurrent]
    if len(models) == 1:
        return log_probs_of_models[0], tuple(next_state)
    return ops.logsumexp(ops.stack(log_probs_of_models), axis=0) - math.log(len(models)), tuple(next_state)

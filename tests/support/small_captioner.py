"""An untrained captioner of a few units, for tests of the model itself."""

from typing import Any

import numpy as np

from pipeline.captioner.merge_model import build
from pipeline.captioner.neighbours import Neighbours
from pipeline.config import TrainingConfig
from pipeline.data.vocabulary import Vocabulary
from pipeline.features.store import Features
from pipeline.training.batches import EncodedCaptions

SENTENCES = ["a dog runs on the grass", "a dog", "the cat sits", "a cat runs on and on and on the old red mat", "grass"]

CONFIG = TrainingConfig(embedding="learned", embedding_size=7, units=12, dropout=0.0)

VOCABULARY = Vocabulary.build(SENTENCES, min_count=1)
"""Every word of the sentences."""

FEATURES = Features(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
"""The vectors of three images."""

REGIONS = Features(FEATURES.vectors, np.random.default_rng(1).normal(size=(3, 6, 4)).astype(np.float16))
"""The same images with six regions each."""

CAPTIONS = EncodedCaptions(FEATURES, np.array([0, 0, 1, 2, 2]), [VOCABULARY.encode(text) for text in SENTENCES])
"""The sentences as captions of the images."""

NEIGHBOURS = Neighbours.build(FEATURES.vectors, CAPTIONS.ids, CAPTIONS.image)
"""The images as training photographs."""


def build_model(features: Features = FEATURES, last_stage: Any = None, **changes: Any) -> Any:
    """The merge model of these features, with changes to its configuration."""
    return build(len(VOCABULARY), features, CONFIG.model_copy(update=changes), last_stage=last_stage)


def build_last_stage() -> Any:
    """The last stage of an encoder, from ``REGIONS`` as a map of 2×3 places to a map of 5 channels, frozen."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    reads = keras.Input((2, 3, 4))
    wide = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(reads)))
    part = keras.Model(reads, layers.Conv2D(5, 1, activation="relu")(wide))
    part.trainable = False
    return part


def inputs_of(features: Features, words: Any) -> Any:
    """The inputs of a whole model for a caption of each image."""
    return {**features.inputs, "words": words, "rows": np.arange(len(words), dtype=np.int32)}


def softmax(logits: Any) -> Any:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def next_probabilities(models: Any, image: Features, ids: Any) -> Any:
    """The probabilities of the word after ``ids``: the mean of whole models, called with the whole prefix."""
    inputs = inputs_of(image, np.array([ids], np.int32))
    return np.mean([softmax(np.array(model(inputs, training=False))[0, -1]) for model in models], axis=0)

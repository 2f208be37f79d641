"""The usual way, as tutorials of this captioner have it: the baseline for training and decoding.

Each caption is expanded into its prefixes, padded to the longest; the model reads a picture and a prefix and predicts
the next word, as one-hot vectors. Decoding calls `predict` for each word of each picture.
"""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from pipeline.config import TrainingConfig
from pipeline.data.vocabulary import END, PAD, START, UNKNOWN
from pipeline.training.batches import EncodedCaptions

PICTURES = 3
"""Pictures in a batch, with all prefixes of all their captions."""

PADDED = 38
"""Words that a prefix is padded to. Tutorials take the longest caption of the whole dataset and its two marks: the one
run-on sentence among Flickr8k's has 36 words, though 99.5 % of them have at most 25."""


def model_of_prefixes(model: keras.Model, config: TrainingConfig) -> keras.Model:
    """The merge model of (features (B, D), prefixes (B, ``PADDED``)) to probabilities (B, V), with ``model``'s weights.

    Both have the layers of image, merge, hidden and logits in common; embedding and LSTM are as tutorials write them.
    """
    layer = model.get_layer
    features = keras.Input(model.get_layer("features").output.shape[1:])
    words = keras.Input((PADDED,), dtype="int32")
    image = layer("image")(layer("image_dropout")(layer("scale")(features)))
    old = layer("embedding")
    embedding = layers.Embedding(old.input_dim, old.output_dim, mask_zero=True)
    lstm = layers.LSTM(config.units)
    state = lstm(layers.Dropout(config.dropout)(embedding(words)))
    merged = layer("merge")([layers.Dropout(config.dropout)(state), image])
    logits = layer("logits")(layer("hidden_dropout")(layer("hidden")(merged)))
    embedding.set_weights(old.get_weights())
    lstm.set_weights(layer("lstm").get_weights())
    of_prefixes = keras.Model([features, words], layers.Softmax()(logits))
    of_prefixes.compile(optimizer=keras.optimizers.Adam(config.learning_rate), loss="categorical_crossentropy")
    return of_prefixes


def batches_of_prefixes(
    captions: EncodedCaptions, vocabulary_size: int
) -> Iterator[tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]], npt.NDArray[np.float32]]]:
    """Every (picture, prefix) with the next word, one-hot; ``PICTURES`` pictures at a time."""
    of_picture: dict[int, list[Sequence[int]]] = {}
    for picture, ids in zip(captions.image.tolist(), captions.ids, strict=True):
        of_picture.setdefault(picture, []).append(ids)
    pictures = list(of_picture)
    for start in range(0, len(pictures), PICTURES):
        rows, prefixes, following = [], [], []
        for picture in pictures[start : start + PICTURES]:
            for ids in of_picture[picture]:
                for length in range(1, len(ids)):
                    rows.append(picture)
                    prefixes.append(ids[:length])
                    following.append(ids[length])
        padded = keras.utils.pad_sequences(prefixes, maxlen=PADDED)
        yield (captions.features.vectors[rows], padded), keras.utils.to_categorical(following, vocabulary_size)


def caption(of_prefixes: keras.Model, features: npt.NDArray[np.float32], longest: int) -> list[list[int]]:
    """Greedy captions as ids, a picture and a word at a time, with the pipeline's rules against repeats.

    They are cut at ``longest`` words, as the pipeline's are.
    """
    captions = []
    for vector in features:
        ids = [START]
        while len(ids) <= longest and ids[-1] != END:
            prefix = keras.utils.pad_sequences([ids], maxlen=PADDED)
            probabilities = of_prefixes.predict((vector[None], prefix), verbose=0)[0]
            again = [c for a, b, c in zip(ids, ids[1:], ids[2:], strict=False) if [a, b] == ids[-2:]]
            probabilities[[PAD, START, UNKNOWN, ids[-1], *again]] = 0
            ids.append(int(probabilities.argmax()))
        captions.append(ids[1:])
    return captions

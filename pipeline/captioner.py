"""The merge model and its bundle: all that is needed to caption from features.

The model is that of Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator"
(https://arxiv.org/abs/1703.09137), variant *merge*: the LSTM reads words only, and its state meets the image's vector
just before the softmax. A prefix's state depends on the prefix alone, so one pass over a whole caption gives the
predictions for all its prefixes.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline import keras_files
from pipeline.decoding import Hypothesis, State, beam_search
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe
from pipeline.storage import Bucket, ObjectNotFoundError
from pipeline.vocabulary import END, PAD, START, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

DECODE_BATCH = 256
"""Images decoded at once: (images × beams × vocabulary) floats are held."""


class Metadata(BaseModel):
    """What a model folder says of itself, in ``metadata.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    created_at: AwareDatetime
    encoder_id: str
    dataset: str = Field(description="URI of the dataset table that it was trained on")
    max_length: int = Field(description="words of the longest caption it may write")
    recipe: Recipe
    best_epoch: int
    curves: list[dict[str, float]] = Field(description="of each epoch: epoch, loss, dev_loss, dev_cider, seconds")


def build(
    vocabulary_size: int,
    features: npt.NDArray[np.float32],
    recipe: Recipe,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> "keras.Model":
    """The untrained merge model, as a plain functional Keras model.

    Args:
        vocabulary_size: V.
        features: (N, D), the training images' vectors: the model standardises its input by their mean and variance.
        recipe: sizes, dropout and seed.
        embeddings: (V, embedding_size), to start the embedding from; it is trained on.

    Returns:
        A model of ``{"features": (B, D), "words": (B, T) int}`` to logits (B, T, V) of each next word.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(recipe.seed)
    image = keras.Input((features.shape[1],), name="features")
    words = keras.Input((None,), dtype="int32", name="words")

    standardised = layers.Normalization(mean=features.mean(axis=0), variance=features.var(axis=0) + 1e-6, name="scale")
    projected = layers.Dense(recipe.units, activation="relu", name="image")(
        layers.Dropout(recipe.dropout, name="image_dropout")(standardised(image))
    )
    embedding = layers.Embedding(vocabulary_size, recipe.embedding_size, name="embedding")
    embedded = layers.Dropout(recipe.dropout, name="word_dropout")(embedding(words))
    # Padding stands at the end, where the loss masks it and no real word comes after it: the LSTM needs no mask.
    states, _, _ = layers.LSTM(recipe.units, return_sequences=True, return_state=True, name="lstm")(embedded)
    states = layers.Dropout(recipe.dropout, name="state_dropout")(states)
    merged = layers.Add(name="merge")([states, layers.Reshape((1, recipe.units), name="broadcast")(projected)])
    hidden = layers.Dense(recipe.units, activation="relu", name="hidden")(merged)
    logits = layers.Dense(vocabulary_size, name="logits")(layers.Dropout(recipe.dropout, name="hidden_dropout")(hidden))
    model = keras.Model({"features": image, "words": words}, logits, name="merge_captioner")
    if embeddings is not None:
        embedding.set_weights([embeddings])
    return model


@dataclass(frozen=True)
class Caption:
    """A caption and the mean log probability of its words."""

    text: str
    log_prob: float


class Captioner:
    """A merge model with its vocabulary: features in, captions out."""

    def __init__(self, model: "keras.Model", vocabulary: Vocabulary, *, max_length: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.max_length = max_length

    def caption(self, features: npt.NDArray[np.float32], *, beam_width: int) -> list[Caption]:
        """The best caption of each image: (N, D) float32 to N captions."""
        captions = []
        for hypotheses in self._search(features, beam_width):
            best = hypotheses[0]
            captions.append(Caption(self.vocabulary.decode(best.ids), best.log_prob))
        return captions

    def _search(self, features: npt.NDArray[np.float32], beam_width: int) -> Iterator[list[Hypothesis]]:
        project, _ = self._stepwise
        for start in range(0, len(features), DECODE_BATCH):
            images = np.asarray(project.predict_on_batch(features[start : start + DECODE_BATCH]))
            yield from beam_search(
                self._step,
                (images, np.zeros_like(images), np.zeros_like(images)),
                start=START,
                end=END,
                forbidden=(PAD, START, UNKNOWN),
                beam_width=beam_width,
                max_length=self.max_length,
            )

    def _step(self, words: npt.NDArray[np.int32], state: State) -> tuple[npt.NDArray[np.float32], State]:
        image, hidden, cell = state
        _, step = self._stepwise
        log_probs, hidden, cell = step.predict_on_batch([image, words[:, None], hidden, cell])
        return log_probs, (image, hidden, cell)

    @cached_property
    def _stepwise(self) -> tuple["keras.Model", "keras.Model"]:
        """The same layers, cut into what is done once an image and what is done once a word."""
        import keras

        layer = self.model.get_layer
        features = keras.Input(layer("features").batch_shape[1:])
        units = layer("image").units
        image, hidden, cell = (keras.Input((units,)) for _ in range(3))
        word = keras.Input((1,), dtype="int32")
        output, *next_state = layer("lstm")(layer("embedding")(word), initial_state=[hidden, cell])
        merged = layer("merge")([output, layer("broadcast")(image)])
        log_probs = keras.ops.log_softmax(layer("logits")(layer("hidden")(merged)))[:, 0]
        return (
            keras.Model(features, layer("image")(layer("scale")(features))),
            keras.Model([image, word, hidden, cell], [log_probs, *next_state]),
        )


def save(captioner: Captioner, metadata: Metadata, store: Bucket) -> None:
    """Write the bundle under ``models/<version>/``; ``metadata.json`` last, which makes it a model."""
    folder = f"models/{metadata.version}"
    store.put(f"{folder}/model.keras", keras_files.to_bytes(captioner.model))
    store.put(f"{folder}/vocabulary.json", captioner.vocabulary.to_json().encode())
    store.put(f"{folder}/metadata.json", metadata.model_dump_json(indent=2).encode())


def load_metadata(version: str, store: Bucket) -> Metadata:
    """The metadata of a model. Raises ``PipelineError`` where there is no such model."""
    key = f"models/{version}/metadata.json"
    try:
        return Metadata.model_validate_json(store.get(key))
    except ObjectNotFoundError:
        raise PipelineError(
            f"There is no model {version!r} in {store.uri}: `python -m pipeline status` lists them."
        ) from None
    except ValidationError as error:
        raise PipelineError(f"{store.url(key)} is no model's metadata: {error}") from error


def list_models(store: Bucket) -> list[Metadata]:
    """Every model in the store, the newest first."""
    keys = (item.key for item in store.list("models/") if item.key.endswith("/metadata.json"))
    models = [load_metadata(key.split("/")[1], store) for key in keys]
    return sorted(models, key=lambda model: model.created_at, reverse=True)


def load(version: str, store: Bucket) -> tuple[Captioner, Metadata]:
    """The model under ``models/<version>/``, ready to caption, and its metadata."""
    metadata = load_metadata(version, store)
    model_key, vocabulary_key = (f"models/{version}/{name}" for name in ("model.keras", "vocabulary.json"))
    vocabulary = Vocabulary.from_json(store.get(vocabulary_key), origin=store.url(vocabulary_key))
    model = keras_files.from_bytes(store.get(model_key), origin=store.url(model_key))
    log.info("model %s, %d words, encoder %s", version, len(vocabulary), metadata.encoder_id)
    return Captioner(model, vocabulary, max_length=metadata.max_length), metadata

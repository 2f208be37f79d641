"""The merge model and its bundle: all that is needed to caption from features.

The model is that of Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator"
(https://arxiv.org/abs/1703.09137), variant *merge*: the LSTM reads words only, and its state meets the image's vector
just before the softmax. A prefix's state depends on the prefix alone, so one pass over a whole caption gives the
predictions for all its prefixes.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline import checksums, keras_files
from pipeline.checksums import Checksums
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, Search
from pipeline.storage import Bucket, ObjectNotFoundError
from pipeline.views import average
from pipeline.vocabulary import Vocabulary

if TYPE_CHECKING:
    import keras

    from pipeline.decoding import Compiled, Sentences, State, Tensor

log = logging.getLogger(__name__)

DECODE_BATCH = 256
"""Images decoded at once, at most."""

DECODE_ROWS = 4096
"""Captions written at once, at most: (captions × vocabulary) floats are held."""

VOCABULARY = "vocabulary.json"
"""The file of a bundle with the words that its models write."""

StageName = Literal["cross_entropy", "self_critical"]


class Epoch(BaseModel):
    """What an epoch of training brought."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(description="counted from 1 through all stages")
    stage: StageName
    loss: float | None = Field(None, description="of the next word, nats; only where that is what is trained for")
    reward: float | None = Field(None, description="mean CIDEr-D of the sampled captions; only in self-critical epochs")
    dev_loss: float = Field(description="of the next word, nats, after the epoch")
    dev_cider: float = Field(description="of greedy captions, after the epoch")
    seconds: float


class Member(BaseModel):
    """How one of a captioner's models was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    best_epoch: int = Field(description="whose weights were kept")
    epochs: list[Epoch]


class Description(BaseModel):
    """What its training says of a captioner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    created_at: AwareDatetime
    encoder_id: str
    dataset: str = Field(description="URI of the dataset table that it was trained on")
    max_length: int = Field(description="words of the longest caption it may write")
    recipe: Recipe
    members: list[Member] = Field(description="the models whose probabilities are averaged")


class Metadata(Description):
    """What a model folder says of itself, in ``metadata.json``."""

    files: Checksums = Field(description="the SHA-256 of each file; without these very files it is another model")


def build(
    vocabulary_size: int,
    features: npt.NDArray[np.float32],
    recipe: Recipe,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> "keras.Model":
    """The untrained merge model, as a plain functional Keras model.

    Args:
        vocabulary_size: V.
        features: (N, D) or (N, V, D), the training images' vectors: the model standardises its input by their mean and
            variance.
        recipe: sizes, dropout and seed.
        embeddings: (V, embedding_size), to start the embedding from; it is trained on.

    Returns:
        A model of ``{"features": (B, D), "words": (B, T) int}`` to logits (B, T, V) of each next word.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(recipe.seed)
    features = features.reshape(-1, features.shape[-1])
    image = keras.Input((features.shape[1],), name="features")
    words = keras.Input((None,), dtype="int32", name="words")

    standardised = layers.Normalization(mean=features.mean(axis=0), variance=features.var(axis=0) + 1e-6, name="scale")
    # Without its layer norm (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450) photographs are sooner learnt
    # by heart.
    project = keras.Sequential([layers.Dense(recipe.units), layers.LayerNormalization(), layers.ReLU()], name="image")
    projected = project(layers.Dropout(recipe.dropout, name="image_dropout")(standardised(image)))
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


def initial_state(models: Sequence["keras.Model"], features: "Tensor") -> "State":
    """What the models start a caption from: features (B, D) to the concatenated states of all of them, B rows each."""
    from keras import ops

    state: list[Tensor] = []
    for model in models:
        image = model.get_layer("image")(model.get_layer("scale")(features))
        state += [image, ops.zeros_like(image), ops.zeros_like(image)]
    return tuple(state)


def next_words(models: Sequence["keras.Model"], words: "Tensor", state: "State") -> tuple["Tensor", "State"]:
    """One step of decoding: last words (M,) and state to the next words' log probabilities (M, V), and the next state.

    Each model goes on by its own layers; the probabilities of several are averaged.
    """
    from keras import ops

    every_log_probs, next_state = [], []
    for number, model in enumerate(models):
        layer = model.get_layer
        image, *recurrent = state[3 * number : 3 * number + 3]
        # A word at a time, the cell without its loop.
        output, recurrent = layer("lstm").cell(layer("embedding")(words), recurrent)
        logits = layer("logits")(layer("hidden")(layer("merge")([output, image])))
        every_log_probs.append(ops.log_softmax(logits))
        next_state += [image, *recurrent]
    if len(models) == 1:
        return every_log_probs[0], tuple(next_state)
    return ops.logsumexp(ops.stack(every_log_probs), axis=0) - math.log(len(models)), tuple(next_state)


@dataclass(frozen=True)
class Caption:
    """A caption, the mean log probability of its words (its end among them), and its probability as a whole."""

    text: str
    log_prob: float
    probability: float


class Captioner:
    """A merge model, or several whose probabilities are averaged, with their vocabulary: features in, captions out."""

    def __init__(self, models: Sequence["keras.Model"], vocabulary: Vocabulary, *, max_length: int) -> None:
        self.models = models
        self.vocabulary = vocabulary
        self.max_length = max_length
        self._searches: dict[Search, Compiled] = {}

    def caption(self, features: npt.NDArray[np.float32], search: Search) -> list[Caption]:
        """The best caption of each image: (N, D) or (N, V, D) float32 to N captions."""
        return [best for best, *_ in self.alternatives(features, search)]

    def alternatives(self, features: npt.NDArray[np.float32], search: Search) -> list[list[Caption]]:
        """All captions of each image's beam, best first: N lists of 1 to ``search.beam_width`` captions.

        Args:
            features: (N, D) or (N, V, D) float32; of several views the mean is captioned.
            search: how captions are looked for.
        """
        return [
            [
                Caption(self.vocabulary.decode(ids), float(log_prob / length), math.exp(log_prob))
                for ids, length, log_prob in zip(*beam, strict=True)
                if log_prob > -math.inf
            ]
            for sentences in self._search(average(features), search)
            for beam in zip(*sentences, strict=True)
        ]

    def standardised(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The mean views (N, D) in standard deviations from the training images' mean, as the models see them."""
        from keras import ops

        return ops.convert_to_numpy(self.models[0].get_layer("scale")(average(features)))  # type: ignore[no-any-return]

    def _search(self, features: npt.NDArray[np.float32], search: Search) -> Iterator["Sentences"]:
        """The sentences, as arrays, of one batch after the other."""
        from pipeline.consensus import rank
        from pipeline.decoding import Sentences

        # One size for all batches, so that the search is compiled once; a power of two, so that it rarely is again.
        most = DECODE_ROWS // max(search.beam_width, search.samples)
        size = min(DECODE_BATCH, 1 << (most.bit_length() - 1), 1 << (len(features) - 1).bit_length())
        for start in range(0, len(features), size):
            batch = features[start : start + size]
            padded = np.pad(batch, ((0, size - len(batch)), (0, 0)), mode="edge")
            beam, *samples = self._compiled(search).predict_on_batch(padded)
            if samples:
                beam = rank(beam, samples[0], self.vocabulary.information)
            yield Sentences(*(array[: len(batch)] for array in beam))

    def _compiled(self, search: Search) -> "Compiled":
        """A function of features to the beam, and to the ids of the samples where there are to be any."""
        from keras import ops

        from pipeline.consensus import spread
        from pipeline.decoding import Compiled, beam_search, sample

        step = partial(next_words, self.models)

        def look(features: "Tensor") -> tuple["Tensor", ...]:
            state = initial_state(self.models, features)
            beam = beam_search(step, state, beam_width=search.beam_width, max_length=self.max_length)
            if not search.samples:
                return (beam,)
            numbers = spread(search.samples, self.max_length)
            numbers = ops.broadcast_to(numbers, (ops.shape(features)[0], *numbers.shape))
            return beam, sample(step, state, numbers=numbers).ids

        if search not in self._searches:
            self._searches[search] = Compiled(look, self.models)
        return self._searches[search]


def save(captioner: Captioner, description: Description, store: Bucket) -> Metadata:
    """Write the bundle under ``models/<version>/``; ``metadata.json`` last, which makes it a model."""
    folder = _folder(description.version)
    files = {
        _member_name(number): keras_files.to_bytes(model)
        for number, model in zip(range(len(description.members)), captioner.models, strict=True)
    }
    files[VOCABULARY] = captioner.vocabulary.to_json().encode()
    sums = checksums.put(folder, files, store)
    metadata = Metadata(**dict(description), files=sums)
    store.put(f"{folder}/metadata.json", metadata.model_dump_json(indent=2).encode())
    return metadata


def load_metadata(version: str, store: Bucket) -> Metadata:
    """The metadata of a model. Raises ``PipelineError`` where there is no such model."""
    key = f"{_folder(version)}/metadata.json"
    try:
        return Metadata.model_validate_json(store.get(key))
    except ObjectNotFoundError:
        raise PipelineError(
            f"There is no model {version!r} in {store.uri}: `python -m pipeline status` lists them."
        ) from None
    except ValidationError as error:
        raise PipelineError(
            f"{store.url(key)} is no model's metadata: {error}. Delete the model's folder, and train it again."
        ) from error


def list_models(store: Bucket) -> list[Metadata]:
    """Every model in the store, the newest first."""
    keys = (item.key for item in store.list("models/") if item.key.endswith("/metadata.json"))
    models = [load_metadata(key.split("/")[1], store) for key in keys]
    return sorted(models, key=lambda model: model.created_at, reverse=True)


def load(version: str, store: Bucket) -> tuple[Captioner, Metadata]:
    """The model under ``models/<version>/``, ready to caption, and its metadata.

    Raises:
        PipelineError: there is no such model, or one of its files isn't the one that was saved; then none is parsed.
    """
    metadata = load_metadata(version, store)
    folder = _folder(version)
    advice = f"Restore the file from a copy, promote another model, or delete {store.url(folder)} and train again."
    names = [VOCABULARY, *(_member_name(number) for number in range(len(metadata.members)))]
    words, *files = checksums.get(folder, names, metadata.files, store, advice=advice)
    origins = [store.url(checksums.key(folder, name, metadata.files)) for name in names]
    vocabulary = Vocabulary.from_json(words, origin=origins[0])
    models = [keras_files.from_bytes(data, origin=origin) for data, origin in zip(files, origins[1:], strict=True)]
    log.info("model %s, %d words, encoder %s", version, len(vocabulary), metadata.encoder_id)
    return Captioner(models, vocabulary, max_length=metadata.max_length), metadata


def _folder(version: str) -> str:
    return f"models/{version}"


def _member_name(number: int) -> str:
    return f"model-{number}.keras"

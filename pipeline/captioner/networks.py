"""The captioner on CPUs: the parts of a merge model as OpenVINO networks, which the search in NumPy calls.

Each model of an ensemble has two networks: one of its images, and one of a step of decoding. Neither has a fixed number
of rows. They start without Keras and agree with it to the rounding of float32.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.captioner.mbr import stratified_uniforms
from pipeline.captioner.search import Floats, Ids, State, Step, beam_search, sample
from pipeline.captioner.sentences import Decoded, Rows
from pipeline.config import DecodingConfig
from pipeline.features import openvino
from pipeline.features.openvino import CompiledNetwork, Network
from pipeline.features.store import Features

if TYPE_CHECKING:
    import keras

BATCH_FLOATS = 1 << 19
"""Log probabilities, (captions × vocabulary), that a thread computes at once, about: they fit its cache."""

BATCH_IMAGES = 16
"""Images that a thread encodes at once: OpenVINO keeps ten times the memory of their regions, for each thread."""

MAX_THREADS = 8
"""More threads would wait for memory."""


class ModelNetworks(NamedTuple):
    """A model as networks.

    Attributes:
        image: from vectors (B, D) and, with attention, regions (B, R, K) to the standardized vectors (B, D), the
            projected ones (B, units) and, with attention, the places (B, heads, R, width).
        step: from the last words (S,) int32, the state of the LSTM, (S, units) twice, the projected vectors, the
            ``Rows`` and, with attention, the places, to log probabilities (S, V), the next state and, with attention,
            its weights (B, heads, K, R).
    """

    image: Network
    step: Network


def export(model: "keras.Model") -> ModelNetworks:
    """The networks of a Keras model. Raises ``PipelineError`` if OpenVINO does not support an operation."""
    from keras import InputSpec

    from pipeline.captioner.decoding import CompiledFunction
    from pipeline.captioner.merge_model import Image, attends, encode_image, predict, standardize

    attending = attends(model)
    names = ["features", "regions"] if attending else ["features"]
    units, *places = (model.get_layer(name).output.shape[1:] for name in ("image", "places")[: len(names)])
    by_heads = [(heads, regions, width) for regions, heads, width in places]

    def encode(inputs: Sequence[Any]) -> list[Any]:
        image = encode_image(model, dict(zip(names, inputs, strict=True)))
        return [standardize(model, inputs[0]), *image[: len(names)]]

    def step(inputs: Sequence[Any]) -> list[Any]:
        words, hidden, cell, indices, slots, *image = inputs
        log_probs, state, weights = predict(model, Image(*image), words, (hidden, cell), Rows(indices, slots))
        return [log_probs, *state, *([weights] if attending else [])]

    def convert(function: Any, *inputs: Any, outputs: int) -> Network:
        return openvino.convert(CompiledFunction(function, [model]), outputs=outputs, signature=[list(inputs)])

    def floats(shape: tuple[int, ...]) -> Any:
        return InputSpec(dtype="float32", shape=(None, *shape))

    words, slots = (InputSpec(dtype="int32", shape=(None,) * dimensions) for dimensions in (1, 2))
    state = floats(units)
    return ModelNetworks(
        convert(encode, *(floats(model.input[name].shape[1:]) for name in names), outputs=1 + len(names)),
        convert(step, words, state, state, words, slots, *map(floats, (units, *by_heads)), outputs=2 + len(names)),
    )


class _CompiledModel:
    """A model, ready to be called."""

    def __init__(self, networks: ModelNetworks, advice: str) -> None:
        self._encode = CompiledNetwork(openvino.read(networks.image, advice))
        self._step = CompiledNetwork(openvino.read(networks.step, advice))
        self.attends = len(self._encode.input_shapes) > 1
        self.threads = self._step.threads
        self.words = self._step.shapes[0][0]

    def encode(self, features: Features) -> list[Floats]:
        """The standardized vectors, and the image as the step takes it."""
        return self._encode_batches(features.arrays if self.attends else [features.vectors])

    def standardize(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """The standardized vectors alone."""
        # The rows of vectors and regions are independent in the network: there may be none of these.
        regions = [np.zeros((0, *shape), np.float32) for shape in self._encode.input_shapes[1:]]
        return self._encode_batches([vectors, *regions])[0]

    def _encode_batches(self, inputs: Sequence[npt.NDArray[np.floating]]) -> list[Floats]:
        batches = [
            self._encode(*(np.asarray(array[start : start + BATCH_IMAGES], np.float32) for array in inputs))
            for start in range(0, max(1, len(inputs[0])), BATCH_IMAGES)
        ]
        return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]

    def step(self, image: Sequence[Floats], words: Ids, state: State, rows: Rows) -> list[Floats]:
        """Log probabilities, the next state (two arrays), and with attention its weights."""
        return self._step(words, *state, *rows, *image)

    def attention(self, features: Features, words: Ids) -> Floats:
        """The weights of the regions after each word (B, T), (B, T, R): the mean of the heads."""
        _, *image = self.encode(features)
        state: State = (np.zeros_like(image[0]),) * 2
        every_row = np.arange(len(words), dtype=np.int32)
        weights = []
        for column in words.T:
            _, hidden, cell, found = self.step(image, column, state, Rows(every_row, every_row[:, None]))
            state = hidden, cell
            weights.append(found.mean(axis=(1, 2)))
        return np.stack(weights, axis=1)


class NetworkDecoder:
    """Decodes on the CPU with the networks of a model, or of an ensemble whose probabilities are averaged.

    Raises:
        PipelineError: a network can't be read; the message ends in ``advice``.
    """

    def __init__(self, ensemble: Sequence[ModelNetworks], *, advice: str) -> None:
        self._models = [_CompiledModel(networks, advice) for networks in ensemble]
        self.attends = any(model.attends for model in self._models)
        # For good: each thread that calls a network keeps memory for it.
        self._pool = ThreadPoolExecutor(min(self._models[0].threads, MAX_THREADS))

    def decode(
        self,
        features: Features,
        decoding: DecodingConfig,
        *,
        max_length: int,
        allow_repeats: bool,
        forbidden_words: Sequence[int],
    ) -> Iterator[Decoded]:
        """The beams of one batch after the other; several threads decode one each."""
        captions = BATCH_FLOATS // self._models[0].words
        size = max(1, captions // decoding.beam_width)
        uniforms = stratified_uniforms(decoding.mbr_samples, max_length) if decoding.mbr_samples else None

        def decode(start: int) -> Decoded:
            batch = features[start : start + size]
            images = [model.encode(batch)[1:] for model in self._models]
            beam = beam_search(
                *self._step_of(images),
                beam_width=decoding.beam_width,
                max_length=max_length,
                allow_repeats=allow_repeats,
                forbidden_words=forbidden_words,
            )
            if uniforms is None:
                return beam, None
            # Of fewer images at once, because each has more samples than beams.
            few = max(1, captions // len(uniforms))
            samples = [
                sample(
                    *self._step_of([[array[first : first + few] for array in image] for image in images]),
                    uniforms=uniforms,
                    allow_repeats=allow_repeats,
                    forbidden_words=forbidden_words,
                )
                for first in range(0, len(batch), few)
            ]
            return beam, np.concatenate(samples)

        return self._pool.map(decode, range(0, len(features), size))

    def _step_of(self, images: Sequence[Sequence[Floats]]) -> tuple[Step, State]:
        """The step for images, as each model sees them, and the state at the start of a caption."""

        def step(words: Ids, state: State, rows: Rows) -> tuple[Floats, State]:
            found = [
                model.step(image, words, state[2 * number : 2 * number + 2], rows)
                for number, (model, image) in enumerate(zip(self._models, images, strict=True))
            ]
            states = (array for _, hidden, cell, *_ in found for array in (hidden, cell))
            return _average([log_probs for log_probs, *_ in found]), tuple(states)

        return step, tuple(np.zeros_like(projected) for projected, *_ in images for _ in range(2))

    def standardize(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """Vectors (N, D) in standard deviations from the mean of the training images."""
        return self._models[0].standardize(vectors)

    def attention(self, features: Features, words: Ids) -> Floats:
        """The weights of the regions after each word (B, T), (B, T, R): the mean of heads and models."""
        found = [model.attention(features, words) for model in self._models if model.attends]
        return np.mean(found, axis=0)  # type: ignore[no-any-return]


def _average(log_probs: Sequence[Floats]) -> Floats:
    """The log of the mean of the models' probabilities; overwrites them."""
    if len(log_probs) == 1:
        return log_probs[0]
    largest = np.maximum(log_probs[0], log_probs[1])
    for each in log_probs[2:]:
        np.maximum(largest, each, out=largest)
    for each in log_probs:
        np.exp(np.subtract(each, largest, out=each), out=each)
    total, *others = log_probs
    for each in others:
        total += each
    largest -= np.float32(math.log(len(log_probs)))
    return np.add(np.log(total, out=total), largest, out=total)

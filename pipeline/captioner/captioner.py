"""The captioner: features in, captions out."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.captioner.merge_model import attends, attention_weights, decode_step, encode_images
from pipeline.config import ENGLISH, DecodingConfig
from pipeline.data.text import allows_repeats
from pipeline.data.vocabulary import PAD, Vocabulary
from pipeline.features.crops import mean_crop
from pipeline.features.store import Features
from pipeline.progress import track

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.decoding import CompiledFunction, Sentences, Tensor

log = logging.getLogger(__name__)

BATCH_SIZE = 256
"""Maximum images that are decoded at once."""

BATCH_ROWS = 4096
"""Maximum captions that are decoded at once: (captions × vocabulary) floats are in memory."""


@dataclass(frozen=True)
class Caption:
    """A caption, the mean log probability of its words (its end among them), and the probability of the whole."""

    text: str
    log_prob: float
    probability: float


class Captioner:
    """A merge model, or an ensemble whose probabilities are averaged, with its vocabulary and its language."""

    def __init__(
        self, models: Sequence["keras.Model"], vocabulary: Vocabulary, *, max_length: int, language: str = ENGLISH
    ) -> None:
        self.models = models
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.allow_repeats = allows_repeats(language)
        self._decoders: dict[DecodingConfig, CompiledFunction] = {}

    @property
    def attends(self) -> bool:
        """Whether it needs the regions of images."""
        return any(map(attends, self.models))

    def caption(self, features: Features, decoding: DecodingConfig) -> list[Caption]:
        """The best caption of each of N images."""
        return [best for best, *_ in self.alternatives(features, decoding)]

    def alternatives(self, features: Features, decoding: DecodingConfig) -> list[list[Caption]]:
        """All captions of each image's beam, the best first: N lists of 1 to ``decoding.beam_width`` captions.

        Args:
            features: of N images, with regions if the captioner attends to them; the mean of the crops is captioned.
            decoding: how captions are decoded.
        """
        batches = self._decode(features, decoding)
        beams = (beam for sentences in batches for beam in zip(*sentences, strict=True))
        return [
            [
                Caption(self.vocabulary.decode(ids), float(log_prob / length), math.exp(log_prob))
                for ids, length, log_prob in zip(*beam, strict=True)
                if log_prob > -math.inf
            ]
            for beam in track(beams, total=len(features), unit="captions", log=log)
        ]

    def standardized(self, features: Features) -> npt.NDArray[np.float32]:
        """The mean crops (N, D) in standard deviations from the mean of the training images, as the models see them."""
        from keras import ops

        return ops.convert_to_numpy(self.models[0].get_layer("scale")(mean_crop(features).vectors))  # type: ignore[no-any-return]

    def attention(self, features: Features, captions: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        """Where the captioner looks for each word of captions.

        A word's weights are those of the state after the words before it, which predicts it. They are the mean of the
        heads, and of the models that attend.

        Args:
            features: of a few images, with regions.
            captions: a caption of each image, in words of the vocabulary.

        Returns:
            For each caption (T, R), the weights of the regions for each of its words, which add up to 1.
        """
        from keras import ops

        read = [self.vocabulary.encode(caption)[:-2] for caption in captions]
        words = np.full((len(read), max(1, *map(len, read))), PAD, np.int32)
        for row, ids in enumerate(read):
            words[row, : len(ids)] = ids
        weights = np.mean(
            [
                ops.convert_to_numpy(attention_weights(model, features.regions, words)).mean(axis=2)
                for model in self.models
                if attends(model)
            ],
            axis=0,
        )
        return [of_image[: len(ids)] for of_image, ids in zip(weights, read, strict=True)]

    def _decode(self, features: Features, decoding: DecodingConfig) -> Iterator["Sentences"]:
        """The sentences of one batch after the other, as arrays."""
        from pipeline.captioner.decoding import Sentences
        from pipeline.captioner.mbr import rerank

        features = mean_crop(features if self.attends else Features(features.vectors))
        # One size for all batches, so that decoding is compiled once; a power of two, so that sizes recur.
        max_size = BATCH_ROWS // max(decoding.beam_width, decoding.mbr_samples)
        size = min(BATCH_SIZE, 1 << (max_size.bit_length() - 1), 1 << (len(features) - 1).bit_length())
        for start in range(0, len(features), size):
            batch = features[start : start + size]
            # The last image again and again.
            padded = batch[np.minimum(np.arange(size), len(batch) - 1)]
            beam, *samples = self._compiled(decoding).predict_on_batch(padded.inputs)
            if samples:
                beam = rerank(beam, samples[0], self.vocabulary.information)
            yield Sentences(*(array[: len(batch)] for array in beam))

    def _compiled(self, decoding: DecodingConfig) -> "CompiledFunction":
        """A function of the inputs of images to the beam and, for MBR decoding, the ids of the samples."""
        from keras import ops

        from pipeline.captioner.decoding import CompiledFunction, beam_search, sample
        from pipeline.captioner.mbr import stratified_uniforms

        def decode(inputs: Mapping[str, "Tensor"]) -> tuple["Tensor", ...]:
            images, state = encode_images(self.models, inputs)
            step = partial(decode_step, self.models, images)
            beam = beam_search(
                step,
                state,
                beam_width=decoding.beam_width,
                max_length=self.max_length,
                allow_repeats=self.allow_repeats,
            )
            if not decoding.mbr_samples:
                return (beam,)
            uniforms = stratified_uniforms(decoding.mbr_samples, self.max_length)
            uniforms = ops.broadcast_to(uniforms, (ops.shape(inputs["features"])[0], *uniforms.shape))
            return beam, sample(step, state, uniforms=uniforms, allow_repeats=self.allow_repeats).ids

        if decoding not in self._decoders:
            self._decoders[decoding] = CompiledFunction(decode, self.models)
        return self._decoders[decoding]

"""The captioner in Keras: for training, whose weights change meanwhile, and for accelerators."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.captioner.mbr import stratified_uniforms
from pipeline.captioner.merge_model import attends, decode_step, encode_image, encode_images, predict, standardize
from pipeline.captioner.sentences import Decoded, Rows, Sentences, Tensor
from pipeline.config import DecodingConfig
from pipeline.features import accelerator
from pipeline.features.store import Features

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.decoding import CompiledFunction

BATCH_SIZE = 256
"""Maximum images that are decoded at once."""

BATCH_ROWS = 4096
"""Maximum captions that are decoded at once: (captions × vocabulary) floats are in memory."""


class KerasDecoder:
    """Decodes with Keras models, whose probabilities are averaged; compiled once for each decoding."""

    def __init__(self, models: Sequence["keras.Model"]) -> None:
        self.models = models
        self._compiled: dict[tuple[DecodingConfig, int, bool, tuple[int, ...]], CompiledFunction] = {}
        self.attends = any(map(attends, models))

    def decode(
        self,
        features: Features,
        decoding: DecodingConfig,
        *,
        max_length: int,
        allow_repeats: bool,
        forbidden_words: Sequence[int],
    ) -> Iterator[Decoded]:
        """The beams of one batch after the other."""
        key = decoding, max_length, allow_repeats, tuple(forbidden_words)
        if key not in self._compiled:
            self._compiled[key] = self._compile(*key)
        # One size for all batches, so that decoding is compiled once; a power of two, so that sizes recur. On an
        # accelerator there is one size for all calls: to compile another takes longer than to decode many images.
        max_size = BATCH_ROWS // max(decoding.beam_width, decoding.mbr_samples)
        needed = BATCH_SIZE if accelerator.present() else 1 << (len(features) - 1).bit_length()
        size = min(BATCH_SIZE, 1 << (max_size.bit_length() - 1), needed)
        for start in range(0, len(features), size):
            batch = features[start : start + size]
            # The last image again and again.
            padded = batch[np.minimum(np.arange(size), len(batch) - 1)]
            beam, *samples = self._compiled[key].predict_on_batch(padded.inputs)
            beam = Sentences(*(array[: len(batch)] for array in beam))
            yield beam, samples[0][: len(batch)] if samples else None

    def standardize(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Vectors (N, D) in standard deviations from the mean of the training images, as the first model sees them."""
        from keras import ops

        return ops.convert_to_numpy(standardize(self.models[0], vectors))  # type: ignore[no-any-return]

    def attention(self, features: Features, words: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The weights of the regions after each word (B, T), (B, T, R): the mean of heads and models."""
        from keras import ops

        every_row = np.arange(len(words), dtype=np.int32)
        of_models = []
        for model in filter(attends, self.models):
            image = encode_image(model, features.inputs)
            state: tuple[Tensor, ...] = (ops.zeros_like(image.projected),) * 2
            weights = []
            for column in words.T:
                _, state, found = predict(model, image, column, state, Rows(every_row, every_row[:, None]))
                weights.append(ops.convert_to_numpy(found).mean(axis=(1, 2)))
            of_models.append(np.stack(weights, axis=1))
        return np.mean(of_models, axis=0)  # type: ignore[no-any-return]

    def _compile(
        self, decoding: DecodingConfig, max_length: int, allow_repeats: bool, forbidden_words: Sequence[int]
    ) -> "CompiledFunction":
        """A function of the inputs of images to the beam and, for MBR decoding, the ids of the samples."""
        from keras import ops

        from pipeline.captioner.decoding import CompiledFunction, beam_search, sample

        def decode(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            images, state = encode_images(self.models, inputs)
            step = partial(decode_step, self.models, images)
            beam = beam_search(
                step,
                state,
                beam_width=decoding.beam_width,
                max_length=max_length,
                allow_repeats=allow_repeats,
                forbidden_words=forbidden_words,
            )
            if not decoding.mbr_samples:
                return (beam,)
            uniforms = stratified_uniforms(decoding.mbr_samples, max_length)
            uniforms = ops.broadcast_to(uniforms, (ops.shape(inputs["features"])[0], *uniforms.shape))
            samples = sample(
                step, state, uniforms=uniforms, allow_repeats=allow_repeats, forbidden_words=forbidden_words
            )
            return beam, samples.ids

        return CompiledFunction(decode, self.models)

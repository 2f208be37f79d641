"""The captioner: features in, captions out."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.captioner.confidence import Confidence, Evidence
from pipeline.captioner.mbr import Voters, rerank
from pipeline.captioner.neighbours import Neighbours
from pipeline.captioner.sentences import Decoded, Sentences
from pipeline.config import ENGLISH, DecodingConfig
from pipeline.data import wording
from pipeline.data.text import allows_repeats, clean, is_english
from pipeline.data.vocabulary import PAD, SPECIAL_WORDS, Vocabulary
from pipeline.errors import PipelineError
from pipeline.features.crops import mean_crop
from pipeline.features.store import Features
from pipeline.progress import counted, track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """A caption.

    Attributes:
        text: its words.
        log_prob: mean log probability of the words, the end of the caption among them.
        probability: of the whole caption.
        confidence: probability that a person would accept it; None if the model has no calibration.
        novel: whether its photograph is unlike all training photographs; None likewise.
    """

    text: str
    log_prob: float
    probability: float
    confidence: float | None = None
    novel: bool | None = None


class Decoder(Protocol):
    """A merge model, or an ensemble whose probabilities are averaged, in Keras or as networks."""

    @property
    def attends(self) -> bool:
        """Whether it needs the regions of images."""

    def decode(
        self,
        features: Features,
        decoding: DecodingConfig,
        *,
        max_length: int,
        allow_repeats: bool,
        forbidden_words: Sequence[int],
    ) -> Iterator[Decoded]:
        """The beams of N images, one batch after the other, in their order.

        Args:
            features: vectors (N, D) and, if it attends, regions.
            decoding: how captions are decoded; the words that it forbids are those of ``forbidden_words``.
            max_length: words after which a caption is cut.
            allow_repeats: whether words may repeat.
            forbidden_words: ids of words that are never written.
        """

    def standardize(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Vectors (N, D) in standard deviations from the mean of the training images, as the models see them."""

    def attention(self, features: Features, words: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The weights of the regions after each word (B, T) int32, (B, T, R): the mean of heads and attending models.

        A word's weights are those of the state that has read it, and predicts the next one.
        """


class Captioner:
    """A decoder with its vocabulary, its language and, once it is trained, the photographs that it learned from."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        neighbours: Neighbours | None = None,
        *,
        max_length: int,
        language: str = ENGLISH,
        confidence: Confidence | None = None,
    ) -> None:
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.neighbours = neighbours
        self.confidence = confidence
        self.max_length = max_length
        self.allow_repeats = allows_repeats(language)
        self._forbidden_ids = cache(self._find_forbidden_words)

    @property
    def attends(self) -> bool:
        """Whether it needs the regions of images."""
        return self.decoder.attends

    def caption(self, features: Features, decoding: DecodingConfig) -> list[Caption]:
        """The best caption of each of N images."""
        return [best for best, *_ in self.alternatives(features, decoding)]

    def alternatives(self, features: Features, decoding: DecodingConfig) -> list[list[Caption]]:
        """All captions of each image's beam, the best first: N lists of 1 to ``decoding.beam_width`` captions.

        Only the best one has a confidence, since the model was calibrated on best ones.

        Args:
            features: of N images, with regions if the captioner attends to them; the mean of the crops is captioned.
            decoding: how captions are decoded.

        Raises:
            PipelineError: what the decoding forbids is not a word, or is every word.
        """
        beams = self._neutral_beams(features, decoding)
        if self.confidence is None:
            return beams
        best = [beam[0] for beam in beams]
        judged = self.confidence.judge(best, self.evidence(features, best))
        return [[first, *others] for first, (_, *others) in zip(judged, beams, strict=True)]

    def evidence(self, features: Features, captions: Sequence[Caption]) -> Evidence:
        """The evidence for the confidence of captions of these images; the captioner must have neighbours."""
        assert self.neighbours is not None  # noqa: S101 - for type checkers
        vectors = mean_crop(Features(features.vectors)).vectors
        return Evidence.gather(captions, vectors, self.standardized(features), self.neighbours, self.vocabulary)

    def _neutral_beams(self, features: Features, decoding: DecodingConfig) -> list[list[Caption]]:
        """The captions of each image's beam, in the wording of the decoding."""
        forbidden = self._forbidden_ids(decoding.forbidden_words)
        beams = self._beams(features, decoding, forbidden)
        if not decoding.neutral_wording or not is_english(self.vocabulary.language):
            return beams
        unsure = np.array([wording.disagree(caption.text for caption in beam) for beam in beams], bool)
        if not unsure.any():
            return beams
        log.info("captioning %s again that the beam disagrees about, without genders", counted(unsure.sum(), "image"))
        gendered = [number for number, word in enumerate(self.vocabulary.words) if wording.names_gender(word)]
        neutral = iter(self._beams(features[unsure], decoding, (*forbidden, *gendered)))
        return [next(neutral) if again else beam for beam, again in zip(beams, unsure, strict=True)]

    def _beams(
        self, features: Features, decoding: DecodingConfig, forbidden_words: tuple[int, ...]
    ) -> list[list[Caption]]:
        """The captions of each image's beam, without words of these ids."""
        batches = self._decode(features, decoding, forbidden_words)
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
        return self.decoder.standardize(mean_crop(features).vectors)

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
        read = [self.vocabulary.encode(caption)[:-2] for caption in captions]
        words = np.full((len(read), max(1, *map(len, read))), PAD, np.int32)
        for row, ids in enumerate(read):
            words[row, : len(ids)] = ids
        weights = self.decoder.attention(features, words)
        return [of_image[: len(ids)] for of_image, ids in zip(weights, read, strict=True)]

    def _decode(
        self, features: Features, decoding: DecodingConfig, forbidden_words: tuple[int, ...]
    ) -> Iterator[Sentences]:
        """The sentences of one batch after the other, as arrays."""
        features = mean_crop(features if self.attends else Features(features.vectors))
        decoded = self.decoder.decode(
            features,
            decoding,
            max_length=self.max_length,
            allow_repeats=self.allow_repeats,
            forbidden_words=forbidden_words,
        )
        start = 0
        for beam, samples in decoded:
            voters = [] if samples is None else [Voters.sampled(samples)]
            if decoding.neighbours and self.neighbours is not None:
                end = start + len(beam.ids)
                voters.append(self.neighbours.voters(features.vectors[start:end], decoding.neighbours))
                start = end
            yield rerank(beam, voters, self.vocabulary.information) if voters else beam

    def _find_forbidden_words(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """The ids of forbidden words; the log names those that the vocabulary does not have."""
        words = {text: clean(text, self.vocabulary.language) for text in texts}
        for text, found in words.items():
            if len(found) != 1:
                raise PipelineError(
                    f"CAPTION_FORBIDDEN_WORDS: {text!r} is {counted(len(found), 'word')}, not one. Separate words by "
                    "commas; a phrase can't be forbidden."
                )
        ids = {word: self.vocabulary.find(word) for [word] in words.values()}
        if unknown := [word for word, number in ids.items() if number is None]:
            log.info("forbidden words that the model does not know anyway: %s", ", ".join(unknown))
        known = tuple(sorted(number for number in ids.values() if number is not None))
        if len(known) == len(self.vocabulary) - len(SPECIAL_WORDS):
            raise PipelineError(
                "CAPTION_FORBIDDEN_WORDS forbids every word of the model, so that no caption can be written: forbid "
                "fewer words."
            )
        return known

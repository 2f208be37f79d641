"""Training data: the features and the encoded captions of a dataset, in batches."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.data import dataset as datasets
from pipeline.data.vocabulary import PAD, Vocabulary
from pipeline.features import accelerator
from pipeline.features.crops import mean_crop, sample_crop
from pipeline.features.splits import SplitFeatures, read_split
from pipeline.features.store import Features
from pipeline.storage import Bucket

log = logging.getLogger(__name__)

MAX_LENGTH_PERCENTILE = 99.5
"""Percentile of the lengths of the training captions at which captions are cut: a few run-on sentences would otherwise
pad their batches and determine the maximum length of generated captions."""


Batch = tuple[dict[str, npt.NDArray[np.generic]], npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Inputs (those of ``Features.inputs`` for N images, ``words`` (B, T) int32, and ``rows`` (B,) int32, the image of each
caption among the N), the next words (B, T), and their weights (B, T): 0 for padding."""

MULTIPLE = 8
"""The images of a batch are filled up to a multiple of this number, to limit the number of compilations."""

EVEN = 2
"""Captions of a batch are padded to a multiple of this number of words, for the same reason."""


@dataclass(frozen=True)
class EncodedCaptions:
    """Captions as ids of words, each with the row of its image.

    Attributes:
        features: of the N images.
        image: (M,) the row of each caption's image.
        ids: the ids of each caption, from ``<start>`` to ``<end>``.
        few_shapes: whether batches are padded to two lengths and to full size, for accelerators: XLA compiles a model
            for each shape, which takes longer than they compute the padding. The loss is the same.
    """

    features: Features
    image: npt.NDArray[np.intp]
    ids: Sequence[Sequence[int]]
    few_shapes: bool = False

    def training_batches(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """All captions once, shuffled, in batches of similar length, each caption with a random crop of its image."""
        groups = self._groups(rng.permutation(len(self.ids)), size)
        rng.shuffle(groups)
        for group in groups:
            images, rows = self._images(group, size)
            yield self._batch(group, sample_crop(self.features[images], rng), rows)

    def evaluation_batches(self, size: int) -> Iterator[Batch]:
        """All captions once, in the order of their length, with the mean crop of their images."""
        features = mean_crop(self.features)
        for group in self._groups(np.arange(len(self.ids)), size):
            images, rows = self._images(group, size)
            yield self._batch(group, features[images], rows)

    def pad_length(self, words: float) -> int:
        """The length to which captions of ``words`` words are padded: one of few."""
        if self.few_shapes:
            half = math.ceil(self._longest / 2)
            return half if words <= half else self._longest
        return math.ceil(words / EVEN) * EVEN

    @cached_property
    def _longest(self) -> int:
        """Words of the longest caption, ``<end>`` among them."""
        return max(map(len, self.ids)) - 1

    def _groups(self, captions: npt.NDArray[np.intp], size: int) -> list[npt.NDArray[np.intp]]:
        """All captions, in this order where nothing else matters, in groups of similar length.

        With regions, the captions of an image are adjacent: much is computed once for all of them.
        """
        length = np.array([len(ids) for ids in self.ids])
        place = np.empty_like(captions)
        place[captions] = np.arange(len(captions))
        if self.features.regions is not None:
            longest, last = np.zeros((2, len(self.features)), np.intp)
            np.maximum.at(longest, self.image, length)
            np.maximum.at(last, self.image, place)
            length, place = longest[self.image], last[self.image]
        order = np.lexsort((place, length))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _images(self, captions: npt.NDArray[np.intp], size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The images of a batch of captions, and the row of each caption's image among them.

        With few shapes there are rows for captions that fill the batch up to ``size``, too.
        """
        images = self.image[np.resize(captions, size) if self.few_shapes else captions]
        if self.features.regions is None:
            # A vector takes little time, and each caption may have another crop.
            return images, np.arange(len(images))
        distinct, rows = np.unique(images, return_inverse=True)
        filled = math.ceil(len(distinct) / MULTIPLE) * MULTIPLE
        return np.resize(distinct, 1 << (filled - 1).bit_length() if self.few_shapes else filled), rows

    def _batch(self, captions: npt.NDArray[np.intp], features: Features, rows: npt.NDArray[np.intp]) -> Batch:
        """A batch of these captions, with the features of images, and the row of each caption's image among them."""
        width = self.pad_length(max(len(self.ids[caption]) for caption in captions) - 1) + 1
        ids = np.full((len(rows), width), PAD, np.int32)
        for row in range(len(rows)):
            caption = self.ids[captions[row % len(captions)]]
            ids[row, : len(caption)] = caption
        weights = (ids[:, 1:] != PAD).astype(np.float32)
        # Captions that fill the batch are some of its own, once more, and count nothing.
        weights[len(captions) :] = 0
        inputs: dict[str, npt.NDArray[np.generic]] = {
            **features.inputs,
            "words": ids[:, :-1],
            "rows": rows.astype(np.int32),
        }
        return inputs, ids[:, 1:], weights


@dataclass(frozen=True)
class TrainingData:
    """Everything that a training learns from and chooses the best epoch by.

    Attributes:
        vocabulary: the words that the captioner can write.
        train: the images to train on.
        train_captions: their captions.
        dev: the images by which the best epoch is chosen.
        dev_captions: their captions.
        max_length: words of the longest caption.
        language: of the captions, a BCP 47 code.
    """

    vocabulary: Vocabulary
    train: SplitFeatures
    train_captions: EncodedCaptions
    dev: SplitFeatures
    dev_captions: EncodedCaptions
    max_length: int
    language: str

    @classmethod
    def read(
        cls,
        dataset_id: str,
        vocabulary_key: str,
        *,
        encoder_id: str,
        regions: bool,
        store: Bucket,
        max_failed_fraction: float,
    ) -> "TrainingData":
        """Read the splits train and dev of a dataset. Raises ``PipelineError`` as ``read_split`` does."""
        vocabulary = Vocabulary.from_json(store.get(vocabulary_key), origin=store.url(vocabulary_key))
        dataset = datasets.load(dataset_id, store)
        train, dev = (
            read_split(
                dataset,
                split,
                encoder_id=encoder_id,
                regions=regions,
                store=store,
                max_failed_fraction=max_failed_fraction,
            )
            for split in ("train", "dev")
        )
        train_captions, max_length = encode_captions(train, vocabulary)
        dev_captions, _ = encode_captions(dev, vocabulary, max_length)
        log.info(
            "training on %d captions of %d images, %d words",
            len(train_captions.ids),
            len(train.features),
            len(vocabulary),
        )
        return cls(vocabulary, train, train_captions, dev, dev_captions, max_length, dataset.language)


def encode_captions(
    split: SplitFeatures, vocabulary: Vocabulary, max_length: int | None = None
) -> tuple[EncodedCaptions, int]:
    """Encode the captions of a split, cut to ``max_length`` words, in neutral wording if the vocabulary is.

    Returns:
        The captions, and ``max_length``; by default it is the percentile ``MAX_LENGTH_PERCENTILE`` of their lengths.
    """
    captions_by_image = datasets.captions_to_learn(split.table, neutral_wording=vocabulary.neutral_wording)
    ids, image = [], []
    for row, captions in enumerate(captions_by_image):
        ids += [vocabulary.encode(caption) for caption in captions]
        image += [row] * len(captions)
    if max_length is None:
        max_length = math.ceil(float(np.percentile([len(caption) - 2 for caption in ids], MAX_LENGTH_PERCENTILE)))
    ids = [caption if len(caption) - 2 <= max_length else caption[: max_length + 1] for caption in ids]
    return EncodedCaptions(split.features, np.array(image), ids, few_shapes=accelerator.present()), max_length

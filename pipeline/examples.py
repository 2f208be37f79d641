"""Examples to learn from and to judge by: a dataset's split, its features, and its captions as numbers."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset as datasets
from pipeline import features as feature_store
from pipeline.storage import Bucket, open_object
from pipeline.views import average, draw
from pipeline.vocabulary import PAD, Vocabulary

log = logging.getLogger(__name__)

MAX_LENGTH_PERCENTILE = 99.5
"""Captions longer than this share of the training captions are cut, and none longer is written: a few run-on
sentences would otherwise pad their batches and set the decoder's limit."""


@dataclass(frozen=True)
class Split:
    """The images of a split whose features could be extracted.

    Attributes:
        table: their rows of the dataset.
        vectors: (N, D) or (N, V, D) float32, in the table's order.
    """

    table: pa.Table
    vectors: npt.NDArray[np.float32]

    @property
    def references(self) -> dict[str, list[str]]:
        """The raw captions by row number."""
        return {str(row): captions for row, captions in enumerate(self.table["captions"].to_pylist())}


def split_features(
    dataset: datasets.Dataset, split: str, *, encoder_id: str, store: Bucket, max_failed_fraction: float
) -> Split:
    """A split with its features; images that could not be read are left out, up to ``max_failed_fraction``."""
    table = dataset.split(split)
    rows = feature_store.look_up(datasets.images(table), encoder_id=encoder_id, store=store)
    ok = pa.array([status == "ok" for status in rows["status"].to_pylist()])
    failed = rows.filter(pc.invert(ok))
    names = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    feature_store.check_failures(names, len(rows), allowed_fraction=max_failed_fraction)
    if names:
        log.warning("%d of the %d images of %s could not be read and are left out", len(names), len(rows), split)
    return Split(table.filter(ok), feature_store.read_vectors(rows.filter(ok), encoder_id=encoder_id, store=store))


def count_words(dataset_uri: str, *, min_count: int) -> tuple[str, Vocabulary]:
    """Number the words of the training captions seen ``min_count`` times, and write them beside the dataset.

    Returns:
        The URI of the vocabulary, and the vocabulary.

    Raises:
        PipelineError: no word is seen that often.
    """
    training = datasets.load(dataset_uri).split("train")
    captions = (caption for captions in training["captions"].to_pylist() for caption in captions)
    vocabulary = Vocabulary.build(captions, min_count=min_count)
    bucket, _ = open_object(dataset_uri)
    key = f"vocabulary-{min_count}.json"
    bucket.put(key, vocabulary.to_json().encode())
    return bucket.url(key), vocabulary


Batch = tuple[dict[str, npt.NDArray[np.generic]], npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Inputs, the next words (B, T), and their weights (B, T): 0 where there is padding."""


@dataclass(frozen=True)
class Captions:
    """Captions as ids, each with the row of its image.

    Attributes:
        features: (N, D) or (N, V, D) float32, a row an image.
        image: (C,) the row of each caption's image.
        ids: of each caption, from ``<start>`` to ``<end>``.
    """

    features: npt.NDArray[np.float32]
    image: npt.NDArray[np.intp]
    ids: Sequence[Sequence[int]]

    def batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """All captions once, in batches of similar length.

        With ``rng`` they are shuffled, each with one view of its image; else in order of length, with the mean view.
        """
        features = average(self.features) if rng is None else self.features
        lengths = np.array([len(ids) for ids in self.ids])
        order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        if rng is not None:
            rng.shuffle(groups)
        for group in groups:
            longest = pad_length(lengths[group].max() - 1) + 1
            ids = np.full((len(group), longest), PAD, np.int32)
            for row, caption in enumerate(group):
                ids[row, : lengths[caption]] = self.ids[caption]
            of_group = features[self.image[group]]
            inputs: dict[str, npt.NDArray[np.generic]] = {
                "features": of_group if rng is None else draw(of_group, rng),
                "words": ids[:, :-1],
            }
            yield inputs, ids[:, 1:], (ids[:, 1:] != PAD).astype(np.float32)


@dataclass(frozen=True)
class Examples:
    """All that a training learns from and chooses by.

    Attributes:
        vocabulary: the words it may write.
        training: the photographs to learn from.
        captions: theirs.
        development: the photographs to choose the best epoch by.
        dev_captions: theirs.
        longest: words of the longest caption.
    """

    vocabulary: Vocabulary
    training: Split
    captions: Captions
    development: Split
    dev_captions: Captions
    longest: int

    @classmethod
    def read(
        cls, dataset_uri: str, vocabulary_uri: str, *, encoder_id: str, store: Bucket, max_failed_fraction: float
    ) -> "Examples":
        """The splits train and dev of a dataset. Raises ``PipelineError`` as ``split_features`` does."""
        bucket, key = open_object(vocabulary_uri)
        vocabulary = Vocabulary.from_json(bucket.get(key), origin=vocabulary_uri)
        dataset = datasets.load(dataset_uri)
        training, development = (
            split_features(dataset, split, encoder_id=encoder_id, store=store, max_failed_fraction=max_failed_fraction)
            for split in ("train", "dev")
        )
        captions, longest = encode_captions(training, vocabulary)
        dev_captions, _ = encode_captions(development, vocabulary, longest)
        log.info(
            "learning from %d captions of %d images, %d words",
            len(captions.ids),
            len(training.vectors),
            len(vocabulary),
        )
        return cls(vocabulary, training, captions, development, dev_captions, longest)


def pad_length(words: float) -> int:
    """The length to pad captions of ``words`` words to: one of few, so that a compiled step is compiled few times."""
    return math.ceil(words / 2) * 2


def encode_captions(split: Split, vocabulary: Vocabulary, longest: int | None = None) -> tuple[Captions, int]:
    """A split's captions as ids, cut to ``longest`` words (by default such that few are), and ``longest``."""
    ids, image = [], []
    for row, captions in enumerate(split.table["captions"].to_pylist()):
        ids += [vocabulary.encode(caption) for caption in captions]
        image += [row] * len(captions)
    if longest is None:
        longest = math.ceil(float(np.percentile([len(caption) - 2 for caption in ids], MAX_LENGTH_PERCENTILE)))
    ids = [caption if len(caption) - 2 <= longest else caption[: longest + 1] for caption in ids]
    return Captions(split.vectors, np.array(image), ids), longest

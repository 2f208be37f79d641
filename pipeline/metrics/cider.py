"""CIDEr-D of captions as word ids: the reward of self-critical training (SCST), and the utility of MBR."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from pipeline.data.vocabulary import PAD

Ids = npt.NDArray[np.int32]

Weigh = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]

ORDERS = 4
"""CIDEr compares n-grams of 1 to this many words."""

SIGMA = 6.0
"""CIDEr-D's tolerance of a difference in length, in words."""


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726) of captions as ids, thousands a second.

    The scores equal those of ``pycocoevalcap`` on the same words, with the end token as a word. By default n-grams are
    weighted by their inverse document frequency in the references.

    Args:
        references: (R, T) int32 ids without the start token, ``PAD`` after the end token; the references of an image
            are in consecutive rows.
        image: (R,) the index of each reference's image, counted from 0 without gaps.
        vocabulary_size: V; all ids are smaller.
        information: (V,) float64, a weight for each word, 0 for ``PAD``; the weight of an n-gram is the sum of those of
            its words. It replaces document frequencies if there are too few references to count them in.
    """

    def __init__(
        self,
        references: Ids,
        image: npt.NDArray[np.intp],
        vocabulary_size: int,
        information: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._first = np.searchsorted(image, np.arange(image[-1] + 1))
        self._count = np.bincount(image)
        self._base = vocabulary_size
        row, key, count = _n_grams(references, self._base)
        self._keys, gram = np.unique(key, return_inverse=True)
        if information is None:
            # The number of images in whose references an n-gram occurs.
            pairs = np.unique(image[row] * len(self._keys) + gram)
            frequency = np.bincount(pairs % len(self._keys), minlength=len(self._keys))
            of_any = math.log(len(self._first))
            self._weights = of_any - np.log(frequency)
            # An n-gram in no reference gets the weight of one in the references of a single image.
            self._weigh_new: Weigh = lambda key: np.full(len(key), of_any)
        else:
            self._weigh_new = partial(_sum_of_words, information)
            self._weights = self._weigh_new(self._keys)
        value = self._weights[gram] * count
        self._norms = _norms(row, key, value, len(references), self._base)
        self._lengths = _lengths(references)
        # By image and n-gram: what a caption's n-gram meets in all references of its image is then in adjacent places.
        place = image[row] * len(self._keys) + gram
        order = np.argsort(place, kind="stable")
        self._places, self._values = place[order], value[order]
        self._numbers = row[order] - self._first[image[row[order]]]

    def __call__(self, captions: Ids, image: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """The scores (M,) float32, between 0 and 10, of captions (M, T), encoded like the references, by image (M,)."""
        row, key, count = _n_grams(captions, self._base)
        gram = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        known = self._keys[gram] == key
        # An n-gram in no reference still counts in the caption's norm.
        value = count * np.where(known, self._weights[gram], self._weigh_new(key))
        norms, lengths = _norms(row, key, value, len(captions), self._base), _lengths(captions)
        row, gram, order, value = row[known], gram[known], _order(key[known], self._base), value[known]
        place = image[row] * len(self._keys) + gram
        start, end = (np.searchsorted(self._places, place, side=side) for side in ("left", "right"))
        mine = np.repeat(np.arange(len(place)), end - start)
        met = np.arange(len(mine)) + np.repeat(start - np.cumsum(end - start) + (end - start), end - start)
        theirs = self._values[met]
        count = self._count[image]
        shape = (len(captions), count.max(), ORDERS)
        product = np.bincount(
            np.ravel_multi_index((row[mine], self._numbers[met], order[mine]), shape),
            np.minimum(value[mine], theirs) * theirs,
            minlength=math.prod(shape),
        ).reshape(shape)
        reference = self._first[image][:, None] + np.arange(shape[1])
        present = np.arange(shape[1]) < count[:, None]
        reference[~present] = 0
        scale = norms[:, None] * self._norms[reference]
        similarity = np.divide(product, scale, out=np.zeros(shape), where=scale > 0).mean(axis=2)
        difference = lengths[:, None] - self._lengths[reference]
        alike = np.where(present, similarity * np.exp(-(difference**2) / (2 * SIGMA**2)), 0.0)
        scores: npt.NDArray[np.float64] = 10 * alike.sum(axis=1) / count
        return scores.astype(np.float32)


def _n_grams(ids: Ids, base: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each distinct n-gram of each row: its row, its key (a number whose digits are the ids), and its count in the row.

    Ids are below ``base`` and ``PAD`` is 0, so a longer n-gram has a greater key than any shorter one.
    """
    rows, keys = [], []
    key = np.zeros_like(ids, np.int64)
    for n in range(min(ORDERS, ids.shape[1])):
        key = key[:, : ids.shape[1] - n] * base + ids[:, n:]
        # Padding is at the end, so an n-gram is real if its last id is.
        row, column = np.nonzero(ids[:, n:] != PAD)
        rows.append(row)
        keys.append(key[row, column])
    row, key = np.concatenate(rows), np.concatenate(keys)
    distinct, number = np.unique(key, return_inverse=True)
    pair, count = np.unique(row * len(distinct) + number, return_counts=True)
    return pair // len(distinct), distinct[pair % len(distinct)], count


def _order(key: npt.NDArray[np.int64], base: int) -> npt.NDArray[np.intp]:
    """The number of words in each n-gram, minus one."""
    return np.searchsorted([base**n for n in range(1, ORDERS)], key, side="right")


def _norms(
    row: npt.NDArray[np.intp],
    key: npt.NDArray[np.int64],
    value: npt.NDArray[np.number],
    rows: int,
    base: int,
) -> npt.NDArray[np.float64]:
    """The Euclidean norms (rows, ORDERS) of each row's n-grams, by order."""
    squares = np.bincount(row * ORDERS + _order(key, base), value**2, minlength=rows * ORDERS)
    return np.sqrt(squares).reshape(-1, ORDERS)


def _lengths(ids: Ids) -> npt.NDArray[np.int64]:
    """The number of bigrams in each row, which the toolkit uses as its length."""
    lengths: npt.NDArray[np.int64] = (ids != PAD).sum(axis=1) - 1
    return lengths


def _sum_of_words(information: npt.NDArray[np.float64], key: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The sum of the information (V,) of each n-gram's words; the base of the keys is V."""
    total = np.zeros(len(key))
    for _ in range(ORDERS):
        key, word = np.divmod(key, len(information))
        total += information[word]
    return total

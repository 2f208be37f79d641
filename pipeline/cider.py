"""CIDEr-D of captions in ids: what self-critical training rewards, and by what a consensus is found."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from pipeline.vocabulary import PAD

Ids = npt.NDArray[np.int32]

Weigh = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]

ORDERS = 4
"""CIDEr compares n-grams of 1 to this many words."""

SIGMA = 6.0
"""CIDEr-D's tolerance of a difference in length, in words."""


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726) of captions in ids, thousands a second.

    Equal to ``pycocoevalcap``'s where that gets the same words, the end among them: by default n-grams weigh by their
    document frequency in the references.

    Args:
        references: (R, T) ids without the start, ``PAD`` after the end; those of an image stand side by side.
        image: (R,) the number of each reference's image, from 0 without a gap.
        vocabulary_size: V; all ids are below.
        information: (V,) a weight for each word, 0 for ``PAD``; an n-gram has the sum of its words'. It takes the place
            of document frequencies where there are too few references for them.
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
            # In how many images' references an n-gram stands.
            pairs = np.unique(image[row] * len(self._keys) + gram)
            frequency = np.bincount(pairs % len(self._keys), minlength=len(self._keys))
            of_any = math.log(len(self._first))
            self._weights = of_any - np.log(frequency)
            # An n-gram of no reference weighs as much as one that stands in the references of one image.
            self._weigh_new: Weigh = lambda key: np.full(len(key), of_any)
        else:
            self._weigh_new = partial(_sum_of_words, information)
            self._weights = self._weigh_new(self._keys)
        value = self._weights[gram] * count
        self._norms = _norms(row, key, value, len(references), self._base)
        self._lengths = _lengths(references)
        place = row * len(self._keys) + gram
        order = np.argsort(place)
        self._places, self._values = place[order], value[order]

    def __call__(self, captions: Ids, image: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Score of each caption, between 0 and 10: captions (M, T) as the references, image (M,), to (M,) float32."""
        row, key, count = _n_grams(captions, self._base)
        gram = np.searchsorted(self._keys, key).clip(max=len(self._keys) - 1)
        known = self._keys[gram] == key
        # An n-gram of no reference counts in the caption's norm.
        value = count * np.where(known, self._weights[gram], self._weigh_new(key))
        norms, lengths = _norms(row, key, value, len(captions), self._base), _lengths(captions)
        row, gram, order, value = row[known], gram[known], _order(key[known], self._base), value[known]
        total = np.zeros(len(captions))
        for number in range(self._count[image].max()):
            reference = self._first[image] + number
            present = number < self._count[image]
            reference[~present] = 0
            place = reference[row] * len(self._keys) + gram
            found = np.searchsorted(self._places, place).clip(max=len(self._places) - 1)
            theirs = np.where(self._places[found] == place, self._values[found], 0.0)
            product = np.bincount(
                row * ORDERS + order, np.minimum(value, theirs) * theirs, minlength=len(captions) * ORDERS
            ).reshape(-1, ORDERS)
            scale = norms * self._norms[reference]
            similarity = np.divide(product, scale, out=np.zeros(product.shape), where=scale > 0).mean(axis=1)
            difference = lengths - self._lengths[reference]
            total += np.where(present, similarity * np.exp(-(difference**2) / (2 * SIGMA**2)), 0.0)
        return (10 * total / self._count[image]).astype(np.float32)


def _n_grams(ids: Ids, base: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each n-gram of each row once: its row, its key (the words as digits of a number), and how often it stands there.

    Ids are below ``base`` and ``PAD`` is 0, so that a longer n-gram has a greater key than any shorter one.
    """
    rows, keys = [], []
    key = np.zeros_like(ids, np.int64)
    for n in range(min(ORDERS, ids.shape[1])):
        key = key[:, : ids.shape[1] - n] * base + ids[:, n:]
        # Padding is at the end: an n-gram whose last word is none is no n-gram.
        row, column = np.nonzero(ids[:, n:] != PAD)
        rows.append(row)
        keys.append(key[row, column])
    row, key = np.concatenate(rows), np.concatenate(keys)
    distinct, number = np.unique(key, return_inverse=True)
    pair, count = np.unique(row * len(distinct) + number, return_counts=True)
    return pair // len(distinct), distinct[pair % len(distinct)], count


def _order(key: npt.NDArray[np.int64], base: int) -> npt.NDArray[np.intp]:
    """How many words an n-gram has, less one."""
    return np.searchsorted([base**n for n in range(1, ORDERS)], key, side="right")


def _norms(
    row: npt.NDArray[np.intp],
    key: npt.NDArray[np.int64],
    value: npt.NDArray[np.number],
    rows: int,
    base: int,
) -> npt.NDArray[np.float64]:
    """The Euclidean norms of the rows' n-grams of each order: (rows, ORDERS)."""
    squares = np.bincount(row * ORDERS + _order(key, base), value**2, minlength=rows * ORDERS)
    return np.sqrt(squares).reshape(-1, ORDERS)


def _lengths(ids: Ids) -> npt.NDArray[np.int64]:
    """The number of pairs of words in each row, which the toolkit takes for its length."""
    lengths: npt.NDArray[np.int64] = (ids != PAD).sum(axis=1) - 1
    return lengths


def _sum_of_words(information: npt.NDArray[np.float64], key: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The information (V,) of the words of each n-gram, summed; the base of the keys is V."""
    total = np.zeros(len(key))
    for _ in range(ORDERS):
        key, word = np.divmod(key, len(information))
        total += information[word]
    return total

"""CIDEr-D of captions as word ids."""

import itertools
import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.vocabulary import END, PAD
from pipeline.metrics.cider import CiderD

captions = st.lists(st.integers(4, 9), max_size=7)
images = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=2, max_size=6)


def encoded(sentences, width=9):
    """Sentences of ids as rows that end in END and padding."""
    return np.array([[*sentence, END, *[PAD] * (width - 1 - len(sentence))] for sentence in sentences], np.int32)


@given(images)
def test_scores_are_the_toolkits(images):
    """For any captions, each score equals pycocoevalcap's for the same words with the end as one more word."""
    from pycocoevalcap.cider.cider import Cider

    def text(sentence):
        return [" ".join(f"w{number}" for number in [*sentence, END])]

    ours = {number: text(caption) for number, (caption, _) in enumerate(images)}
    theirs = {number: [*itertools.chain(*map(text, references))] for number, (_, references) in enumerate(images)}
    _, expected = Cider().compute_score(theirs, ours)

    references = encoded([reference for _, references in images for reference in references])
    owner = np.repeat(np.arange(len(images)), [len(references) for _, references in images])
    cider = CiderD(references, owner, 10)
    scores = cider(encoded([caption for caption, _ in images]), np.arange(len(images)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_scores_do_not_depend_on_their_neighbours():
    """A caption has the same score alone and in a batch, in any order, with any padding."""
    references = encoded([[4, 5, 6], [4, 5], [7, 8], [7, 8, 9, 4]])
    cider = CiderD(references, np.array([0, 0, 1, 1]), 10)
    captions = encoded([[4, 5, 6], [7, 8], [9, 9, 9], []])
    owner = np.array([0, 1, 0, 1])
    together = cider(captions, owner)
    alone = [cider(captions[row : row + 1, :5], owner[row : row + 1])[0] for row in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(cider(captions[::-1], owner[::-1]), together[::-1], rtol=1e-6)
    assert together[0] > together[2]


def test_a_truncated_caption_scores_less():
    """The end counts as a word: a complete caption scores more than the same words without their end."""
    cider = CiderD(encoded([[4, 5, 6], [7, 8, 9]]), np.array([0, 1]), 10)
    complete, truncated = cider(np.array([[4, 5, 6, END], [4, 5, 6, PAD]], np.int32), np.array([0, 0]))
    assert complete > truncated


def n_grams(sentence, n):
    """The count of each n-gram in a sentence."""
    return Counter(zip(*(sentence[start:] for start in range(n)), strict=False))


def likeness(one, other, information):
    """CIDEr-D of one sentence against another by its formula; an n-gram weighs the sum of its words."""
    total = 0.0
    for n in (1, 2, 3, 4):
        mine, theirs = (
            {gram: count * sum(information[list(gram)]) for gram, count in n_grams(sentence, n).items()}
            for sentence in (one, other)
        )
        norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
        total += product / norms if norms else 0.0
    return 10 * total / 4 * math.exp(-((len(one) - len(other)) ** 2) / (2 * 6**2))


@given(images, st.lists(st.floats(0.1, 9), min_size=6, max_size=6))
def test_words_may_be_weighted_by_their_information(images, of_words):
    """With weights of words the score equals the formula's, also for words in no reference."""
    information = np.array([0, 0, 0, 0, *of_words])  # the end has no information
    references = encoded([reference for _, references in images for reference in references])
    owner = np.repeat(np.arange(len(images)), [len(references) for _, references in images])
    cider = CiderD(references, owner, 10, information)
    scores = cider(encoded([caption for caption, _ in images]), np.arange(len(images)))
    expected = [
        np.mean([likeness([*caption, END], [*reference, END], information) for reference in references])
        for caption, references in images
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)

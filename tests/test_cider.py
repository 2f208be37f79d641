"""CIDEr-D of captions in ids."""

import itertools
import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cider import CiderD
from pipeline.self_critical import padded
from pipeline.vocabulary import END, PAD, START

captions = st.lists(st.integers(4, 9), max_size=7)
images = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=2, max_size=6)


def encoded(sentences, width=9):
    """Sentences of ids as padded rows that end in END."""
    return padded([[START, *sentence, END] for sentence in sentences], width)


@settings(deadline=None)
@given(images)
def test_scores_are_the_toolkits(images):
    """Whatever the captions, each one's score is pycocoevalcap's score of the same words and their end."""
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
    """A caption has the same score alone and in a batch, in any order, and with any padding."""
    references = encoded([[4, 5, 6], [4, 5], [7, 8], [7, 8, 9, 4]])
    cider = CiderD(references, np.array([0, 0, 1, 1]), 10)
    captions = encoded([[4, 5, 6], [7, 8], [9, 9, 9], []])
    owner = np.array([0, 1, 0, 1])
    together = cider(captions, owner)
    alone = [cider(captions[row : row + 1, :5], owner[row : row + 1])[0] for row in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(cider(captions[::-1], owner[::-1]), together[::-1], rtol=1e-6)
    assert together[0] > together[2]


def test_a_caption_that_breaks_off_is_worth_less():
    """The end counts as a word: the whole caption is worth more than the same words without their end."""
    cider = CiderD(encoded([[4, 5, 6], [7, 8, 9]]), np.array([0, 1]), 10)
    whole, broken = cider(np.array([[4, 5, 6, END], [4, 5, 6, PAD]], np.int32), np.array([0, 0]))
    assert whole > broken


def n_grams(sentence, n):
    """How often each n-gram stands in a sentence."""
    return Counter(zip(*(sentence[start:] for start in range(n)), strict=False))


def likeness(one, other, information):
    """CIDEr-D of one sentence to another by its formula, n-grams weighing as much as their words together."""
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


@settings(deadline=None)
@given(images, st.lists(st.floats(0.1, 9), min_size=6, max_size=6))
def test_words_may_weigh_by_what_they_tell(images, of_words):
    """With information of words the score is the formula's with it, also for words that no reference has."""
    information = np.array([0, 0, 0, 0, *of_words])  # the end tells nothing
    references = encoded([reference for _, references in images for reference in references])
    owner = np.repeat(np.arange(len(images)), [len(references) for _, references in images])
    cider = CiderD(references, owner, 10, information)
    scores = cider(encoded([caption for caption, _ in images]), np.arange(len(images)))
    expected = [
        np.mean([likeness([*caption, END], [*reference, END], information) for reference in references])
        for caption, references in images
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)

"""Neutral wording: which words name a gender, and which captions disagree about one."""

import pytest

from pipeline.data import wording


def test_words_that_name_a_gender():
    """Nouns in both numbers and pronouns do; words for people of any gender, and for animals, do not."""
    gendered = ["man", "women", "boys", "ladies", "gentlemen", "brothers", "his", "herself"]
    neutral = ["person", "people", "child", "kids", "guys", "dog", "manner"]
    assert [word for word in [*neutral, *gendered] if wording.names_gender(word)] == gendered


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["a man jumps", "a woman jumps"], True),
        (["two girls", "a child", "three boys"], True),
        (["a boy jumps", "a woman jumps"], True),
        (["a man jumps", "a boy jumps"], False),
        (["a man jumps", "a person jumps"], False),
        (["a man and a woman", "a man"], False),
        (["a man and a woman", "a man", "a girl"], True),
        (["a dog and his ball", "a dog and her ball"], False),
        ([], False),
    ],
)
def test_what_disagrees(captions, expected):
    """One caption has only men or boys, another only women or girls; one with both agrees with either."""
    assert wording.disagree(captions) is expected

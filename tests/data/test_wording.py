"""Neutral wording: which words name a gender, and which captions disagree about one, and captions without."""

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


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man and two Women .", "a person and two people"),
        ("Girls, and a small boy", "children and a small child"),
        ("the lady's brothers", "the person people"),
        ("He jumps on his bike by himself", "they jumps on their bike by themselves"),
        ("a dog behind her", "a dog behind them"),
        ("her dog, and hers", "their dog and theirs"),
        ("a female tennis player", "a tennis player"),
        ("a young male in grey", "a young person in grey"),
        ("The dog's person!", "the dog person"),
    ],
)
def test_captions_that_disagree_become_neutral(caption, expected):
    """Nouns keep their number, pronouns are they, and an adjective is left out."""
    assert wording.neutral([caption, "a man", "a woman"]) == [expected, "a person", "a person"]


def test_captions_that_agree_are_left_as_they_are():
    """Their letters and punctuation, too."""
    for captions in (["A man .", "The boy jumps !"], ["A man and a woman", "His wife ."], []):
        assert wording.neutral(captions) == captions

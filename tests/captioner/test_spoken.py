"""Names of models that people can say."""

import re

from pipeline.captioner.spoken import ADJECTIVES, NOUNS, spoken_name


def test_a_version_always_has_the_same_name():
    """On every machine and in every process: people write it down."""
    assert spoken_name("20261127T065742-2e078ce8") == "amber-ibex"
    assert spoken_name("20261127T070727-cdbe556a") == "glad-marmot"


def test_each_word_can_be_said():
    """It is short, of plain letters, and in one list only once."""
    for words in (ADJECTIVES, NOUNS):
        assert sorted(set(words)) == words
        assert all(re.fullmatch("[a-z]{3,12}", word) for word in words)
    assert not set(ADJECTIVES) & set(NOUNS)


def test_few_models_share_a_name():
    """Of a thousand versions about thirty do by chance; every word is used."""
    names = [spoken_name(f"20260101T{number:06}-0123abcd") for number in range(1000)]
    assert len(set(names)) > 950
    more = [spoken_name(f"v{number}") for number in range(5000)]
    assert {name.split("-")[0] for name in more} == set(ADJECTIVES)
    assert {name.split("-")[1] for name in more} == set(NOUNS)

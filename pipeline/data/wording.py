"""Neutral wording: whether captions of a picture disagree about somebody's gender. It is about English only."""

from collections.abc import Iterable

from pipeline.data.lexicon import GENDERS, PRONOUNS, singular


def names_gender(word: str) -> bool:
    """Whether a word in lower case says somebody's gender, as ``women`` and ``his`` do."""
    return singular(word) in GENDERS or word in PRONOUNS


def disagree(captions: Iterable[str]) -> bool:
    """Whether one of a picture's captions has men or boys and no women or girls, and another the other way round.

    Pronouns do not count, because they may be an animal's.
    """
    genders = [{GENDERS[noun] for word in text.split() if (noun := singular(word)) in GENDERS} for text in captions]
    return {"male"} in genders and {"female"} in genders

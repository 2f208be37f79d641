"""Neutral wording: whether captions of a picture disagree about somebody's gender, and captions that name none.

It is about English only.
"""

from collections.abc import Iterable, Iterator, Sequence

from pipeline.data.lexicon import CHILDREN, GENDERS, NAMES, PRONOUNS, singular
from pipeline.data.text import clean

_PLURALS = {"person": "people", "child": "children"}

_NEUTRAL_PRONOUNS = {
    "he": "they",
    "she": "they",
    "him": "them",
    "his": "their",
    "her": "their",
    "hers": "theirs",
    "himself": "themselves",
    "herself": "themselves",
}


def names_gender(word: str) -> bool:
    """Whether a word in lower case says somebody's gender, as ``women`` and ``his`` do."""
    return singular(word) in GENDERS or word in PRONOUNS


def disagree(captions: Iterable[str]) -> bool:
    """Whether one of a picture's captions has men or boys and no women or girls, and another the other way round.

    Pronouns do not count, because they may be an animal's.
    """
    genders = [{GENDERS[noun] for word in text.split() if (noun := singular(word)) in GENDERS} for text in captions]
    return {"male"} in genders and {"female"} in genders


def neutral(captions: Sequence[str]) -> list[str]:
    """The captions of a picture; if they disagree, in lower case without punctuation, and in words of no gender.

    A man or woman becomes a person, and a boy or girl a child. Verbs are left alone, so "he is" becomes "they is".
    """
    words = [clean(caption) for caption in captions]
    if not disagree(map(" ".join, words)):
        return list(captions)
    return [" ".join(_neutral(caption)) for caption in words]


def _neutral(words: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(words):
        noun, following = singular(word), words[place + 1 : place + 3]
        if word == "her" and not following:
            yield "them"
        elif word in PRONOUNS:
            yield _NEUTRAL_PRONOUNS[word]
        elif noun not in GENDERS:
            yield word
        # "A female police officer" names her by another word.
        elif word not in ("male", "female") or not any(NAMES.get(singular(each)) == "person" for each in following):
            kind = "child" if noun in CHILDREN else "person"
            yield kind if word == noun else _PLURALS[kind]

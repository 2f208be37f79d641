"""Error analysis of captions: errors counted from their words, and scores by length of the references.

The images themselves are not examined. The references of an image are taken as the truth, and words are compared by
lists and simple rules. So a count is an estimate: a correct caption is counted if no reference mentions the same thing,
and many wrong ones are missed. The human error rate, of each reference against the others of its image, shows how much
of a count is noise.

Hallucinated objects are counted as in CHAIR (Rohrbach et al. 2018, "Object Hallucination in Image Captioning",
https://aclanthology.org/D18-1437), with two differences: only the references say which objects are in an image, and the
objects are those listed in ``lexicon``. The rate is over captions, like CHAIRs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, zip_longest
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.data import lexicon
from pipeline.data.text import clean
from pipeline.metrics.bootstrap import Interval, mean_interval

ErrorKind = Literal["gender", "number", "colour", "object"]

CASES = 3
"""Cases kept for each kind of error."""

LENGTH_GROUPS = 5


class Rate(BaseModel):
    """The share of captions that have an error."""

    model_config = ConfigDict(frozen=True)

    checked: int = Field(description="captions in which it can occur: they and their references mention such a thing")
    wrong: int = Field(description="captions that have the error")

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 if no caption could be checked."""
        return self.wrong / self.checked if self.checked else 0.0


class Case(BaseModel):
    """A caption with an error."""

    model_config = ConfigDict(frozen=True)

    image: str
    caption: str
    word: str = Field(description="the wrong word")


class ErrorCount(BaseModel):
    """One kind of error, counted from words."""

    model_config = ConfigDict(frozen=True)

    captioner: Rate = Field(description="generated captions against all references of their images")
    human: Rate = Field(description="each reference against the others of its image")
    words: dict[str, int] = Field(description="the captioner's wrong words and their counts, most frequent first")
    cases: list[Case] = Field(description="some captions with the error, with different wrong words where possible")


class LengthGroup(BaseModel):
    """Images whose references are of about the same length."""

    model_config = ConfigDict(frozen=True)

    shortest: float = Field(description="mean words of an image's references: the minimum in this group")
    longest: float = Field(description="the maximum in this group")
    images: int = Field(description="number of images in the group")
    cider: float = Field(description="mean CIDEr of its images")
    interval: Interval = Field(description="95 % bootstrap interval of that mean")
    written: float = Field(description="mean words of its generated captions")


def count_errors(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[ErrorKind, ErrorCount]:
    """Count four kinds of error, each at most once per caption.

    * gender: the caption names a man or a boy and the references only women or girls, or the other way round.
    * number: the caption names one person (or dog, horse, …) and the references only several, or the other way round.
    * colour: the caption names a colour that no reference names, and a reference names another.
    * object: the caption names an object that no reference names.

    Args:
        candidates: caption by image.
        references: raw captions by image.
    """
    parsed = {caption: _Sentence.of(caption) for image in candidates for caption in references[image]}
    generated = [
        _Pair(image, caption, _Sentence.of(caption), [parsed[reference] for reference in references[image]])
        for image, caption in candidates.items()
    ]
    human = [
        _Pair(image, caption, parsed[caption], [parsed[other] for other in [*captions[:place], *captions[place + 1 :]]])
        for image, captions in ((image, references[image]) for image in candidates)
        for place, caption in enumerate(captions)
        if len(captions) > 1
    ]
    return {kind: _count(check, generated, human) for kind, check in _CHECKS.items()}


def kinds_of_error(pairs: Iterable[tuple[str, Sequence[str]]]) -> list[int]:
    """How many of the four kinds of error each raw caption has, judged by the raw references beside it."""
    parse = cache(_Sentence.of)
    return [
        sum(bool(check(parse(caption), [*map(parse, references)])) for check in _CHECKS.values())
        for caption, references in pairs
    ]


def by_length(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    image_cider: Mapping[str, float],
) -> list[LengthGroup]:
    """CIDEr by the mean length of an image's references, in ``LENGTH_GROUPS`` groups of similar size.

    Images are grouped by the length of their references and not of their captions: that is a property of the image, so
    the groups are the same for every captioner, and it shows how much there is to describe. Images with references of
    equal mean length are in one group.
    """
    images = list(candidates)
    lengths = np.array([fmean(len(clean(caption)) for caption in references[image]) for image in images])
    edges = np.unique(np.quantile(lengths, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS))
    group_of = np.searchsorted(edges, lengths)
    rows_by_group = (np.flatnonzero(group_of == group) for group in np.unique(group_of))
    return [
        _length_group([images[row] for row in rows], lengths[rows], candidates, image_cider) for rows in rows_by_group
    ]


def _length_group(
    images: Sequence[str],
    lengths: npt.NDArray[np.float64],
    candidates: Mapping[str, str],
    image_cider: Mapping[str, float],
) -> LengthGroup:
    cider = [image_cider[image] for image in images]
    return LengthGroup(
        shortest=float(lengths.min()),
        longest=float(lengths.max()),
        images=len(images),
        cider=fmean(cider),
        interval=mean_interval(cider),
        written=fmean(len(clean(candidates[image])) for image in images),
    )


@dataclass(frozen=True)
class _Sentence:
    """A caption's words, and each word's singular."""

    words: tuple[str, ...]
    lemmas: tuple[str, ...]

    @classmethod
    def of(cls, caption: str) -> "_Sentence":
        words = tuple(lexicon.join_compounds(" ".join(clean(caption))).split())
        return cls(words, tuple(map(lexicon.singular, words)))

    def is_several(self, at: int) -> bool:
        """Whether the noun at this position names several: a plural, a crowd, or with a numeral just before it."""
        word = self.words[at]
        return (
            word != self.lemmas[at]
            or word in lexicon.CROWDS
            or not lexicon.NUMERALS.isdisjoint(self.words[max(0, at - 2) : at])
        )


@dataclass(frozen=True)
class _Pair:
    """A caption, and the references that it is checked against."""

    image: str
    caption: str
    sentence: _Sentence
    references: Sequence[_Sentence]


_Check = Callable[[_Sentence, Sequence[_Sentence]], list[str] | None]
"""The wrong words of a caption, judged by its references; None if the error cannot occur."""


def _count(check: _Check, generated: Sequence[_Pair], human: Sequence[_Pair]) -> ErrorCount:
    found = [(pair, words) for pair in generated if (words := check(pair.sentence, pair.references)) is not None]
    cases = [Case(image=pair.image, caption=pair.caption, word=words[0]) for pair, words in found if words]
    by_word: dict[str, list[Case]] = {}
    for case in cases:
        by_word.setdefault(case.word, []).append(case)
    frequent = sorted(by_word.items(), key=lambda item: -len(item[1]))
    # The first of each word, the most frequent word first; then the second of each.
    turns = (case for turn in zip_longest(*(same for _, same in frequent)) for case in turn if case is not None)
    checked = [words for pair in human if (words := check(pair.sentence, pair.references)) is not None]
    return ErrorCount(
        captioner=Rate(checked=len(found), wrong=len(cases)),
        human=Rate(checked=len(checked), wrong=sum(map(bool, checked))),
        words={word: len(same) for word, same in frequent},
        cases=list(islice(turns, CASES)),
    )


def _gender(caption: _Sentence, references: Sequence[_Sentence]) -> list[str] | None:
    said, known = _genders(caption), {gender for reference in references for gender in _genders(reference)}
    if not said or not known:
        return None
    return [word for gender, word in said.items() if gender not in known]


def _genders(sentence: _Sentence) -> dict[str, str]:
    """The first word for each gender. With an animal in the sentence, "his" and "her" may be its own: not counted."""
    animal = not lexicon.ANIMALS.isdisjoint(lexicon.NAMES.get(lemma) for lemma in sentence.lemmas)
    genders = lexicon.GENDERS if animal else lexicon.GENDERS | lexicon.PRONOUNS
    return _first_words((genders.get(lemma), word) for word, lemma in zip(sentence.words, sentence.lemmas, strict=True))


def _number(caption: _Sentence, references: Sequence[_Sentence]) -> list[str] | None:
    said, known = _numbers(caption), [_numbers(reference) for reference in references]
    checked = {
        kind: (several, word) for kind, (several, word) in said.items() if any(kind in reference for reference in known)
    }
    if not checked:
        return None
    return [
        word
        for kind, (several, word) in checked.items()
        if not any(reference[kind][0] == several for reference in known if kind in reference)
    ]


def _numbers(sentence: _Sentence) -> dict[str, tuple[bool, str]]:
    """For people and each animal that is named: whether there are several, and the word that names them."""
    mentions: dict[str, list[int]] = {}
    for at, lemma in enumerate(sentence.lemmas):
        kind = lexicon.NAMES.get(lemma)
        if kind in lexicon.COUNTED:
            same = mentions.setdefault(kind, [])
            if same and same[-1] == at - 1:
                same[-1] = at  # "a woman player" is one person
            elif not same or sentence.words[at - 1] != "the":  # "the dog" is the one named before
                same.append(at)
    found = {}
    for kind, positions in mentions.items():
        several = len(positions) > 1 or sentence.is_several(positions[0])
        # No rule can count "a dog chases another" or "a black dog and a white one".
        if several or lexicon.UNCOUNTABLE.isdisjoint(sentence.words):
            found[kind] = (several, sentence.words[positions[0]])
    return found


def _colour(caption: _Sentence, references: Sequence[_Sentence]) -> list[str] | None:
    said, known = _shades(caption), {shade for reference in references for shade in _shades(reference)}
    if not said or not known:
        return None
    return [word for shade, word in said.items() if shade not in known]


def _shades(sentence: _Sentence) -> dict[str, str]:
    return _first_words((lexicon.SHADES.get(word), word) for word in sentence.words)


def _object(caption: _Sentence, references: Sequence[_Sentence]) -> list[str] | None:
    said = _first_words(
        (lexicon.NAMES.get(lemma), word) for word, lemma in zip(caption.words, caption.lemmas, strict=True)
    )
    if not said:
        return None
    known = {lemma for reference in references for lemma in reference.lemmas}
    return [word for thing, word in said.items() if lexicon.SUPPORTED[thing].isdisjoint(known)]


def _first_words(found: Iterable[tuple[str | None, str]]) -> dict[str, str]:
    """The first word for each meaning, in the order of the words; words without a meaning are left out."""
    words: dict[str, str] = {}
    for meaning, word in found:
        if meaning is not None:
            words.setdefault(meaning, word)
    return words


_CHECKS: dict[ErrorKind, _Check] = {"gender": _gender, "number": _number, "colour": _colour, "object": _object}

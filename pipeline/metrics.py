"""Scores of captions by the COCO toolkit (``pycocoevalcap``), beside those of people, and how varied captions are.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr (Vedantam et al. 2015; the toolkit's is CIDEr-D without
stemming) and METEOR (Denkowski and Lavie 2014), of whole corpora and between 0 and 1, CIDEr between 0 and 10.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline import java as java_programs
from pipeline.bootstrap import ImageStatistics, Interval
from pipeline.errors import PipelineError
from pipeline.tokenization import tokenize, tokenize_java
from pipeline.vocabulary import clean

log = logging.getLogger(__name__)

T = TypeVar("T")

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
"""The names, in the order in which tables of results list them."""

_FUNCTION_WORDS = """
    a an the this these those my your his their its and or but while as of in on with at to by for from into onto is are
    was were be who which
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that hardly ever end a sentence: a caption that does end in one breaks off. ("Look on" and "pass by" do occur:
hence compare with people's captions.)"""

Tokenizer = Literal["ptb", "builtin"]
"""Stanford's PTBTokenizer, or ours, which needs no Java."""


class Scores(BaseModel):
    """The scores of one set of captions."""

    model_config = ConfigDict(frozen=True)

    tokenizer: Tokenizer = Field(description="ptb: Stanford's PTBTokenizer; builtin: ours, which needs no Java")
    corpus: dict[str, float] = Field(description="by the names of METRICS; METEOR only where there is Java")
    intervals: dict[str, Interval] = Field(description="95 % bootstrap interval over images, of all metrics but METEOR")
    image_cider: dict[str, float] = Field(description="CIDEr of each image")


class Agreement(BaseModel):
    """A captioner beside people: both scored against all references of an image but one.

    A person's caption can be scored only against those of the others, and scores grow with the number of references.
    So each reference is left out in turn, and the scores, of the person left out and of the captioner, are averaged.
    """

    model_config = ConfigDict(frozen=True)

    images: int = Field(description="images with two references or more, which are all that count here")
    images_left_out: int = Field(description="images with a single reference")
    people: dict[str, float] = Field(description="a reference against the others, by the names of METRICS")
    captioner: dict[str, float] = Field(description="the generated caption against the same references")


class Diversity(BaseModel):
    """How varied captions are: a captioner that writes the same sentence of everything can score well."""

    model_config = ConfigDict(frozen=True)

    captions: int = Field(description="how many were looked at")
    distinct_captions: float = Field(description="share of the captions that differ from each other")
    novel_captions: float = Field(description="share of the captions that no training caption equals word for word")
    ends_in_function_word: float = Field(description="share of the captions that break off, after 'the' for example")
    words: int = Field(description="different words used")
    vocabulary_used: float = Field(description="share of the vocabulary's words")
    mean_length: float = Field(description="words of a caption")


def score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: bool | None = None
) -> Scores:
    """Score a caption of each image against the image's references.

    Args:
        candidates: caption by image.
        references: raw captions by image. Images without a candidate are left out, of CIDEr's document frequencies
            too: scores of different sets of images cannot be compared, and CIDEr of a single image is 0.
        java: whether to run Stanford's tokenizer and METEOR; by default where there is a Java that works.

    Raises:
        PipelineError: there is no candidate, an image has no references, or ``java`` is wanted and fails.
    """
    _check(candidates, references)
    tokenizer, words = _tokenize(candidates, references, java)
    ours, theirs = _toolkit_form(candidates, references, words)
    corpus, images = _measure(ours, theirs)
    statistics = ImageStatistics.of([caption for [caption] in ours.values()], [*theirs.values()], images)
    return Scores(
        tokenizer=tokenizer,
        corpus=_ordered(corpus | _meteor([(ours, theirs)], java)),
        intervals=_ordered(statistics.intervals()),
        image_cider=dict(zip(candidates, images["CIDEr"], strict=True)),
    )


def cider(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """CIDEr alone and without Java, quick enough for every epoch. Arguments and errors are those of ``score``."""
    _check(candidates, references)
    _, words = _tokenize(candidates, references, java=False)
    ours, theirs = _toolkit_form(candidates, references, words)
    return _cider(ours, theirs)[0]


def agreement(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: bool | None = None
) -> Agreement:
    """Score captions, and those of people, against all references of each image but one.

    There are as many rounds as an image has references, at most; round k leaves out the k-th of each image, counted
    round and round where an image has fewer. The scores are the means of the rounds', except for METEOR: that of all
    rounds' captions as one corpus, since its program takes seconds to start.

    Arguments and errors are those of ``score``. Without an image that has two references there are no scores.
    """
    _check(candidates, references)
    _, words = _tokenize(candidates, references, java)
    ours, theirs = _toolkit_form(candidates, references, words)
    several = {image: group for image, captions in theirs.items() if len(group := [*filter(None, captions)]) > 1}
    people, captioner = [], []
    for left_out in range(max(map(len, several.values()), default=0)):
        turn = {image: left_out % len(group) for image, group in several.items()}
        others = {image: group[: turn[image]] + group[turn[image] + 1 :] for image, group in several.items()}
        people.append(({image: [group[turn[image]]] for image, group in several.items()}, others))
        captioner.append(({image: ours[image] for image in several}, others))
    return Agreement(
        images=len(several),
        images_left_out=len(theirs) - len(several),
        people=_mean_scores(people, java),
        captioner=_mean_scores(captioner, java),
    )


def diversity(captions: Collection[str], *, vocabulary: Collection[str], training: Collection[str]) -> Diversity:
    """How varied captions are, and how much of their own they say.

    Args:
        captions: one an image, generated or by people.
        vocabulary: the words that the captioner can write.
        training: the training captions.

    Raises:
        PipelineError: there is no caption.
    """
    if not captions:
        raise PipelineError(_NOTHING)
    written = [tuple(clean(caption)) for caption in captions]
    known = {tuple(clean(caption)) for caption in training}
    words = {word for caption in written for word in caption}
    return Diversity(
        captions=len(written),
        distinct_captions=len(set(written)) / len(written),
        novel_captions=fmean(caption not in known for caption in written),
        ends_in_function_word=fmean(not FUNCTION_WORDS.isdisjoint(caption[-1:]) for caption in written),
        words=len(words),
        vocabulary_used=len(words.intersection(vocabulary)) / len(vocabulary),
        mean_length=fmean(map(len, written)),
    )


_NOTHING = "There are no captions to score: check that the split has images and that they were captioned."

_Captions = dict[str, list[str]]
"""Tokenised captions by image, as the toolkit takes them: the candidate, a list of one, or the references."""


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise PipelineError(_NOTHING)
    _refuse([image for image in candidates if not references.get(image)])


def _refuse(images: Sequence[str]) -> None:
    if images:
        raise PipelineError(
            f"{len(images)} captioned images have no reference with a word in it, such as {', '.join(images[:3])}: "
            "score only images with captions by people."
        )


def _tokenize(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], java: bool | None
) -> tuple[Tokenizer, dict[str, str]]:
    """Which tokenizer was used, and each caption's words, joined by spaces."""
    captions = [*candidates.values(), *(caption for image in candidates for caption in references[image])]
    tokenized = _ask_java(lambda: tokenize_java(captions), java)
    if tokenized is None:
        return "builtin", {caption: tokenize(caption) for caption in captions}
    return "ptb", dict(zip(captions, tokenized, strict=True))


def _toolkit_form(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], words: Mapping[str, str]
) -> tuple[_Captions, _Captions]:
    """Candidates and references as the toolkit takes them, in the order of the candidates."""
    theirs = {image: [words[caption] for caption in references[image]] for image in candidates}
    _refuse([image for image, captions in theirs.items() if not any(captions)])
    return {image: [words[caption]] for image, caption in candidates.items()}, theirs


def _measure(candidates: _Captions, references: _Captions) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The scores of the corpus, but METEOR; and those of each image whose mean they are."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, image_rouge = Rouge().compute_score(references, candidates)
    cider, image_cider = _cider(candidates, references)
    corpus = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)}
    return corpus | {"ROUGE-L": float(rouge), "CIDEr": cider}, {"ROUGE-L": image_rouge.tolist(), "CIDEr": image_cider}


def _cider(candidates: _Captions, references: _Captions) -> tuple[float, list[float]]:
    from pycocoevalcap.cider.cider import Cider

    corpus, images = Cider().compute_score(references, candidates)
    return float(corpus), images.tolist()


def _meteor(corpora: Sequence[tuple[_Captions, _Captions]], java: bool | None) -> dict[str, float]:
    """METEOR of all candidates and their references as one corpus; nothing where there is no Java."""
    candidates = [caption for ours, _ in corpora for [caption] in ours.values()]
    references = [captions for _, theirs in corpora for captions in theirs.values()]
    value = _ask_java(lambda: java_programs.meteor(candidates, references), java)
    return {} if value is None else {"METEOR": value}


def _mean_scores(rounds: Sequence[tuple[_Captions, _Captions]], java: bool | None) -> dict[str, float]:
    if not rounds:
        return {}
    corpora = [_measure(ours, theirs)[0] for ours, theirs in rounds]
    return _ordered({name: fmean(corpus[name] for corpus in corpora) for name in corpora[0]} | _meteor(rounds, java))


def _ordered(values: Mapping[str, T]) -> dict[str, T]:
    return {name: values[name] for name in METRICS if name in values}


def _ask_java(program: Callable[[], T], java: bool | None) -> T | None:
    """The program's answer; None where it is not to be run, or need not be and fails."""
    if java is False or (java is None and not java_programs.available()):
        return None
    try:
        return program()
    except java_programs.JavaError as error:
        if java:
            raise PipelineError(
                f"{error}. Install Java 8 or newer and put it on the PATH, or score without."
            ) from error
        log.warning("scoring goes on without Java: %s", error)
        return None

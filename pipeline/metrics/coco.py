"""Scores of captions by the COCO toolkit (``pycocoevalcap``), the human baseline beside them, and diversity.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr (Vedantam et al. 2015; the toolkit's is CIDEr-D without
stemming) and METEOR (Denkowski and Lavie 2014) of whole corpora. All are between 0 and 1, except CIDEr: 0 to 10.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from statistics import fmean
from types import TracebackType
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import ENGLISH
from pipeline.data.text import clean, is_english
from pipeline.errors import PipelineError
from pipeline.metrics import java as java_programs
from pipeline.metrics.bootstrap import ImageStatistics, Interval
from pipeline.metrics.tokenizer import tokenize, tokenize_java

log = logging.getLogger(__name__)

T = TypeVar("T")

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
"""The names, in the order in which tables of results list them."""

_FUNCTION_WORDS = """
    a an the this these those my your his their its and or but while as of in on with at to by for from into onto is are
    was were be who which
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that rarely end a sentence: a caption that ends in one is probably truncated. Some good captions do end in one
("look on", "pass by"), so compare the share with that of human captions."""

Tokenizer = Literal["ptb", "builtin", "words"]
"""For English Stanford's PTBTokenizer, or ours, which needs no Java. For other languages the words of ``clean``."""

_TOKENIZER = Field(
    description="ptb: Stanford's PTBTokenizer; builtin: ours, which needs no Java; words: the words that a captioner "
    "learns, for other languages than English"
)


class Scores(BaseModel):
    """The scores of one set of captions."""

    model_config = ConfigDict(frozen=True)

    tokenizer: Tokenizer = _TOKENIZER
    corpus: dict[str, float] = Field(description="by the names of METRICS; METEOR only for English, if there is Java")
    intervals: dict[str, Interval] = Field(description="95 % bootstrap interval over images, of all metrics but METEOR")
    image_cider: dict[str, float] = Field(description="CIDEr of each image")


class HumanBaseline(BaseModel):
    """How well human captions score: each reference of an image against the image's other references.

    It depends on the references and the tokenizer alone, so it can be stored and used for every captioner that is
    evaluated on the same images; ``Scorer.can_use`` checks whether a stored one applies.
    """

    model_config = ConfigDict(frozen=True)

    references: str = Field(description="fingerprint of the references that were scored")
    tokenizer: Tokenizer = _TOKENIZER
    images: int = Field(description="images with two references or more; only they are scored")
    images_left_out: int = Field(description="images with a single reference")
    scores: dict[str, float] = Field(description="by the names of METRICS; METEOR only for English, if there is Java")


class Agreement(BaseModel):
    """A captioner beside the human baseline, both scored against all references of an image but one.

    A human caption can only be scored against the other references of its image, and scores grow with the number of
    references. So each reference is left out in turn, and the scores of the reference left out (human) and of the
    generated caption (captioner) are averaged.
    """

    model_config = ConfigDict(frozen=True)

    images: int = Field(description="images with two references or more; only they are scored")
    images_left_out: int = Field(description="images with a single reference")
    human: dict[str, float] = Field(description="a reference against the others, by the names of METRICS")
    captioner: dict[str, float] = Field(description="the generated caption against the same references")


class Diversity(BaseModel):
    """How varied captions are: a captioner can score well by writing the same sentence about everything."""

    model_config = ConfigDict(frozen=True)

    captions: int = Field(description="number of captions that were examined")
    distinct_captions: float = Field(description="number of different captions, as a share of all")
    novel_captions: float = Field(description="share of the captions that equal no training caption word for word")
    ends_in_function_word: float | None = Field(
        description="share of the captions that end in a word such as 'the'; null for other languages than English"
    )
    words: int = Field(description="number of different words used")
    vocabulary_used: float = Field(description="share of the vocabulary's words that are used")
    mean_length: float = Field(description="words per caption")


_Captions = dict[str, list[str]]
"""Tokenized captions by image, as the toolkit takes them: the candidate, a list of one, or the references."""


class Scorer:
    """Scores sets of captions of the same images and the human baseline, with METEOR started once.

    METEOR is a process that takes seconds to load. It starts with the scorer, so that captions can be generated
    meanwhile, and ends with the ``with`` block::

        with Scorer(references) as scorer:
            greedy, beam = …
            scores = [scorer.score(greedy), scorer.score(beam)]
            agreement = scorer.agreement(beam, scorer.human_baseline())

    Args:
        references: raw captions by image.
        java: True runs Stanford's tokenizer and METEOR, and an error of theirs is raised; False runs our own tokenizer
            and no METEOR; None runs Java if there is one. If the tokenizer fails for the references, or METEOR, the
            scorer does without Java, with a warning.
        language: of the captions, a BCP 47 code. For other languages than English Java is not run, and the tokens are
            the words of ``clean``: both programs know English only.

    Raises:
        PipelineError: there are no captions, an image has no reference with a word in it, or ``java`` is True and Java
            fails. The methods raise it for the last reason, too, and if an image has no caption.
        JavaError: the methods raise it if Java has tokenized the references, but fails to tokenize the captions.
    """

    def __init__(
        self, references: Mapping[str, Sequence[str]], *, java: bool | None = None, language: str = ENGLISH
    ) -> None:
        if not references:
            raise PipelineError("There are no captions to score: check that the split has images and captions.")
        _require_references(image for image, captions in references.items() if not captions)
        self._java_required = java is True
        self._language = language
        english = is_english(language)
        self._use_java = english and (java_programs.available() if java is None else java)
        self._raw_references = references
        self._words: dict[str, str] = {}
        raw = [*chain.from_iterable(references.values())]
        self.tokenizer: Tokenizer = "ptb"
        self._run_java(lambda: self._tokenize(raw))
        if not self._use_java:
            self.tokenizer = "builtin" if english else "words"
            self._tokenize(raw)
        self._references: _Captions = {
            image: [self._words[caption] for caption in captions] for image, captions in references.items()
        }
        _require_references(image for image, captions in self._references.items() if not any(captions))
        self._meteor_process = self._run_java(java_programs.Meteor)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._meteor_process is not None:
            self._meteor_process.close()

    def score(self, candidates: Mapping[str, str]) -> Scores:
        """Score a set of captions, one for each image, against all references.

        CIDEr weighs n-grams by their document frequency in these references, so scores of different sets of images
        cannot be compared, and CIDEr of a single image is 0.
        """
        ours = self._tokenized(candidates)
        corpus, images = _measure(ours, self._references)
        statistics = ImageStatistics.of([caption for [caption] in ours.values()], [*self._references.values()], images)
        return Scores(
            tokenizer=self.tokenizer,
            corpus=_ordered(corpus | self._meteor([(ours, self._references)])),
            intervals=_ordered(statistics.intervals()),
            image_cider=dict(zip(ours, images["CIDEr"], strict=True)),
        )

    def cider(self, candidates: Mapping[str, str]) -> float:
        """CIDEr alone of a set of captions, in a fraction of the time."""
        return _cider(self._tokenized(candidates), self._references)[0]

    def human_baseline(self) -> HumanBaseline:
        """Score each reference against the other references of its image.

        There are as many rounds as an image has references, at most; round k leaves out reference k of each image,
        modulo their number. The scores are means over the rounds, except METEOR, which scores the captions of all
        rounds as one corpus. Without an image that has two references there are no scores.
        """
        return HumanBaseline(
            references=self._fingerprint,
            tokenizer=self.tokenizer,
            images=len(self._several),
            images_left_out=len(self._references) - len(self._several),
            scores=self._mean_scores(self._rounds),
        )

    def can_use(self, human: HumanBaseline) -> bool:
        """Whether a baseline is of the same references and tokenizer, and has METEOR if this scorer runs it."""
        same = (human.references, human.tokenizer) == (self._fingerprint, self.tokenizer)
        return same and ("METEOR" in human.scores or not (self._use_java and self._several))

    def agreement(self, candidates: Mapping[str, str], human: HumanBaseline) -> Agreement:
        """Score a set of captions against the references that the human baseline was scored against.

        Raises:
            ValueError: this scorer cannot use the baseline.
        """
        if not self.can_use(human):
            raise ValueError("the human baseline is of other references, of another tokenizer or without METEOR")
        ours = self._tokenized(candidates)
        rounds = [({image: ours[image] for image in others}, others) for _, others in self._rounds]
        return Agreement(
            images=human.images,
            images_left_out=human.images_left_out,
            human=human.scores,
            captioner=self._mean_scores(rounds),
        )

    @cached_property
    def _several(self) -> _Captions:
        """The references of images that have two or more."""
        written = ((image, [*filter(None, captions)]) for image, captions in self._references.items())
        return {image: captions for image, captions in written if len(captions) > 1}

    @cached_property
    def _rounds(self) -> list[tuple[_Captions, _Captions]]:
        """For each round the reference of each image that is left out, and the others."""
        rounds = []
        for number in range(max(map(len, self._several.values()), default=0)):
            place = {image: number % len(captions) for image, captions in self._several.items()}
            left_out = {image: [captions[place[image]]] for image, captions in self._several.items()}
            others = {
                image: captions[: place[image]] + captions[place[image] + 1 :]
                for image, captions in self._several.items()
            }
            rounds.append((left_out, others))
        return rounds

    @cached_property
    def _fingerprint(self) -> str:
        content = json.dumps({image: [*captions] for image, captions in self._raw_references.items()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _tokenized(self, candidates: Mapping[str, str]) -> _Captions:
        _require_none(
            self._references.keys() - candidates.keys(), "generated caption", "caption every image to be scored"
        )
        _require_references(candidates.keys() - self._references.keys())
        self._tokenize(candidates.values())
        return {image: [self._words[candidates[image]]] for image in self._references}

    def _tokenize(self, captions: Iterable[str]) -> None:
        """Tokenize those that are new to this scorer. Raises ``JavaError`` if its tokenizer is Java's, and fails."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._words]
        if not new:
            return
        if self.tokenizer == "ptb":
            words = tokenize_java(new)
        else:
            english = self.tokenizer == "builtin"
            words = [tokenize(caption) if english else " ".join(clean(caption, self._language)) for caption in new]
        self._words |= zip(new, words, strict=True)

    def _mean_scores(self, rounds: Sequence[tuple[_Captions, _Captions]]) -> dict[str, float]:
        if not rounds:
            return {}
        corpora = [_measure(ours, theirs)[0] for ours, theirs in rounds]
        means = {name: fmean(corpus[name] for corpus in corpora) for name in corpora[0]}
        return _ordered(means | self._meteor(rounds))

    def _meteor(self, corpora: Sequence[tuple[_Captions, _Captions]]) -> dict[str, float]:
        """METEOR of all candidates and their references as one corpus; empty without Java."""
        if (process := self._meteor_process) is None:
            return {}
        candidates = [caption for ours, _ in corpora for [caption] in ours.values()]
        references = [captions for _, theirs in corpora for captions in theirs.values()]

        value = self._run_java(lambda: process.score(candidates, references))
        return {} if value is None else {"METEOR": value}

    def _run_java(self, program: Callable[[], T]) -> T | None:
        """The program's result; None without Java. Once a program has failed, this scorer does without Java."""
        if not self._use_java:
            return None
        try:
            return program()
        except java_programs.JavaError as error:
            if self._java_required:
                raise PipelineError(
                    f"{error}. Install Java 8 or newer and put it on the PATH, or score without Java."
                ) from error
            log.warning("scoring continues without Java: %s", error)
            self._use_java = False
            return None


def score(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    java: bool | None = None,
    language: str = ENGLISH,
) -> Scores:
    """Score one set of captions against the references of its images.

    Args:
        candidates: caption by image.
        references: raw captions by image. Those of images without a candidate are left out.
        java: as for ``Scorer``.
        language: as for ``Scorer``.

    Raises:
        PipelineError: as for ``Scorer``.
    """
    with Scorer(_of_images(candidates, references), java=java, language=language) as scorer:
        return scorer.score(candidates)


def cider(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, language: str = ENGLISH) -> float:
    """CIDEr of one set of captions, without Java: fast enough for every epoch. Otherwise like ``score``."""
    return Scorer(_of_images(candidates, references), java=False, language=language).cider(candidates)


def caption_cider(pairs: Sequence[tuple[str, Sequence[str]]], *, language: str = ENGLISH) -> list[float]:
    """CIDEr of each raw caption against the raw references beside it, without Java; images may occur many times.

    N-grams are weighted by their document frequency in the references of all pairs.
    """
    words = {caption: " ".join(clean(caption, language)) for pair in pairs for caption in (pair[0], *pair[1])}
    candidates = {str(number): [words[caption]] for number, (caption, _) in enumerate(pairs)}
    references = {str(number): [words[each] for each in others] for number, (_, others) in enumerate(pairs)}
    return _cider(candidates, references)[1]


def diversity(
    captions: Collection[str], *, vocabulary: Collection[str], training: Collection[str], language: str = ENGLISH
) -> Diversity:
    """How varied captions are, and how many of them are new.

    Args:
        captions: one per image, generated or human.
        vocabulary: the words that the captioner can write.
        training: the training captions.
        language: of the captions, a BCP 47 code.

    Raises:
        PipelineError: there is no caption.
    """
    if not captions:
        raise PipelineError("There are no captions: check that the split has images and captions.")
    written = [tuple(clean(caption, language)) for caption in captions]
    known = {tuple(clean(caption, language)) for caption in training}
    words = {word for caption in written for word in caption}
    return Diversity(
        captions=len(written),
        distinct_captions=len(set(written)) / len(written),
        novel_captions=fmean(caption not in known for caption in written),
        ends_in_function_word=(
            fmean(not FUNCTION_WORDS.isdisjoint(caption[-1:]) for caption in written) if is_english(language) else None
        ),
        words=len(words),
        vocabulary_used=len(words.intersection(vocabulary)) / len(vocabulary),
        mean_length=fmean(map(len, written)),
    )


def _of_images(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {image: references.get(image, ()) for image in candidates}


def _require_references(without: Iterable[str]) -> None:
    _require_none(without, "reference with a word in it", "score only images that have human captions")


def _require_none(without: Iterable[str], missing: str, advice: str) -> None:
    if images := sorted(without):
        count = f"{len(images)} image{'' if len(images) == 1 else 's'}"
        raise PipelineError(f"There is no {missing} for {count}, such as {', '.join(images[:3])}: {advice}.")


def _measure(candidates: _Captions, references: _Captions) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The corpus's scores except METEOR, and the scores of the images for the metrics that are means over images."""
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


def _ordered(values: Mapping[str, T]) -> dict[str, T]:
    return {name: values[name] for name in METRICS if name in values}

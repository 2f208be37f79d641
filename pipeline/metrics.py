"""Scores of captions by the COCO toolkit (``pycocoevalcap``), and how varied they are.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr (Vedantam et al. 2015; the toolkit's is CIDEr-D without
stemming) and METEOR (Denkowski and Lavie 2014), of whole corpora and between 0 and 1, CIDEr between 0 and 10.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline import java as java_programs
from pipeline.errors import PipelineError
from pipeline.tokenization import tokenize, tokenize_java

log = logging.getLogger(__name__)

T = TypeVar("T")

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
"""The names, in the order in which tables of results list them."""


class Scores(BaseModel):
    """The scores of one set of captions."""

    model_config = ConfigDict(frozen=True)

    tokenizer: Literal["ptb", "builtin"] = Field(description="Stanford's PTBTokenizer, or ours, which needs no Java")
    corpus: dict[str, float] = Field(description="by the names of METRICS; METEOR only where there is Java")
    image_cider: dict[str, float] = Field(description="CIDEr of each image")


class Diversity(BaseModel):
    """How varied captions are: a captioner that writes the same sentence of everything can score well."""

    model_config = ConfigDict(frozen=True)

    captions: int
    distinct_captions: float = Field(description="share of the captions that differ from each other")
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
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    groups = _groups(candidates, references)
    captions = [caption for group in groups.values() for caption in group]
    tokenized = _ask_java(lambda: tokenize_java(captions), java)
    ours, theirs = _toolkit_form(
        groups, [tokenize(caption) for caption in captions] if tokenized is None else tokenized
    )
    meteor = _ask_java(lambda: java_programs.meteor([caption for [caption] in ours.values()], [*theirs.values()]), java)
    bleu, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
    rouge, _ = Rouge().compute_score(theirs, ours)
    cider, image_cider = _cider(theirs, ours)
    values = {**{f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}, "ROUGE-L": rouge, "CIDEr": cider}
    if meteor is not None:
        values["METEOR"] = meteor
    return Scores(
        tokenizer="builtin" if tokenized is None else "ptb",
        corpus={name: float(values[name]) for name in METRICS if name in values},
        image_cider=image_cider,
    )


def cider(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """CIDEr alone and without Java, quick enough for every epoch. Arguments and errors are those of ``score``."""
    groups = _groups(candidates, references)
    ours, theirs = _toolkit_form(groups, [tokenize(caption) for group in groups.values() for caption in group])
    return _cider(theirs, ours)[0]


def diversity(candidates: Mapping[str, str], vocabulary_size: int) -> Diversity:
    """How varied the captions of the images are.

    Args:
        candidates: caption by image, its words separated by spaces.
        vocabulary_size: how many words the captioner can write.

    Raises:
        PipelineError: there is no candidate.
    """
    if not candidates:
        raise PipelineError(_NOTHING)
    captions = [caption.split() for caption in candidates.values()]
    words = {word for caption in captions for word in caption}
    return Diversity(
        captions=len(captions),
        distinct_captions=len({tuple(caption) for caption in captions}) / len(captions),
        words=len(words),
        vocabulary_used=len(words) / vocabulary_size,
        mean_length=sum(map(len, captions)) / len(captions),
    )


_NOTHING = "There are no captions to score: check that the split has images and that they were captioned."

_Captions = dict[str, list[str]]


def _groups(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> _Captions:
    """Of each image its candidate and then its references, raw."""
    if not candidates:
        raise PipelineError(_NOTHING)
    _refuse([image for image in candidates if not references.get(image)])
    return {image: [candidate, *references[image]] for image, candidate in candidates.items()}


def _toolkit_form(groups: _Captions, tokenized: Sequence[str]) -> tuple[_Captions, _Captions]:
    """Candidates and references as the toolkit takes them, from the tokenised captions of all groups in a row."""
    captions = iter(tokenized)
    words = {image: [next(captions) for _ in group] for image, group in groups.items()}
    _refuse([image for image, (_, *theirs) in words.items() if not any(theirs)])
    return {image: group[:1] for image, group in words.items()}, {image: group[1:] for image, group in words.items()}


def _refuse(images: Sequence[str]) -> None:
    if images:
        raise PipelineError(
            f"{len(images)} captioned images have no reference with a word in it, such as {', '.join(images[:3])}: "
            "score only images with captions by people."
        )


def _cider(references: _Captions, candidates: _Captions) -> tuple[float, dict[str, float]]:
    from pycocoevalcap.cider.cider import Cider

    corpus, images = Cider().compute_score(references, candidates)
    return float(corpus), {image: float(value) for image, value in zip(candidates, images, strict=True)}


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

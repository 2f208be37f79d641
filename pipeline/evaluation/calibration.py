"""Calibration: the confidence of a captioner is fitted on dev, and measured on test.

The confidence is fitted to greedy captions and to those of the default decoding together. So it holds for both, and for
other beams and MBR decoding (docs/confidence.md has the measurements).
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.captioner import Caption, Captioner
from pipeline.captioner.confidence import Confidence
from pipeline.config import GREEDY, DecodingConfig
from pipeline.evaluation.acceptance import Acceptance, judge
from pipeline.features.splits import SplitFeatures
from pipeline.metrics.bootstrap import Interval, resamples

log = logging.getLogger(__name__)

FITTED = (GREEDY, DecodingConfig())
"""The decodings on whose captions the confidence is fitted."""

BINS = 10
"""Groups of captions of similar confidence, of the same size."""

COVERAGES = tuple(share / 20 for share in range(1, 21))
"""The shares of the captions, the surest first, of which the risk is reported."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Bin(BaseModel):
    """Captions of similar confidence."""

    model_config = ConfigDict(frozen=True)

    captions: int
    confidence: float = Field(description="mean confidence")
    accepted: float = Field(description="share of the captions that are accepted")


class Coverage(BaseModel):
    """The surest captions."""

    model_config = ConfigDict(frozen=True)

    share: float = Field(description="of all captions")
    accepted: float = Field(description="share of these that are accepted")
    at_least_partly: float = Field(description="share of these that are accepted or partly right")


class Calibration(BaseModel):
    """How well the confidence of captions foretells whether they are accepted."""

    model_config = ConfigDict(frozen=True)

    accepted: float = Field(description="share of the captions that are accepted")
    at_least_partly: float = Field(description="share of the captions that are accepted or partly right")
    human_accepted: float = Field(description="share of the human captions that are accepted by the same rule")
    auroc: float | None = Field(
        description="probability that an accepted caption has a higher confidence than another one; null if there are "
        "not both"
    )
    log_prob_auroc: float | None = Field(description="the same of the mean log probability of a word")
    error: float = Field(description="expected calibration error, in bins of equal size")
    interval: Interval = Field(description="95 % bootstrap interval of it")
    chance: float = Field(description="what it would be, on average, if each confidence were exactly right")
    constant_error: float = Field(description="that of the mean confidence for all captions, in the same bins")
    novel: float = Field(description="share of the photographs that are novel")
    bins: list[Bin] = Field(description="from the lowest confidence to the highest")
    coverage: list[Coverage] = Field(description="from the surest captions to all")


def fit(captioner: Captioner, dev: SplitFeatures) -> Confidence | None:
    """The confidence of a captioner, or None if no dev image has two references, by which captions are judged.

    Args:
        captioner: the captioner, with its training photographs.
        dev: other images.
    """
    evidence, accepted = [], []
    for decoding in FITTED:
        captions = captioner.caption(dev.features, decoding)
        texts = {image: caption.text for image, caption in zip(dev.image_ids, captions, strict=True)}
        if (found := judge(texts, dev.references, language=captioner.vocabulary.language)) is None:
            log.warning("captions get no confidence: no dev image has two references, by which they could be judged")
            return None
        evidence.append(captioner.evidence(dev.features, captions))
        accepted.append(found.accepted)
    return Confidence.fit(evidence, accepted)


def measure(captions: Sequence[Caption], acceptance: Acceptance) -> Calibration | None:
    """How well the confidence of captions fits what the rule says of them; None if they have none."""
    if any(caption.confidence is None for caption in captions):
        return None
    confidence = np.array([caption.confidence for caption in captions], float)
    log_prob = np.array([caption.log_prob for caption in captions])
    accepted = acceptance.accepted
    surest = np.argsort(-confidence, kind="stable")
    low, high = np.percentile(
        [calibration_error(confidence[rows], accepted[rows]) for rows in resamples(len(captions))], (2.5, 97.5)
    )
    draws = np.random.default_rng(0).random((100, len(captions))) < confidence
    mean = np.full(len(captions), confidence.mean())
    return Calibration(
        accepted=accepted.mean(),
        at_least_partly=acceptance.at_least_partly.mean(),
        human_accepted=acceptance.human_accepted,
        auroc=auroc(confidence, accepted),
        log_prob_auroc=auroc(log_prob, accepted),
        error=calibration_error(confidence, accepted),
        interval=(float(low), float(high)),
        chance=float(np.mean([calibration_error(confidence, draw) for draw in draws])),
        constant_error=calibration_error(mean, accepted, order=confidence),
        novel=float(np.mean([bool(caption.novel) for caption in captions])),
        bins=[
            Bin(captions=len(rows), confidence=confidence[rows].mean(), accepted=accepted[rows].mean())
            for rows in _bins(confidence)
        ],
        coverage=[
            Coverage(
                share=share,
                accepted=accepted[surest[:count]].mean(),
                at_least_partly=acceptance.at_least_partly[surest[:count]].mean(),
            )
            for share in COVERAGES
            for count in (max(1, round(share * len(surest))),)
        ],
    )


def auroc(score: Floats, outcome: Flags) -> float | None:
    """The probability that a score (N,) of a positive outcome (N,) is above that of a negative one, ties half.

    None if all outcomes are alike.
    """
    positive = int(outcome.sum())
    negative = len(outcome) - positive
    if not positive or not negative:
        return None
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return float((ranks[outcome].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(confidence: Floats, outcome: Flags, *, order: Floats | None = None) -> float:
    """The expected calibration error of probabilities (N,) for outcomes (N,): the mean over bins of the difference.

    Args:
        confidence: the probabilities.
        outcome: what happened.
        order: what the bins are made by, (N,); by default the probabilities.
    """
    apart = sum(
        len(rows) * abs(confidence[rows].mean() - outcome[rows].mean())
        for rows in _bins(confidence if order is None else order)
    )
    return float(apart / len(confidence))


def _bins(order: Floats) -> list[npt.NDArray[np.intp]]:
    """The rows of each bin, from the lowest values to the highest."""
    rows = np.argsort(order, kind="stable")
    return [part for part in np.array_split(rows, BINS) if len(part)]

"""Confidence: how probable it is that a person accepts a caption, and whether a photograph is novel.

Both come from the training photographs. The captions of the most similar ones are a second opinion: a caption whose
words occur in them is more often right. A photograph that their principal components do not explain is unlike all of
them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.neighbours import Neighbours
from pipeline.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pipeline.captioner.captioner import Caption

Floats = npt.NDArray[np.float64]

NEIGHBOURS = 5
"""The most similar training photographs, whose captions are compared with a caption."""

NOVEL_IN_DEV = 0.05
"""The share of the dev photographs that count as novel: these are as unlike the others as any of their kind."""

ROUNDING = 1e-5
"""Share by which the limit of novel photographs is lowered, so that rounding makes none novel if all are explained."""

BATCH = 256
"""Photographs that are compared with the training photographs at once."""

PENALTY = 1.0
"""Weight of the squared coefficients in the fit, for standardized evidence."""


class Evidence(NamedTuple):
    """What is known of the captions of N photographs.

    Attributes:
        numbers: (N, 4): the mean log probability of a word; the number of words; the share of their information that is
            in the captions of the neighbours, on average; and the mean cosine of the neighbours.
        explained: (N,) how much of each photograph the principal components of the training photographs explain: the
            squared length of its components, relative to that of its standardized vector. The scale is arbitrary.
    """

    numbers: Floats
    explained: Floats

    @classmethod
    def gather(
        cls,
        captions: "Sequence[Caption]",
        vectors: npt.NDArray[np.floating],
        standardized: npt.NDArray[np.floating],
        neighbours: Neighbours,
        vocabulary: Vocabulary,
    ) -> "Evidence":
        """The evidence for captions of photographs.

        Args:
            captions: N captions.
            vectors: (N, D) of the photographs.
            standardized: (N, D) the same in standard deviations from the mean of the training photographs.
            neighbours: the training photographs.
            vocabulary: of the captioner.
        """
        information = vocabulary.information
        numbers, explained = [], []
        for start in range(0, len(captions), BATCH):
            batch = vectors[start : start + BATCH]
            components = neighbours.components(batch)
            nearest, cosines = neighbours.search(components, NEIGHBOURS)
            squares = np.square(standardized[start : start + BATCH], dtype=float).sum(axis=1)
            explained.append(np.square(components, dtype=float).sum(axis=1) / np.maximum(squares, 1e-9))
            for caption, rows, alike in zip(captions[start : start + BATCH], nearest, cosines, strict=True):
                ids = vocabulary.encode(caption.text)[1:-1]
                words = np.unique(np.array(ids, int))
                weight = information[words]
                shared = np.mean([np.isin(words, neighbours.captions_of(row)) @ weight for row in rows])
                numbers.append((caption.log_prob, len(ids), shared / max(weight.sum(), 1e-9), alike.mean()))
        return cls(np.array(numbers, float).reshape(-1, 4), np.concatenate([np.zeros(0), *explained]))


class Confidence(BaseModel):
    """A logistic regression of acceptance on the evidence, and the limit of novel photographs."""

    model_config = ConfigDict(frozen=True)

    novel_below: float = Field(description="a photograph of which less than this is explained is novel")
    mean: list[float] = Field(description="of each number of the evidence")
    deviation: list[float] = Field(description="standard deviation of each number")
    weights: list[float] = Field(description="the intercept, then the coefficient of each standardized number")

    @classmethod
    def fit(cls, evidence: Sequence[Evidence], accepted: Sequence[npt.NDArray[np.bool_]]) -> "Confidence":
        """Fit to photographs that are not among the training photographs.

        Args:
            evidence: for the captions of the photographs by each of some decodings.
            accepted: whether each caption is accepted, (N,) for each decoding.
        """
        numbers = np.concatenate([each.numbers for each in evidence])
        mean, deviation = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-6)
        limit = np.quantile(evidence[0].explained, NOVEL_IN_DEV) * (1 - ROUNDING)
        return cls(
            novel_below=float(limit),
            mean=mean.tolist(),
            deviation=deviation.tolist(),
            weights=fit_logistic((numbers - mean) / deviation, np.concatenate(accepted)).tolist(),
        )

    def judge(self, captions: "Sequence[Caption]", evidence: Evidence) -> "list[Caption]":
        """The captions with their confidence, and whether their photograph is novel."""
        confidence = logistic((evidence.numbers - self.mean) / self.deviation, np.array(self.weights))
        return [
            replace(caption, confidence=float(sure), novel=bool(novel))
            for caption, sure, novel in zip(captions, confidence, evidence.explained < self.novel_below, strict=True)
        ]


def fit_logistic(numbers: Floats, outcome: npt.NDArray[np.bool_]) -> Floats:
    """The weights (1 + E,) of a logistic regression of an outcome (N,) on standardized numbers (N, E).

    The outcomes are smoothed as by Platt 1999 ("Probabilistic Outputs for Support Vector Machines"), so that weights
    are finite even if all are alike.
    """
    design = np.column_stack([np.ones(len(numbers)), numbers])
    positive = outcome.sum()
    target = np.where(outcome, (positive + 1) / (positive + 2), 1 / (len(outcome) - positive + 2))
    penalty = np.diag([0.0, *[PENALTY] * numbers.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(25):
        probability = logistic(numbers, weights)
        gradient = design.T @ (target - probability) - penalty @ weights
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def logistic(numbers: Floats, weights: Floats) -> Floats:
    """The probabilities (N,) that weights (1 + E,) give to numbers (N, E)."""
    odds: Floats = np.exp(np.clip(weights[0] + numbers @ weights[1:], -30, 30))
    return odds / (1 + odds)

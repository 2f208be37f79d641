"""Confidence intervals of scores by the bootstrap (Koehn 2004, https://aclanthology.org/W04-3250).

Images are resampled with replacement; the model, its captions and their references are fixed. So an interval shows how
much the score would vary with other test images of the same kind, and not how much it varies with the training's seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000

PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]
"""The range of the middle 95 % of the resampled scores."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageStatistics:
    """The contribution of each image to the scores of a corpus, from which any resample of the images can be scored.

    Attributes:
        bleu: (N, 10) counts of the candidate's matching n-grams for n = 1 to 4, of all its n-grams for n = 1 to 4, of
            its words, and of the words of the reference closest in length.
        means: by metric, (N,) scores of the images whose mean is the score of the corpus. For CIDEr they use the
            document frequencies of the whole corpus, which are not resampled.
    """

    bleu: Floats
    means: Mapping[str, Floats]

    @classmethod
    def of(
        cls, candidates: Sequence[str], references: Sequence[Sequence[str]], means: Mapping[str, Sequence[float]]
    ) -> "ImageStatistics":
        """Count with the toolkit's own functions; captions are tokenized, a candidate and its references per image."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

        counts = (
            cook_test(candidate, cook_refs(own), eff="closest")
            for candidate, own in zip(candidates, references, strict=True)
        )
        rows = [[*count["correct"], *count["guess"], count["testlen"], count["reflen"]] for count in counts]
        return cls(np.array(rows, float), {name: np.array(values, float) for name, values in means.items()})

    def scores(self, draws: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """The scores (R,) of R resamples, by metric; ``draws`` (R, N) is how often each has each image."""
        bleu = _bleu(draws @ self.bleu)
        size = draws.sum(axis=1)
        return {f"BLEU-{n}": bleu[:, n - 1] for n in range(1, 5)} | {
            name: draws @ values / size for name, values in self.means.items()
        }

    def intervals(self) -> dict[str, Interval]:
        """The 95 % percentile interval of each score, always from the same draws."""
        return {name: _interval(values) for name, values in self.scores(_draws(len(self.bleu))).items()}


def mean_interval(values: Sequence[float]) -> Interval:
    """The 95 % percentile interval of a mean."""
    return _interval(_draws(len(values)) @ np.array(values, float) / len(values))


def resamples(images: int) -> npt.NDArray[np.int64]:
    """The rows (``RESAMPLES``, N) of the images in each resample, always the same."""
    return np.random.default_rng(0).integers(images, size=(RESAMPLES, images))


def _draws(images: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)


def _interval(resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, PERCENTILES)
    return float(low), float(high)


def _bleu(sums: Floats) -> Floats:
    """BLEU-1 to BLEU-4 (R, 4) from sums of statistics (R, 10)."""
    tiny, small = 1e-15, 1e-9  # against division by zero, as in the toolkit
    matches, totals, length, closest = np.split(sums, [4, 8, 9], axis=1)
    precision = np.cumprod((matches + tiny) / (totals + small), axis=1) ** (1 / np.arange(1, 5))
    return precision * np.exp(np.minimum(0, 1 - (closest + small) / (length + tiny)))

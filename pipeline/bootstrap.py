"""Confidence intervals of scores by the bootstrap (Koehn 2004, https://aclanthology.org/W04-3250).

What is resampled are images, with replacement; the model, its captions and their references stay as they are. So an
interval tells what other test photographs of the same kind could have given, and nothing of other seeds of a training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000

PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]
"""Between these lie 95 % of the resampled scores."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageStatistics:
    """What each image adds to the corpus's scores; any choice of images can be scored from them.

    Attributes:
        bleu: (N, 10) matching n-grams and all n-grams of the candidate, for n of 1 to 4 each, the candidate's words,
            and those of the reference closest in length.
        means: by metric (N,) the images' own scores, of which the corpus's score is the mean. CIDEr's are those of the
            whole corpus: its document frequencies stay as they are, whatever images are drawn.
    """

    bleu: Floats
    means: Mapping[str, Floats]

    @classmethod
    def of(
        cls, candidates: Sequence[str], references: Sequence[Sequence[str]], means: Mapping[str, Sequence[float]]
    ) -> "ImageStatistics":
        """Count by the toolkit's own functions, from tokenised captions: a candidate an image, and its references."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

        counts = (
            cook_test(candidate, cook_refs(own), eff="closest")
            for candidate, own in zip(candidates, references, strict=True)
        )
        rows = [[*count["correct"], *count["guess"], count["testlen"], count["reflen"]] for count in counts]
        return cls(np.array(rows, float), {name: np.array(values, float) for name, values in means.items()})

    def scores(self, draws: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """The corpus's scores by metric, (R,) each, where ``draws`` (R, N) says how often each image is in it."""
        bleu = _bleu(draws @ self.bleu)
        size = draws.sum(axis=1)
        return {f"BLEU-{n}": bleu[:, n - 1] for n in range(1, 5)} | {
            name: draws @ values / size for name, values in self.means.items()
        }

    def intervals(self) -> dict[str, Interval]:
        """The 95 % percentile interval of each score; always from the same draws."""
        return {name: _interval(values) for name, values in self.scores(_draws(len(self.bleu))).items()}


def mean_interval(values: Sequence[float]) -> Interval:
    """The 95 % percentile interval of a mean."""
    return _interval(_draws(len(values)) @ np.array(values, float) / len(values))


def _draws(images: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)


def _interval(resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, PERCENTILES)
    return float(low), float(high)


def _bleu(sums: Floats) -> Floats:
    """BLEU-1..4, (R, 4), from rows of summed statistics, with the toolkit's small numbers against division by zero."""
    tiny, small = 1e-15, 1e-9
    matches, totals, length, closest = np.split(sums, [4, 8, 9], axis=1)
    precision = np.cumprod((matches + tiny) / (totals + small), axis=1) ** (1 / np.arange(1, 5))
    return precision * np.exp(np.minimum(0, 1 - (closest + small) / (length + tiny)))

"""Drift: how much the images and captions of a night differ from the model's test split and from earlier nights.

All differences are effect sizes, so that one limit applies to all: standard deviations between means (Cohen's d), and
Cohen's h between shares (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", chapters 2 and 6).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.captioner import Caption
from pipeline.captioner.metadata import load_metadata
from pipeline.config import DecodingConfig
from pipeline.data.text import clean
from pipeline.evaluation.results import find_metrics, latest_metrics
from pipeline.progress import counted
from pipeline.storage import Bucket, json, layout

CHANCE = {"features": 1.0, "failed": 2.0, "novel": 2.0, "words": 2.0, "log_prob": 2.0}
"""Standard errors by which a night may exceed the limit before it counts, since small nights vary by chance. The
difference of features is a mean over many dimensions and varies less: by at most .6 for photographs of one kind."""


class Moments(BaseModel):
    """Mean and variance of some numbers."""

    model_config = ConfigDict(frozen=True)

    mean: float
    variance: float


class Profile(BaseModel):
    """Statistics of a set of photographs and their captions."""

    model_config = ConfigDict(frozen=True)

    decoding: DecodingConfig = Field(description="how the captions were decoded")
    captioned: int
    failed: int = Field(description="images that have no caption")
    novel: int | None = Field(
        None, description="captioned images that are unlike all training photographs; null if the model can't tell"
    )
    features: list[float] = Field(
        description="mean vector, in standard deviations from the mean of the training images, by dimension"
    )
    words: Moments = Field(description="number of words per caption")
    log_prob: Moments = Field(description="mean log probability per word, per caption")

    @classmethod
    def of(
        cls, vectors: npt.NDArray[np.float32], captions: Sequence[Caption], *, failed: int, decoding: DecodingConfig
    ) -> "Profile":
        """The profile of captions of standardized features (N, D), N at least 1."""
        novel = [caption.novel for caption in captions]
        return cls(
            decoding=decoding,
            captioned=len(captions),
            failed=failed,
            novel=None if None in novel else sum(map(bool, novel)),
            features=[round(float(value), 4) for value in vectors.mean(axis=0)],
            words=_moments([len(clean(caption.text)) for caption in captions]),
            log_prob=_moments([caption.log_prob for caption in captions]),
        )

    @classmethod
    def together(cls, profiles: "Sequence[Profile]") -> "Profile":
        """The profile of the union of several sets; all must have captions by the same decoding."""
        counts = np.array([profile.captioned for profile in profiles], float)
        shares = counts / counts.sum()
        novel = [profile.novel for profile in profiles]
        return cls(
            decoding=profiles[0].decoding,
            captioned=sum(profile.captioned for profile in profiles),
            failed=sum(profile.failed for profile in profiles),
            novel=None if None in novel else sum(filter(None, novel)),
            features=(shares @ np.array([profile.features for profile in profiles])).tolist(),
            words=_pooled([profile.words for profile in profiles], shares),
            log_prob=_pooled([profile.log_prob for profile in profiles], shares),
        )


def differences(night: Profile, reference: Profile) -> dict[str, float]:
    """Differences between a night and a reference: effect sizes of ``features``, ``failed``, ``novel`` and others.

    That of features is the root mean square over the dimensions, without the part expected by chance for this number
    of photographs. Novel photographs are left out if the model can't tell which are; ``words`` and ``log_prob``, if the
    captions were decoded in another way.
    """
    apart = np.mean((np.array(night.features) - np.array(reference.features)) ** 2)
    found = {
        "features": math.sqrt(max(0.0, apart - 1 / night.captioned - 1 / reference.captioned)),
        "failed": _angle(_share_failed(night)) - _angle(_share_failed(reference)),
    }
    if night.novel is not None and reference.novel is not None:
        found["novel"] = _angle(_share_novel(night)) - _angle(_share_novel(reference))
    if night.decoding == reference.decoding:
        found["words"] = _in_deviations(night.words, reference.words)
        found["log_prob"] = _in_deviations(night.log_prob, reference.log_prob)
    return {name: round(value, 3) for name, value in found.items()}


def warnings(found: dict[str, float], night: Profile, reference: Profile, *, name: str, limit: float) -> Iterator[str]:
    """A sentence for each difference beyond the limit and the allowance for chance."""
    error = math.sqrt(1 / night.captioned + 1 / reference.captioned)
    values = {
        "words": f" ({night.words.mean:.1f} words a caption against {reference.words.mean:.1f})",
        "log_prob": f" ({night.log_prob.mean:.2f} a word against {reference.log_prob.mean:.2f})",
        "failed": f" ({_share_failed(night):.1%} failed against {_share_failed(reference):.1%})",
        "novel": f" ({counted(night.novel or 0, 'photograph')}, {_share_novel(night):.1%}, unlike all training "
        f"photographs against {_share_novel(reference):.1%})",
    }
    for figure, difference in found.items():
        allowed = limit + CHANCE[figure] * error
        if abs(difference) > allowed:
            yield (
                f"{figure}: {difference:+.2f} standard deviations from {name}{values.get(figure, '')}, "
                f"more than {allowed:.2f}"
            )


def test_profile(version: str, decoding: DecodingConfig, store: Bucket) -> Profile | None:
    """The profile of a model's test split, or None if it was not evaluated.

    It is that of the evaluation with the same decoding or, failing that, of the newest one.
    """
    model = load_metadata(version, store)
    metrics = find_metrics(version, model.dataset, decoding, store) or latest_metrics(model, store)
    if metrics is None:
        return None
    return json.find(Profile, layout.evaluation(version, model.dataset, metrics.decoding).profile, store)


def _moments(numbers: Sequence[float]) -> Moments:
    return Moments(mean=float(np.mean(numbers)), variance=float(np.var(numbers)))


def _pooled(moments: Sequence[Moments], shares: npt.NDArray[np.float64]) -> Moments:
    means = np.array([each.mean for each in moments])
    mean = float(shares @ means)
    within = float(shares @ np.array([each.variance for each in moments]))
    return Moments(mean=mean, variance=within + float(shares @ (means - mean) ** 2))


def _in_deviations(found: Moments, reference: Moments) -> float:
    if found.mean == reference.mean:
        return 0.0
    # If all captions have one length, any other would be infinitely far: a hundredth replaces a deviation of 0.
    return (found.mean - reference.mean) / max(math.sqrt(reference.variance), 0.01)


def _share_failed(profile: Profile) -> float:
    return profile.failed / (profile.captioned + profile.failed)


def _share_novel(profile: Profile) -> float:
    return (profile.novel or 0) / profile.captioned


def _angle(share: float) -> float:
    return 2 * math.asin(math.sqrt(share))

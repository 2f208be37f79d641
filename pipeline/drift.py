"""Drift: is a night's harvest like what the model was tested on, and like the nights before?

All differences are effect sizes, so that one limit serves them all: standard deviations between means (Cohen's d), and
Cohen's h between shares (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", chapters 2 and 6).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner import Caption
from pipeline.recipe import Search
from pipeline.storage import Bucket, ObjectNotFoundError

CHANCE = {"features": 1.0, "failed": 2.0, "words": 2.0, "log_prob": 2.0}
"""Standard errors of a mean that a small night may differ by, beyond the limit, before it counts. The difference of
features is the mean over many dimensions, and varies less: of photographs of the same kind by .6 at most."""


class Moments(BaseModel):
    """Mean and variance of some numbers."""

    model_config = ConfigDict(frozen=True)

    mean: float
    variance: float


class Profile(BaseModel):
    """What a set of photographs and their captions is like."""

    model_config = ConfigDict(frozen=True)

    search: Search = Field(description="how the captions were looked for")
    captioned: int
    failed: int = Field(description="pictures that could not be captioned")
    features: list[float] = Field(
        description="mean vector, in standard deviations from the training images' mean, by dimension"
    )
    words: Moments = Field(description="of a caption")
    log_prob: Moments = Field(description="of a caption: the mean of its words'")

    @classmethod
    def of(
        cls, vectors: npt.NDArray[np.float32], captions: Sequence[Caption], *, failed: int, search: Search
    ) -> "Profile":
        """The profile of captions of standardised features (N, D), N at least 1."""
        return cls(
            search=search,
            captioned=len(captions),
            failed=failed,
            features=[round(float(value), 4) for value in vectors.mean(axis=0)],
            words=_moments([len(caption.text.split()) for caption in captions]),
            log_prob=_moments([caption.log_prob for caption in captions]),
        )

    @classmethod
    def together(cls, profiles: "Sequence[Profile]") -> "Profile":
        """The profile of several sets taken together; all must have captions, found by the same search."""
        counts = np.array([profile.captioned for profile in profiles], float)
        shares = counts / counts.sum()
        return cls(
            search=profiles[0].search,
            captioned=sum(profile.captioned for profile in profiles),
            failed=sum(profile.failed for profile in profiles),
            features=(shares @ np.array([profile.features for profile in profiles])).tolist(),
            words=_pooled([profile.words for profile in profiles], shares),
            log_prob=_pooled([profile.log_prob for profile in profiles], shares),
        )


def differences(night: Profile, reference: Profile) -> dict[str, float]:
    """How far a night lies from a reference: effect sizes of ``features``, ``failed``, ``words`` and ``log_prob``.

    Features: the root mean square over the dimensions, less what chance makes of as many photographs of the same kind.
    The two of captions are left out where these were looked for in another way.
    """
    apart = np.mean((np.array(night.features) - np.array(reference.features)) ** 2)
    found = {
        "features": math.sqrt(max(0.0, apart - 1 / night.captioned - 1 / reference.captioned)),
        "failed": _angle(night) - _angle(reference),
    }
    if night.search == reference.search:
        found["words"] = _in_deviations(night.words, reference.words)
        found["log_prob"] = _in_deviations(night.log_prob, reference.log_prob)
    return {name: round(value, 3) for name, value in found.items()}


def warnings(found: dict[str, float], night: Profile, reference: Profile, *, name: str, limit: float) -> Iterator[str]:
    """A sentence for each difference that is larger than the limit and chance together allow."""
    error = math.sqrt(1 / night.captioned + 1 / reference.captioned)
    values = {
        "words": f" ({night.words.mean:.1f} words a caption against {reference.words.mean:.1f})",
        "log_prob": f" ({night.log_prob.mean:.2f} a word against {reference.log_prob.mean:.2f})",
        "failed": f" ({_share_failed(night):.1%} failed against {_share_failed(reference):.1%})",
    }
    for figure, difference in found.items():
        allowed = limit + CHANCE[figure] * error
        if abs(difference) > allowed:
            yield (
                f"{figure}: {difference:+.2f} standard deviations from {name}{values.get(figure, '')}, "
                f"more than {allowed:.2f}"
            )


def test_key(version: str) -> str:
    """Where the profile of a model's test split lies."""
    return f"models/{version}/profile.json"


def save(key: str, profile: Profile, store: Bucket) -> None:
    """Write a profile."""
    store.put(key, profile.model_dump_json().encode())


def load(key: str, store: Bucket) -> Profile | None:
    """The profile under this key, if there is one."""
    try:
        return Profile.model_validate_json(store.get(key))
    except ObjectNotFoundError:
        return None


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
    # Of captions that are all alike any other length would be infinitely far: a hundredth stands for no deviation.
    return (found.mean - reference.mean) / max(math.sqrt(reference.variance), 0.01)


def _share_failed(profile: Profile) -> float:
    return profile.failed / (profile.captioned + profile.failed)


def _angle(profile: Profile) -> float:
    return 2 * math.asin(math.sqrt(_share_failed(profile)))

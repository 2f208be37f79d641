"""Drift: what differs is noticed, what is alike is not, however few the pictures."""

import numpy as np
import pytest

from pipeline import drift
from pipeline.captioner import Caption
from pipeline.drift import Profile
from pipeline.recipe import GREEDY, Search

SEARCH = Search()


def profile(count=200, *, seed=0, shift=0.0, words=10, log_prob=-1.0, failed=0, search=SEARCH):
    """A profile of random photographs and captions of about so many words."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, 64)) + shift).astype(np.float32)
    captions = [
        Caption(" ".join(["word"] * int(rng.integers(words - 2, words + 3))), float(rng.normal(log_prob, 0.2)), 0.1)
        for _ in range(count)
    ]
    return Profile.of(vectors, captions, failed=failed, search=search)


def warnings(night, reference, limit=0.5):
    """The warnings about a night."""
    found = drift.differences(night, reference)
    return list(drift.warnings(found, night, reference, name="earlier nights", limit=limit))


@pytest.mark.parametrize("count", [1, 3, 10, 1000])
def test_more_of_the_same_is_no_drift(count):
    """Pictures of the same kind, many or one alone, are not worth a warning."""
    for seed in range(1, 20):
        assert warnings(profile(count, seed=seed), profile(500)) == []


@pytest.mark.parametrize(
    ("other", "figure"),
    [
        ({"shift": 1.0}, "features"),
        ({"shift": -1.0}, "features"),
        ({"words": 14}, "words"),
        ({"words": 6}, "words"),
        ({"log_prob": -1.5}, "log_prob"),
        ({"failed": 40}, "failed"),
    ],
)
def test_what_is_another_kind_is_noticed(other, figure):
    """A warning names the figure that has moved, by how much, and against what; the others stay silent."""
    [warning] = warnings(profile(seed=1, **other), profile())
    assert warning.startswith(f"{figure}: ")
    assert "standard deviations from earlier nights" in warning


def test_the_figures_are_effect_sizes():
    """Means are apart by the reference's standard deviations; shares by Cohen's h, which is .5 from 0 to 6.1 %."""
    found = drift.differences(profile(2000, seed=1, shift=0.5, log_prob=-1.2, failed=130), profile(2000))
    assert found["features"] == pytest.approx(0.5, abs=0.03)
    assert found["log_prob"] == pytest.approx(-1.0, abs=0.1)
    assert found["failed"] == pytest.approx(0.5, abs=0.01)
    assert found["words"] == pytest.approx(0, abs=0.1)


def test_captions_of_another_search_are_not_compared():
    """Length and probability depend on the search: with another one, only pictures are compared."""
    assert drift.differences(profile(search=GREEDY), profile()).keys() == {"features", "failed"}


def test_nights_together_are_as_one():
    """The profile of several nights is that of all their pictures."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    captions = [Caption("a " * int(rng.integers(1, 9)), float(rng.normal()), 0.1) for _ in range(30)]
    parts = [
        Profile.of(vectors[part], captions[part], failed=number, search=SEARCH)
        for number, part in enumerate((slice(0, 5), slice(5, 12), slice(12, 30)))
    ]
    whole, together = Profile.of(vectors, captions, failed=3, search=SEARCH), Profile.together(parts)
    assert (together.captioned, together.failed) == (30, 3)
    np.testing.assert_allclose(together.features, whole.features, atol=1e-4)
    for name in ("words", "log_prob"):
        assert getattr(together, name).mean == pytest.approx(getattr(whole, name).mean)
        assert getattr(together, name).variance == pytest.approx(getattr(whole, name).variance)


def test_captions_that_are_all_alike():
    """Where all of the reference's captions have one length, another length is far, not infinitely far."""
    alike = Profile.of(np.zeros((5, 2), np.float32), [Caption("a b", -1.0, 0.1)] * 5, failed=0, search=SEARCH)
    longer = Profile.of(np.zeros((5, 2), np.float32), [Caption("a b c", -1.0, 0.1)] * 5, failed=0, search=SEARCH)
    assert drift.differences(alike, alike) == {"features": 0, "failed": 0, "words": 0, "log_prob": 0}
    assert drift.differences(longer, alike)["words"] == 100


def test_saved_and_loaded(bucket):
    """A profile comes back as it was; where there is none, there is none."""
    night = profile()
    drift.save("p.json", night, bucket)
    assert drift.load("p.json", bucket) == night
    assert drift.load("q.json", bucket) is None

"""Drift: differences are noticed, and similar nights cause no warning, however few their pictures."""

import numpy as np
import pytest

from pipeline.captioner.captioner import Caption
from pipeline.config import GREEDY, DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation import drift
from pipeline.evaluation.drift import Profile
from pipeline.storage import json, layout
from tests.support.models import BEAM, DATASET, write_evaluation, write_model

DECODING = DecodingConfig()


def profile(count=200, *, seed=0, shift=0.0, words=10, log_prob=-1.0, failed=0, novel=0, decoding=DECODING):
    """A profile of random photographs and captions of about this number of words."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(count, 64)) + shift).astype(np.float32)
    captions = [
        Caption(
            " ".join(["word"] * int(rng.integers(words - 2, words + 3))),
            float(rng.normal(log_prob, 0.2)),
            0.1,
            novel=None if novel is None else number < novel,
        )
        for number in range(count)
    ]
    return Profile.of(vectors, captions, failed=failed, decoding=decoding)


def warnings(night, reference, limit=0.5):
    """The warnings about a night."""
    found = drift.differences(night, reference)
    return list(drift.warnings(found, night, reference, name="earlier nights", limit=limit))


@pytest.mark.parametrize("count", [1, 3, 10, 1000])
def test_more_of_the_same_is_no_drift(count):
    """Pictures of the same kind cause no warning, be they many or one alone."""
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
        ({"novel": 40}, "novel"),
    ],
)
def test_another_kind_of_night_is_noticed(other, figure):
    """One warning names the figure that differs, by how much, and from what; the other figures cause none."""
    [warning] = warnings(profile(seed=1, **other), profile())
    assert warning.startswith(f"{figure}: ")
    assert "standard deviations from earlier nights" in warning


def test_the_figures_are_effect_sizes():
    """Means differ in standard deviations of the reference; shares by Cohen's h, which is .5 from 0 to 6.1 %."""
    found = drift.differences(profile(2000, seed=1, shift=0.5, log_prob=-1.2, failed=130), profile(2000))
    assert found["features"] == pytest.approx(0.5, abs=0.03)
    assert found["log_prob"] == pytest.approx(-1.0, abs=0.1)
    assert found["failed"] == pytest.approx(0.5, abs=0.01)
    assert found["words"] == pytest.approx(0, abs=0.1)


def test_a_warning_counts_the_novel_photographs():
    """As shares; a model that can't tell causes no warning, and the union of its nights can't tell either."""
    [warning] = warnings(profile(novel=80), profile(novel=10))
    assert "(80 photographs, 40.0%, unlike all training photographs against 5.0%)" in warning
    unknown = profile(novel=None)
    assert "novel" not in drift.differences(unknown, profile())
    assert Profile.together([profile(novel=3), profile(novel=4)]).novel == 7
    assert Profile.together([profile(novel=3), unknown]).novel is None


def test_captions_of_another_decoding_are_not_compared():
    """Length and probability depend on the decoding: with another one, only pictures are compared."""
    assert drift.differences(profile(decoding=GREEDY), profile()).keys() == {"features", "failed", "novel"}


def test_the_profile_of_several_nights():
    """It is that of all their pictures."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    captions = [Caption("a " * int(rng.integers(1, 9)), float(rng.normal()), 0.1) for _ in range(30)]
    parts = [
        Profile.of(vectors[part], captions[part], failed=number, decoding=DECODING)
        for number, part in enumerate((slice(0, 5), slice(5, 12), slice(12, 30)))
    ]
    whole, together = Profile.of(vectors, captions, failed=3, decoding=DECODING), Profile.together(parts)
    assert (together.captioned, together.failed) == (30, 3)
    np.testing.assert_allclose(together.features, whole.features, atol=1e-4)
    for name in ("words", "log_prob"):
        assert getattr(together, name).mean == pytest.approx(getattr(whole, name).mean)
        assert getattr(together, name).variance == pytest.approx(getattr(whole, name).variance)


def test_captions_of_one_length():
    """If all captions of the reference have one length, another length is far, but not infinitely far."""
    alike = Profile.of(np.zeros((5, 2), np.float32), [Caption("a b", -1.0, 0.1)] * 5, failed=0, decoding=DECODING)
    longer = Profile.of(np.zeros((5, 2), np.float32), [Caption("a b c", -1.0, 0.1)] * 5, failed=0, decoding=DECODING)
    assert drift.differences(alike, alike) == {"features": 0, "failed": 0, "words": 0, "log_prob": 0}
    assert drift.differences(longer, alike)["words"] == 100


def test_the_profile_of_the_models_test(bucket):
    """The evaluation with the same decoding is preferred, otherwise the newest on the model's own dataset."""
    write_model("v1", bucket)
    assert drift.test_profile("v1", BEAM, bucket) is None
    write_evaluation("v1", bucket, cider=0.4, dataset="other/0123456789abcdef", words=1)
    assert drift.test_profile("v1", BEAM, bucket) is None
    write_evaluation("v1", bucket, cider=0.4, words=2)
    write_evaluation("v1", bucket, cider=0.4, decoding=GREEDY, words=3)
    write_evaluation("v1", bucket, cider=0.4, dataset="other/0123456789abcdef", words=4)
    found = {decoding: drift.test_profile("v1", decoding, bucket) for decoding in (BEAM, GREEDY, DECODING)}
    assert {decoding: profile.words.mean for decoding, profile in found.items()} == {BEAM: 2, GREEDY: 3, DECODING: 3}
    assert found[DECODING].decoding == GREEDY
    assert found[BEAM] == json.read(Profile, layout.evaluation("v1", DATASET, BEAM).profile, bucket)


def test_the_profile_of_an_unknown_model(bucket):
    """The error says where models are listed."""
    with pytest.raises(PipelineError, match=r"no model 'v9'.*`captioning status`"):
        drift.test_profile("v9", BEAM, bucket)


def test_a_profile_is_read_as_it_was_written(bucket):
    """JSON changes no number of a profile."""
    night = profile()
    json.write(night, "p.json", bucket)
    assert json.read(Profile, "p.json", bucket) == night

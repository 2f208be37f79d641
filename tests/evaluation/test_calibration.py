"""Calibration: its figures have known values, and each trained model has a confidence."""

import numpy as np
import pytest

from pipeline.captioner import bundle
from pipeline.captioner.captioner import Caption
from pipeline.config import DecodingConfig
from pipeline.data import dataset as datasets
from pipeline.evaluation import calibration
from pipeline.evaluation.acceptance import Acceptance
from pipeline.evaluation.calibration import auroc, calibration_error, measure
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.features.splits import read_split
from tests.support import toy


@pytest.mark.parametrize(
    ("score", "outcome", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),
        ([1, 2], [1, 1], None),
    ],
)
def test_auroc(score, outcome, expected):
    """Pairs in the right order, of all pairs; ties are half, and without both outcomes there is none."""
    assert auroc(np.array(score, float), np.array(outcome, bool)) == expected


def test_calibration_error():
    """The mean over bins of the difference between confidence and outcome."""
    confidence = np.repeat([0.2, 0.8], 50)
    outcome = np.tile([1, 0, 0, 0, 0], 20).astype(bool)  # one in five, in each bin of ten
    assert calibration_error(confidence, outcome) == pytest.approx(0.3)
    assert calibration_error(np.full(100, 0.2), outcome) == pytest.approx(0)
    # The same confidence for all, in the bins of another one that knows the outcome.
    assert calibration_error(np.full(100, 0.2), outcome, order=outcome.astype(float)) == pytest.approx(0.32)


def captions(sure, novel=0):
    """Captions of these confidences, of which the first ones are of novel photographs."""
    return [Caption("a dog", -1.0, 0.1, float(each), number < novel) for number, each in enumerate(sure)]


def test_a_confidence_that_is_exactly_right():
    """Its error is what chance gives; the surer captions are accepted more often."""
    rng = np.random.default_rng(0)
    sure = rng.random(2000)
    accepted = rng.random(2000) < sure
    found = measure(captions(sure, novel=100), Acceptance(accepted, accepted | (rng.random(2000) < 0.5), 0.9))
    assert found.error == pytest.approx(found.chance, abs=0.015)
    assert found.interval[0] < found.chance + 0.02
    assert found.constant_error == pytest.approx(0.25, abs=0.03)
    assert (found.log_prob_auroc, found.novel) == (0.5, 0.05)
    assert found.auroc == pytest.approx(5 / 6, abs=0.02)
    assert [each.captions for each in found.bins] == [200] * 10
    half, everything = found.coverage[9], found.coverage[-1]
    assert (half.share, half.accepted) == (0.5, pytest.approx(0.75, abs=0.03))
    assert (everything.accepted, everything.at_least_partly) == (found.accepted, found.at_least_partly)
    assert half.at_least_partly > half.accepted


def test_captions_without_a_confidence_are_not_measured():
    """Their model has none."""
    alike = np.ones(1, bool)
    assert measure([Caption("a dog", -1.0, 0.1)], Acceptance(alike, alike, 0.9)) is None


def test_training_gives_a_model_its_confidence(bucket, trained):
    """An evaluation measures it."""
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/", "datasets/")
    assert bundle.CONFIDENCE in trained.model.files
    metrics = evaluate_model(
        trained.model.version, store=bucket, decoding=DecodingConfig(beam_width=2), max_failed_fraction=0
    )
    assert metrics.calibration is not None
    assert sum(each.captions for each in metrics.calibration.bins) == metrics.images


def test_a_dataset_with_one_caption_an_image_has_none(trained, monkeypatch, caplog):
    """There is no rule then, and the log says so."""
    monkeypatch.setattr(calibration, "judge", lambda *_, **__: None)
    captioner, _ = bundle.load(trained.model.version, trained.store)
    dataset = datasets.load(trained.inputs.dataset, trained.store)
    encoder_id = trained.inputs.encoder_id
    dev = read_split(dataset, "dev", encoder_id=encoder_id, store=trained.store, max_failed_fraction=0)
    assert calibration.fit(captioner, dev) is None
    assert "captions get no confidence" in caplog.text

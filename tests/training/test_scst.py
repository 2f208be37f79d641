"""Self-critical training (SCST): the weights are the advantages, and captions improve."""

import math

import numpy as np
import pytest

from pipeline.captioner.sentences import padded
from pipeline.data.vocabulary import END, PAD, START
from pipeline.features.store import Features
from pipeline.metrics.cider import CiderD
from pipeline.training import scst
from pipeline.training.batches import EncodedCaptions
from pipeline.training.scst import batches, leave_one_out
from tests.support import toy
from tests.support.encoded_captions import encoded
from tests.support.training import assert_same_weights
from tests.support.training import weights as weights_of


def test_an_advantage_is_relative_to_the_other_samples():
    """Each sample is compared with the mean of the others of its image; equal samples have no advantage."""
    rewards = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]], np.float32)
    np.testing.assert_allclose(leave_one_out(rewards), [[-3, -1.5, 4.5], [0, 0, 0]])


class FakeSampler:
    """Replaces the compiled sampler: image i, recognized by its first feature, gets the samples of row i."""

    def __init__(self, samples):
        self.samples = samples

    def predict_on_batch(self, inputs):
        """The samples of the images with these features."""
        return self.samples[inputs["features"][:, 0].astype(int)]


def test_batches_weight_words_by_advantage(monkeypatch):
    """Words of a better sample have a positive weight, of a worse one a negative; each image adds a human caption."""
    monkeypatch.setattr(scst, "IMAGES_PER_STEP", 2)
    human = [[START, 4, 5, END], [START, 4, 6, END], [START, 7, END], [START, 8, 9, END], [START, 9, END]]
    owner = np.array([0, 0, 1, 2, 2])
    features = np.arange(3, dtype=np.float32)[:, None]
    references = padded(human, 4)
    good, bad = references[[0, 2, 3]], encoded([[9, 7]], 4).repeat(3, axis=0)
    samples = np.stack([good, bad, bad, bad, bad], axis=1)

    sampled_images, human_images = [], []
    generated = batches(
        EncodedCaptions(Features(features), owner, human),
        references,
        FakeSampler(samples),
        CiderD(references, owner, 10),
        np.random.default_rng(0),
    )
    for (inputs, targets, weights), mean_reward in generated:
        images = len(targets) // (scst.SAMPLES_PER_IMAGE + 1)
        sampled = images * scst.SAMPLES_PER_IMAGE
        assert mean_reward > 0
        assert (inputs["words"][:, 0] == START).all()
        np.testing.assert_array_equal(inputs["words"][:, 1:], targets[:, :-1])
        assert (weights[targets == PAD] == 0).all()
        for row in range(sampled):
            image = int(inputs["features"][inputs["rows"][row], 0])
            number = row % scst.SAMPLES_PER_IMAGE
            best = number == 0
            np.testing.assert_array_equal(targets[row], samples[image, number, : targets.shape[1]])
            written = weights[row][targets[row] != PAD]
            assert (written > 0).all() if best else (written < 0).all()
            sampled_images.append(image)
        for row in range(sampled, len(targets)):
            image = int(inputs["features"][inputs["rows"][row], 0])
            assert tuple(targets[row]) in {tuple(ids[: targets.shape[1]]) for ids in references[owner == image]}
            human_images.append(image)
        assert weights[sampled:].sum() == pytest.approx(scst.CROSS_ENTROPY_WEIGHT)
    assert sorted(sampled_images) == sorted([0, 1, 2] * scst.SAMPLES_PER_IMAGE)
    assert sorted(human_images) == [0, 1, 2]


def test_scst_raises_the_reward(trained, bucket):
    """From a model that has learned little, the reward of sampled captions rises, and so does CIDEr on dev."""
    toy.copy(trained.store, bucket, "datasets/", "features/")
    config = toy.CONFIG.model_copy(update={"epochs": 6, "scst_epochs": 12, "scst_learning_rate": 0.02})
    [member] = toy.train(trained.inputs, bucket, config).ensemble
    before, after = member.epochs[:6], member.epochs[6:]
    assert [epoch.epoch for epoch in member.epochs] == list(range(1, 19))
    assert {epoch.phase for epoch in before} == {"cross_entropy"}
    assert {epoch.phase for epoch in after} == {"scst"}
    assert all(epoch.reward is None and math.isfinite(epoch.loss) for epoch in before)
    assert all(epoch.loss is None for epoch in after)
    assert np.mean([epoch.reward for epoch in after[-3:]]) > 1.2 * after[0].reward
    assert max(epoch.dev_cider for epoch in after) > max(epoch.dev_cider for epoch in before)


def test_a_phase_that_makes_the_model_worse_changes_nothing(trained, bucket):
    """Where no SCST epoch is better on dev than the best one before, the model keeps the weights of that one."""
    toy.copy(trained.store, bucket, "datasets/", "features/", "training/")
    config = toy.CONFIG.model_copy(update={"scst_epochs": 2, "scst_learning_rate": 1.0})
    worse = toy.train(trained.inputs, bucket, config)
    [member] = worse.ensemble
    assert max(epoch.dev_cider for epoch in member.epochs[-2:]) < member.epochs[member.best_epoch - 1].dev_cider
    assert member.best_epoch == trained.model.ensemble[0].best_epoch
    assert_same_weights(weights_of(worse, bucket), weights_of(trained.model, trained.store))

"""Self-critical training: the weights are the advantages, and captions get better by it."""

import math

import numpy as np
import pytest
import toy

from pipeline import self_critical
from pipeline.captioner import load
from pipeline.cider import CiderD
from pipeline.examples import Captions
from pipeline.self_critical import batches, leave_one_out, padded
from pipeline.vocabulary import END, PAD, START


def encoded(sentences, width=9):
    """Sentences of ids as padded rows that end in END."""
    return padded([[START, *sentence, END] for sentence in sentences], width)


def test_an_advantage_is_over_the_mean_of_the_others():
    """Each sample is compared with its siblings alone; equal ones have no advantage."""
    rewards = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]], np.float32)
    np.testing.assert_allclose(leave_one_out(rewards), [[-3, -1.5, 4.5], [0, 0, 0]])


class Drawn:
    """Stands for the compiled sampler: image i gets the samples of row i, found by its first feature."""

    def __init__(self, samples):
        self.samples = samples

    def predict_on_batch(self, features):
        """The samples of the images whose features these are."""
        return self.samples[features[:, 0].astype(int)]


def test_batches_weigh_words_by_advantage(monkeypatch):
    """Words of a better sample weigh more than 0, of a worse one less; one caption by people is learnt an image."""
    monkeypatch.setattr(self_critical, "IMAGES", 2)
    people = [[START, 4, 5, END], [START, 4, 6, END], [START, 7, END], [START, 8, 9, END], [START, 9, END]]
    owner = np.array([0, 0, 1, 2, 2])
    features = np.arange(3, dtype=np.float32)[:, None]
    references = padded(people, 4)
    good, bad = references[[0, 2, 3]], encoded([[9, 7]], 4).repeat(3, axis=0)
    samples = np.stack([good, bad, bad, bad, bad], axis=1)

    seen, learnt = [], []
    drawn = batches(
        Captions(features, owner, people),
        references,
        Drawn(samples),
        CiderD(references, owner, 10),
        np.random.default_rng(0),
    )
    for (inputs, targets, weights), mean_reward in drawn:
        images = len(targets) // (self_critical.SAMPLES + 1)
        sampled = images * self_critical.SAMPLES
        assert mean_reward > 0
        assert (inputs["words"][:, 0] == START).all()
        np.testing.assert_array_equal(inputs["words"][:, 1:], targets[:, :-1])
        assert (weights[targets == PAD] == 0).all()
        for row in range(sampled):
            image = int(inputs["features"][row, 0])
            best = row % self_critical.SAMPLES == 0
            np.testing.assert_array_equal(targets[row], samples[image, row % self_critical.SAMPLES, : targets.shape[1]])
            written = weights[row][targets[row] != PAD]
            assert (written > 0).all() if best else (written < 0).all()
            seen.append(image)
        for row in range(sampled, len(targets)):
            image = int(inputs["features"][row, 0])
            assert tuple(targets[row]) in {tuple(ids[: targets.shape[1]]) for ids in references[owner == image]}
            learnt.append(image)
        assert weights[sampled:].sum() == pytest.approx(self_critical.CROSS_ENTROPY)
    assert sorted(seen) == sorted([0, 1, 2] * self_critical.SAMPLES)
    assert sorted(learnt) == [0, 1, 2]


def test_self_critical_epochs_raise_the_reward(trained, bucket):
    """From a model that has hardly begun to learn, sampled captions come to deserve more, and so do those on dev."""
    toy.copy(trained.store, bucket, "features/")
    recipe = toy.RECIPE.model_copy(
        update={"epochs": 6, "self_critical_epochs": 12, "self_critical_learning_rate": 0.02}
    )
    [member] = toy.train(trained.inputs, bucket, recipe).members
    before, after = member.epochs[:6], member.epochs[6:]
    assert [epoch.epoch for epoch in member.epochs] == list(range(1, 19))
    assert {epoch.stage for epoch in before} == {"cross_entropy"}
    assert {epoch.stage for epoch in after} == {"self_critical"}
    assert all(epoch.reward is None and math.isfinite(epoch.loss) for epoch in before)
    assert all(epoch.loss is None for epoch in after)
    assert np.mean([epoch.reward for epoch in after[-3:]]) > 1.2 * after[0].reward
    assert max(epoch.dev_cider for epoch in after) > max(epoch.dev_cider for epoch in before)


def test_a_stage_that_spoils_the_model_changes_nothing(trained, bucket):
    """Where no self-critical epoch is better on dev than the best before, the model stays as that one left it."""
    toy.copy(trained.store, bucket, "features/", "training/")
    recipe = toy.RECIPE.model_copy(update={"self_critical_epochs": 2, "self_critical_learning_rate": 1.0})
    spoilt = toy.train(trained.inputs, bucket, recipe)
    [member] = spoilt.members
    assert max(epoch.dev_cider for epoch in member.epochs[-2:]) < member.epochs[member.best_epoch - 1].dev_cider
    assert member.best_epoch == trained.model.members[0].best_epoch
    for one, other in zip(
        load(spoilt.version, bucket)[0].models[0].get_weights(),
        load(trained.model.version, trained.store)[0].models[0].get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)

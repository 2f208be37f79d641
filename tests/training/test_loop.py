"""The training loop: its loss, the best epoch, and when it stops."""

import numpy as np
import pytest

from pipeline.captioner.merge_model import last_stage
from pipeline.data.vocabulary import PAD
from pipeline.training.batches import EncodedCaptions
from pipeline.training.loop import compile_for_training, evaluate_loss, train_epoch
from tests.support import toy
from tests.support.small_captioner import (
    CAPTIONS,
    FEATURES,
    REGIONS,
    SENTENCES,
    VOCABULARY,
    build_last_stage,
    build_model,
    inputs_of,
)
from tests.support.training import assert_same_weights, short, weights


@pytest.fixture
def model():
    """A model that is ready to be trained."""
    model = build_model()
    compile_for_training(model, 1e-3)
    return model


def test_the_loss_of_whole_captions_is_that_of_their_expansion(model):
    """The masked loss of batches of whole captions is that of every (image, prefix) → next word, one by one."""
    whole = evaluate_loss(model, CAPTIONS.evaluation_batches(2))
    losses = []
    for image, ids in zip(CAPTIONS.image, CAPTIONS.ids, strict=True):
        for length in range(1, len(ids)):
            inputs = inputs_of(FEATURES[[image]], np.array([ids[:length]], np.int32))
            logits = np.asarray(model(inputs, training=False))[0, -1]
            losses.append(np.log(np.exp(logits).sum()) - logits[ids[length]])
    assert len(losses) == sum(len(VOCABULARY.encode(text)) - 1 for text in SENTENCES)
    assert whole == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_gradient_is_that_of_the_expansion():
    """One step of gradient descent on a whole batch changes the weights as one on all its expanded prefixes does."""
    import keras

    after = []
    for expanded in (False, True):
        model = build_model()
        compile_for_training(model, 1e-3)
        model.optimizer = keras.optimizers.SGD(0.5)
        [(inputs, targets, word_weights)] = CAPTIONS.evaluation_batches(5)
        if expanded:
            # Each prefix is a padded row of its own, of which only the word after the prefix counts.
            prefixes = [(i, t) for i, t in np.argwhere(word_weights) if word_weights[i, t]]
            words = np.full((len(prefixes), targets.shape[1]), PAD, np.int32)
            last = np.zeros((len(prefixes), targets.shape[1]), np.float32)
            for row, (i, t) in enumerate(prefixes):
                words[row, : t + 1] = inputs["words"][i, : t + 1]
                last[row, t] = 1
            picked = [i for i, _ in prefixes]
            inputs = {"features": inputs["features"], "words": words, "rows": inputs["rows"][picked]}
            targets, word_weights = targets[picked], last
        model.train_on_batch(inputs, targets, word_weights / word_weights.sum())
        after.append(model.get_weights())
    for one, other in zip(*after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("features", [FEATURES, REGIONS], ids=["vectors", "regions"])
def test_few_shapes_have_the_same_loss(features):
    """Padding to the shapes of an accelerator changes neither the loss nor what a step learns from a batch."""
    import keras

    model = build_model(features)
    start = model.get_weights()
    losses, after = [], []
    for few_shapes in (False, True):
        captions = EncodedCaptions(features, CAPTIONS.image, CAPTIONS.ids, few_shapes=few_shapes)
        model.set_weights(start)
        compile_for_training(model, 1e-3)
        model.optimizer = keras.optimizers.SGD(0.5)
        losses.append(evaluate_loss(model, captions.evaluation_batches(2)))
        losses.append(train_epoch(model, captions.evaluation_batches(2)))
        after.append(model.get_weights())
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)
    for one, other in zip(*after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_only_train_epoch_trains(model):
    """``evaluate_loss`` leaves the weights as they are; ``train_epoch`` changes them, and the loss falls."""
    before = model.get_weights()
    first = evaluate_loss(model, CAPTIONS.evaluation_batches(2))
    assert evaluate_loss(model, CAPTIONS.evaluation_batches(2)) == first
    assert_same_weights(model.get_weights(), before)
    for seed in range(3):
        assert train_epoch(model, CAPTIONS.training_batches(2, np.random.default_rng(seed))) > 0
    # The weights of the image's scale are no parameters, so some arrays stay.
    assert any(not np.array_equal(one, other) for one, other in zip(model.get_weights(), before, strict=True))
    assert evaluate_loss(model, CAPTIONS.evaluation_batches(2)) < first


@pytest.mark.parametrize("fine_tuning", [0.0, 0.25])
def test_the_last_stage_is_tuned_more_slowly(fine_tuning):
    """Its first step is this fraction of the others'; at 0 it stays as it is."""

    model = build_model(REGIONS, build_last_stage(), fine_tuning=fine_tuning, dropout=0.5)
    compile_for_training(model, 1e-2, fine_tuning=fine_tuning)
    part, logits = last_stage(model), model.get_layer("logits")
    trained = {id(variable) for variable in model.trainable_variables}
    before = [layer.get_weights() for layer in (part, logits)]
    captions = EncodedCaptions(REGIONS, CAPTIONS.image, CAPTIONS.ids)
    train_epoch(model, captions.training_batches(5, np.random.default_rng(0)))
    of_stage, of_logits = (
        {
            id(variable): np.abs(variable - old).max()
            for variable, old in zip(layer.weights, weights_before, strict=True)
        }
        for layer, weights_before in zip((part, logits), before, strict=True)
    )
    # The first step of Adam has the size of the learning rate, whatever the gradient.
    assert list(of_logits.values()) == pytest.approx([1e-2] * 2, rel=1e-2)
    tuned = 1e-2 * fine_tuning
    # A kernel and a bias each; the normalization keeps its scale, its shift and its statistics.
    assert sorted(of_stage.values()) == pytest.approx([0] * 4 + [tuned] * 4, rel=1e-2)
    assert {number for number, step in of_stage.items() if step} == {*of_stage} & trained


def test_train_epoch_returns_the_mean_loss_per_word():
    """With a learning rate of 0 it is that of ``evaluate_loss``, whatever the batches."""
    model = build_model()
    compile_for_training(model, 0.0)
    expected = evaluate_loss(model, CAPTIONS.evaluation_batches(5))
    assert train_epoch(model, CAPTIONS.training_batches(2, np.random.default_rng(0))) == pytest.approx(
        expected, rel=1e-5
    )


def test_early_stopping_keeps_the_best_epoch(trained, store, scripted):
    """Training stops after ``patience`` epochs that improve nothing, and the model has the weights of the best one."""
    seen = scripted(0.1, 0.5, 0.3, 0.4, 0.9, losses=[3.0, 2.0, 2.5, 2.1, 1.0])
    model = toy.train(trained.inputs, store, short(epochs=9, patience=2))
    [member] = model.ensemble
    assert (member.best_epoch, len(member.epochs)) == (2, 4)
    assert_same_weights(weights(model, store), seen[1])
    assert any(not np.array_equal(best, last) for best, last in zip(seen[1], seen[-1], strict=True))


def test_training_continues_while_the_loss_falls(trained, store, scripted):
    """A CIDEr that stagnates does not end training where the loss on dev falls; the best CIDEr is kept."""
    scripted(0.1, 0.5, 0.3, 0.4, 0.4, 0.9, losses=[3.0, 2.5, 2.2, 2.3, 2.1, 2.4])
    [member] = toy.train(trained.inputs, store, short(epochs=6, patience=2)).ensemble
    assert (member.best_epoch, len(member.epochs)) == (6, 6)


def test_the_loss_decides_between_equal_scores(trained, store, scripted):
    """While CIDEr is still 0, a falling loss on dev is progress: training does not stop, and keeps the last epoch."""
    scripted(*[0.0] * 5)
    [member] = toy.train(trained.inputs, store, short(epochs=5, patience=1)).ensemble
    assert (member.best_epoch, len(member.epochs)) == (5, 5)


def test_each_phase_has_its_own_patience(trained, store, scripted):
    """The epochs of a second phase are not cut short because the best one of the first was long ago."""
    scripted(0.9, 0.1, 0.1, 0.2, 0.3)
    [member] = toy.train(trained.inputs, store, short(epochs=3, patience=3, scst_epochs=2)).ensemble
    assert (member.best_epoch, len(member.epochs)) == (1, 5)

"""Training: what a captioner learns, how a training is repeated and resumed, and which inputs are refused."""

import numpy as np
import pytest

from pipeline.captioner.bundle import load
from pipeline.captioner.metadata import list_models
from pipeline.config import DecodingConfig
from pipeline.data import dataset
from pipeline.errors import PipelineError
from pipeline.features.splits import read_split
from pipeline.storage import layout, open_bucket
from pipeline.training import loop, train
from tests.support import toy
from tests.support.effort import STRESS
from tests.support.training import assert_same_weights, short, weights


def untimed(model):
    """The models of an ensemble, without the seconds that their epochs took."""
    return [
        (member.seed, member.best_epoch, [epoch.model_copy(update={"seconds": 0}) for epoch in member.epochs])
        for member in model.ensemble
    ]


def test_it_learns(trained):
    """The losses fall, CIDEr on dev rises, and the caption of each training picture names its colour."""
    [member] = trained.model.ensemble
    first, *_, last = member.epochs
    assert last.loss < first.loss / 2
    assert last.dev_loss < first.dev_loss / 2
    assert max(epoch.dev_cider for epoch in member.epochs) > 1

    captioner, metadata = load(trained.model.version, trained.store)
    assert metadata == trained.model
    assert metadata.dataset == trained.inputs.dataset
    pictures = read_split(
        dataset.load(trained.inputs.dataset, trained.store),
        "train",
        encoder_id=trained.inputs.encoder_id,
        store=trained.store,
        max_failed_fraction=0,
    )
    captions = captioner.caption(pictures.features, DecodingConfig(beam_width=3))
    assert len(captions) == 16
    for name, caption in zip(pictures.image_ids, captions, strict=True):
        assert set(toy.COLOURS) & set(caption.text.split()) == {name.partition("-")[0]}


def test_the_same_seed_gives_the_same_model(trained, bucket):
    """Trained again in another store from the same inputs, every weight and every point of the curves is the same."""
    toy.copy(trained.store, bucket, "datasets/", "features/")
    again = toy.train(trained.inputs, bucket)
    assert again.version.rpartition("-")[2] == trained.model.version.rpartition("-")[2]
    assert untimed(again) == untimed(trained.model)
    assert_same_weights(weights(again, bucket), weights(trained.model, trained.store))


def test_the_same_inputs_are_not_trained_twice(trained, store, monkeypatch):
    """A model of the same inputs is returned as it is; another configuration gives another version beside it."""
    toy.copy(trained.store, store, "models/")
    other = toy.train(trained.inputs, store, short(seed=1))
    assert other.version != trained.model.version
    assert {model.version for model in list_models(store)} == {other.version, trained.model.version}

    monkeypatch.setattr(train, "build", lambda *_: pytest.fail("trained again"))
    before = toy.etags(store, "models/")
    assert toy.train(trained.inputs, store) == trained.model
    assert toy.train(trained.inputs, store, short(seed=1)) == other
    assert toy.etags(store, "models/") == before


def test_a_training_interrupted_before_its_card_completes_it(trained, store):
    """A model whose training ended before the last write gets its card when the training is repeated."""
    key = layout.model_card(trained.model.version)
    toy.copy(trained.store, store, "models/", "datasets/")
    card = store.get(key)
    store.delete(key)
    assert toy.train(trained.inputs, store) == trained.model
    assert store.get(key) == card


def test_a_loss_that_is_not_finite_is_an_error(trained, store, monkeypatch):
    """Word vectors that are no numbers make the loss so: the error says where and what to do, and no model is left."""
    vectors = lambda words, *_, size, **__: (np.full((len(words), size), np.nan, np.float32), 1.0)  # noqa: E731
    monkeypatch.setattr(train, "embedding_matrix", vectors)
    message = r"loss is nan in epoch 1 \(cross_entropy\): lower its learning rate \(now 0\.03\)"
    with pytest.raises(PipelineError, match=message):
        toy.train(trained.inputs, store, short(embedding="glove", embedding_size=2))
    assert list_models(store) == []


def test_an_unreadable_picture_is_left_out(tmp_path, toy_encoder, caplog):
    """If few enough pictures failed, the model is trained on the others, and the log says how many were left out."""
    store = open_bucket(str(tmp_path / "store"))
    caplog.set_level("INFO")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=("red-1.jpg",))
    assert len(toy.train(inputs, store, short()).ensemble[0].epochs) == 1
    assert "1 of the 16 images of train failed and are left out" in caplog.text
    assert "training on 30 captions of 15 images" in caplog.text


def test_too_many_unreadable_pictures_are_an_error(tmp_path, toy_encoder):
    """If more pictures failed, nothing is trained, and the error names them and says what is wrong with them."""
    store = open_bucket(str(tmp_path / "store"))
    broken = ("red-1.jpg", "blue-2.jpg")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=broken)
    with pytest.raises(PipelineError, match=r"2 of 16 images failed.*2 × cannot be decoded.*pictures/blue-2\.jpg"):
        toy.train(inputs, store, short())
    assert list_models(store) == []


def test_missing_features_are_an_error(trained, bucket):
    """A dataset whose features were never extracted can't be trained on; the error says what to do."""
    toy.copy(trained.store, bucket, "datasets/")
    with pytest.raises(PipelineError, match=r"16 of 16 images have no features.*`captioning extract` first"):
        toy.train(trained.inputs, bucket)


INTERRUPTED = {"epochs": 2, "dropout": 0.3, "scst_epochs": 2}
"""A configuration with everything that has a state: both phases, random dropout and random samples."""


def judge(captioner, *_):
    """A number that depends on each weight, in place of CIDEr on dev, which takes most of a short training's time."""
    return float(sum(np.abs(array).sum() for array in captioner.decoder.models[0].get_weights()))


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A training of two models that was not interrupted: its store and its model."""
    store = open_bucket(str(tmp_path_factory.mktemp("whole")))
    toy.copy(trained.store, store, "datasets/", "features/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "dev_cider", judge)
        return store, toy.train(trained.inputs, store, short(**INTERRUPTED, ensemble_size=2))


# The epochs of a model are 1 and 2 for the next word, 3 and 4 of SCST.
@pytest.mark.parametrize(("models", "epoch"), [(1, 2), (1, 4), (2, 7), *([(1, 1), (1, 3), (2, 5)] if STRESS else [])])
def test_an_interrupted_training_has_the_same_result(whole, trained, store, monkeypatch, *, models, epoch):
    """Stopped in an epoch of any phase and started again, it gives the uninterrupted training's weights and curves."""
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(loop, "dev_cider", stop)
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, short(**INTERRUPTED, ensemble_size=models))
    assert list_models(store) == []
    resumed = toy.train(trained.inputs, store, short(**INTERRUPTED, ensemble_size=models))
    # Only the interrupted epoch was done twice.
    assert len(calls) == 4 * models + 1
    elsewhere, model = whole
    assert untimed(resumed) == untimed(model)[:models]
    found = weights(resumed, store)
    assert_same_weights(found, weights(model, elsewhere)[: len(found)])


def test_a_resumed_training_keeps_its_version(trained, store, scripted):
    """The version is chosen when a training starts, and the model has it even after an interruption."""
    scripted(0.1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, short(epochs=2))
    [begun] = [store.get(item.key).decode() for item in store.list(layout.TRAINING) if item.key.endswith(".version")]
    scripted(0.2)
    assert toy.train(trained.inputs, store, short(epochs=2)).version == begun


def test_the_checkpoint_of_another_architecture_is_not_continued(trained, store, scripted, monkeypatch):
    """Where the same configuration builds another model than at the interruption, training begins anew."""
    scripted(0.1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, short(epochs=2))

    def wider(size, features, config, *others):
        return build(size, features, config.model_copy(update={"units": 2 * config.units}), *others)

    build = train.build
    monkeypatch.setattr(train, "build", wider)
    scripted(0.1, 0.2)
    model = toy.train(trained.inputs, store, short(epochs=2))
    assert [epoch.dev_cider for epoch in model.ensemble[0].epochs] == [0.1, 0.2]


def test_trainings_with_the_same_first_phase_share_it(whole, trained, store, monkeypatch):
    """With the same cross-entropy epochs, another SCST phase starts from them without repeating them."""
    elsewhere, model = whole
    toy.copy(elsewhere, store, "training/")
    done = []
    monkeypatch.setattr(loop, "dev_cider", lambda *arguments: done.append(1) or judge(*arguments))
    other = toy.train(trained.inputs, store, short(**INTERRUPTED, ensemble_size=2, scst_learning_rate=1e-3))
    assert len(done) == 2 * 2
    plain = toy.train(trained.inputs, store, short(**INTERRUPTED | {"scst_epochs": 0}, ensemble_size=2))
    assert len(done) == 2 * 2
    for one, two, three in zip(model.ensemble, other.ensemble, plain.ensemble, strict=True):
        assert one.epochs[:2] == two.epochs[:2] == three.epochs


def test_an_ensemble_consists_of_single_models(whole, trained, store, monkeypatch):
    """An ensemble of two with seed 0 has the models of seeds 0 and 1, each as if it were trained alone."""
    elsewhere, model = whole
    assert [member.seed for member in model.ensemble] == [0, 1]
    monkeypatch.setattr(loop, "dev_cider", judge)
    single = toy.train(trained.inputs, store, short(**INTERRUPTED, seed=1))
    assert untimed(single) == untimed(model)[1:]
    alone = weights(single, store)
    assert_same_weights(alone, weights(model, elsewhere)[-len(alone) :])
    assert [config.seed for config in short(ensemble_size=3, seed=2).single_models] == [6, 7, 8]


def test_no_caption_is_longer_than_the_maximum(trained):
    """The maximum length of the training captions is in the bundle and limits generated captions."""
    captioner, metadata = load(trained.model.version, trained.store)
    assert metadata.max_length == captioner.max_length == 5
    assert trained.model.max_length == max(len(text.split()) for text in ("a red square", "the whole picture is red"))

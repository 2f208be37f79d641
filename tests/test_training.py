"""Training: what is learnt, what is kept, and what is refused."""

import numpy as np
import pytest
import toy

from pipeline import dataset, training
from pipeline.captioner import list_models, load
from pipeline.errors import PipelineError
from pipeline.examples import Split, encode_captions, split_features
from pipeline.storage import open_bucket
from pipeline.vocabulary import END, START, Vocabulary


@pytest.fixture
def store(tmp_path, trained):
    """A store with the toy world's features and no model."""
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "features/")
    return store


def short(**changes):
    """The toy recipe, of one epoch unless changed."""
    return toy.RECIPE.model_copy(update={"epochs": 1, **changes})


def test_it_learns(trained):
    """The losses fall, CIDEr on dev rises, and the caption of each training picture names its colour."""
    first, *_, last = trained.model.curves
    assert last["loss"] < first["loss"] / 2
    assert last["dev_loss"] < first["dev_loss"] / 2
    assert max(point["dev_cider"] for point in trained.model.curves) > 1

    captioner, metadata = load(trained.model.version, trained.store)
    assert metadata == trained.model
    pictures = split_features(
        dataset.load(trained.inputs.dataset),
        "train",
        encoder_id=trained.inputs.encoder_id,
        store=trained.store,
        max_failed_fraction=0,
    )
    captions = captioner.caption(pictures.vectors, beam_width=3)
    assert len(captions) == 16
    for name, caption in zip(pictures.table["image_id"].to_pylist(), captions, strict=True):
        assert set(toy.COLOURS) & set(caption.text.split()) == {name.partition("-")[0]}


def test_the_same_seed_gives_the_same_model(trained, bucket):
    """Trained again elsewhere from the same inputs, every weight and every point of the curves is the same."""
    toy.copy(trained.store, bucket, "features/")
    again = toy.train(trained.inputs, bucket)
    assert again.version.rpartition("-")[2] == trained.model.version.rpartition("-")[2]
    assert again.best_epoch == trained.model.best_epoch
    untimed = [[{**point, "seconds": 0} for point in model.curves] for model in (trained.model, again)]
    assert untimed[0] == untimed[1]
    weights = [
        load(model.version, where)[0].model.get_weights()
        for model, where in ((trained.model, trained.store), (again, bucket))
    ]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_inputs_are_not_trained_twice(trained, store, monkeypatch):
    """A model of the same inputs is returned as it is; another recipe gives another version beside it."""
    toy.copy(trained.store, store, "models/")
    other = toy.train(trained.inputs, store, short(seed=1))
    assert other.version != trained.model.version
    assert {model.version for model in list_models(store)} == {other.version, trained.model.version}

    monkeypatch.setattr(training, "build", lambda *_: pytest.fail("trained again"))
    before = toy.etags(store, "models/")
    assert toy.train(trained.inputs, store) == trained.model
    assert toy.train(trained.inputs, store, short(seed=1)) == other
    assert toy.etags(store, "models/") == before


def test_a_loss_that_is_not_finite_is_an_error(trained, store, tmp_path):
    """Word vectors that are no numbers spoil the loss: the error says so and what to look at, and no model is left."""
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} nan 0.1\n" for word in ("red", "square", "a")))
    with pytest.raises(PipelineError, match=r"loss is nan in epoch 1.*lower the learning rate \(now 0\.03\)"):
        toy.train(trained.inputs, store, short(embedding=str(vectors), embedding_size=2))
    assert list_models(store) == []


def test_an_unreadable_picture_is_left_out(tmp_path, toy_encoder, caplog):
    """Within the budget the model is trained on the others, and the log says how many were left out."""
    store = open_bucket(str(tmp_path / "store"))
    caplog.set_level("INFO")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=("red-1.jpg",))
    assert len(toy.train(inputs, store, short()).curves) == 1
    assert "1 of the 16 images of train could not be read and are left out" in caplog.text
    assert "training on 30 captions of 15 images" in caplog.text


def test_too_many_unreadable_pictures_are_an_error(tmp_path, toy_encoder):
    """Beyond the budget nothing is trained, and the error names the pictures and what is wrong with them."""
    store = open_bucket(str(tmp_path / "store"))
    broken = ("red-1.jpg", "blue-2.jpg")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=broken)
    with pytest.raises(PipelineError, match=r"2 of 16 images failed.*pictures/blue-2\.jpg: cannot be decoded"):
        toy.train(inputs, store, short())
    assert list_models(store) == []


def test_missing_features_are_an_error(trained, bucket):
    """A dataset whose features were never extracted can't be trained on; the error says what to do."""
    with pytest.raises(PipelineError, match=r"16 of 16 images have no features.*extract them first"):
        toy.train(trained.inputs, bucket)


@pytest.fixture
def scripted(monkeypatch):
    """Let CIDEr on dev be as scripted; the result fills with the weights that the model had at each epoch's score."""

    def script(*scores):
        models, weights, scores = [], [], iter(scores)

        def build(*args):
            models.append(original(*args))
            return models[-1]

        def cider(*_):
            weights.append(models[-1].get_weights())
            return next(scores)

        original = training.build
        monkeypatch.setattr(training, "build", build)
        monkeypatch.setattr(training, "cider", cider)
        return weights

    return script


def test_it_stops_early_and_keeps_the_best_epoch(trained, store, scripted):
    """After `patience` epochs without a better CIDEr training ends, and the model has the best epoch's weights."""
    weights = scripted(0.1, 0.5, 0.3, 0.4, 0.9)
    model = toy.train(trained.inputs, store, short(epochs=9, patience=2))
    assert (model.best_epoch, len(model.curves)) == (2, 4)
    kept = load(model.version, store)[0].model.get_weights()
    for one, best in zip(kept, weights[1], strict=True):
        np.testing.assert_array_equal(one, best)
    assert any(not np.array_equal(best, last) for best, last in zip(weights[1], weights[-1], strict=True))


def test_equal_scores_are_told_apart_by_the_loss(trained, store, scripted):
    """While CIDEr is still nought, a falling loss on dev is progress: training neither stops nor keeps epoch 1."""
    scripted(*[0.0] * 5)
    model = toy.train(trained.inputs, store, short(epochs=5, patience=1))
    assert (model.best_epoch, len(model.curves)) == (5, 5)


def test_long_captions_are_cut():
    """The few captions beyond the limit lose their end, and dev's are cut to the limit of train."""
    import pyarrow as pa

    captions = [["a red square"]] * 300 + [["a red " + "very " * 40 + "square"]]
    vocabulary = Vocabulary.build((text for texts in captions for text in texts), min_count=1)
    split = Split(pa.table({"captions": captions}), np.zeros((301, 3), np.float32))
    encoded, longest = encode_captions(split, vocabulary)
    assert longest == 3
    assert encoded.ids[0] == vocabulary.encode("a red square")
    assert encoded.ids[-1] == vocabulary.encode("a red very")[:-1]
    assert [ids for ids in encoded.ids if ids[0] != START or (ids[-1] != END and len(ids) != 4)] == []
    shorter, limit = encode_captions(split, vocabulary, 2)
    assert (limit, max(len(ids) for ids in shorter.ids)) == (2, 3)


def test_no_caption_is_longer_than_the_limit(trained):
    """The limit of the training captions goes into the bundle and bounds what is written."""
    captioner, metadata = load(trained.model.version, trained.store)
    assert metadata.max_length == captioner.max_length == 5
    assert trained.model.max_length == max(len(text.split()) for text in ("a red square", "the whole picture is red"))

"""Training: what is learnt, what is kept, and what is refused."""

import numpy as np
import pytest
import toy

from pipeline import dataset, stages, training
from pipeline.captioner import list_models, load
from pipeline.errors import PipelineError
from pipeline.examples import Split, encode_captions, split_features
from pipeline.recipe import Search
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


def untimed(model):
    """The members of a model, without the seconds that their epochs took."""
    return [
        (member.seed, member.best_epoch, [epoch.model_copy(update={"seconds": 0}) for epoch in member.epochs])
        for member in model.members
    ]


def weights(model, store):
    """The weights of all members of a model in the store."""
    return [array for member in load(model.version, store)[0].models for array in member.get_weights()]


def assert_same_weights(ones, others):
    """Every array is the same, bit by bit."""
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_learns(trained):
    """The losses fall, CIDEr on dev rises, and the caption of each training picture names its colour."""
    [member] = trained.model.members
    first, *_, last = member.epochs
    assert last.loss < first.loss / 2
    assert last.dev_loss < first.dev_loss / 2
    assert max(epoch.dev_cider for epoch in member.epochs) > 1

    captioner, metadata = load(trained.model.version, trained.store)
    assert metadata == trained.model
    pictures = split_features(
        dataset.load(trained.inputs.dataset),
        "train",
        encoder_id=trained.inputs.encoder_id,
        store=trained.store,
        max_failed_fraction=0,
    )
    captions = captioner.caption(pictures.vectors, Search(beam_width=3))
    assert len(captions) == 16
    for name, caption in zip(pictures.table["image_id"].to_pylist(), captions, strict=True):
        assert set(toy.COLOURS) & set(caption.text.split()) == {name.partition("-")[0]}


def test_the_same_seed_gives_the_same_model(trained, bucket):
    """Trained again elsewhere from the same inputs, every weight and every point of the curves is the same."""
    toy.copy(trained.store, bucket, "features/")
    again = toy.train(trained.inputs, bucket)
    assert again.version.rpartition("-")[2] == trained.model.version.rpartition("-")[2]
    assert untimed(again) == untimed(trained.model)
    assert_same_weights(weights(again, bucket), weights(trained.model, trained.store))


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
    message = r"loss is nan in epoch 1 \(cross_entropy\): lower its learning rate \(now 0\.03\)"
    with pytest.raises(PipelineError, match=message):
        toy.train(trained.inputs, store, short(embedding=str(vectors), embedding_size=2))
    assert list_models(store) == []


def test_an_unreadable_picture_is_left_out(tmp_path, toy_encoder, caplog):
    """Within the budget the model is trained on the others, and the log says how many were left out."""
    store = open_bucket(str(tmp_path / "store"))
    caplog.set_level("INFO")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=("red-1.jpg",))
    assert len(toy.train(inputs, store, short()).members[0].epochs) == 1
    assert "1 of the 16 images of train could not be read and are left out" in caplog.text
    assert "learning from 30 captions of 15 images" in caplog.text


def test_too_many_unreadable_pictures_are_an_error(tmp_path, toy_encoder):
    """Beyond the budget nothing is trained, and the error names the pictures and what is wrong with them."""
    store = open_bucket(str(tmp_path / "store"))
    broken = ("red-1.jpg", "blue-2.jpg")
    inputs = toy.prepare(open_bucket(str(tmp_path / "source")), store, toy_encoder, broken=broken)
    with pytest.raises(PipelineError, match=r"2 of 16 images failed.*2 × cannot be decoded.*pictures/blue-2\.jpg"):
        toy.train(inputs, store, short())
    assert list_models(store) == []


def test_missing_features_are_an_error(trained, bucket):
    """A dataset whose features were never extracted can't be trained on; the error says what to do."""
    with pytest.raises(PipelineError, match=r"16 of 16 images have no features.*extract them first"):
        toy.train(trained.inputs, bucket)


@pytest.fixture
def scripted(monkeypatch):
    """Let CIDEr on dev be as scripted, or an exception; the result fills with the weights at each epoch's score.

    ``losses`` on dev may be scripted too.
    """

    def script(*scores, losses=()):
        models, seen, scores, losses = [], [], iter(scores), iter(losses)

        def build(*args):
            models.append(original(*args))
            return models[-1]

        def cider(*_):
            seen.append(models[-1].get_weights())
            score = next(scores)
            if isinstance(score, BaseException):
                raise score
            return score

        def mean_loss(on_batch, batches):
            measured = original_loss(on_batch, batches)
            return next(losses, measured) if on_batch.__name__ == "test_on_batch" else measured

        original, original_loss = training.build, stages.mean_loss
        monkeypatch.setattr(training, "build", build)
        monkeypatch.setattr(stages, "mean_loss", mean_loss)
        monkeypatch.setattr(stages, "cider", cider)
        return seen

    return script


def test_it_stops_early_and_keeps_the_best_epoch(trained, store, scripted):
    """After `patience` epochs that are better in nothing training ends, and the model has the best epoch's weights."""
    seen = scripted(0.1, 0.5, 0.3, 0.4, 0.9, losses=[3.0, 2.0, 2.5, 2.1, 1.0])
    model = toy.train(trained.inputs, store, short(epochs=9, patience=2))
    [member] = model.members
    assert (member.best_epoch, len(member.epochs)) == (2, 4)
    assert_same_weights(weights(model, store), seen[1])
    assert any(not np.array_equal(best, last) for best, last in zip(seen[1], seen[-1], strict=True))


def test_it_goes_on_while_the_loss_falls(trained, store, scripted):
    """A CIDEr that stands still for some epochs ends nothing where the loss on dev falls; the best CIDEr is kept."""
    scripted(0.1, 0.5, 0.3, 0.4, 0.4, 0.9, losses=[3.0, 2.5, 2.2, 2.3, 2.1, 2.4])
    [member] = toy.train(trained.inputs, store, short(epochs=6, patience=2)).members
    assert (member.best_epoch, len(member.epochs)) == (6, 6)


def test_equal_scores_are_told_apart_by_the_loss(trained, store, scripted):
    """While CIDEr is still nought, a falling loss on dev is progress: training neither stops nor keeps epoch 1."""
    scripted(*[0.0] * 5)
    [member] = toy.train(trained.inputs, store, short(epochs=5, patience=1)).members
    assert (member.best_epoch, len(member.epochs)) == (5, 5)


def test_each_stage_is_given_its_own_time(trained, store, scripted):
    """The epochs of a second stage are not cut short because the best one of the first was long ago."""
    scripted(0.9, 0.1, 0.1, 0.2, 0.3)
    recipe = short(epochs=3, patience=3, self_critical_epochs=2)
    [member] = toy.train(trained.inputs, store, recipe).members
    assert (member.best_epoch, len(member.epochs)) == (1, 5)


INTERRUPTED = {"epochs": 3, "dropout": 0.3, "self_critical_epochs": 3, "members": 2}
"""A recipe with all that has a state: both stages, random dropout and samples, and a second member."""


@pytest.mark.parametrize("epoch", [2, 3, 5, 10])
def test_an_interrupted_training_goes_on_to_the_same_result(whole, trained, store, monkeypatch, epoch):
    """Stopped in any epoch of any stage and started again, it gives the uninterrupted training's weights and curves."""
    original, calls = stages.cider, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(stages, "cider", stop)
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, short(**INTERRUPTED))
    assert list_models(store) == []
    resumed = toy.train(trained.inputs, store, short(**INTERRUPTED))
    # The interrupted epoch is the only one that was done twice.
    assert len(calls) == 12 + 1
    elsewhere, model = whole
    assert untimed(resumed) == untimed(model)
    assert_same_weights(weights(resumed, store), weights(model, elsewhere))


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A training that nothing interrupted: its store and its model."""
    store = open_bucket(str(tmp_path_factory.mktemp("whole")))
    toy.copy(trained.store, store, "features/")
    return store, toy.train(trained.inputs, store, short(**INTERRUPTED))


def test_a_training_that_goes_on_keeps_its_version(trained, store, scripted):
    """The version is chosen when a training starts; after an interruption the model has that one."""
    scripted(0.1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, short(epochs=2))
    [begun] = [store.get(item.key).decode() for item in store.list("training/") if item.key.endswith(".version")]
    scripted(0.2)
    assert toy.train(trained.inputs, store, short(epochs=2)).version == begun


def test_trainings_that_begin_alike_share_their_beginning(whole, trained, store, monkeypatch):
    """With the same cross-entropy epochs, another self-critical stage starts from them without doing them again."""
    elsewhere, model = whole
    toy.copy(elsewhere, store, "training/")
    done = []
    original = stages.cider
    monkeypatch.setattr(stages, "cider", lambda *arguments: done.append(1) or original(*arguments))
    other = toy.train(trained.inputs, store, short(**INTERRUPTED | {"self_critical_learning_rate": 1e-3}))
    assert len(done) == 2 * 3
    plain = toy.train(trained.inputs, store, short(**INTERRUPTED | {"self_critical_epochs": 0}))
    assert len(done) == 2 * 3
    for one, two, three in zip(model.members, other.members, plain.members, strict=True):
        assert one.epochs[:3] == two.epochs[:3] == three.epochs


def test_members_are_the_models_of_single_recipes(whole, trained, store):
    """A recipe of two members with seed 0 has those of seeds 0 and 1, each as if it were trained alone."""
    elsewhere, model = whole
    assert [member.seed for member in model.members] == [0, 1]
    single = toy.train(trained.inputs, store, short(**INTERRUPTED | {"members": 1, "seed": 1}))
    assert untimed(single) == untimed(model)[1:]
    alone = weights(single, store)
    assert_same_weights(alone, weights(model, elsewhere)[-len(alone) :])
    assert [each.seed for each in short(members=3, seed=2).each] == [6, 7, 8]


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

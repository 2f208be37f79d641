"""The merge model: its loss, its stepwise form, its bundle."""

from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.captioner import Captioner, Metadata, build, list_models, load, load_metadata, save
from pipeline.errors import PipelineError
from pipeline.examples import Captions
from pipeline.recipe import Recipe
from pipeline.training import _mean_loss, compile_for_training
from pipeline.vocabulary import END, PAD, START, Vocabulary

CAPTIONS = ["a dog runs on the grass", "a dog", "the cat sits", "a cat runs on and on and on the old red mat", "grass"]
RECIPE = Recipe(embedding="learned", embedding_size=7, units=12, dropout=0.0)


@pytest.fixture(scope="module")
def vocabulary():
    """Every word of the captions."""
    return Vocabulary.build(CAPTIONS, min_count=1)


@pytest.fixture(scope="module")
def features():
    """A vector for each of three images."""
    return np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def model(vocabulary, features):
    """An untrained model of a few units, ready to be trained."""
    model = build(len(vocabulary), features, RECIPE)
    compile_for_training(model, 1e-3)
    return model


def test_one_pass_over_a_caption_is_the_loss_of_its_expansion(model, vocabulary, features):
    """The masked loss of whole captions in batches equals that of every (image, prefix) → next word, one by one."""
    captions = Captions(features, np.array([0, 0, 1, 2, 2]), [vocabulary.encode(caption) for caption in CAPTIONS])
    whole = _mean_loss(model.test_on_batch, captions.batches(2))

    losses = []
    for image, ids in zip(captions.image, captions.ids, strict=True):
        for length in range(1, len(ids)):
            inputs = {"features": features[image][None], "words": np.array([ids[:length]], np.int32)}
            logits = np.asarray(model(inputs, training=False))[0, -1]
            losses.append(np.log(np.exp(logits).sum()) - logits[ids[length]])
    assert len(losses) == sum(len(vocabulary.encode(caption)) - 1 for caption in CAPTIONS)
    assert whole == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_gradient_is_that_of_the_expansion(vocabulary, features):
    """One step of gradient descent on a whole batch moves the weights as one on all its expanded prefixes does."""
    import keras

    captions = Captions(features, np.array([0, 0, 1, 2, 2]), [vocabulary.encode(caption) for caption in CAPTIONS])
    after = []
    for expanded in (False, True):
        model = build(len(vocabulary), features, RECIPE)
        compile_for_training(model, 1e-3)
        model.optimizer = keras.optimizers.SGD(0.5)
        [(inputs, targets, weights)] = captions.batches(5)
        if expanded:
            # Each prefix as a row of its own, padded, of which only the last word's successor counts.
            rows = [(i, t) for i, t in np.argwhere(weights) if weights[i, t]]
            words = np.full((len(rows), targets.shape[1]), PAD, np.int32)
            last = np.zeros((len(rows), targets.shape[1]), np.float32)
            for row, (i, t) in enumerate(rows):
                words[row, : t + 1] = inputs["words"][i, : t + 1]
                last[row, t] = 1
            picked = [i for i, _ in rows]
            inputs = {"features": inputs["features"][picked], "words": words}
            targets, weights = targets[picked], last
        model.train_on_batch(inputs, targets, weights)
        after.append(model.get_weights())
    for one, other in zip(*after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_batches_hold_every_caption_once(vocabulary, features):
    """Shuffled or not, an epoch shows every caption once, with its own image, and its padding has no weight."""
    ids = [vocabulary.encode(caption) for caption in CAPTIONS] * 7
    image = np.arange(len(ids)) % 3
    captions = Captions(features, image, ids)
    for rng in (None, np.random.default_rng(1)):
        seen = []
        for inputs, targets, weights in captions.batches(4, rng):
            assert inputs["words"].shape == targets.shape == weights.shape
            for vector, words, nexts, weight in zip(inputs["features"], inputs["words"], targets, weights, strict=True):
                length = int(weight.sum())
                assert weight[:length].all()
                assert words[0] == START
                assert nexts[length - 1] == END
                seen.append((int(np.flatnonzero((features == vector).all(axis=1))[0]), *words[:length], END))
        assert sorted(seen) == sorted((int(i), *c) for i, c in zip(image, ids, strict=True))


def test_greedy_search_follows_the_model(model, vocabulary, features):
    """What the stepwise model writes is what repeated calls of the whole model on the growing prefix give."""
    captioner = Captioner(model, vocabulary, max_length=6)
    written = captioner.caption(features, beam_width=1)
    for vector, caption in zip(features, written, strict=True):
        ids = [START]
        while len(ids) <= 6:
            inputs = {"features": vector[None], "words": np.array([ids], np.int32)}
            logits = np.array(model(inputs, training=False))[0, -1]
            logits[[0, 1, 3, ids[-1]]] = -np.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == END:
                break
        assert caption.text == vocabulary.decode(ids[1:])
        assert caption.log_prob < 0


def metadata(version, recipe=RECIPE):
    """The metadata of a made-up model."""
    return Metadata(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id="encoder-1",
        dataset="file:///data/dataset.parquet",
        max_length=6,
        recipe=recipe,
        best_epoch=1,
        curves=[],
    )


def test_a_bundle_captions_as_before(bucket, model, vocabulary, features):
    """A saved model, loaded with nothing but its version, writes the same captions."""
    captioner = Captioner(model, vocabulary, max_length=6)
    save(captioner, metadata("v1"), bucket)
    loaded, about = load("v1", bucket)
    assert about == metadata("v1").model_copy(update={"created_at": about.created_at})
    assert loaded.caption(features, beam_width=3) == captioner.caption(features, beam_width=3)
    assert [found.version for found in list_models(bucket)] == ["v1"]


def test_a_model_without_metadata_is_none(bucket):
    """A folder that a crash left without its metadata is not listed, and asking for it says what to do."""
    bucket.put("models/v2/model.keras", b"half")
    assert list_models(bucket) == []
    with pytest.raises(PipelineError, match=r"no model 'v2'.*status"):
        load_metadata("v2", bucket)


def test_glove_vectors_start_the_embedding(vocabulary, features):
    """The embedding begins with the given vectors and is trained on."""
    vectors = np.random.default_rng(3).normal(size=(len(vocabulary), 7)).astype(np.float32)
    model = build(len(vocabulary), features, RECIPE, vectors)
    np.testing.assert_array_equal(model.get_layer("embedding").get_weights()[0], vectors)
    assert model.get_layer("embedding").trainable

"""The merge model: its loss, its stepwise form, its bundle."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline import captioner as captioners
from pipeline import checksums
from pipeline.captioner import (
    Captioner,
    Description,
    Epoch,
    Member,
    build,
    initial_state,
    list_models,
    load,
    load_metadata,
    next_words,
    save,
)
from pipeline.errors import PipelineError
from pipeline.examples import Captions
from pipeline.recipe import Recipe, Search
from pipeline.stages import compile_for_training, mean_loss
from pipeline.vocabulary import END, PAD, START, UNKNOWN, Vocabulary

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


@pytest.fixture(scope="module")
def other_model(vocabulary, features):
    """A model with other weights, wider than the first."""
    return build(len(vocabulary), features, RECIPE.model_copy(update={"seed": 1, "units": 20}))


def softmax(logits):
    """Probabilities of the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def next_probabilities(models, vector, ids):
    """The mean of what the whole models say of the word after ``ids``."""
    inputs = {"features": vector[None], "words": np.array([ids], np.int32)}
    return np.mean([softmax(np.array(model(inputs, training=False))[0, -1]) for model in models], axis=0)


def test_one_pass_over_a_caption_is_the_loss_of_its_expansion(model, vocabulary, features):
    """The masked loss of whole captions in batches equals that of every (image, prefix) → next word, one by one."""
    captions = Captions(features, np.array([0, 0, 1, 2, 2]), [vocabulary.encode(caption) for caption in CAPTIONS])
    whole = mean_loss(model.test_on_batch, captions.batches(2))

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
        model.train_on_batch(inputs, targets, weights / weights.sum())
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


@pytest.mark.parametrize("members", [1, 2])
def test_greedy_search_follows_the_models(model, other_model, members, vocabulary, features):
    """What is written is what repeated calls of the whole models on the growing prefix give, averaged over them."""
    models = [model, other_model][:members]
    written = Captioner(models, vocabulary, max_length=6).caption(features, Search(beam_width=1))
    for vector, caption in zip(features, written, strict=True):
        ids, probabilities = [START], []
        while len(ids) <= 6 and ids[-1] != END:
            allowed = next_probabilities(models, vector, ids)
            again = [c for a, b, c in zip(ids, ids[1:], ids[2:], strict=False) if [a, b] == ids[-2:]]
            allowed[[PAD, START, UNKNOWN, ids[-1], *again]] = 0
            ids.append(int(allowed.argmax()))
            probabilities.append(allowed[ids[-1]])
        assert caption.text == vocabulary.decode(ids[1:])
        assert caption.log_prob == pytest.approx(np.log(probabilities).mean(), rel=1e-4)
        assert caption.probability == pytest.approx(np.prod(probabilities), rel=1e-4)


def test_a_step_averages_the_probabilities(model, other_model, vocabulary, features):
    """The step's probabilities are the mean of the models' own, along a sentence."""
    models, ids = [model, other_model], [START, 5, 4, 7]
    state = initial_state(models, features)
    for length in range(1, len(ids) + 1):
        log_probs, state = next_words(models, np.full(len(features), ids[length - 1], np.int32), state)
        for row, vector in enumerate(features):
            expected = next_probabilities(models, vector, ids[:length])
            np.testing.assert_allclose(np.exp(log_probs[row]), expected, rtol=1e-4)


def test_two_equal_models_are_as_good_as_one(model, vocabulary, features):
    """A model beside itself writes what it writes alone."""
    alone, twice = (
        Captioner([model] * n, vocabulary, max_length=6).caption(features, Search(beam_width=3)) for n in (1, 2)
    )
    assert [caption.text for caption in alone] == [caption.text for caption in twice]
    np.testing.assert_allclose([c.log_prob for c in alone], [c.log_prob for c in twice], rtol=1e-5)


def test_alternatives_come_best_first(model, vocabulary, features):
    """The whole beam is given, by rank; its first is the caption, and no two are the same."""
    captioner = Captioner([model], vocabulary, max_length=6)
    alternatives = captioner.alternatives(features, Search(beam_width=4))
    assert [best for best, *_ in alternatives] == captioner.caption(features, Search(beam_width=4))
    for captions in alternatives:
        assert len({caption.text for caption in captions}) == len(captions) == 4
        assert [c.log_prob for c in captions] == sorted((c.log_prob for c in captions), reverse=True)


def test_batches_change_nothing(model, vocabulary, features, monkeypatch):
    """However many images are decoded at once, and with a last batch that is not full, the captions are the same."""
    captioner = Captioner([model], vocabulary, max_length=6)
    together = captioner.caption(features, Search(beam_width=2))
    monkeypatch.setattr(captioners, "DECODE_BATCH", 2)
    apart = captioner.caption(features, Search(beam_width=2))
    assert [caption.text for caption in apart] == [caption.text for caption in together]
    np.testing.assert_allclose([c.log_prob for c in apart], [c.log_prob for c in together], rtol=1e-5)
    assert captioner.caption(features[:0], Search(beam_width=2)) == []


def test_samples_choose_within_the_beam(model, other_model, vocabulary, features, monkeypatch):
    """With samples the beam's captions stand in another order, which does not depend on how images are batched."""
    captioner = Captioner([model, other_model], vocabulary, max_length=6)
    search = Search(beam_width=4, samples=20)
    plain, chosen = (captioner.alternatives(features, s) for s in (Search(beam_width=4), search))
    for by_probability, by_samples in zip(plain, chosen, strict=True):
        assert {caption.text for caption in by_samples} == {caption.text for caption in by_probability}
    assert [best for best, *_ in chosen] != [best for best, *_ in plain]
    for name, most in (("DECODE_BATCH", 2), ("DECODE_ROWS", 20)):
        monkeypatch.setattr(captioners, name, most)
        again = captioner.alternatives(features, search)
        assert [[c.text for c in beam] for beam in again] == [[c.text for c in beam] for beam in chosen]


def test_captions_follow_the_training(vocabulary, features):
    """A captioner that has written before writes with the weights that its model has now."""
    model = build(len(vocabulary), features, RECIPE)
    compile_for_training(model, 0.1)
    captioner = Captioner([model], vocabulary, max_length=12)
    before = captioner.caption(features, Search(beam_width=2))
    captions = Captions(features, np.arange(3), [vocabulary.encode(caption) for caption in CAPTIONS[:3]])
    for _ in range(60):
        for batch in captions.batches(3):
            model.train_on_batch(*batch)
    after = captioner.caption(features, Search(beam_width=2))
    assert [caption.text for caption in after] == CAPTIONS[:3]
    assert [caption.text for caption in before] != CAPTIONS[:3]


MEMBER = Member(
    seed=0,
    best_epoch=1,
    epochs=[Epoch(epoch=1, stage="cross_entropy", loss=2.5, dev_loss=2.75, dev_cider=0.5, seconds=1)],
)


def description(version, members=1):
    """What the training of a made-up model says."""
    return Description(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id="encoder-1",
        dataset="file:///data/dataset.parquet",
        max_length=6,
        recipe=RECIPE,
        members=[MEMBER] * members,
    )


def test_a_bundle_captions_as_before(bucket, model, other_model, vocabulary, features):
    """Saved models, loaded with nothing but their version, write the same captions in the same order."""
    captioner = Captioner([model, other_model], vocabulary, max_length=6)
    about = save(captioner, description("v1", members=2), bucket)
    loaded, loaded_about = load("v1", bucket)
    assert loaded_about == about
    assert loaded.alternatives(features, Search(beam_width=3)) == captioner.alternatives(features, Search(beam_width=3))
    assert [found.version for found in list_models(bucket)] == ["v1"]
    assert set(about.files) == {"model-0.keras", "model-1.keras", "vocabulary.json"}
    assert len(list(bucket.list("models/v1/"))) == 4


def test_a_bundle_says_how_many_models_it_holds(bucket, model, vocabulary):
    """A bundle that would hold other models than its metadata says is not written."""
    with pytest.raises(ValueError, match="zip"):
        save(Captioner([model], vocabulary, max_length=6), description("v1", members=2), bucket)
    assert list_models(bucket) == []


def test_a_model_without_metadata_is_none(bucket):
    """A folder that a crash left without its metadata is not listed, and asking for it says what to do."""
    bucket.put("models/v2/model-0.keras", b"half")
    assert list_models(bucket) == []
    with pytest.raises(PipelineError, match=r"no model 'v2'.*status"):
        load_metadata("v2", bucket)


@pytest.fixture
def bundle(bucket, model, vocabulary):
    """A store with a model, and its metadata."""
    return bucket, save(Captioner([model], vocabulary, max_length=6), description("v1"), bucket)


@pytest.mark.parametrize("name", ["model-0.keras", "vocabulary.json"])
def test_a_file_that_is_not_the_one_saved_is_not_loaded(bundle, name, monkeypatch):
    """Another file, a missing one and one without a checksum are refused by name, before any is parsed."""
    store, metadata = bundle
    for parser in ("pipeline.keras_files.from_bytes", "pipeline.vocabulary.Vocabulary.from_json"):
        monkeypatch.setattr(parser, lambda *_, **__: pytest.fail("parsed"))
    key = checksums.key("models/v1", name, metadata.files)
    advice = "promote another model, or delete .*models/v1 and train again"
    store.put(key, store.get(key) + b" ")
    with pytest.raises(PipelineError, match=rf"{key} isn't the file that was saved.*{advice}"):
        load("v1", store)
    store.delete(key)
    with pytest.raises(PipelineError, match=rf"{key} is missing.*{advice}"):
        load("v1", store)
    files = {other: found for other, found in metadata.files.items() if other != name}
    store.put("models/v1/metadata.json", metadata.model_copy(update={"files": files}).model_dump_json().encode())
    with pytest.raises(PipelineError, match=rf"models/v1 has no checksum of its {name}.*{advice}"):
        load("v1", store)


def test_a_bundle_without_checksums_is_none(bundle):
    """Metadata that lists no files, or with something else than their SHA-256, says what is wrong and what to do."""
    store, metadata = bundle
    for files in (None, {"vocabulary.json": "../../secret"}):
        document = metadata.model_dump(mode="json", exclude={"files"}) | ({"files": files} if files else {})
        store.put("models/v1/metadata.json", json.dumps(document).encode())
        with pytest.raises(PipelineError, match=r"(?s)metadata\.json is no model's metadata.*files.*train it again"):
            load("v1", store)


def test_a_bundle_saved_twice_at_once_is_whole(bucket, model, other_model, vocabulary, monkeypatch):
    """Of two that save the same version, a model loads from when the first has ended, whatever the other writes."""
    one, other = (Captioner([each], vocabulary, max_length=6) for each in (model, other_model))
    first = save(one, description("v1"), bucket)
    put, found = bucket.put, []

    def put_and_load(key, data):
        put(key, data)
        found.append(load("v1", bucket)[1].files)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "put", put_and_load)
        second = save(other, description("v1"), bucket)
    assert first.files["model-0.keras"] != second.files["model-0.keras"]
    assert found == [first.files, first.files, second.files]
    # The first one's last write may come late.
    put("models/v1/metadata.json", first.model_dump_json().encode())
    assert load("v1", bucket)[1] == first


def test_glove_vectors_start_the_embedding(vocabulary, features):
    """The embedding begins with the given vectors and is trained on."""
    vectors = np.random.default_rng(3).normal(size=(len(vocabulary), 7)).astype(np.float32)
    model = build(len(vocabulary), features, RECIPE, vectors)
    np.testing.assert_array_equal(model.get_layer("embedding").get_weights()[0], vectors)
    assert model.get_layer("embedding").trainable

"""Encoders: what is accepted, that they survive the store, and their identity."""

import re

import numpy as np
import pytest
import toy

from pipeline import encoder, keras_files, networks
from pipeline.errors import PipelineError
from pipeline.storage import open_bucket


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store for the encoders of these tests."""
    return open_bucket(str(tmp_path_factory.mktemp("encoders")))


@pytest.fixture(scope="module")
def random_id(store):
    """The id of the seeded, untrained ResNet50."""
    return encoder.publish("random", store)


def pictures(count=2, size=224):
    """Made-up pictures: uint8 (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_resnet50_is_that_of_keras(store, random_id):
    """From the store, the encoder gives 2048 features, those of Keras's own ResNet50 behind its own preprocessing."""
    import keras

    loaded = encoder.load(random_id, store)
    assert (loaded.size, loaded.shape) == ((224, 224), (2048,))
    keras.utils.set_random_seed(encoder.RANDOM_SEED)
    theirs = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3))
    expected = theirs.predict(keras.applications.resnet50.preprocess_input(pictures().astype("float32")), verbose=0)
    np.testing.assert_allclose(loaded.encode(pictures()), expected, rtol=1e-4, atol=1e-3)


def test_the_same_weights_have_the_same_id(store, random_id):
    """Publishing again changes nothing, and the id names the architecture and the weights."""
    etags = toy.etags(store, f"encoders/{random_id}/")
    assert encoder.publish("random", store) == random_id
    assert toy.etags(store, f"encoders/{random_id}/") == etags
    assert random_id.startswith("resnet50-random-")


@pytest.fixture
def published(bucket, tmp_path):
    """A store with a small encoder, its id, and what it was published from."""
    small_model().save(tmp_path / "small.keras")
    return bucket, encoder.publish(str(tmp_path / "small.keras"), bucket), str(tmp_path / "small.keras")


FILES = ("files.json", "model", "network-.*xml", "network-.*bin")
"""Of an encoder, as regular expressions."""


def stored_file(store, encoder_id, name):
    """The key of one of an encoder's files."""
    [key] = [item.key for item in store.list(f"encoders/{encoder_id}/") if re.search(f"/{name}", item.key)]
    return key


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_written_again(published, name):
    """Without any one of its files an encoder is none, until the next publication writes it."""
    store, encoder_id, spec = published
    store.delete(stored_file(store, encoder_id, name))
    assert not encoder.exists(encoder_id, store)
    assert encoder.publish(spec, store) == encoder_id
    assert encoder.exists(encoder_id, store)
    assert encoder.load(encoder_id, store).encode(pictures(2, 8)).shape == (2, 4)
    assert encoder.load_model(encoder_id, store).predict(pictures(2, 8), verbose=0).shape == (2, 4)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_the_one_saved_is_not_loaded(published, name, monkeypatch):
    """Changed by a byte, it is refused with its name before anything is parsed, and published again it is mended."""
    store, encoder_id, spec = published
    before = encoder.load(encoder_id, store).encode(pictures(2, 8))
    key = stored_file(store, encoder_id, name)
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    load = encoder.load_model if name == "model" else encoder.load_network
    what = "holds no checksums" if name == "files.json" else "isn't the file that was saved"
    with monkeypatch.context() as patch, pytest.raises(PipelineError, match=rf"(?s){key} {what}.*Publish .* again"):
        patch.setattr("pipeline.keras_files.from_bytes", lambda *_, **__: pytest.fail("parsed"))
        load(encoder_id, store)
    assert not encoder.exists(encoder_id, store)
    assert encoder.publish(spec, store) == encoder_id
    np.testing.assert_array_equal(encoder.load(encoder_id, store).encode(pictures(2, 8)), before)


def test_checksums_cannot_name_another_place(published):
    """What is no SHA-256, such as a path, is no checksum."""
    store, encoder_id, _ = published
    store.put(f"encoders/{encoder_id}/files.json", b'{"network.xml": "x/../../../secret", "network.bin": ""}')
    with pytest.raises(PipelineError, match=r"holds no checksums(.|\n)*Publish the encoder again"):
        encoder.load(encoder_id, store)


def writes(operation, store, monkeypatch):
    """The puts that an operation makes, none of which is done."""
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", lambda key, data: done.append((key, data)))
        operation()
    return done


def test_publishers_at_once_leave_one_encoder(bucket, tmp_path, monkeypatch):
    """However the writes of two interleave, what lies there after each of them is no encoder yet, or a whole one."""
    small_model().save(tmp_path / "small.keras")
    spec = str(tmp_path / "small.keras")
    first = writes(lambda: encoder.publish(spec, bucket), bucket, monkeypatch)
    # In another second Keras writes another file of the same model, and nothing says that OpenVINO always writes its
    # weights in the same order.
    monkeypatch.setattr(keras_files, "to_bytes", lambda model: b"another file")
    monkeypatch.setattr(networks, "convert", lambda model: networks.Network(b"another structure", b"others' weights"))
    second = writes(lambda: encoder.publish(spec, bucket), bucket, monkeypatch)
    keys = {key for key, _ in first} & {key for key, _ in second}
    encoder_id = first[0][0].split("/")[1]
    assert keys == {f"encoders/{encoder_id}/files.json"}
    rng = np.random.default_rng(0)
    for _ in range(20):
        queues = [list(first), list(second)]
        for item in list(bucket.list()):
            bucket.delete(item.key)
        while any(queues):
            queue = queues[rng.integers(2)] or queues[0] or queues[1]
            bucket.put(*queue.pop(0))
            written = bucket.exists(f"encoders/{encoder_id}/files.json")
            assert encoder.exists(encoder_id, bucket) == written
        assert written
        assert encoder.load_network(encoder_id, bucket) in [networks_of(first), networks_of(second)]


def networks_of(puts):
    """The network among the objects that a publication puts."""
    [structure] = [data for key, data in puts if key.endswith(".xml")]
    [weights] = [data for key, data in puts if key.endswith(".bin")]
    return networks.Network(structure, weights)


@pytest.mark.parametrize("killed", range(4))
def test_a_publication_that_is_killed_is_repeated(bucket, tmp_path, monkeypatch, killed):
    """Killed before any of its writes it leaves no encoder, and the next one does."""
    small_model().save(tmp_path / "small.keras")
    spec = str(tmp_path / "small.keras")
    original, done = bucket.put, []

    def put(key, data):
        if len(done) == killed:
            raise KeyboardInterrupt
        done.append(original(key, data))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bucket, "put", put)
        encoder.publish(spec, bucket)
    assert len(list(bucket.list())) == killed
    assert not any(item.key.endswith("files.json") for item in bucket.list())
    encoder_id = encoder.publish(spec, bucket)
    assert encoder.exists(encoder_id, bucket)


@pytest.mark.parametrize("name", ["mine.weights.h5", "resnet50_mine_notop.h5"])
def test_weights_from_a_file(store, random_id, tmp_path, name):
    """A .h5 file of ResNet50 weights, in either of Keras's formats, gives an encoder with the id of these weights."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(encoder.RANDOM_SEED)
    model = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3))
    path = tmp_path / name
    if name.endswith(".weights.h5"):
        model.save_weights(path)
    else:  # as the files are that Keras downloads
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    assert encoder.publish(str(path), store).split("-")[-1] == random_id.split("-")[-1]


def small_model(*, last="pool", size=8, name="small"):
    """A model of a few weights: convolution, then pooling or something else."""
    import keras
    from keras import layers

    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3)(inputs)
    if last == "pool":
        x = layers.GlobalAveragePooling2D()(x)
    if last == "lambda":
        x = layers.Lambda(lambda y: y[:, 0, 0])(x)
    return keras.Model(inputs, x, name=name)


def test_any_keras_model_of_the_right_shape(store, tmp_path):
    """A .keras file that maps pictures to vectors is an encoder; its input's size is the pictures' size."""
    small_model().save(tmp_path / "Small Model.keras")
    encoder_id = encoder.publish(str(tmp_path / "Small Model.keras"), store)
    loaded = encoder.load(encoder_id, store)
    assert encoder_id.startswith("small-model-")
    assert (loaded.size, loaded.shape) == ((8, 8), (4,))
    assert loaded.encode(pictures(3, 8)).shape == (3, 4)


def test_other_weights_have_another_id(store, tmp_path):
    """Two models that differ in their weights only have different ids."""
    ids = set()
    for seed in (1, 2):
        import keras

        keras.utils.set_random_seed(seed)
        small_model().save(tmp_path / "m.keras")
        ids.add(encoder.publish(str(tmp_path / "m.keras"), store))
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", "expected imagenet, random, or a .keras or .h5 file"),
        ("/nowhere/model.keras", "no object file:///nowhere/model.keras"),
    ],
)
def test_unknown_encoders_are_errors(store, spec, message):
    """A name that is none and a file that is not there are errors that say so."""
    with pytest.raises(PipelineError, match=message):
        encoder.publish(spec, store)


def test_unfit_models_are_errors(store, tmp_path):
    """A model with an unpooled output, one with code inside, and bytes that are no model are refused with advice."""
    small_model(last="none").save(tmp_path / "map.keras")
    with pytest.raises(PipelineError, match="GlobalAveragePooling2D"):
        encoder.publish(str(tmp_path / "map.keras"), store)
    small_model(last="lambda").save(tmp_path / "lambda.keras")
    with pytest.raises(PipelineError, match="safe mode"):
        encoder.publish(str(tmp_path / "lambda.keras"), store)
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(PipelineError, match=r"text\.keras can't be loaded"):
        encoder.publish(str(tmp_path / "text.keras"), store)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(PipelineError, match="weights of a ResNet50"):
        encoder.publish(str(tmp_path / "text.h5"), store)


def test_a_real_encoder(store, real_encoder):
    """The trained encoder loads in safe mode and tells different pictures apart."""
    loaded = encoder.load(encoder.publish(str(real_encoder), store), store)
    features = loaded.encode(pictures(2, loaded.size[0]))
    assert features.shape == (2, *loaded.shape)
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])

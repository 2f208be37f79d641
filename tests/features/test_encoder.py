"""Encoders: the models that are accepted, their registration in the store, and their ids."""

import re
from urllib.error import HTTPError, URLError

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.features import applications, encoder, openvino
from pipeline.storage import keras_files, names, open_bucket
from tests.support import toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store for the encoders of these tests."""
    return open_bucket(str(tmp_path_factory.mktemp("encoders")))


@pytest.fixture(scope="module")
def random_id(store):
    """The id of the seeded, untrained ResNet50."""
    return encoder.register("random", store)


def pictures(count=2, size=224):
    """Made-up pictures: uint8 (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_resnet50_is_that_of_keras(store, random_id):
    """From the store, the encoder gives 2048 features, those of Keras's own ResNet50 behind its own preprocessing."""
    import keras

    loaded = encoder.load(random_id, store)
    assert (loaded.size, loaded.shape) == ((224, 224), (2048,))
    keras.utils.set_random_seed(applications.RANDOM_SEED)
    theirs = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3))
    expected = theirs.predict(keras.applications.resnet50.preprocess_input(pictures().astype("float32")), verbose=0)
    np.testing.assert_allclose(loaded.encode(pictures()).vectors, expected, rtol=1e-4, atol=1e-3)


def test_the_same_weights_have_the_same_id(store, random_id):
    """Registering again changes nothing, and the id names the architecture and the weights."""
    etags = toy.etags(store, f"encoders/{random_id}/")
    assert encoder.register("random", store) == random_id
    assert toy.etags(store, f"encoders/{random_id}/") == etags
    assert random_id.startswith("resnet50-random-")


@pytest.fixture
def registered(bucket, tmp_path):
    """A store with a small encoder, its id, and the file it was registered from."""
    small_model().save(tmp_path / "small.keras")
    return bucket, encoder.register(str(tmp_path / "small.keras"), bucket), str(tmp_path / "small.keras")


FILES = ("files.json", "model", "network-.*xml", "network-.*bin")
"""Of an encoder, as regular expressions."""


def stored_file(store, encoder_id, name):
    """The key of one of an encoder's files."""
    [key] = [item.key for item in store.list(f"encoders/{encoder_id}/") if re.search(f"/{name}", item.key)]
    return key


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_written_again(registered, name):
    """An encoder without one of its files is not registered, until the next registration writes it."""
    store, encoder_id, spec = registered
    store.delete(stored_file(store, encoder_id, name))
    assert not encoder.exists(encoder_id, store)
    assert encoder.register(spec, store) == encoder_id
    assert encoder.exists(encoder_id, store)
    assert encoder.load(encoder_id, store).encode(pictures(2, 8)).vectors.shape == (2, 4)
    assert encoder.load_model(encoder_id, store).predict(pictures(2, 8), verbose=0).shape == (2, 4)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_the_one_saved_is_not_loaded(registered, name, monkeypatch):
    """Changed by a byte, it is refused by name before it is parsed; registering the encoder again repairs it."""
    store, encoder_id, spec = registered
    before = encoder.load(encoder_id, store).encode(pictures(2, 8)).vectors
    key = stored_file(store, encoder_id, name)
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    load = encoder.load_model if name == "model" else encoder.load_network
    wrong = "is damaged" if name == "files.json" else "is not the file that was saved"
    with monkeypatch.context() as patch, pytest.raises(PipelineError, match=rf"(?s){key} {wrong}.*Register .* again"):
        patch.setattr("pipeline.storage.keras_files.from_bytes", lambda *_, **__: pytest.fail("parsed"))
        load(encoder_id, store)
    assert not encoder.exists(encoder_id, store)
    assert encoder.register(spec, store) == encoder_id
    np.testing.assert_array_equal(encoder.load(encoder_id, store).encode(pictures(2, 8)).vectors, before)


def test_checksums_cannot_name_another_place(registered):
    """A checksum is a SHA-256; a path, for example, is refused."""
    store, encoder_id, _ = registered
    store.put(f"encoders/{encoder_id}/files.json", b'{"network.xml": "x/../../../secret", "network.bin": ""}')
    with pytest.raises(PipelineError, match=r"files\.json is damaged, .*: network\.xml: .*Register the encoder again"):
        encoder.load(encoder_id, store)


def writes(operation, store, monkeypatch):
    """The puts that an operation makes, none of which is done."""
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", lambda key, data, **_: done.append((key, data)))
        operation()
    return done


def test_two_registrations_at_once_leave_one_encoder(bucket, tmp_path, monkeypatch):
    """However their writes interleave, after each of them there is no encoder yet, or a complete one."""
    small_model().save(tmp_path / "small.keras")
    spec = str(tmp_path / "small.keras")
    first = writes(lambda: encoder.register(spec, bucket), bucket, monkeypatch)
    # In another second Keras writes another file of the same model, and nothing says that OpenVINO always writes its
    # weights in the same order.
    monkeypatch.setattr(keras_files, "to_bytes", lambda model: b"another file")
    monkeypatch.setattr(openvino, "convert", lambda model: openvino.Network(b"another structure", b"others' weights"))
    second = writes(lambda: encoder.register(spec, bucket), bucket, monkeypatch)
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
    """The network among the objects that a registration writes."""
    [structure] = [data for key, data in puts if key.endswith(".xml")]
    [weights] = [data for key, data in puts if key.endswith(".bin")]
    return openvino.Network(structure, weights)


@pytest.mark.parametrize("killed", range(4))
def test_an_interrupted_registration_is_repeated(bucket, tmp_path, monkeypatch, killed):
    """Killed before any of its writes, it leaves no encoder; the next one completes it."""
    small_model().save(tmp_path / "small.keras")
    spec = str(tmp_path / "small.keras")
    original, done = bucket.put, []

    def put(key, data, **options):
        if len(done) == killed:
            raise KeyboardInterrupt
        done.append(original(key, data, **options))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bucket, "put", put)
        encoder.register(spec, bucket)
    assert len(list(bucket.list())) == killed
    assert not any(item.key.endswith("files.json") for item in bucket.list())
    encoder_id = encoder.register(spec, bucket)
    assert encoder.exists(encoder_id, bucket)


def test_weights_from_a_file(store, tmp_path):
    """A .h5 file of weights, in either of Keras's formats, gives an encoder with the id of these weights."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    built = applications.build("mobilenetv3small", None)
    network = built.layers[-1]
    network.save_weights(tmp_path / "mine.weights.h5")
    with h5py.File(tmp_path / "mobilenetv3small_notop.h5", "w") as file:  # as the files are that Keras downloads
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    digest = encoder.save_model(built, "built", store).removeprefix("built-")
    for name, stem in (("mine.weights.h5", "mine-weights"), ("mobilenetv3small_notop.h5", "notop")):
        found = encoder.register(f"mobilenetv3small:{tmp_path / name}", store)
        assert found == f"mobilenetv3small-{stem}-{digest}"


@pytest.mark.parametrize("name", ["猫", "e" * 240])
def test_any_name_of_a_file_gives_an_id(bucket, tmp_path, name):
    """If it has no letter that an id may have, or too many of them, the id is still one that commands accept."""
    small_model().save(tmp_path / f"{name}.keras")
    encoder_id = encoder.register(str(tmp_path / f"{name}.keras"), bucket)
    assert names.ENCODER_ID.check(encoder_id) == encoder_id
    assert encoder.register(encoder_id, bucket) == encoder_id


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
    encoder_id = encoder.register(str(tmp_path / "Small Model.keras"), store)
    loaded = encoder.load(encoder_id, store)
    assert encoder_id.startswith("small-model-")
    assert (loaded.size, loaded.shape) == ((8, 8), (4,))
    assert loaded.encode(pictures(3, 8)).vectors.shape == (3, 4)


def test_other_weights_have_another_id(store, tmp_path):
    """Two models that differ in their weights only have different ids."""
    ids = set()
    for seed in (1, 2):
        import keras

        keras.utils.set_random_seed(seed)
        small_model().save(tmp_path / "m.keras")
        ids.add(encoder.register(str(tmp_path / "m.keras"), store))
    assert len(ids) == 2


def test_the_id_of_a_registered_encoder(registered, monkeypatch):
    """It is returned as it is: neither is a model built, nor anything written."""
    store, encoder_id, _ = registered
    monkeypatch.setattr(encoder, "_build", lambda spec: pytest.fail("built"))
    before = toy.etags(store, "")
    assert encoder.register(encoder_id, store) == encoder_id
    assert toy.etags(store, "") == before


def test_the_id_of_an_encoder_in_eight_bits(registered):
    """Such an encoder has no Keras model, but its id is accepted."""
    store, encoder_id, _ = registered
    encoder.save_network(f"{encoder_id}-int8", encoder.load_network(encoder_id, store), store)
    assert encoder.register(f"{encoder_id}-int8", store) == f"{encoder_id}-int8"


def test_an_id_that_is_not_registered(registered):
    """Another store's id is an unknown encoder here; of one with a damaged file the error names the file."""
    store, encoder_id, spec = registered
    with pytest.raises(PipelineError, match=r"or the id of a registered encoder\. Received: 'small-0123456789ab'"):
        encoder.register("small-0123456789ab", store)
    store.delete(stored_file(store, encoder_id, "model"))
    with pytest.raises(PipelineError, match=rf"{encoder_id}/model-\w+\.keras is missing\. Register the encoder again"):
        encoder.register(encoder_id, store)
    assert encoder.register(spec, store) == encoder_id


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", r"expected the name of a network of .*Received: 'resnet'; similar names are resnet\d+, resnet\d+"),
        ("ConvNeXt_Base", r"Received: 'ConvNeXt_Base'; similar names are convnext-base"),
        ("zzz", r"docs/encoders\.md lists them\), NAME:FILE\.h5 .*Received: 'zzz'$"),
        ("/weights/notop.h5", r"NAME:FILE\.h5 with weights for it.*Received: '/weights/notop\.h5'$"),
        ("resnet50:", "NAME:FILE.h5 with weights for it"),
        ("/nowhere/model.keras", "There is no file /nowhere/model.keras: check the path"),
        ("vgg16:/nowhere/model.h5", "There is no file /nowhere/model.h5: check the path"),
    ],
)
def test_unknown_encoders_are_errors(store, spec, message):
    """The errors for unknown names and missing files say so."""
    with pytest.raises(PipelineError, match=message):
        encoder.register(spec, store)


@pytest.mark.parametrize(
    ("failure", "name", "advice"),
    [
        (URLError("Name or service not known"), "mobilenetv3small", "name it as mobilenetv3small:/path/weights"),
        (HTTPError("", 503, "Unavailable", None, None), "efficientnetb0", r"put it into ~/\.keras/models"),
    ],
)
def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path, failure, name, advice):
    """Without internet, the name of a network is an error that says so, and what else can be named."""
    from keras.src.utils import file_utils

    def refuse(*_):
        raise failure

    monkeypatch.setattr(file_utils, "urlretrieve", refuse)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))  # it may hold the weights already
    failed = rf"{name} could not be downloaded: URL fetch failure on https"
    with pytest.raises(PipelineError, match=rf"(?s){failed}.* elsewhere and {advice}.*/path/model\.keras"):
        applications.build(name, "imagenet")


def test_unfit_models_are_errors(store, tmp_path):
    """A model whose output is not pooled, one with code inside, and bytes that are no model are refused with advice."""
    small_model(last="none").save(tmp_path / "map.keras")
    with pytest.raises(PipelineError, match="GlobalAveragePooling2D"):
        encoder.register(str(tmp_path / "map.keras"), store)
    small_model(last="lambda").save(tmp_path / "lambda.keras")
    with pytest.raises(PipelineError, match="safe mode"):
        encoder.register(str(tmp_path / "lambda.keras"), store)
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(PipelineError, match=r"text\.keras can't be loaded"):
        encoder.register(str(tmp_path / "text.keras"), store)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(PipelineError, match=r"does not hold the weights of mobilenetv3small without its top"):
        encoder.register(f"mobilenetv3small:{tmp_path / 'text.h5'}", store)


def test_a_real_encoder(store, real_encoder):
    """The trained encoder loads in safe mode and gives different pictures different features."""
    loaded = encoder.load(encoder.register(str(real_encoder), store), store)
    features = loaded.encode(pictures(2, loaded.size[0])).vectors
    assert features.shape == (2, *loaded.shape)
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])

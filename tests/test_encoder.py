"""Encoders: what is accepted, that they survive the store, and their identity."""

import numpy as np
import pytest

from pipeline import encoder
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
    etag = store.etag(f"encoders/{random_id}.keras")
    assert encoder.publish("random", store) == random_id
    assert store.etag(f"encoders/{random_id}.keras") == etag
    assert random_id.startswith("resnet50-random-")


def test_a_store_that_lacks_a_form_of_an_encoder_gets_it(tmp_path):
    """Whichever file is missing, after a publication that was interrupted or is older, the next one writes it."""
    store = open_bucket(str(tmp_path / "store"))
    small_model().save(tmp_path / "small.keras")
    encoder_id = encoder.publish(str(tmp_path / "small.keras"), store)
    for suffix in ("keras", "xml", "bin"):
        store.delete(f"encoders/{encoder_id}.{suffix}")
        assert encoder.publish(str(tmp_path / "small.keras"), store) == encoder_id
        assert store.exists(f"encoders/{encoder_id}.{suffix}")


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

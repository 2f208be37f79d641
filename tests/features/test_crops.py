"""Multi-crop features: the part of the picture that each crop shows, their rows, and how a captioner uses them."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.captioner.bundle import load
from pipeline.config import DecodingConfig
from pipeline.data import dataset
from pipeline.errors import PipelineError
from pipeline.features import crops, encoder
from pipeline.features import store as feature_store
from pipeline.features.splits import read_split
from pipeline.features.store import Features
from pipeline.storage import open_bucket, parquet
from pipeline.training.batches import EncodedCaptions
from tests.support import toy


def means(size=10):
    """A model whose features are the mean of each colour channel."""
    import keras

    pictures = keras.Input((size, size, 3))
    return keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(pictures), name="means")


def left_half(size=10):
    """A model whose features are the mean colours of the picture's left half."""
    import keras

    pictures = keras.Input((size, size, 3))
    half = keras.layers.Cropping2D(((0, 0), (0, size // 2)))(pictures)
    return keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(half), name="left")


def test_the_crops_are_the_whole_its_mirror_image_and_four_corners():
    """A bright margin is in the whole, on the other side of the mirror image, and in the corners that reach it."""
    pictures = np.zeros((2, 10, 10, 3), np.float32)
    pictures[0, :, 0] = 100  # the left margin
    pictures[1, 0] = 100  # the upper margin
    whole, mirrored, *corners = crops.multi_crop(means(), (10, 10)).predict(pictures, verbose=0)[..., 0].T
    np.testing.assert_allclose(whole, [10, 10])
    np.testing.assert_allclose(mirrored, whole)
    # Of 8 × 8 pixels: an eighth is bright where the corner has the margin (scaling keeps the mean but for rounding at
    # the border), nothing elsewhere.
    shown = np.array(corners).T > 5
    np.testing.assert_array_equal(shown, [[True, False, True, False], [True, True, False, False]])
    np.testing.assert_array_equal(np.array(corners).T == 0, ~shown)

    [seen] = crops.multi_crop(left_half(), (10, 10)).predict(pictures[:1], verbose=0)[..., 0]
    assert seen[0] == pytest.approx(20)
    assert seen[1] == 0


def test_a_multi_crop_encoder_has_a_name_of_its_own(tmp_path, new_bucket):
    """It gives (N, 6, D), its size is that of the model, and a model that has crops already is given no more."""
    store = new_bucket()
    means().save(tmp_path / "means.keras")
    plain = encoder.register(str(tmp_path / "means.keras"), store)
    encoder_id = encoder.register(str(tmp_path / "means.keras"), store, crops=True)
    assert encoder_id.startswith("means-crops-")
    assert encoder_id != plain
    loaded = encoder.load(encoder_id, store)
    assert (loaded.size, loaded.shape) == ((10, 10), (6, 3))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 10, 10, 3), dtype=np.uint8)
    [ours, theirs] = (encoder.load(each, store).encode(pictures).vectors for each in (encoder_id, plain))
    np.testing.assert_allclose(ours[:, 0], theirs, rtol=1e-5)
    [stored] = [item.key for item in store.list(f"encoders/{encoder_id}/") if item.key.endswith(".keras")]
    with pytest.raises(PipelineError, match="encodes 6 crops of a picture already: leave out --crops"):
        encoder.register(store.url(stored), store, crops=True)


def test_crops_of_a_registered_encoder(tmp_path, monkeypatch):
    """Its id with crops gives the encoder that its file gives; the id of a multi-crop encoder is returned as it is."""
    store = open_bucket(str(tmp_path / "store"))
    means().save(tmp_path / "means.keras")
    plain = encoder.register(str(tmp_path / "means.keras"), store)
    encoder_id = encoder.register(plain, store, crops=True)
    assert encoder_id == encoder.register(str(tmp_path / "means.keras"), store, crops=True)
    assert encoder.register(encoder_id, store) == encoder.register(encoder_id, store, crops=True) == encoder_id


def test_crops_of_an_encoder_in_eight_bits_are_an_error(tmp_path):
    """It has no Keras model to build them from; the error names the encoder that has one."""
    store = open_bucket(str(tmp_path / "store"))
    means().save(tmp_path / "means.keras")
    plain = encoder.register(str(tmp_path / "means.keras"), store)
    encoder.save_network(f"{plain}-int8", encoder.load_network(plain, store), store)
    with pytest.raises(PipelineError, match=f"is quantized and can't encode crops: use --crops with {plain}, "):
        encoder.register(f"{plain}-int8", store, crops=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, toy_encoder):
    """The toy world with multi-crop features, one of its pictures damaged; and their store."""
    source, store = (open_bucket(str(tmp_path_factory.mktemp(name))) for name in ("source", "store"))
    return toy.prepare(source, store, toy_encoder, broken=("red-0.jpg",), crops=True), store


def test_a_row_holds_a_list_of_vectors(inputs):
    """In Parquet a feature is a list of C lists of D numbers, null where the picture failed; read back, (N, C, D)."""
    world, store = inputs
    [item] = store.list(f"features/{world.encoder_id}/")
    table = parquet.read(item.key, store)
    assert table.schema.field("feature").type == pa.list_(pa.list_(pa.float16(), 3), 6)
    assert [row["image_key"] for row in table.to_pylist() if row["feature"] is None] == ["pictures/red-0.jpg"]
    expected = {row["image_key"]: row["feature"] for row in table.to_pylist()}
    images = dataset.listing(dataset.load(world.dataset, store).table)
    rows = feature_store.look_up(images, encoder_id=world.encoder_id, store=store)
    rows = rows.filter(pa.compute.equal(rows["status"], "ok")).take(pa.array([9, 0, 4]))
    vectors = feature_store.read_features(rows, encoder_id=world.encoder_id, store=store).vectors
    assert vectors.shape == (3, 6, 3)
    np.testing.assert_array_equal(vectors, [expected[key] for key in rows["image_key"].to_pylist()])


def test_a_captioner_learns_from_crops_and_writes_from_their_mean(inputs):
    """Trained on crops, in both phases, it names the colours of pictures it never saw; the mean gives the same."""
    world, store = inputs
    config = toy.CONFIG.model_copy(update={"scst_epochs": 1, "scst_learning_rate": 1e-4})
    captioner, metadata = load(toy.train(world, store, config).version, store)
    test = read_split(
        dataset.load(metadata.dataset, store),
        "test",
        encoder_id=world.encoder_id,
        store=store,
        max_failed_fraction=0.05,
    )
    written = [caption.text for caption in captioner.caption(test.features, DecodingConfig(beam_width=3))]
    assert all(
        key.partition("/")[2].partition("-")[0] in text
        for key, text in zip(test.table["image_key"].to_pylist(), written, strict=True)
    )
    of_mean = captioner.caption(Features(test.features.vectors.mean(axis=1)), DecodingConfig(beam_width=3))
    assert [caption.text for caption in of_mean] == written


def test_each_epoch_samples_other_crops():
    """Training batches have one crop of an image, in the end all of them; evaluation batches have the mean."""
    vectors = np.arange(2 * 3 * 1, dtype=np.float32).reshape(2, 3, 1)
    captions = EncodedCaptions(Features(vectors), np.array([0, 1]), [[1, 4, 2], [1, 5, 2]])
    rng = np.random.default_rng(0)
    seen = [set(), set()]
    for _ in range(30):
        for inputs, *_ in captions.training_batches(2, rng):
            for word, vector in zip(inputs["words"][:, 1], inputs["features"], strict=True):
                seen[word - 4].add(float(vector[0]))
    assert seen == [{0, 1, 2}, {3, 4, 5}]
    [(inputs, *_)] = captions.evaluation_batches(2)
    np.testing.assert_array_equal(inputs["features"], [[1], [4]])


def test_a_single_crop_is_not_sampled():
    """The features of a plain encoder are returned, and the generator stays as it was."""
    features = Features(np.ones((2, 3), np.float32), np.ones((2, 4, 2), np.float16))
    rng = np.random.default_rng(0)
    assert crops.sample_crop(features, rng) is features
    assert crops.mean_crop(features) is features
    assert rng.integers(2**31) == np.random.default_rng(0).integers(2**31)

"""Regions: where an encoder's map is found, its projection, their column in the store, and captioners that attend."""

import base64
import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipeline.captioner import registry
from pipeline.captioner.bundle import load, load_models
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.merge_model import last_stage
from pipeline.config import DecodingConfig
from pipeline.data import dataset
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.evaluation import evaluate as evaluation
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.features import accelerator, encoder, quantization, regions
from pipeline.features import store as feature_store
from pipeline.features.splits import read_split
from pipeline.nightly import shadow
from pipeline.ops.import_model import import_model
from pipeline.serving import on_demand
from pipeline.storage import layout, open_bucket, parquet
from pipeline.training import loop
from tests.support import toy
from tests.support.memory import MemoryBucket
from tests.support.nights import colour_in, night, rows_in
from tests.support.training import assert_same_weights, weights

BEAM = DecodingConfig(beam_width=2)


def pictures(count=4, size=8):
    """Made-up pictures: uint8 (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_encoder):
    """The toy world with regions, one of its pictures damaged; and their store."""
    source, store = (open_bucket(str(tmp_path_factory.mktemp(name))) for name in ("source", "store"))
    return toy.prepare(source, store, toy_encoder, broken=("red-0.jpg",), regions=True), store


def convolution(inputs, *, pool=True):
    """A map of 6×6 places with 5 channels, in which a branch also pools, as in squeeze-and-excitation; pooled."""
    from keras import layers

    x = layers.Conv2D(5, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    squeezed = layers.Dense(5, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 5))(squeezed)])
    return (layers.GlobalAveragePooling2D()(x) if pool else x), x


def models():
    """Encoders that pool the same map, each in another form, and a model of the map alone."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    pooled, places = convolution(inputs)
    plain = keras.Model(inputs, pooled)
    outer = keras.Input((8, 8, 3))
    before = keras.Model(inputs, places)
    forms = {
        "functional": plain,
        "nested": keras.Model(outer, plain(outer)),
        "nested twice": keras.Sequential([keras.Input((8, 8, 3)), keras.Model(outer, plain(outer)), layers.Dense(2)]),
        "sequential": keras.Sequential([keras.Input((8, 8, 3)), before, layers.GlobalAveragePooling2D()]),
        "any size": keras.Sequential([keras.Input((None, None, 3)), before, layers.GlobalMaxPooling2D()]),
    }
    return forms, before


@pytest.mark.parametrize("form", ["functional", "nested", "nested twice", "sequential", "any size"])
def test_the_map_is_what_the_last_global_pooling_pools(form):
    """However the model is nested, its output stays, and the map comes with it."""
    forms, before = models()
    found = regions.split(forms[form], (8, 8))
    vectors, places, *_ = found.model.predict_on_batch(pictures())
    np.testing.assert_allclose(vectors, forms[form].predict_on_batch(pictures()), rtol=1e-5)
    np.testing.assert_array_equal(places, before.predict_on_batch(pictures()))


def split_at(kind):
    """A model of pictures with a map of 4×4 places; and the layer whose output its last stage should read, or None."""
    import keras
    from keras import layers

    def convolution(name, channels, x):
        return layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(channels, 1, name=name)(x)))

    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    wide = 6 if kind == "residual" else 4
    stem = layers.Conv2D(wide, 3, strides=2, padding="same", name="stem")(layers.Rescaling(1 / 255)(inputs))
    x = convolution("expand", 2 if kind == "residual" else 8, stem)
    squeezed = layers.Dense(x.shape[-1], activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Reshape((1, 1, -1))(squeezed)])
    x = layers.Conv2D(wide if kind in ("plain", "residual") else 6, 1, name="project")(x)
    if kind == "residual":
        x = layers.Add(name="add")([stem, x])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(convolution("head", 5, x)))
    return model, {"plain": "project", "wide": "stem", "residual": None}[kind]


@pytest.mark.parametrize("nested", [0, 1, 2])
@pytest.mark.parametrize("kind", ["plain", "wide", "residual"])
def test_the_last_stage(kind, nested, monkeypatch, tmp_path):
    """It is the shortest with a kernel that reads few numbers, which no branch bypasses; it ends in the same map."""
    import keras

    model, reads = split_at(kind)
    expected = None if reads is None else keras.Model(model.inputs, model.get_layer(reads).output)
    monkeypatch.setattr(regions, "NUMBERS", 16 * 5)
    outer = model
    for _ in range(nested):
        inputs = keras.Input((8, 8, 3))
        outer = keras.Model(inputs, outer(inputs))
    outer.save(tmp_path / "encoder.keras")
    images = pictures()
    found = regions.split(keras.saving.load_model(tmp_path / "encoder.keras"), (8, 8))
    vectors, pooled, *read = found.model.predict_on_batch(images)
    np.testing.assert_allclose(vectors, model.predict_on_batch(images), rtol=1e-5)
    if expected is None:
        assert (found.last_stage, read) == (None, [])
        return
    np.testing.assert_allclose(read[0], expected.predict_on_batch(images), rtol=1e-5, atol=1e-6)
    found.last_stage.save(tmp_path / "stage.keras")
    part = keras.saving.load_model(tmp_path / "stage.keras")
    np.testing.assert_allclose(part.predict_on_batch(read[0]), pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled.mean(axis=(1, 2)), vectors, rtol=1e-5)
    assert regions._pools_the_mean(found.model, (8, 8))


def test_only_the_mean_of_a_map_can_be_computed_again():
    """A model that pools the maximum, or goes on after its pooling, has a last stage, but its vector is another."""
    import keras
    from keras import layers

    model, _ = split_at("plain")
    head, inputs = model.layers[-2].output, model.inputs
    average, maximum = layers.GlobalAveragePooling2D()(head), layers.GlobalMaxPooling2D()(head)
    for output in (maximum, layers.Dense(5)(average), layers.Dense(3)(average)):
        found = regions.split(keras.Model(inputs, output), (8, 8))
        assert found.last_stage is not None
        assert not regions._pools_the_mean(found.model, (8, 8))


def test_principal_components():
    """They are those of all batches together: centred, uncorrelated, ordered by variance, of mean square 1."""
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(600, 6)) @ rng.normal(size=(6, 6)) + 5).astype(np.float32)
    matrix, shift = regions.principal_components(np.array_split(vectors, 7), 4)
    found = vectors @ matrix + shift
    assert found.shape == (600, 4)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)
    covariance = found.T @ found / len(found)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    assert (np.diff(np.diag(covariance)) < 0).all()
    assert np.diag(covariance).mean() == pytest.approx(1, rel=1e-3)
    expected = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))[::-1][:4]
    np.testing.assert_allclose(np.diag(covariance), expected / expected.mean(), rtol=1e-3)
    again, _ = regions.principal_components([vectors[::-1]], 4)
    np.testing.assert_allclose(again, matrix, rtol=1e-3, atol=1e-5)


def test_regions_come_with_the_vector(world, monkeypatch):
    """The vectors are those of the encoder without regions; on a CPU and on a GPU the regions are the same."""
    inputs, store = world
    parts = re.fullmatch(r"(means-[0-9a-f]{12})-regions-[0-9a-f]{12}", inputs.encoder_id)
    loaded = encoder.load(inputs.encoder_id, store)
    assert (loaded.shape, loaded.regions) == ((3,), (64, 3))
    found = loaded.encode(pictures())
    np.testing.assert_allclose(found.vectors, encoder.load(parts[1], store).encode(pictures()).vectors, rtol=1e-5)
    # A projection is linear: the mean of the regions is the projected mean of the map, which is the vector.
    projected, *_ = np.linalg.lstsq(
        np.column_stack([found.vectors, np.ones(4)]), found.regions.mean(axis=1), rcond=None
    )
    np.testing.assert_allclose(
        np.column_stack([found.vectors, np.ones(4)]) @ projected, found.regions.mean(axis=1), atol=1e-4
    )
    monkeypatch.setattr(accelerator, "present", lambda: True)
    on_gpu = encoder.load(inputs.encoder_id, store)
    assert on_gpu.regions == loaded.regions
    np.testing.assert_allclose(on_gpu.encode(pictures()).regions, found.regions, atol=2e-2)


def test_the_grid_says_where_a_region_is(tmp_path, bucket):
    """The regions of a map that is no square are its rows from the top, each from the left; any other has no grid."""
    import keras

    table, sizes = toy.draw(bucket), keras.Input((4, 8, 3))
    dataset_id = ingest([table], bucket, name="toy").dataset
    keras.Model(sizes, keras.layers.GlobalAveragePooling2D()(sizes)).save(tmp_path / "wide.keras")
    plain = encoder.register(str(tmp_path / "wide.keras"), bucket)
    encoder_id = regions.add_regions(plain, dataset_id, bucket)
    rows, columns = encoder.load_grid(encoder_id, bucket)
    assert (rows, columns) == encoder.load_grid(quantization.quantize(encoder_id, dataset_id, bucket), bucket) == (4, 8)
    picture = np.zeros((1, 4, 8, 3), np.uint8)
    picture[0, 1, 6] = 255
    found = encoder.load(encoder_id, bucket).encode(picture).regions.reshape(rows, columns, -1)
    differs = (found != found[0, 0]).any(axis=-1)
    assert np.argwhere(differs).tolist() == [[1, 6]]
    assert encoder.load_grid(plain, bucket) is None
    with pytest.raises(PipelineError, match=r"There is no object .*other-0123456789ab-regions-0123456789ab/"):
        encoder.load_grid("other-0123456789ab-regions-0123456789ab", bucket)


def test_the_projection_is_learnt_once(world, monkeypatch):
    """The encoder with regions is found again by the id that it was made of, and its own id is returned as it is."""
    inputs, store = world
    before = toy.etags(store, "encoders/")
    monkeypatch.setattr(regions, "training_pictures", lambda *_, **__: pytest.fail("learnt again"))
    plain = inputs.encoder_id.partition("-regions-")[0]
    for each in (plain, inputs.encoder_id, f"{inputs.encoder_id}-int8"):
        found = regions.add_regions(each, "other/0123456789abcdef", store)
        assert found == (inputs.encoder_id if each == plain else each)
    assert encoder.register(inputs.encoder_id, store) == inputs.encoder_id
    assert toy.etags(store, "encoders/") == before


def test_a_damaged_encoder_with_regions_is_made_again(bucket, toy_encoder):
    """Of the same pictures it is the same one."""
    inputs = toy.prepare(bucket, bucket, toy_encoder, regions=True)
    bucket.delete(f"encoders/{inputs.encoder_id}/files.json")
    plain = inputs.encoder_id.partition("-regions-")[0]
    assert regions.add_regions(plain, inputs.dataset, bucket) == inputs.encoder_id
    assert encoder.exists(inputs.encoder_id, bucket)


def test_encoders_that_can_have_no_regions(world, toy_encoder, tmp_path):
    """Crops, 8-bit integers, and models without a map to pool are errors that say what to do."""
    import keras
    from keras import layers

    inputs, store = world
    plain = inputs.encoder_id.partition("-regions-")[0]
    crops = encoder.register(plain, store, crops=True)
    with pytest.raises(PipelineError, match=f"{crops} encodes crops, to which regions are an alternative"):
        regions.add_regions(crops, inputs.dataset, store)
    with pytest.raises(PipelineError, match=f"{inputs.encoder_id} has regions, .* leave out --crops"):
        encoder.register(inputs.encoder_id, store, crops=True)
    with pytest.raises(PipelineError, match=f"is quantized and can't get regions: use --regions with {plain}, then"):
        regions.add_regions(f"{plain}-int8", inputs.dataset, store)
    picture = keras.Input((8, 8, 3))
    for name, output, message in (
        ("flat", layers.Flatten()(picture), r"has no regions, .* end the model in GlobalAveragePooling2D"),
        ("one", layers.GlobalAveragePooling2D()(layers.AveragePooling2D(8)(picture)), r"pools 1×1 places, .* 2 to 256"),
    ):
        keras.Model(picture, output).save(tmp_path / f"{name}.keras")
        with pytest.raises(PipelineError, match=message):
            regions.add_regions(encoder.register(str(tmp_path / f"{name}.keras"), store), inputs.dataset, store)
    keras.Model(picture, [layers.GlobalAveragePooling2D()(picture), picture]).save(tmp_path / "two.keras")
    with pytest.raises(PipelineError, match="two has two outputs: save it with its vector"):
        encoder.register(str(tmp_path / "two.keras"), store)


def test_regions_in_eight_bits(world):
    """A quantized encoder yields both, nearly as the exact one does."""
    inputs, store = world
    quantized = encoder.load(quantization.quantize(inputs.encoder_id, inputs.dataset, store), store)
    # Within the range of the pictures that it is calibrated on.
    colours = np.array([*toy.COLOURS.values()], np.uint8)[:, None, None] * np.ones((8, 8, 1), np.uint8)
    exact = encoder.load(inputs.encoder_id, store).encode(colours)
    found = quantized.encode(colours)
    for ours, theirs in zip(found.arrays, exact.arrays, strict=True):
        assert ours.shape == theirs.shape
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


def test_regions_are_a_column_of_their_own(world, monkeypatch):
    """Null where the picture failed; read back in 16 bits; and not read at all where only vectors are asked for."""
    inputs, store = world
    [item] = store.list(f"features/{inputs.encoder_id}/")
    table = parquet.read(item.key, store)
    assert table.schema == feature_store.schema((3,), (64, 3))
    assert table.schema.field("regions").type == pa.list_(pa.list_(pa.float16(), 3), 64)
    expected = {row["image_key"]: row for row in table.to_pylist()}
    assert [key for key, row in expected.items() if row["regions"] is None] == ["pictures/red-0.jpg"]
    images = dataset.listing(dataset.load(inputs.dataset, store).table)
    rows = feature_store.look_up(images, encoder_id=inputs.encoder_id, store=store)
    rows = rows.filter(pa.compute.equal(rows["status"], "ok")).take(pa.array([9, 0, 4]))
    read, original = [], parquet.select_batches
    monkeypatch.setattr(
        parquet, "select_batches", lambda file, columns, rows: read.append(columns) or original(file, columns, rows=4)
    )
    alone = feature_store.read_features(rows, encoder_id=inputs.encoder_id, store=store)
    assert alone.regions is None
    assert "regions" not in read[0]
    found = feature_store.read_features(rows, encoder_id=inputs.encoder_id, store=store, regions=True)
    assert (found.vectors.dtype, found.regions.dtype) == (np.float32, np.float16)
    for name, array in (("feature", found.vectors), ("regions", found.regions)):
        np.testing.assert_array_equal(array, [expected[key][name] for key in rows["image_key"].to_pylist()])


@pytest.fixture(scope="module")
def attending(world):
    """A model that was trained with attention, in both phases, as an ensemble of two."""
    inputs, store = world
    changes = {"ensemble_size": 2, "attention_heads": 2, "scst_epochs": 1, "scst_learning_rate": 1e-4}
    return toy.train(inputs, store, toy.CONFIG.model_copy(update=changes))


def test_a_captioner_learns_to_attend(world, attending):
    """It names the colours of pictures it never saw, and its metadata says with how many heads."""
    inputs, store = world
    captioner, metadata = load(attending.version, store)
    assert captioner.attends
    assert metadata.config.attention_heads == 2
    split = read_split(
        dataset.load(inputs.dataset, store),
        "test",
        encoder_id=inputs.encoder_id,
        store=store,
        max_failed_fraction=0.05,
        regions=True,
    )
    for decoding in (BEAM, DecodingConfig(beam_width=2, mbr_samples=5)):
        for image, caption in zip(split.image_ids, captioner.caption(split.features, decoding), strict=True):
            assert colour_in(caption.text) == colour_in(image)


@pytest.fixture(scope="module")
def pooled(world):
    """A model of vectors alone on the same encoder, and the columns of features that its training read."""
    inputs, store = world
    read, original = [], parquet.select_batches

    def reading(file, columns, *, rows):
        read.append(columns)
        return original(file, columns, rows=rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "select_batches", reading)
        model = toy.train(inputs, store, toy.CONFIG.model_copy(update={"attention_heads": 0}))
    return model, read


def test_a_model_of_vectors_on_an_encoder_with_regions(world, pooled):
    """Without heads it is trained on vectors alone, which are all that is read."""
    model, read = pooled
    assert not load(model.version, world[1])[0].attends
    assert len(read) == 2
    assert not any("regions" in columns for columns in read)


def test_an_encoder_without_regions_gives_a_model_without_heads(trained):
    """Whatever the configuration says, and the metadata tells so."""
    assert trained.model.config.attention_heads == 0
    assert not load(trained.model.version, trained.store)[0].attends


def evaluated(model, store):
    """The report of an evaluation, its table of captions, and its scores."""
    metrics = evaluate_model(model.version, store=store, decoding=BEAM, max_failed_fraction=0)
    keys = layout.evaluation(model.version, metrics.dataset, BEAM)
    return store.get(keys.report).decode(), parquet.read(keys.captions, store), metrics


def test_the_report_shows_where_a_captioner_looks(world, attending, monkeypatch):
    """A heat map for each word but function words, on some pictures, of which one may be gone later."""
    _, store = world
    monkeypatch.setattr(evaluation, "ATTENTION_EXAMPLES", 3)
    page, table, metrics = evaluated(attending, store)
    shown = {row["image_id"]: row for row in table.to_pylist() if row["attention"] is not None}
    assert (len(table), len(shown)) == (4, 3)
    for row in shown.values():
        weights = np.array(row["attention"])
        assert weights.shape == (len(row["caption"].split()), 8, 8)
        np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, rtol=1e-4)
    omitted = {"a", "the", "is"}
    words = [word for row in shown.values() for word in row["caption"].split() if word not in omitted]
    assert page.count("data:image/png;base64,") == len(words)
    assert "over the models that attend" in page
    # What is forgotten is gone from the table, from which alone the report is written again.
    gone = next(iter(shown))
    rest = table.filter(pc.field("image_id") != gone)
    again = evaluation.render_report(metrics, rest, attending, dataset.load(metrics.dataset, store), store)
    assert again.count('<article class="card look">') == 2
    assert gone not in again


def test_the_report_shows_the_region_that_a_captioner_looks_at(world, attending, monkeypatch):
    """One that looks only at row 2, column 5 of the map has all colour there."""
    place = np.eye(64, dtype=np.float32)[2 * 8 + 5]
    monkeypatch.setattr(
        Captioner, "attention", lambda _, features, captions: [np.stack([place] * len(c.split())) for c in captions]
    )
    page, *_ = evaluated(attending, world[1])
    overlays = set(re.findall(r"data:image/png;base64,([\w+/=]+)", page))
    [pixels] = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in overlays]
    assert np.argwhere(pixels[..., 3]).tolist() == [[2, 5]]


def test_a_report_without_heat_maps(world, attending, pooled, monkeypatch, caplog):
    """That of a model of vectors; and that of one that attends to what is no map, with a line in the log."""
    _, store = world

    def refuse(*_):
        raise PipelineError("no such encoder")

    for grid, reason in ((lambda *_: None, "the regions are no places of a map"), (refuse, "no such encoder")):
        monkeypatch.setattr(encoder, "load_grid", grid)
        for model, line in ((pooled[0], ""), (attending, f"does not show where the captioner looks: {reason}")):
            page, table, _ = evaluated(model, store)
            assert "Where the captioner looks" not in page
            assert table["attention"].null_count == len(table)
            assert line in caplog.text


def test_nights_and_captions_on_demand(world, attending, pooled, new_bucket, tmp_path):
    """A champion that attends captions an inbox from stored regions, and pictures on demand; a candidate need not."""
    store, inbox = new_bucket(), new_bucket()
    toy.copy(world[1], store, "models/", "encoders/")
    registry.promote(attending.version, store)
    for seed, colour in enumerate(toy.COLOURS):
        inbox.put(f"{colour}.jpg", toy.picture(colour, seed))
        (tmp_path / f"{colour}.jpg").write_bytes(toy.picture(colour, seed))
    night("n1", inbox, store)
    written = {row["image_key"]: row["caption"] for row in rows_in(store)}
    assert {colour_in(key): colour_in(text) for key, text in written.items()} == {each: each for each in toy.COLOURS}
    found = on_demand.caption([str(tmp_path)], version=None, decoding=BEAM, alternatives=0, store=store)
    assert {each.picture.rpartition("/")[2]: each.captions[0].text for each in found} == written
    shadow.compare(pooled[0].version, size=4, decoding=BEAM, picture_page="", inbox_uri=inbox.uri, store=store)
    compared = parquet.read(layout.shadow(pooled[0].version), store).to_pylist()
    assert {row["image_key"]: row["champion_caption"] for row in compared} == written
    assert all(colour_in(row["caption"]) == colour_in(row["image_key"]) for row in compared)


def test_a_model_that_attends_goes_to_another_store(world, attending):
    """With its encoder and the regions of its photographs."""
    inputs, store = world
    elsewhere = MemoryBucket("elsewhere")
    import_model(attending.version, source=store, target=elsewhere)
    here, there = (
        read_split(
            dataset.load(inputs.dataset, each),
            "test",
            encoder_id=inputs.encoder_id,
            store=each,
            max_failed_fraction=0,
            regions=True,
        ).features
        for each in (store, elsewhere)
    )
    np.testing.assert_array_equal(there.regions, here.regions)
    assert encoder.exists(inputs.encoder_id, elsewhere)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A toy world whose encoder has a last stage, and a model that tuned it in both phases; and their store."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    source, store = (open_bucket(str(tmp_path_factory.mktemp(name))) for name in ("source", "store"))
    path = tmp_path_factory.mktemp("encoder") / "staged.keras"
    inputs = keras.Input((8, 8, 3))
    reads = layers.AveragePooling2D(2)(layers.Rescaling(1 / 255)(inputs))
    places = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 1)(reads)))
    keras.Model(inputs, layers.GlobalAveragePooling2D()(places)).save(path)
    world = toy.prepare(source, store, path, regions=True)
    return world, toy.train(world, store, STAGED), store


STAGED = toy.CONFIG.model_copy(update={"attention_heads": 2, "scst_epochs": 1, "scst_learning_rate": 1e-4})
"""A training in both phases."""


def test_regions_are_what_the_last_stage_reads(staged):
    """Stored in place of a projection, they give the same vectors by the stage beside the encoder, in 8 bits, too."""
    inputs, _, store = staged
    loaded = encoder.load(inputs.encoder_id, store)
    assert (loaded.shape, loaded.regions) == ((12,), (16, 3))
    assert encoder.load_grid(inputs.encoder_id, store) == (4, 4)
    found = loaded.encode(pictures())
    np.testing.assert_allclose(
        found.regions, pictures().reshape(4, 4, 2, 4, 2, 3).mean(axis=(2, 4)).reshape(4, 16, 3) / 255, rtol=1e-5
    )
    quantized = quantization.quantize(inputs.encoder_id, inputs.dataset, store)
    for encoder_id in (inputs.encoder_id, quantized):
        assert encoder.has_last_stage(encoder_id, store)
        part = encoder.load_last_stage(encoder_id, store)
        places = part.predict_on_batch(found.regions.reshape(4, 4, 4, 3))
        np.testing.assert_allclose(places.mean(axis=(1, 2)), found.vectors, rtol=1e-4)
    plain = inputs.encoder_id.partition("-regions-")[0]
    assert encoder.load_last_stage(plain, store) is None
    assert regions.add_regions(plain, inputs.dataset, store) == inputs.encoder_id


def last_stages(model, store):
    """The weights of the last stages of an ensemble in the store."""
    return [last_stage(each).get_weights() for each in load_models(model, store)]


def test_a_captioner_tunes_the_last_stage(staged):
    """Its own, unless the rate is 0; a model without attention has none, and metadata say so. Captions are right."""
    inputs, model, store = staged
    encoders = encoder.load_last_stage(inputs.encoder_id, store).get_weights()
    assert model.config.fine_tuning == 0.1
    [tuned] = last_stages(model, store)
    changed = [not np.array_equal(one, other) for one, other in zip(encoders, tuned, strict=True)]
    # Kernel and bias, but no number of the normalization.
    assert changed == [True, True, False, False, False, False]
    still = toy.train(inputs, store, STAGED.model_copy(update={"fine_tuning": 0.0, "epochs": 1}))
    assert_same_weights(*last_stages(still, store), encoders)
    pooled = toy.train(inputs, store, STAGED.model_copy(update={"attention_heads": 0, "epochs": 1}))
    assert pooled.config.fine_tuning == 0
    assert [last_stage(each) for each in load_models(pooled, store)] == [None]
    split = read_split(
        dataset.load(inputs.dataset, store),
        "test",
        encoder_id=inputs.encoder_id,
        store=store,
        max_failed_fraction=0,
        regions=True,
    )
    networks, _ = load(model.version, store)
    with_keras = Captioner(
        KerasDecoder(load_models(model, store)),
        networks.vocabulary,
        networks.neighbours,
        max_length=networks.max_length,
    )
    texts = [caption.text for caption in networks.caption(split.features, BEAM)]
    assert [colour_in(text) for text in texts] == [colour_in(name) for name in split.image_ids]
    assert [caption.text for caption in with_keras.caption(split.features, BEAM)] == texts


def test_an_interrupted_tuning_has_the_same_result(staged, bucket, monkeypatch):
    """Stopped in the first phase and in the second, it gives the weights of the one that was not interrupted."""
    inputs, _, store = staged
    toy.copy(store, bucket, "datasets/", "features/", "encoders/")
    config = STAGED.model_copy(update={"epochs": 2, "dropout": 0.3})
    whole = toy.train(inputs, store, config)
    original, calls = loop.dev_cider, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "dev_cider", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            toy.train(inputs, bucket, config)
    resumed = toy.train(inputs, bucket, config)
    assert len(calls) == 5
    assert_same_weights(weights(resumed, bucket), weights(whole, store))


def test_a_model_of_8_bit_features_goes_to_another_store(staged):
    """With the last stage of its encoder, so that it can be trained again there; another store's copy is the same."""
    inputs, _, store = staged
    quantized = quantization.quantize(inputs.encoder_id, inputs.dataset, store)
    elsewhere = MemoryBucket("elsewhere")
    assert encoder.copy_encoder(quantized, store, elsewhere) == 5
    assert encoder.has_last_stage(quantized, elsewhere)
    network, part = (of(quantized, store) for of in (encoder.load_network, encoder.load_last_stage))
    own = MemoryBucket("own")
    encoder.save_network(quantized, network, own, last_stage=part)
    assert encoder.copy_encoder(quantized, store, own) == 0

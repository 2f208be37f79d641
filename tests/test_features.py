"""The feature store: planning, extraction, and reading back."""

import io
import threading

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import encoder, features, plans, runs, tables
from pipeline.errors import PipelineError
from pipeline.features import IMAGES
from pipeline.timing import Stopwatch


def jpeg(seed, side=16):
    """A small picture of one random colour, as JPEG."""
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory):
    """A .keras file whose features are the mean of each colour channel."""
    import keras

    path = tmp_path_factory.mktemp("encoder") / "means.keras"
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)).save(path)
    return path


@pytest.fixture
def photographs(new_bucket):
    """A bucket of twelve pictures, one of them in a folder with a difficult name, and one that is no picture."""
    bucket = new_bucket()
    for number in range(10):
        bucket.put(f"{number:02}.jpg", jpeg(number))
    bucket.put("a folder/naïve + 100%.jpg", jpeg(99))
    bucket.put("broken.jpg", jpeg(5)[:100])
    return bucket


@pytest.fixture
def store(new_bucket):
    """An empty store."""
    return new_bucket()


def listing(bucket):
    """All of a bucket as a table of images."""
    items = list(bucket.list())
    return pa.table([[item.key for item in items], [item.etag for item in items]], schema=IMAGES)


def plan(images, source, encoder_id, store, *, shard_size=5, run="r"):
    """Plan an extraction with small shards."""
    return features.plan(images, run=run, source=source.uri, encoder_id=encoder_id, store=store, shard_size=shard_size)


def test_extracts_every_image_once(photographs, store, small_encoder):
    """Each image gets one row, a broken one a failed row with its error, and then nothing is pending."""
    encoder_id = encoder.publish(str(small_encoder), store)
    images = listing(photographs)
    shards = plan(images, photographs, encoder_id, store)
    done = [features.extract(shard, store=store) for shard in shards]
    assert [d.images for d in done] == [5, 5, 2]
    assert sum(d.failed for d in done) == 1

    rows = features.look_up(images, encoder_id=encoder_id, store=store)
    assert rows["key"].to_pylist() == images["key"].to_pylist()
    status = dict(zip(rows["key"].to_pylist(), rows["status"].to_pylist(), strict=True))
    assert [key for key in status if status[key] == "failed"] == ["broken.jpg"]
    [error] = [row["error"] for row in rows.to_pylist() if row["status"] == "failed"]
    assert "cannot be decoded" in error

    assert plan(images, photographs, encoder_id, store, run="again") == []
    assert runs.extracted("again", store)["extracted"] == 0


def test_vectors_are_those_of_their_images(photographs, store, small_encoder):
    """Read back in any order and over several shards, each vector is its own picture's mean colour."""
    encoder_id = encoder.publish(str(small_encoder), store)
    images = listing(photographs)
    for shard in plan(images, photographs, encoder_id, store):
        features.extract(shard, store=store)
    rows = features.look_up(images, encoder_id=encoder_id, store=store)
    rows = rows.filter(pa.compute.equal(rows["status"], "ok")).take(pa.array([7, 0, 10, 3]))
    vectors = features.read_vectors(rows, encoder_id=encoder_id, store=store)
    for key, vector in zip(rows["key"].to_pylist(), vectors, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(photographs.get(key))))
        np.testing.assert_allclose(vector, pixels.reshape(-1, 3).mean(axis=0), atol=1.0)


def test_a_changed_image_is_a_new_image(photographs, store, small_encoder):
    """Written again, an image is pending under its new etag; replaced before it was read, it is not mistaken."""
    encoder_id = encoder.publish(str(small_encoder), store)
    before = listing(photographs)
    shards = plan(before, photographs, encoder_id, store, shard_size=100)
    photographs.put("03.jpg", jpeg(1234))
    features.extract(shards[0], store=store)
    rows = features.look_up(before, encoder_id=encoder_id, store=store).to_pylist()
    [changed] = [row for row in rows if row["key"] == "03.jpg"]
    assert (changed["status"], changed["error"]) == ("failed", "removed or replaced since it was listed")

    [shard] = plan(listing(photographs), photographs, encoder_id, store)
    assert plans.read(shard, store).images["key"].to_pylist() == ["03.jpg"]
    assert features.extract(shard, store=store).failed == 0


def test_a_repeated_shard_is_not_extracted_again(photographs, store, small_encoder):
    """A retry finds its object and leaves it; planning again before extraction takes the same shards over."""
    encoder_id = encoder.publish(str(small_encoder), store)
    images = listing(photographs)
    shards = plan(images, photographs, encoder_id, store)
    assert plan(images, photographs, encoder_id, store) == shards
    features.extract(shards[0], store=store)
    etag = store.etag(f"features/{encoder_id}/{shards[0]}.parquet")
    assert features.extract(shards[0], store=store).images == 0
    assert store.etag(f"features/{encoder_id}/{shards[0]}.parquet") == etag


def test_the_table_is_as_documented(photographs, store, small_encoder):
    """Features are a fixed-size list of 16-bit floats, null where an image failed."""
    encoder_id = encoder.publish(str(small_encoder), store)
    [shard] = plan(listing(photographs), photographs, encoder_id, store, shard_size=100)
    features.extract(shard, store=store)
    table = tables.read(f"features/{encoder_id}/{shard}.parquet", store)
    assert table.schema == features.schema((3,))
    assert [row["key"] for row in table.to_pylist() if row["feature"] is None] == ["broken.jpg"]


def test_missing_features_are_an_error(photographs, store):
    """Asking for images that were never extracted says how many, of which encoder, and what to do."""
    with pytest.raises(PipelineError, match=r"12 of 12 images have no features of nobody.*extract"):
        features.look_up(listing(photographs), encoder_id="nobody", store=store)


@pytest.mark.parametrize(("failed", "total", "fine"), [(1, 3, True), (2, 3, False), (5, 100, True), (6, 100, False)])
def test_the_failure_budget(failed, total, fine):
    """One bad picture is never too many; beyond the allowed share the error lists the most frequent kinds with keys."""
    errors = [*((f"{i}.jpg", "the file is empty") for i in range(failed - 1)), ("last.jpg", "another")]
    if fine:
        features.check_failures(errors, total, allowed_fraction=0.05)
    else:
        worst = rf"{failed} of {total} images failed.* {failed - 1} × the file is empty \(0\.jpg.*1 × another"
        with pytest.raises(PipelineError, match=worst):
            features.check_failures(errors, total, allowed_fraction=0.05)


def test_reading_goes_on_while_the_encoder_computes():
    """Pictures of later batches are read while the first one is encoded, and every vector is that of its picture."""
    later = threading.Event()

    def read(row):
        if row[0] == "9":
            later.set()
        return np.full((4, 4, 3), int(row[0]), np.uint8)

    def run(pictures):
        assert later.wait(10), "nothing was read meanwhile"
        return pictures.mean(axis=(1, 2))

    loaded = encoder.Encoder("e", (4, 4), (3,), batch_size=4, threads=1, run=run)
    vectors, errors = features.encode([(str(number), "") for number in range(14)], read, loaded, Stopwatch())
    assert errors == [None] * 14
    np.testing.assert_array_equal(vectors, np.repeat(np.arange(14), 3).reshape(14, 3))

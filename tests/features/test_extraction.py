"""The extraction of features and the feature store: planning, extraction, and reading back."""

import contextlib
import io
import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipeline.data.decoders import SECONDS, DecoderStartError
from pipeline.data.images import Picture, SlowImageError
from pipeline.errors import PipelineError
from pipeline.features import encoder, extraction
from pipeline.features import store as feature_store
from pipeline.storage import json, layout, parquet
from pipeline.timing import Stopwatch
from pipeline.work import outcomes, runs, shards
from pipeline.work.listing import IMAGES, tabulate
from tests.support.damaged_images import scan_bomb
from tests.support.decoder_code import CANNOT_START, in_decoders
from tests.support.memory import CrashError, MemoryBucket


def jpeg(seed, side=16):
    """A small picture of one random colour, as JPEG."""
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


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


def plan(images, source, encoder_id, store, *, shard_size=5, run="r", **options):
    """Plan an extraction with small shards."""
    return extraction.plan_extraction(
        images, run=run, source=source.uri, encoder_id=encoder_id, store=store, shard_size=shard_size, **options
    )


def statuses(rows):
    """The status of each image by its key."""
    return dict(zip(rows["image_key"].to_pylist(), rows["status"].to_pylist(), strict=True))


def test_extracts_every_image_once(photographs, store, toy_encoder):
    """Each image gets one row, a broken one a failed row with its error, and then nothing is pending."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    names = plan(images, photographs, encoder_id, store)
    done = [extraction.extract(name, store=store) for name in names]
    assert [d.images for d in done] == [5, 5, 2]
    assert sum(d.failed for d in done) == 1

    rows = feature_store.look_up(images, encoder_id=encoder_id, store=store)
    assert rows["image_key"].to_pylist() == images["image_key"].to_pylist()
    assert [key for key, status in statuses(rows).items() if status == "failed"] == ["broken.jpg"]
    [error] = [row["error"] for row in rows.to_pylist() if row["status"] == "failed"]
    assert "cannot be decoded" in error

    assert plan(images, photographs, encoder_id, store, run="again") == []
    assert runs.extraction_stats("r", store)[0] == 12
    assert runs.extraction_stats("again", store) == (0, {})


def test_vectors_are_those_of_their_images(photographs, store, toy_encoder):
    """Read back in any order and over several shards, each vector is its own picture's mean colour."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    for shard in plan(images, photographs, encoder_id, store):
        extraction.extract(shard, store=store)
    rows = feature_store.look_up(images, encoder_id=encoder_id, store=store)
    rows = rows.filter(pc.equal(rows["status"], "ok")).take(pa.array([7, 0, 10, 3]))
    vectors = feature_store.read_features(rows, encoder_id=encoder_id, store=store).vectors
    for key, vector in zip(rows["image_key"].to_pylist(), vectors, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(photographs.get(key))))
        np.testing.assert_allclose(vector, pixels.reshape(-1, 3).mean(axis=0), atol=1.0)


def test_features_of_no_images_are_not_looked_up(photographs, store, toy_encoder, monkeypatch):
    """A night that finds nothing new reads none of the files of features."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    for shard in plan(images, photographs, encoder_id, store):
        extraction.extract(shard, store=store)
    monkeypatch.setattr(feature_store.parquet, "read_all", lambda *_, **__: pytest.fail("files were read"))
    assert len(feature_store.look_up(images.slice(0, 0), encoder_id=encoder_id, store=store)) == 0


def test_a_changed_image_is_a_new_image(photographs, store, toy_encoder):
    """Written again, an image is pending under its new etag; replaced before it was read, it fails."""
    encoder_id = encoder.register(str(toy_encoder), store)
    before = tabulate(photographs.list())
    names = plan(before, photographs, encoder_id, store, shard_size=100)
    photographs.put("03.jpg", jpeg(1234))
    extraction.extract(names[0], store=store)
    rows = feature_store.look_up(before, encoder_id=encoder_id, store=store).to_pylist()
    [changed] = [row for row in rows if row["image_key"] == "03.jpg"]
    assert (changed["status"], changed["error"]) == ("failed", outcomes.GONE)

    [name] = plan(tabulate(photographs.list()), photographs, encoder_id, store)
    assert shards.read(name, store).images["image_key"].to_pylist() == ["03.jpg"]
    assert extraction.extract(name, store=store).failed == 0


def test_a_repeated_shard_is_not_extracted_again(photographs, store, toy_encoder):
    """A retry finds its object and leaves it; planning again before extraction takes the same shards over."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    names = plan(images, photographs, encoder_id, store)
    assert plan(images, photographs, encoder_id, store) == names
    extraction.extract(names[0], store=store)
    etag = store.etag(f"features/{encoder_id}/{names[0]}.parquet")
    assert extraction.extract(names[0], store=store).images == 0
    assert store.etag(f"features/{encoder_id}/{names[0]}.parquet") == etag


def test_the_table_is_as_documented(photographs, store, toy_encoder):
    """Features are a fixed-size list of 16-bit floats, null where an image failed."""
    encoder_id = encoder.register(str(toy_encoder), store)
    [shard] = plan(tabulate(photographs.list()), photographs, encoder_id, store, shard_size=100)
    extraction.extract(shard, store=store)
    table = parquet.read(f"features/{encoder_id}/{shard}.parquet", store)
    assert table.schema == feature_store.schema((3,))
    assert [row["image_key"] for row in table.to_pylist() if row["feature"] is None] == ["broken.jpg"]


def test_rows_have_the_size_of_the_image(store, new_bucket, toy_encoder):
    """In the index, too: width and height of the upright image, null if it could not be decoded."""
    photographs = new_bucket()
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    for name, options in (("wide.jpg", {}), ("tall.jpg", {"exif": on_its_side})):
        buffer = io.BytesIO()
        Image.new("RGB", (1200, 900)).save(buffer, "JPEG", **options)
        photographs.put(name, buffer.getvalue())
    photographs.put("broken.jpg", jpeg(5)[:100])
    encoder_id = encoder.register(str(toy_encoder), store)
    [shard] = plan(tabulate(photographs.list()), photographs, encoder_id, store)
    extraction.extract(shard, store=store)
    rows = feature_store.index(encoder_id, store).to_pylist()
    assert {row["image_key"]: (row["width"], row["height"]) for row in rows} == {
        "wide.jpg": (1200, 900),
        "tall.jpg": (900, 1200),
        "broken.jpg": (None, None),
    }


def test_failed_images_are_tried_again_when_asked(photographs, store, toy_encoder):
    """Otherwise they are settled. Each attempt is a row, numbered from 0, and a success counts."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    for name in plan(images, photographs, encoder_id, store, shard_size=100):
        extraction.extract(name, store=store)
    assert plan(images, photographs, encoder_id, store) == []
    for attempt in (1, 2):
        [name] = plan(images, photographs, encoder_id, store, retry_failed=True)
        assert shards.read(name, store).images.select(["image_key", "attempt"]).to_pylist() == [
            {"image_key": "broken.jpg", "attempt": attempt}
        ]
        assert extraction.extract(name, store=store).failed == 1
    found = feature_store.look_up(images, encoder_id=encoder_id, store=store)
    assert found.num_rows == len(images)
    assert found.filter(pc.field("status") == "failed").select(["image_key", "attempt"]).to_pylist() == [
        {"image_key": "broken.jpg", "attempt": 2}
    ]


def test_an_image_that_was_gone_is_tried_again(photographs, store, toy_encoder):
    """If the same version comes back, it gets its features; the earlier failure no longer counts."""
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    lost = pa.table([["lost.jpg"], ["1-1"]], schema=IMAGES)
    [name] = plan(lost, photographs, encoder_id, store)
    extraction.extract(name, store=store)
    [row] = feature_store.look_up(lost, encoder_id=encoder_id, store=store).to_pylist()
    assert (row["status"], row["error"], row["attempt"]) == ("failed", outcomes.GONE, 0)
    [again] = plan(lost, photographs, encoder_id, store)
    assert shards.read(again, store).images["attempt"].to_pylist() == [1]
    assert len(images) == 12


def test_missing_features_are_an_error(photographs, store):
    """The error for images that were never extracted says how many, of which encoder, and what to do."""
    with pytest.raises(PipelineError, match=r"12 of 12 images have no features of nobody.*extract"):
        feature_store.look_up(tabulate(photographs.list()), encoder_id="nobody", store=store)


def test_reading_goes_on_while_the_encoder_computes():
    """Pictures of later batches are read while the first one is encoded, and every vector is that of its picture."""
    later = threading.Event()

    def read(row, _):
        if row[0] == "9":
            later.set()
        return Picture(np.full((4, 4, 3), int(row[0]), np.uint8), 10 + int(row[0]), 5)

    def run(pictures):
        assert later.wait(10), "nothing was read meanwhile"
        return [pictures.mean(axis=(1, 2))]

    loaded = encoder.Encoder("e", (4, 4), (3,), None, batch_size=4, threads=1, run=run)
    encoded, errors, sizes = extraction.encode([(str(number), "") for number in range(14)], read, loaded, Stopwatch())
    assert errors == [None] * 14
    assert sizes == [(10 + number, 5) for number in range(14)]
    np.testing.assert_array_equal(encoded.vectors, np.repeat(np.arange(14), 3).reshape(14, 3))


@pytest.mark.parametrize("puts", [True, False], ids=["into its place", "elsewhere"])
def test_failed_pictures_leave_the_others_in_their_places(puts):
    """A whole batch of them is not encoded at all; every other image has its own vector, wherever its pixels are."""
    failed = {1, 4, 5, 6, 7, 10, 13}
    encoded_at_once = []

    def read(row, out):
        number = int(row[0])
        if number in failed:
            out[:] = 255
            return f"broken {number}"
        pixels = out if puts else np.empty_like(out)
        pixels[:] = number
        return Picture(pixels, 10, 5)

    def run(pictures):
        encoded_at_once.append(len(pictures))
        vectors = pictures.mean(axis=(1, 2), dtype=np.float32)
        return [np.where(vectors == 2, np.inf, vectors)]

    loaded = encoder.Encoder("e", (4, 4), (3,), None, batch_size=4, threads=2, run=run)
    rows = [(str(number), "") for number in range(14)]
    encoded, errors, sizes = extraction.encode(rows, read, loaded, Stopwatch())
    assert sorted(encoded_at_once) == [1, 3, 3]
    for number in range(14):
        if number in failed:
            assert (errors[number], sizes[number]) == (f"broken {number}", None)
        elif number == 2:
            assert errors[number] == "its features are not finite in 16 bits"
        else:
            assert (errors[number], sizes[number], encoded.vectors[number].tolist()) == (None, (10, 5), [number] * 3)


def test_decoders_that_cannot_start_fail_the_step(photographs, store, toy_encoder, tmp_path, monkeypatch):
    """No picture fails for it: the shard stays open, and can be extracted once they can start."""
    encoder_id = encoder.register(str(toy_encoder), store)
    [shard] = plan(tabulate(photographs.list()), photographs, encoder_id, store, shard_size=100)
    with monkeypatch.context() as patch:
        for name, value in in_decoders(CANNOT_START, tmp_path / "code").items():
            patch.setenv(name, value)
        with pytest.raises(DecoderStartError, match=r"libjpeg\.so\.62"):
            extraction.extract(shard, store=store)
    assert shards.open_shards(store) == {shard}
    assert extraction.extract(shard, store=store).failed == 1


class SlowDecoders:
    """Decoders that record for how long they were to decode ``slow NUMBER SECONDS``, which takes these seconds."""

    def __init__(self):
        self.attempts = []
        self.slow = True

    def __call__(self, size):
        """Decoders of this size."""
        self.size = size
        return contextlib.nullcontext(self)

    def decode(self, data, *, seconds=SECONDS, out=None):
        """A grey picture."""
        if self.slow and data.startswith(b"slow"):
            _, number, needed = data.split()
            self.attempts.append((int(number), seconds))
            if float(needed) > seconds:
                raise SlowImageError(f"takes longer than {seconds:g} s")
        return Picture(np.full((*self.size, 3), 128, np.uint8), 640, 480)

    def full_length(self):
        """The pictures that were decoded for as long as the decoders allow."""
        return {number for number, seconds in self.attempts if seconds == SECONDS}


@pytest.fixture
def decoders(monkeypatch):
    """Decoders in place of the real ones."""
    decoders = SlowDecoders()
    monkeypatch.setattr(extraction, "Decoders", decoders)
    return decoders


@pytest.fixture
def hostile(monkeypatch):
    """A bucket of 300 good pictures, and 300 slow ones: the first takes 20 seconds, and the others never end."""
    bucket = MemoryBucket("inbox")
    monkeypatch.setattr(extraction, "open_source", lambda name, store: bucket)
    for number in range(300):
        bucket.put(f"{number:03}.jpg", b"slow %d %d" % (number, 1_000_000 if number else 20))
        bucket.put(f"{number:03}-good.jpg", b"%d" % number)
    return bucket


@pytest.fixture
def planned(hostile, toy_encoder):
    """A store, the id of its encoder, and the one shard of these pictures."""
    store = MemoryBucket("store")
    encoder_id = encoder.register(str(toy_encoder), store)
    [shard] = plan(tabulate(hostile.list()), hostile, encoder_id, store, shard_size=1000)
    return store, encoder_id, shard


def errors_of(images, encoder_id, store):
    """The error of each image that failed, by its number."""
    rows = feature_store.look_up(images, encoder_id=encoder_id, store=store).to_pylist()
    return {int(row["image_key"].removesuffix(".jpg")): row["error"] for row in rows if row["status"] == "failed"}


def test_only_some_images_of_a_shard_may_take_long(hostile, planned, decoders):
    """Of 300 slow ones, ten have the full time; those that never end fail with what to do, and no other does."""
    store, encoder_id, shard = planned
    extraction.extract(shard, store=store)
    assert 0 in decoders.full_length()
    assert len(decoders.full_length()) == extraction.SLOW_IMAGES == 10
    assert {seconds for _, seconds in decoders.attempts} == {extraction.USUAL_SECONDS, SECONDS}
    errors = errors_of(tabulate(hostile.list()), encoder_id, store)
    assert errors.keys() == set(range(1, 300))
    assert sum("2.5 s to decode, like 10 others before it; save it again" in error for error in errors.values()) == 290


def test_an_interrupted_shard_remembers_its_slow_images(hostile, planned, decoders):
    """Repeated, it tries none of the failed ones again; one that was decoded in the full time is so again."""
    store, encoder_id, shard = planned
    store.crash_in = 100
    with pytest.raises(CrashError):
        extraction.extract(shard, store=store)
    known = json.read(dict[str, str | None], layout.shard_slow_images(shard), store)
    failed = {int(key.removesuffix(".jpg")) for key, error in known.items() if error}
    assert len(failed) > 80
    full_length = decoders.full_length()
    decoders.attempts.clear()
    extraction.extract(shard, store=store)
    assert not failed & {number for number, _ in decoders.attempts}
    assert len(full_length | decoders.full_length()) == extraction.SLOW_IMAGES
    assert errors_of(tabulate(hostile.list()), encoder_id, store).keys() == set(range(1, 300))


def test_a_person_can_have_slow_images_tried_again(hostile, planned, decoders):
    """Nothing is remembered of the shard in which they failed."""
    store, encoder_id, shard = planned
    images = tabulate(hostile.list())
    extraction.extract(shard, store=store)
    assert plan(images, hostile, encoder_id, store) == []
    decoders.slow = False
    [again] = plan(images, hostile, encoder_id, store, shard_size=1000, retry_failed=True)
    done = extraction.extract(again, store=store)
    assert (done.images, done.failed) == (299, 0)


def test_real_decoders_end_at_these_limits(store, new_bucket, toy_encoder, monkeypatch):
    """Of three pictures that would take minutes, one has the full time; the good one is encoded."""
    monkeypatch.setattr(extraction, "USUAL_SECONDS", 0.2)
    monkeypatch.setattr(extraction, "SLOW_IMAGES", 1)
    monkeypatch.setattr(extraction, "Decoders", partial(extraction.Decoders, seconds=0.4))
    photographs = new_bucket()
    for name in "abc":
        photographs.put(f"{name}.jpg", scan_bomb(2000))
    photographs.put("good.jpg", jpeg(1))
    encoder_id = encoder.register(str(toy_encoder), store)
    images = tabulate(photographs.list())
    [shard] = plan(images, photographs, encoder_id, store)
    assert extraction.extract(shard, store=store).failed == 3
    rows = feature_store.look_up(images, encoder_id=encoder_id, store=store).to_pylist()
    assert [str(row["error"]).partition(" s ")[0] for row in sorted(rows, key=lambda row: str(row["error"]))] == [
        "None",
        "takes longer than 0.2",
        "takes longer than 0.2",
        "takes longer than 0.4",
    ]

"""Encoders on a CPU, with OpenVINO: as exact as Keras, nearly so in 8-bit integers, and without loading Keras."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.merge_model import build
from pipeline.config import DecodingConfig, TrainingConfig
from pipeline.data import corrections, dataset
from pipeline.data.decoders import Decoders
from pipeline.data.images import decode
from pipeline.data.ingest import ingest
from pipeline.data.vocabulary import Vocabulary
from pipeline.errors import PipelineError
from pipeline.features import encoder, extraction, openvino, quantization
from pipeline.features.splits import read_split
from pipeline.features.store import Features
from pipeline.storage import keras_files, open_bucket
from pipeline.timing import Stopwatch
from pipeline.training.batches import encode_captions
from pipeline.training.loop import compile_for_training, train_epoch
from tests.support import toy

REAL = 400
"""Photographs of the tests on real ones."""


def cosines(ours, theirs):
    """The cosine of each pair of rows."""
    return (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def convolutions(size=16):
    """A small network of convolutions, whose weights are always the same."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    pictures = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, activation="relu")(layers.Rescaling(1 / 255)(pictures))
    # The export of a swish adds an output.
    x = layers.Conv2D(8, 3, activation="swish")(layers.BatchNormalization()(x))
    return keras.Model(pictures, layers.GlobalAveragePooling2D()(x), name="convolutions")


def noise(count, size=16):
    """Made-up pictures: uint8 (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photographs(flickr8k):
    """Real photographs with their captions, as uint8 (N, 224, 224, 3) and lists of texts."""
    captions = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text().splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption)
    names = [name for name in sorted(captions) if (flickr8k / "images" / name).exists()][:REAL]
    pictures = [decode((flickr8k / "images" / name).read_bytes(), (224, 224)).pixels for name in names]
    return np.stack(pictures), [captions[name] for name in names]


def test_a_network_is_its_keras_model():
    """Any batch, of any length and from any thread, has the features that Keras gives."""
    model = convolutions()
    network = openvino.EncoderNetwork(openvino.convert(model))
    assert (network.size, network.shapes) == ((16, 16), [(8,)])
    assert network.threads >= 1
    for count in (1, 5, 8):
        np.testing.assert_allclose(network(noise(count))[0], model.predict_on_batch(noise(count)), rtol=1e-4, atol=1e-5)


def test_the_outputs_of_a_network_are_those_of_its_keras_model():
    """Both of them, in their order, and no other, though the conversion of a resizing layer adds some."""
    import keras
    from keras import layers

    pictures = keras.Input((16, 16, 3))
    places = layers.Resizing(4, 4)(pictures)
    model = keras.Model(pictures, [layers.GlobalAveragePooling2D()(places), layers.Reshape((-1, 3))(places)])
    network = openvino.EncoderNetwork(openvino.convert(model))
    assert network.shapes == [(3,), (16, 3)]
    for found, expected in zip(network(noise(2)), model.predict_on_batch(noise(2)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_equal_models_are_equal_networks():
    """To the byte, whatever a process has converted before."""
    first, second = (openvino.convert(convolutions()) for _ in range(2))
    assert first == second


def test_the_real_encoder_and_its_captions_are_those_of_keras(photographs, real_encoder):
    """Real photographs have Keras's features, cosine .9999 and more, and the same captions in 99 of 100 cases."""
    pictures, texts = photographs
    model = keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder))
    theirs = np.asarray(model.predict(pictures, verbose=0))
    network = openvino.EncoderNetwork(openvino.convert(model))
    ours = np.concatenate([network(batch)[0] for batch in np.array_split(pictures, 20)])
    assert cosines(ours, theirs).min() >= 0.9999

    vocabulary = Vocabulary.build([text for captions in texts for text in captions], min_count=5)
    captioner = briefly_trained(theirs, texts, vocabulary)
    ours, theirs = (
        [caption.text for caption in captioner.caption(Features(vectors), DecodingConfig(beam_width=3))]
        for vectors in (ours, theirs)
    )
    assert len(set(theirs)) > REAL / 20  # captions that speak of their pictures, so that the test can fail
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 0.99 * REAL


def briefly_trained(vectors, texts, vocabulary):
    """A captioner that has seen these photographs a few times."""
    import pyarrow as pa

    from pipeline.features.splits import SplitFeatures

    captions, longest = encode_captions(SplitFeatures(pa.table({"captions": texts}), Features(vectors)), vocabulary)
    config = TrainingConfig(embedding="learned", units=64)
    model = build(len(vocabulary), Features(vectors), config)
    compile_for_training(model, 5e-3)
    rng = np.random.default_rng(0)
    for _ in range(15):
        train_epoch(model, captions.training_batches(64, rng))
    return Captioner(KerasDecoder([model]), vocabulary, max_length=longest)


def test_eight_bits_are_nearly_as_good_on_real_photographs(photographs, real_encoder):
    """Features in 8-bit integers point where those in floats do."""
    pictures, _ = photographs
    model = keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder))
    network = openvino.convert(model)
    exact, quantised = (
        np.concatenate([compiled(batch)[0] for batch in np.array_split(pictures[100:200], 10)])
        for compiled in (
            openvino.EncoderNetwork(network),
            openvino.EncoderNetwork(openvino.quantize(network, pictures[:100])),
        )
    )
    found = cosines(exact, quantised)
    assert np.median(found) > 0.98
    # It is another network, not the same again.
    assert found.max() < 0.99999


@pytest.fixture
def eight_bits(new_bucket, tmp_path):
    """A store, the id of an encoder of convolutions, the id of a dataset with a broken picture, and its source."""
    store, source = new_bucket(), new_bucket()
    convolutions().save(tmp_path / "convolutions.keras")
    encoder_id = encoder.register(str(tmp_path / "convolutions.keras"), store)
    dataset_id = ingest([toy.draw(source, broken=("red-0.jpg",))], store, name="toy").dataset
    return store, encoder_id, dataset_id, source


def test_an_encoder_in_eight_bits_has_features_of_its_own(eight_bits):
    """It is calibrated once, on the training pictures that can be read, and its features are stored separately."""
    store, encoder_id, dataset_id, source = eight_bits
    quantized_id = quantization.quantize(encoder_id, dataset_id, store)
    assert quantized_id == f"{encoder_id}-int8"
    etags = toy.etags(store, "encoders/")
    assert quantization.quantize(encoder_id, dataset_id, store) == quantized_id
    assert toy.etags(store, "encoders/") == etags

    data = dataset.load(dataset_id, store)
    images = dataset.listing(data.table)
    for each in (encoder_id, quantized_id):
        extraction.extract_missing(images, run="r", source=source.uri, encoder_id=each, store=store)
    exact, found = (
        read_split(data, "train", encoder_id=each, store=store, max_failed_fraction=0.1).features.vectors
        for each in (encoder_id, quantized_id)
    )
    assert not np.array_equal(exact, found)
    assert np.median(cosines(exact, found)) > 0.99


def test_nothing_to_calibrate_with_is_an_error(eight_bits):
    """Where no training picture can be read, the error says how many were tried and where."""
    store, encoder_id, dataset_id, source = eight_bits
    for item in list(source.list("pictures/")):
        source.delete(item.key)
    with pytest.raises(PipelineError, match=r"None of 16 training pictures in .* can be read"):
        quantization.quantize(encoder_id, dataset_id, store)
    assert not encoder.exists(f"{encoder_id}-int8", store)


def test_corrected_pictures_calibrate_too(eight_bits, new_bucket):
    """They are in the store, and in a copy of it: where no other picture can be read, they are enough."""
    store, encoder_id, dataset_id, source = eight_bits
    corrections.add(
        toy.picture("red", 99),
        caption="a red ball",
        model_caption="a dog",
        model_version="v",
        corrected_by="a",
        store=store,
    )
    copy = new_bucket()
    toy.copy(store, copy, "")
    for bucket in (source, store):
        for item in [*bucket.list("pictures/"), *bucket.list("corrections/")]:
            bucket.delete(item.key)
    corrected = ingest([dataset_id], copy, corrections=True).dataset
    assert quantization.quantize(encoder_id, corrected, copy) == f"{encoder_id}-int8"


def test_an_unconvertible_encoder_is_an_error(tmp_path):
    """An operation that OpenVINO does not know is named, and nothing is stored."""
    import keras

    pictures = keras.Input((16, 16, 3))
    smaller = keras.layers.Resizing(8, 8, antialias=True)(pictures)
    keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(smaller), name="strange").save(tmp_path / "s.keras")
    store = open_bucket(str(tmp_path / "store"))
    level = logging.root.level
    with pytest.raises(PipelineError, match=r"strange can't be converted(.|\n)*ScaleAndTranslate"):
        encoder.register(str(tmp_path / "s.keras"), store)
    assert list(store.list()) == []
    assert logging.root.level == level


def test_a_damaged_network_is_an_error(tmp_path):
    """The error says what to do."""
    store = open_bucket(str(tmp_path))
    encoder.save_network("e", openvino.Network(b"<?xml", b""), store)
    with pytest.raises(PipelineError, match=r"A stored network can't be read(.|\n)*Register the encoder again"):
        encoder.load("e", store)


FIRST_USE = """
import sys, threading
import numpy as np
from pathlib import Path
from pipeline.features import openvino

network = openvino.EncoderNetwork(openvino.Network(*(Path(path).read_bytes() for path in sys.argv[1:])))

def busy():
    while True:
        sum(range(100))

for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
sys.setswitchinterval(1e-5)
together = threading.Barrier(4)

def use():
    together.wait()
    network(np.zeros((1, 16, 16, 3), np.uint8))

users = [threading.Thread(target=use) for _ in range(4)]
for user in users:
    user.start()
for user in users:
    user.join()
"""


def test_threads_may_begin_at_once(tmp_path):
    """The first use of a network, by several threads of a busy process, ends."""
    network = openvino.convert(convolutions())
    (tmp_path / "n.xml").write_bytes(network.structure)
    (tmp_path / "n.bin").write_bytes(network.weights)
    command = [sys.executable, "-c", FIRST_USE, tmp_path / "n.xml", tmp_path / "n.bin"]
    subprocess.run(command, check=True, timeout=120)


EXTRACT = """
import sys
from pipeline.features import extraction
from pipeline.storage import open_bucket

extraction.extract(sys.argv[1], store=open_bucket(sys.argv[2]))
loaded = {name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None}
print(sorted(loaded & {"keras", "tensorflow", "jax", "openvino", "openvino_telemetry"}))
"""


def test_an_extraction_on_a_cpu_needs_no_keras(eight_bits, tmp_path):
    """It loads OpenVINO alone, which starts at once, and without its telemetry."""
    original, encoder_id, dataset_id, source = eight_bits
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(original, store, "encoders/")
    images = dataset.listing(dataset.load(dataset_id, original).table)
    [shard] = extraction.plan_extraction(
        images, run="r", source=source.uri, encoder_id=encoder_id, store=store, shard_size=100
    )
    command = [sys.executable, "-c", EXTRACT, shard, store.uri]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "['openvino']\n"


def test_the_time_of_a_shard_is_measured_by_section(eight_bits):
    """Reading, decoding and encoding have their seconds, though they overlap; pictures keep their places."""
    store, encoder_id, _, source = eight_bits
    names = [(item.key, item.etag) for item in source.list("pictures/")]
    loaded, stopwatch = encoder.load(encoder_id, store), Stopwatch()

    with Decoders(loaded.size) as decoders:

        def read(image, out):
            decode = lambda _, data, out: decoders.decode(data, out=out)  # noqa: E731
            return extraction.read_picture(source, decode, image, out, stopwatch=stopwatch)

        features, errors, _ = extraction.encode(names, read, loaded, stopwatch)
        pictures = [read(name, np.empty((*loaded.size, 3), np.uint8)) for name in names]
    assert set(stopwatch.seconds) == {"read", "decode", "encode"}
    assert min(stopwatch.seconds.values()) > 0
    assert [name for (name, _), error in zip(names, errors, strict=True) if error] == ["pictures/red-0.jpg"]
    for picture, vector, error in zip(pictures, features.vectors, errors, strict=True):
        if error is None:
            np.testing.assert_allclose(vector, loaded.encode(picture.pixels[None]).vectors[0], rtol=1e-2, atol=1e-3)

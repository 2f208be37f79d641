"""Encoders on a GPU, as far as it can be tested without one: with TensorFlow and with JAX on a CPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.images import Picture, decode
from pipeline.errors import PipelineError
from pipeline.features import accelerator, encoder, extraction
from pipeline.features.folding import fold_batch_norms
from pipeline.storage import keras_files, open_bucket
from pipeline.timing import Stopwatch
from tests.support.paths import PROJECT

SIZE = (16, 16)


@pytest.fixture
def model():
    """A small encoder with two outputs, and with a batch normalization that can be folded."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    pictures = keras.Input((*SIZE, 3))
    places = layers.Conv2D(8, 3, strides=4)(layers.Rescaling(1 / 255)(pictures))
    places = layers.ReLU()(layers.BatchNormalization()(places))
    return keras.Model(pictures, [layers.GlobalAveragePooling2D()(places), layers.Reshape((-1, 8))(places)])


@pytest.fixture
def pictures():
    """24 pictures, each another."""
    return np.random.default_rng(0).integers(0, 256, (24, *SIZE, 3), dtype=np.uint8)


def test_without_a_gpu_there_is_none(monkeypatch):
    """A machine without NVIDIA's driver has none."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not accelerator.present()


def test_without_keras_there_is_none(monkeypatch):
    """A machine with NVIDIA's driver, but without Keras, computes on its CPU."""
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not accelerator.present()


@pytest.mark.parametrize("most", [256, 100, 1])
def test_the_batch_is_the_largest_that_fits(most):
    """It is halved until it fits, and never exceeds the maximum."""
    tried = []

    def run(pictures):
        tried.append(len(pictures))
        if len(pictures) > most:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return [pictures.mean(axis=(1, 2))]

    found = accelerator.largest_batch(run, (4, 4))
    assert found == 1 << (most.bit_length() - 1)
    assert tried == sorted(tried, reverse=True)


def test_other_failures_are_failures():
    """Errors other than a lack of memory are raised, and so is a lack of memory for a single picture."""

    def broken(pictures):
        raise ValueError("no such layer")

    def never_fits(pictures):
        raise MemoryError("OOM when allocating tensor")

    with pytest.raises(ValueError, match="no such layer"):
        accelerator.largest_batch(broken, (4, 4))
    with pytest.raises(MemoryError):
        accelerator.largest_batch(never_fits, (4, 4))


def test_every_batch_is_full():
    """A smaller batch is padded, so that nothing is compiled again, and has the features of its pictures."""
    seen = []

    def run(pictures):
        seen.append(len(pictures))
        return [pictures.mean(axis=(1, 2))]

    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    filled = accelerator.in_full_batches(run, 8)
    np.testing.assert_array_equal(filled(pictures)[0], np.repeat(np.arange(5), 3).reshape(5, 3))
    assert filled(np.zeros((8, 4, 4, 3), np.uint8))[0].shape == (8, 3)
    assert seen == [8, 8]


def test_sixteen_bits_give_the_same_features(flickr8k, real_encoder):
    """In mixed precision real photographs have the same features, cosine .9999 and more."""
    paths = sorted((flickr8k / "images").iterdir())[:16]
    pictures = [decode(path.read_bytes(), (224, 224)).pixels for path in paths]
    model = keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder))
    exact = np.asarray(model.predict_on_batch(np.stack(pictures)))
    model = fold_batch_norms(keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder)))
    accelerator.prepare(model)
    found = np.asarray(model.predict_on_batch(np.stack(pictures)), np.float32)
    assert not np.array_equal(exact, found)
    cosines = (exact * found).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= 0.9999


def test_where_there_is_a_gpu_keras_computes(monkeypatch, tmp_path, toy_encoder):
    """The stored Keras model runs on it, with large batches; an encoder that is only for CPUs runs on the CPU."""
    store = open_bucket(str(tmp_path))
    encoder_id = encoder.register(str(toy_encoder), store)
    encoder.save_network("for-cpus", encoder.load_network(encoder_id, store), store)
    on_cpu = encoder.load(encoder_id, store)
    monkeypatch.setattr(accelerator, "present", lambda: True)
    on_gpu = encoder.load(encoder_id, store)
    assert on_gpu.batch_size == accelerator.LARGEST_BATCH
    assert encoder.load("for-cpus", store).batch_size == encoder.CPU_BATCH
    pictures = np.random.default_rng(0).integers(0, 256, (3, *on_cpu.size, 3), dtype=np.uint8)
    found = on_gpu.encode(pictures).vectors
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, on_cpu.encode(pictures).vectors, rtol=2e-3)


def test_several_batches_are_on_their_way(monkeypatch, model, pictures):
    """As many as are allowed are encoded at once, and each image has its own features, as the model gives them."""
    monkeypatch.setattr(accelerator, "LARGEST_BATCH", 4)
    expected = [np.asarray(output) for output in model.predict_on_batch(pictures)]
    loaded = encoder.on_gpu(model, "e")
    assert (loaded.batch_size, loaded.threads) == (4, accelerator.IN_FLIGHT)
    together = threading.Barrier(accelerator.IN_FLIGHT)

    def run(batch):
        together.wait(30)
        return loaded.run(batch)

    def read(row, out):
        number = int(row[0])
        if number in (6, 23):
            return "broken"
        out[:] = pictures[number]
        return Picture(out, 100 + number, 50)

    rows = [(str(number), "") for number in range(24)]
    features, errors, sizes = extraction.encode(rows, read, replace(loaded, run=run), Stopwatch())
    assert [number for number, error in enumerate(errors) if error] == [6, 23]
    for number in set(range(24)) - {6, 23}:
        assert sizes[number] == (100 + number, 50)
        for found, exact in zip(features.arrays, expected, strict=True):
            np.testing.assert_allclose(found[number], exact[number], rtol=5e-3, atol=2e-3)


def test_a_backend_that_was_never_tried_is_refused(monkeypatch, model):
    """The error names those that can be used."""
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with pytest.raises(PipelineError, match="set KERAS_BACKEND to tensorflow or jax, not torch"):
        accelerator.compiled(model)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_same_with_jax():
    """These tests and those of folding, in a process in which Keras computes with JAX on the CPU."""
    files = [__file__, str(PROJECT / "tests" / "features" / "test_folding.py")]
    names = "on_their_way or kind_of_layer or within or full"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, *files]
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout

"""Encoders on a GPU, as far as it can be tested without one."""

import importlib.util
import shutil

import numpy as np
import pytest

from pipeline.data.images import decode
from pipeline.features import accelerator, encoder
from pipeline.storage import keras_files, open_bucket


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
        return pictures.mean(axis=(1, 2))

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
    model = keras_files.from_bytes(real_encoder.read_bytes(), origin=str(real_encoder))
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

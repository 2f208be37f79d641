"""Training on several devices: CPUs that TensorFlow makes up, in processes of their own, stand for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import toy

from pipeline import gpu, stages
from pipeline.captioner import list_models, load
from pipeline.checkpoints import Checkpoint
from pipeline.errors import PipelineError
from pipeline.recipe import Search
from pipeline.storage import open_bucket

PROJECT = Path(__file__).resolve().parents[1]

DEVICES = 4

RECIPE = toy.RECIPE.model_copy(update={"dropout": 0.3, "batch_size": 31, "epochs": 2, "self_critical_epochs": 1})
"""A stage of each kind; of 32 captions, the last batch has fewer than there are devices."""

IN_A_PROCESS = f"""
import sys
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * {DEVICES})
tf.debugging.set_log_device_placement(True)

from pipeline.cli import app

app(sys.argv[1:])
"""


def train_on_several(inputs, store):
    """`python -m pipeline train` of the recipe in a process with four devices; TensorFlow's log of what ran where."""
    settings = [f"--set={name}={value}" for name, value in RECIPE.model_dump().items()]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, "train", inputs.dataset, inputs.vocabulary, inputs.encoder_id, *settings],
        cwd=PROJECT,
        check=False,
        env=os.environ | {"CAPTION_STORE": store.uri, "CAPTION_DEVICES": str(DEVICES), "TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def new_store(folder, trained):
    """A store with the toy world's features and no model."""
    store = open_bucket(str(folder))
    toy.copy(trained.store, store, "features/")
    return store


@pytest.fixture(scope="module")
def alone(tmp_path_factory, trained):
    """The store of a training on one device."""
    store = new_store(tmp_path_factory.mktemp("alone"), trained)
    toy.train(trained.inputs, store, RECIPE)
    return store


def assert_same(store, other, *, tolerance):
    """The only model of a store has the hash, the curves, the weights and the captions of another's."""
    [model], [expected] = list_models(store), list_models(other)
    assert model.version.rpartition("-")[2] == expected.version.rpartition("-")[2]
    [member], [expected_member] = model.members, expected.members
    assert member.best_epoch == expected_member.best_epoch
    for epoch, expected_epoch in zip(member.epochs, expected_member.epochs, strict=True):
        assert epoch.stage == expected_epoch.stage
        measured, expected_measured = (
            one.model_dump(exclude={"seconds", "stage"}, exclude_none=True) for one in (epoch, expected_epoch)
        )
        assert measured == pytest.approx(expected_measured, rel=tolerance)
    captioner, expected_captioner = load(model.version, store)[0], load(expected.version, other)[0]
    [network], [expected_network] = captioner.models, expected_captioner.models
    for array, expected_array in zip(network.get_weights(), expected_network.get_weights(), strict=True):
        np.testing.assert_allclose(array, expected_array, atol=tolerance)
    features = np.random.default_rng(0).uniform(0, 255, (50, 3)).astype(np.float32)
    written, expected_captions = (
        [caption.text for caption in one.caption(features, Search(beam_width=3))]
        for one in (captioner, expected_captioner)
    )
    assert written == expected_captions
    assert len(set(written)) > 1


def test_several_devices_train_as_one(tmp_path, trained, alone):
    """With dropout, and self-critically too, four work, and give the version, losses, weights and captions of one."""
    store = new_store(tmp_path / "store", trained)
    log = train_on_several(trained.inputs, store)
    assert_same(store, alone, tolerance=1e-4)
    for number in range(DEVICES):
        assert f"(MatMul): /job:localhost/replica:0/task:0/device:CPU:{number}" in log


def test_a_training_goes_on_elsewhere(tmp_path, trained, alone, monkeypatch):
    """Interrupted on one device, it goes on on four, to the result of one that was never interrupted."""
    store = new_store(tmp_path / "store", trained)
    scores, score = [], stages.cider

    def interrupted(*arguments):
        scores.append(score(*arguments))
        if len(scores) == 2:
            raise KeyboardInterrupt
        return scores[-1]

    monkeypatch.setattr(stages, "cider", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy.train(trained.inputs, store, RECIPE)
    [checkpoint] = [Checkpoint.load(item.key, store) for item in store.list("training/") if item.key.endswith(".npz")]
    train_on_several(trained.inputs, store)
    [model] = list_models(store)
    # With the seconds that it took.
    assert model.members[0].epochs[:1] == checkpoint.epochs
    assert_same(store, alone, tolerance=1e-4)


def test_more_devices_than_there_are_is_an_error(trained, tmp_path):
    """The error says how many there are, which, and what to look at; nothing has been trained."""
    store = new_store(tmp_path / "store", trained)
    with pytest.raises(PipelineError, match=r"CAPTION_DEVICES is 2, and Keras finds 1 here: cpu:0\..*nvidia-smi"):
        toy.train(trained.inputs, store, RECIPE, devices=2)
    assert not list(store.list("training/"))


def test_another_backend_knows_one_device(monkeypatch):
    """Several devices on JAX are an error that says what to unset; one is none."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(PipelineError, match=r"CAPTION_DEVICES is 2, and with KERAS_BACKEND=jax.*unset KERAS_BACKEND"):
        gpu.devices(2)
    assert gpu.devices(1) == ["cpu:0"]

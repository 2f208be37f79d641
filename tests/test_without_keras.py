"""CPUs caption without Keras: in an environment that has neither Keras nor TensorFlow, and where they would start."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.captioner import registry
from pipeline.serving.client import CaptionClient
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.nights import colour_in, rows_in
from tests.support.paths import PROJECT
from tests.support.processes import own_python

NIGHT = """
import sys
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.config import DecodingConfig
from pipeline.metrics import java
from pipeline.storage import open_bucket
from tests.support.nights import night

java.available = lambda: False
store, inbox = map(open_bucket, sys.argv[1:3])
night("n1", inbox, store)
evaluate_model(sys.argv[3], store=store, decoding=DecodingConfig(beam_width=2, mbr_samples=5), max_failed_fraction=0)
"""


@pytest.fixture
def environment(tmp_path):
    """Variables of a process that can import neither Keras nor TensorFlow."""
    for name in ("keras", "tensorflow"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        code = f"raise ModuleNotFoundError({name!r} ' was imported', name={name!r})"
        (tmp_path / "absent" / name / "__init__.py").write_text(code)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'absent'}:{PROJECT}"}


@pytest.fixture
def store(trained, tmp_path):
    """A store with a champion and its dataset."""
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "models/", "encoders/", "datasets/", "features/")
    registry.promote(trained.model.version, store)
    return store


def test_keras_is_absent(environment):
    """What other tests of this module show would otherwise be nothing."""
    done = subprocess.run([sys.executable, "-c", "import keras"], env=environment, capture_output=True, check=False)
    assert b"keras was imported" in done.stderr


def test_a_night_and_an_evaluation(environment, store, trained, tmp_path):
    """They extract, caption, measure drift and write the report."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    for colour in ("red", "blue"):
        inbox.put(f"{colour}.jpg", toy.picture(colour))
    command = [sys.executable, "-c", NIGHT, store.uri, inbox.uri, trained.model.version]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    captions = {row["image_key"]: row["caption"] for row in rows_in(store)}
    assert {key: colour_in(caption) for key, caption in captions.items()} == {"red.jpg": "red", "blue.jpg": "blue"}


def test_a_picture_from_the_shell(environment, store, tmp_path):
    """The command captions it with the champion."""
    (tmp_path / "red.jpg").write_bytes(toy.picture("red"))
    command = [sys.executable, "-m", "pipeline", "caption", str(tmp_path / "red.jpg"), "--json"]
    done = subprocess.run(
        command, env={**environment, "CAPTION_STORE": store.uri}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert colour_in(json.loads(done.stdout)["caption"]) == "red"


def test_an_upload(environment, store):
    """The gallery's captioning process captions it."""
    with CaptionClient(lambda: own_python({**environment, "CAPTION_STORE": store.uri})) as client:
        answer = client.caption(toy.picture("green"))
    assert colour_in(answer.captions[0].caption) == "green"

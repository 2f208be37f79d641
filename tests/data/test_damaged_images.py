"""Damaged and odd pictures: each ends as a picture or as an error that says what to do."""

import re

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline.data.decoders import Decoders
from pipeline.data.images import BadImageError
from pipeline.features import encoder, extraction
from pipeline.features import store as feature_store
from pipeline.storage import open_bucket
from pipeline.work import listing
from tests.support import damaged_images

KINDS = {kind.name: kind for kind in damaged_images.kinds()}


@pytest.fixture(scope="module")
def decoders():
    """Processes that decode to a small size."""
    with Decoders((32, 32)) as decoders:
        yield decoders


def test_there_are_kinds_enough():
    """No two kinds have a name in common."""
    assert len(KINDS) == len(list(damaged_images.kinds())) > 60


@pytest.mark.parametrize("name", KINDS)
def test_each_is_a_picture_or_an_error_with_advice(decoders, name):
    """A picture has its colour; the error of any other file says why it is none, and what to do."""
    kind = KINDS[name]
    try:
        found = decoders.decode(kind.data).pixels
    except BadImageError as error:
        message = str(error)
        assert re.search(damaged_images.ADVICE, message)
        assert kind.expected is None or re.search(str(kind.expected), message)
    else:
        assert not isinstance(kind.expected, str)
        assert found.shape == (32, 32, 3)
        if kind.expected is not None:
            np.testing.assert_allclose(found.reshape(-1, 3).mean(axis=0), kind.expected, atol=6)


@pytest.mark.parametrize(("name", "make", "message"), list(damaged_images.bombs()), ids=lambda value: str(value)[:20])
def test_what_would_never_end_is_stopped(name, make, message):
    """A small file that decodes for minutes is given up when its time is over, and the next picture is decoded."""
    with Decoders((32, 32), seconds=1) as decoders:
        with pytest.raises(BadImageError, match=message):
            decoders.decode(make())
        assert decoders.decode(KINDS["one-pixel.png"].data).pixels.shape == (32, 32, 3)


def test_all_of_them_in_one_shard(tmp_path, toy_encoder):
    """An inbox of nothing but these goes through extraction: every file has its row, and none spoils another's."""
    inbox, store = open_bucket(str(tmp_path / "inbox")), open_bucket(str(tmp_path / "store"))
    for kind in KINDS.values():
        inbox.put(kind.name, kind.data)
    encoder_id = encoder.register(str(toy_encoder), store)
    images = listing.tabulate(inbox.list())
    extraction.extract_missing(images, run="r", source=inbox.uri, encoder_id=encoder_id, store=store)
    found = feature_store.look_up(images, encoder_id=encoder_id, store=store)
    rows = found.to_pylist()
    assert sorted(row["image_key"] for row in rows) == sorted(KINDS)
    seen = [row for row in rows if KINDS[row["image_key"]].expected is not None]
    assert {row["image_key"] for row in seen if row["status"] == "failed"} == {
        name for name, kind in KINDS.items() if isinstance(kind.expected, str)
    }
    assert all(row["error"] for row in rows if row["status"] == "failed")
    good = found.filter(pc.field("status") == "ok")
    vectors = feature_store.read_features(good, encoder_id=encoder_id, store=store).vectors
    for key, vector in zip(good["image_key"].to_pylist(), vectors, strict=True):
        if KINDS[key].expected is not None:
            np.testing.assert_allclose(vector, KINDS[key].expected, atol=6)

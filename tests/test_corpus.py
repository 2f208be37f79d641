"""The corpus of bad and odd pictures: each ends as a picture or as an error that says what to do."""

import re

import corpus
import numpy as np
import pytest

from pipeline import encoder, features
from pipeline.decoders import Decoders
from pipeline.images import BadImageError
from pipeline.storage import open_bucket

KINDS = {kind.name: kind for kind in corpus.kinds()}

ADVICE = r"; (scale it down|save it as one of them|upload it again|save it anew|save it with)|the file is empty"
"""What every error ends in."""


@pytest.fixture(scope="module")
def decoders():
    """Processes that decode to a small size."""
    with Decoders((32, 32)) as decoders:
        yield decoders


def test_there_are_kinds_enough():
    """No two kinds have a name in common."""
    assert len(KINDS) == len(list(corpus.kinds())) > 60


@pytest.mark.parametrize("name", KINDS)
def test_each_is_a_picture_or_an_error_with_advice(decoders, name):
    """What can be seen has its colour; of what can't, the error says why, and what to do."""
    kind = KINDS[name]
    try:
        found = decoders.decode(kind.data)
    except BadImageError as error:
        message = str(error)
        assert re.search(ADVICE, message)
        assert kind.expected is None or re.search(str(kind.expected), message)
    else:
        assert not isinstance(kind.expected, str)
        assert found.shape == (32, 32, 3)
        if kind.expected is not None:
            np.testing.assert_allclose(found.reshape(-1, 3).mean(axis=0), kind.expected, atol=6)


@pytest.mark.parametrize(("name", "make", "message"), list(corpus.bombs()), ids=lambda value: str(value)[:20])
def test_what_would_never_end_is_stopped(name, make, message):
    """A small file that decodes for minutes is given up when its time is over, and the next picture is decoded."""
    with Decoders((32, 32), seconds=1) as decoders:
        with pytest.raises(BadImageError, match=message):
            decoders.decode(make())
        assert decoders.decode(KINDS["one-pixel.png"].data).shape == (32, 32, 3)


def test_all_of_them_in_one_shard(tmp_path, toy_encoder):
    """An inbox of nothing but these goes through extraction: every file has its row, and none spoils another's."""
    inbox, store = open_bucket(str(tmp_path / "inbox")), open_bucket(str(tmp_path / "store"))
    for kind in KINDS.values():
        inbox.put(kind.name, kind.data)
    encoder_id = encoder.publish(str(toy_encoder), store)
    images = features.as_table(inbox.list())
    features.complete(images, run="r", source=inbox.uri, encoder_id=encoder_id, store=store)
    rows = features.look_up(images, encoder_id=encoder_id, store=store).to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(KINDS)
    seen = [row for row in rows if KINDS[row["key"]].expected is not None]
    assert {row["key"] for row in seen if row["status"] == "failed"} == {
        name for name, kind in KINDS.items() if isinstance(kind.expected, str)
    }
    assert all(row["error"] for row in rows if row["status"] == "failed")
    good = features.look_up(images, encoder_id=encoder_id, store=store)
    good = good.filter(features.pc.field("status") == "ok")
    vectors = features.read_vectors(good, encoder_id=encoder_id, store=store)
    for key, vector in zip(good["key"].to_pylist(), vectors, strict=True):
        if KINDS[key].expected is not None:
            np.testing.assert_allclose(vector, KINDS[key].expected, atol=6)

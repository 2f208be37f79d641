"""Photographs for a first night."""

import pytest

from pipeline.errors import PipelineError
from pipeline.ops import demo_inbox
from pipeline.storage import open_bucket
from tests.support import toy


def test_test_photographs_are_copied_once(trained, tmp_path):
    """Test photographs of the newest model's dataset are copied, up to the given number; later calls add the rest."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    few = demo_inbox.fill(trained.store, inbox.uri, count=3)
    assert few == {"under": "toy/", "photographs": 3, "new": 3}
    copied = toy.etags(inbox, "")
    assert demo_inbox.fill(trained.store, inbox.uri, count=3) == {**few, "new": 0}
    assert demo_inbox.fill(trained.store, inbox.uri, count=9) == {"under": "toy/", "photographs": 4, "new": 1}
    assert {key: etag for key, etag in toy.etags(inbox, "").items() if key in copied} == copied
    for colour in toy.COLOURS:
        picture = trained.inputs.source.get(f"pictures/{colour}-5.jpg")
        assert inbox.get(f"toy/{colour}-5.jpg") == picture


def test_without_a_model(bucket, tmp_path):
    """The error says to run a retraining first."""
    with pytest.raises(PipelineError, match=r"no model .* run a retraining first"):
        demo_inbox.fill(bucket, (tmp_path / "inbox").as_uri(), count=3)

"""Photographs for a first night."""

import pytest

from pipeline.data import corrections, ingest
from pipeline.errors import PipelineError
from pipeline.ops import demo_inbox
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.models import write_model


def test_test_photographs_are_copied_once(trained, tmp_path):
    """Test photographs of the newest model's dataset are copied, up to the given number; later calls add the rest."""
    inbox = open_bucket(str(tmp_path / "inbox"))
    few = demo_inbox.fill(trained.store, inbox.uri, count=3)
    assert few == {"under": "toy/", "photographs": 3, "new": 3, "test": 3}
    copied = toy.etags(inbox, "")
    assert demo_inbox.fill(trained.store, inbox.uri, count=3) == {**few, "new": 0}
    more = {"under": "toy/", "photographs": 4, "new": 1, "test": 4}
    assert demo_inbox.fill(trained.store, inbox.uri, count=9) == more
    assert {key: etag for key, etag in toy.etags(inbox, "").items() if key in copied} == copied
    for colour in toy.COLOURS:
        picture = trained.inputs.source.get(f"pictures/{colour}-5.jpg")
        assert inbox.get(f"toy/{colour}-5.jpg") == picture


def test_photographs_in_no_split_come_first(bucket, new_bucket, tmp_path):
    """They are those beside the dataset that it does not hold; a correction of one is learned from."""
    source, inbox = new_bucket(), open_bucket(str(tmp_path / "inbox"))
    captions = toy.draw(source)
    new = {f"new/{colour}.jpg": toy.picture(colour, 99) for colour in ("red", "blue")}
    for key, data in new.items():
        source.put(key, data)
    plain = ingest.ingest([captions], bucket)
    write_model("m1", bucket, dataset=plain.dataset)
    filled = demo_inbox.fill(bucket, inbox.uri, count=3)
    name = filled["under"]
    assert filled == {"under": name, "photographs": 3, "new": 3, "test": 1}
    assert {key: inbox.get(f"{name}{key}") for key in new} == new

    for item in inbox.list():
        corrections.add(
            inbox.get(item.key),
            caption="a better caption",
            model_caption="a dog",
            model_version="m1",
            corrected_by="somebody",
            store=bucket,
            image_key=item.key,
            image_etag=item.etag,
        )
    learned = ingest.ingest([captions], bucket, corrections=True)
    assert learned.images["train"] == plain.images["train"] + 2
    assert learned.dropped == {"image in dev or test": 1}
    # The copies of corrected pictures are no photographs for the inbox.
    write_model("m2", bucket, dataset=learned.dataset)
    assert demo_inbox.fill(bucket, inbox.uri, count=3) == {**filled, "new": 0}


def test_without_a_model(bucket, tmp_path):
    """The error says to run a retraining first."""
    with pytest.raises(PipelineError, match=r"no model .* run a retraining first"):
        demo_inbox.fill(bucket, (tmp_path / "inbox").as_uri(), count=3)

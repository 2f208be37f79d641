"""What became of corrections: the models that have learned from them, or the reason why none has."""

import pytest

from pipeline.captioner import registry
from pipeline.captioner.metadata import load_metadata
from pipeline.data import corrections
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.ops import correction_use
from pipeline.storage import json, layout, open_bucket
from tests.support import toy
from tests.support.models import write_model


@pytest.fixture
def source(tmp_path):
    """The toy world's pictures and captions."""
    source = open_bucket(str(tmp_path / "source"))
    toy.draw(source)
    return source


def correct(store, data, key, caption="a lovely square"):
    """Correct the caption of an image."""
    words = {"model_caption": "a dog", "model_version": "m1", "corrected_by": "ann"}
    return corrections.add(data, caption=caption, image_key=key, image_etag="1", store=store, **words)


def train(version, source, store):
    """A champion that was trained on the toy world and the corrections."""
    report = ingest([source.url("captions.csv")], store, name="toy", corrections=True)
    write_model(version, store)
    metadata = load_metadata(version, store).model_copy(update={"dataset": report.dataset})
    json.write(metadata, layout.model_metadata(version), store)
    registry.promote(version, store)


def found(store):
    """State, models and reason of each correction by its caption, the newest first."""
    listed = correction_use.list_corrections(store, limit=10)
    return [(each.correction.caption, each.state, each.learned_by, each.reason) for each in listed]


def test_each_correction_says_what_became_of_it(source, bucket):
    """Learned by which models, held out, replaced, withdrawn, or waiting: the truth about each, the newest first."""
    correct(bucket, toy.picture("red", 99), "a.jpg", "a red square")
    correct(bucket, source.get("pictures/red-5.jpg"), "held out.jpg")
    assert [reason for *_, reason in found(bucket)] == [correction_use.WAITS] * 2
    train("m1", source, bucket)
    train("m2", source, bucket)
    dataset_id = load_metadata("m1", bucket).dataset
    correct(bucket, toy.picture("blue", 99), "b.jpg", "a blue thing")
    correct(bucket, toy.picture("blue", 99), "b.jpg", "a blue square")
    correct(bucket, toy.picture("green", 99), "c.jpg", "a green square")
    correction_use.withdraw("c.jpg", by="bob", store=bucket)
    assert found(bucket) == [
        (None, "withdrawn", (), "it was withdrawn"),
        ("a green square", "withdrawn", (), "it was withdrawn"),
        ("a blue square", "counts", (), correction_use.WAITS),
        ("a blue thing", "replaced", (), "a later one replaces it"),
        (
            "a lovely square",
            "counts",
            (),
            f"no retraining learns from it: the photograph is in dev or test of {dataset_id}",
        ),
        ("a red square", "counts", ("m2", "m1"), ""),
    ]
    assert len(correction_use.list_corrections(bucket, limit=2)) == 2


def test_a_missing_dataset_is_no_obstacle(source, bucket, caplog):
    """What its models have learned from is not known, and the log says so."""
    correct(bucket, toy.picture("red", 99), "a.jpg")
    train("m1", source, bucket)
    write_model("m0", bucket)
    assert found(bucket)[0][2] == ("m1",)
    assert "it is not known what m0 have learned from" in caplog.text


def test_the_newest_version_of_an_image_is_withdrawn(bucket):
    """By its key; an uploaded picture by the key of its copy; an unknown one is an error that names it."""
    correct(bucket, toy.picture("red"), "a.jpg", "first")
    upload = corrections.add(
        toy.picture("blue"), caption="b", model_caption="", model_version="m", corrected_by="ann", store=bucket
    )
    assert correction_use.withdraw("a.jpg", by="bob", store=bucket).corrected_by == "bob"
    assert correction_use.withdraw(upload.picture, by="bob", store=bucket).image_key is None
    with pytest.raises(PipelineError, match=r"There is no correction of 'a\.jpg' to withdraw"):
        correction_use.withdraw("a.jpg", by="bob", store=bucket)

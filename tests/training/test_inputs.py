"""The inputs of a retraining: given ones, those of the champion, or those of the settings; and its record begins."""

import pytest

from pipeline.captioner.registry import promote
from pipeline.errors import PipelineError
from pipeline.training import inputs
from pipeline.work import runs
from tests.support.models import DATASET, write_model


def resolve(store, *, dataset="", encoder="", default_dataset="file:///data/demo", run="r1"):
    """The inputs, with defaults as from the settings."""
    return inputs.resolve(
        run,
        dataset=dataset,
        encoder=encoder,
        default_dataset=default_dataset,
        default_encoder="resnet50",
        store=store,
    )


def test_without_a_champion_the_settings_count(bucket):
    """The source of the captioned photographs and the encoder are those of the settings, and the text says so."""
    found = resolve(bucket)
    assert (found.dataset, found.encoder) == ("file:///data/demo", "resnet50")
    assert str(found) == (
        "dataset file:///data/demo, encoder resnet50 (from the settings, because there is no champion yet)"
    )


def test_the_champion_comes_before_the_settings(bucket):
    """Its dataset, by its id, and its encoder are used again."""
    write_model("v1", bucket)
    promote("v1", bucket)
    found = resolve(bucket)
    assert (found.sources, found.encoder) == ((DATASET,), "encoder-1")
    assert str(found) == f"dataset {DATASET}, encoder encoder-1 (as the champion v1)"


@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dataset": "s3://photos/a"}, ("s3://photos/a", None)),
        ({"encoder": "random"}, (None, "random")),
        ({"dataset": "s3://photos/a", "encoder": "random"}, ("s3://photos/a", "random")),
    ],
    ids=["dataset", "encoder", "both"],
)
def test_given_inputs_come_first(bucket, champion, given, expected):
    """Only an input that was not given has a default."""
    if champion:
        write_model("v1", bucket)
        promote("v1", bucket)
    defaults = (DATASET, "encoder-1") if champion else ("file:///data/demo", "resnet50")
    found = resolve(bucket, **given)
    assert (found.dataset, found.encoder) == tuple(
        one or default for one, default in zip(expected, defaults, strict=True)
    )
    assert bool(found.origin) is (len(given) == 1)


def test_the_record_begins(bucket):
    """The record of the run says that it is running, and on which inputs."""
    resolve(bucket, dataset="s3://photos/a", run="manual__2026-01-02T03:04:05+00:00")
    [record] = runs.list_records(runs.RETRAINING, bucket)
    assert record.run == "manual__2026-01-02T03:04:05+00:00"
    assert (record.status, record.dataset, record.encoder) == ("running", "s3://photos/a", "resnet50")
    assert (record.version, record.promoted, record.finished_at) == ("", False, None)


@pytest.mark.parametrize("place", ["dataset", "default_dataset"])
def test_several_sources_are_lines(bucket, place):
    """A path may have any other character; spaces around a line and empty lines are ignored."""
    found = resolve(bucket, **{place: " /data/Flickr 8k \r\n\n s3://photos/a,b;c|d\n"})
    assert found.sources == ("/data/Flickr 8k", "s3://photos/a,b;c|d")
    assert str(found).startswith("dataset /data/Flickr 8k, s3://photos/a,b;c|d, encoder resnet50")
    [record] = runs.list_records(runs.RETRAINING, bucket)
    assert record.dataset == "/data/Flickr 8k, s3://photos/a,b;c|d"


def test_without_any_source_no_run_begins(bucket):
    """An empty setting is an error that says what to fill in, before the run has a record."""
    with pytest.raises(PipelineError, match=r"the field Dataset, or set CAPTION_DATASET"):
        resolve(bucket, dataset=" \n", default_dataset="")
    assert list(runs.list_records(runs.RETRAINING, bucket)) == []

"""Evaluation: the test split captioned, scored and shown."""

import re

import pytest
import toy

from pipeline import evaluation
from pipeline.analysis import ErrorCount, LengthGroup, Rate
from pipeline.captioner import Caption, Captioner, load_metadata
from pipeline.errors import PipelineError
from pipeline.evaluation import Metrics, cider_on, evaluate, load_metrics, report_key
from pipeline.metrics import Agreement, Diversity, Scores
from pipeline.recipe import Search
from pipeline.storage import ObjectNotFoundError, open_bucket


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Score without Java, in a fraction of the time: the metrics' own tests run it."""
    monkeypatch.setattr("pipeline.java.available", lambda: False)


@pytest.fixture
def store(bucket, trained):
    """A store with the toy world's model, its encoder and features."""
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/")
    return bucket


def adopt(version, dataset_uri, source, target):
    """Copy a model under the name v2, as if it had been trained on another dataset."""
    for item in source.list(f"models/{version}/"):
        target.put(f"models/v2/{item.key.rpartition('/')[2]}", source.get(item.key))
    metadata = load_metadata(version, source).model_copy(update={"version": "v2", "dataset": dataset_uri})
    target.put("models/v2/metadata.json", metadata.model_dump_json().encode())


def test_metrics_and_report_are_written(trained, store):
    """The toy model's captions score near the best there is, and the store holds what was returned and the page."""
    version = trained.model.version
    metrics = evaluate(version, store=store, search=Search(beam_width=3), max_failed_fraction=0)
    assert load_metrics(version, store) == metrics
    assert (metrics.version, metrics.dataset, metrics.images) == (version, trained.inputs.dataset, 4)
    assert set(metrics.scores) == {"greedy", "chosen"}
    assert set(metrics.diversity) == {"greedy", "chosen", "people"}
    assert set(metrics.scores["chosen"].image_cider) == {f"{colour}-5.jpg" for colour in toy.COLOURS}
    assert metrics.cider == metrics.summary["CIDEr"] > 3
    assert metrics.summary["BLEU-1"] == pytest.approx(1)
    assert metrics.diversity["chosen"].distinct_captions == 1

    # In the toy world people say nothing new, and neither they nor the captioner are wrong.
    assert metrics.diversity["people"].novel_captions == 0
    assert (metrics.agreement.images, metrics.agreement.images_left_out) == (4, 0)
    assert metrics.agreement.captioner["BLEU-1"] > metrics.agreement.people["BLEU-1"]
    assert sum(group.images for group in metrics.by_length) == 4
    assert metrics.errors["colour"].captioner == Rate(checked=4, wrong=0)
    assert metrics.errors["colour"].people == Rate(checked=8, wrong=0)

    page = store.get(report_key(version)).decode()
    for text in (version, trained.inputs.encoder_id, "beam 3", "greedy", "red-5.jpg", "a yellow square"):
        assert text in page
    # Four pictures in each of three grids: best, worst, any.
    assert len(re.findall("data:image/jpeg;base64,", page)) == 12


def test_wrong_captions_are_shown_with_their_word(trained, store, monkeypatch):
    """A captioner that takes everything for red is wrong in three of four, and the page shows which."""
    monkeypatch.setattr(
        Captioner,
        "caption",
        lambda self, features, search: [Caption("a red square", -1.0, 0.5)] * len(features),
    )
    metrics = evaluate(trained.model.version, store=store, search=Search(beam_width=2), max_failed_fraction=0)
    colour = metrics.errors["colour"]
    assert (colour.captioner, colour.words) == (Rate(checked=4, wrong=3), {"red": 3})
    assert {case.image for case in colour.cases} == {"blue-5.jpg", "green-5.jpg", "yellow-5.jpg"}
    page = store.get(report_key(trained.model.version)).decode()
    assert "75.0 % (3 of 4)" in page
    assert page.count("“red”") == 3


def test_every_field_of_the_metrics_is_described():
    """Whoever reads metrics.json finds in the model what each number is."""
    for model in (Metrics, Scores, Agreement, Diversity, LengthGroup, ErrorCount, Rate):
        assert all(field.description for field in model.model_fields.values()), model


def test_both_searches_are_scored(trained, store, monkeypatch):
    """Greedy search is that of one beam, beam search has the width asked for, and each has its own captions' scores."""
    monkeypatch.setattr(
        Captioner,
        "caption",
        lambda self, features, search: (
            [Caption(" ".join(["a red square"] * search.beam_width), -1.0, 0.5)] * len(features)
        ),
    )
    metrics = evaluate(trained.model.version, store=store, search=Search(beam_width=4), max_failed_fraction=0)
    assert (metrics.diversity["greedy"].mean_length, metrics.diversity["chosen"].mean_length) == (3, 12)
    assert metrics.summary["BLEU-1"] < metrics.scores["greedy"].corpus["BLEU-1"]


def test_features_of_another_dataset_are_extracted(tmp_path, trained, bucket, toy_encoder):
    """On a dataset that it has never seen, a model's CIDEr is what evaluating it there would give."""
    source = open_bucket(str(tmp_path / "source"))
    elsewhere = toy.prepare(source, open_bucket(str(tmp_path / "elsewhere")), toy_encoder)
    toy.copy(trained.store, bucket, "encoders/")
    adopt(trained.model.version, elsewhere.dataset, trained.store, bucket)
    ask = {"search": Search(beam_width=2), "store": bucket, "max_failed_fraction": 0}

    with pytest.raises(PipelineError, match="4 of 4 images have no features"):
        evaluate("v2", **ask)
    value = cider_on(elsewhere.dataset, "v2", **ask)
    # Only the test split is needed.
    [shard] = bucket.list("features/")
    assert evaluation.features.index(elsewhere.encoder_id, bucket).num_rows == 4
    assert evaluate("v2", **ask).cider == pytest.approx(value)

    assert cider_on(elsewhere.dataset, "v2", **ask) == value
    assert list(bucket.list("features/")) == [shard]


def test_a_photograph_that_has_gone_is_grey(tmp_path, trained, toy_encoder):
    """Features outlive their pictures: without these the scores are the same, and the report shows a grey square."""
    source, store = open_bucket(str(tmp_path / "source")), open_bucket(str(tmp_path / "store"))
    inputs = toy.prepare(source, store, toy_encoder)
    adopt(trained.model.version, inputs.dataset, trained.store, store)
    before = evaluate("v2", store=store, search=Search(beam_width=1), max_failed_fraction=0)
    pictures = store.get(report_key("v2")).count(b"data:image/jpeg")
    for colour in toy.COLOURS:
        source.delete(f"pictures/{colour}-5.jpg")
    assert evaluate("v2", store=store, search=Search(beam_width=1), max_failed_fraction=0).scores == before.scores
    thumbnails = re.findall(r"data:image/jpeg;base64,[\w+/=]+", store.get(report_key("v2")).decode())
    assert (len(thumbnails), len(set(thumbnails))) == (pictures, 1)


def test_without_evaluation_there_are_no_metrics(trained, bucket):
    """Asking for the scores of a model that was not evaluated, or for those of no model, is an error."""
    with pytest.raises(ObjectNotFoundError, match=r"models/v9/metrics\.json"):
        load_metrics("v9", bucket)
    with pytest.raises(PipelineError, match="no model 'v9'"):
        evaluate("v9", store=bucket, search=Search(beam_width=1), max_failed_fraction=0)

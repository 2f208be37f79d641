"""Evaluation: the test split captioned, scored, analyzed and shown, with a place for each dataset and decoding."""

import io
import logging
import re

import pytest
from PIL import Image

from pipeline import progress
from pipeline.captioner.captioner import Caption, Captioner
from pipeline.captioner.metadata import load_metadata
from pipeline.config import GREEDY, DecodingConfig
from pipeline.data.dataset import load
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.evaluation.drift import Profile
from pipeline.evaluation.error_analysis import ErrorCount, LengthGroup, Rate
from pipeline.evaluation.evaluate import _thumbnail, evaluate_model
from pipeline.evaluation.results import Metrics, find_metrics, latest_metrics, read_captions
from pipeline.features import store as feature_store
from pipeline.metrics.coco import Agreement, Diversity, HumanBaseline, Scorer, Scores
from pipeline.storage import (
    ObjectArchivedError,
    ObjectChangedError,
    ObjectDeniedError,
    json,
    layout,
    open_bucket,
)
from tests.support import toy
from tests.support.loading import load_once

BEAM = DecodingConfig(beam_width=2)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    load_once(monkeypatch)


@pytest.fixture
def store(bucket, trained):
    """A store with the model of the toy world, its dataset, encoder and features."""
    toy.copy(trained.store, bucket, "models/", "encoders/", "features/", "datasets/")
    return bucket


@pytest.fixture
def local_store(tmp_path, trained):
    """The same in a folder."""
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "models/", "encoders/", "features/", "datasets/")
    return store


def evaluate(version, store, decoding=BEAM, dataset_id=None, *, max_failed_fraction=0):
    """Evaluate a model; its metrics, and its report as text."""
    metrics = evaluate_model(
        version, store=store, decoding=decoding, max_failed_fraction=max_failed_fraction, dataset_id=dataset_id
    )
    return metrics, store.get(layout.evaluation(version, metrics.dataset, decoding).report).decode()


def copy_as(version, dataset_id, source, target):
    """Copy a model under the version v2, as if it had been trained on another dataset."""
    for item in source.list(f"{layout.model_folder(version)}/"):
        target.put(item.key.replace(version, "v2"), source.get(item.key))
    metadata = load_metadata(version, source).model_copy(update={"version": "v2", "dataset": dataset_id})
    json.write(metadata, layout.model_metadata("v2"), target)


def other_dataset(tmp_path, store, seed=50):
    """The id of another dataset of coloured squares in the store; its features have not been extracted."""
    source = open_bucket(str(tmp_path / f"source-{seed}"))
    return ingest([toy.draw(source, seed=seed)], store, name="other").dataset


def test_metrics_and_report_are_written(trained, store):
    """The captions of the toy model score nearly the maximum, and the store holds metrics, report and captions."""
    version = trained.model.version
    decoding = DecodingConfig(beam_width=3)
    metrics, report = evaluate(version, store, decoding)
    assert find_metrics(version, trained.inputs.dataset, decoding, store) == metrics
    assert (metrics.version, metrics.dataset, metrics.images) == (version, trained.inputs.dataset, 4)
    assert metrics.decoding == decoding
    assert set(metrics.scores) == {"greedy", "chosen"}
    assert set(metrics.diversity) == {"greedy", "chosen", "human"}
    images = {f"{colour}-5.jpg" for colour in toy.COLOURS}
    assert set(metrics.scores["chosen"].image_cider) == images
    assert metrics.cider == metrics.summary["CIDEr"] > 3
    assert metrics.summary["BLEU-1"] == pytest.approx(1)
    assert metrics.diversity["chosen"].distinct_captions == 1

    # In the toy world humans write nothing new, and neither they nor the captioner are wrong.
    assert metrics.diversity["human"].novel_captions == 0
    assert (metrics.agreement.images, metrics.agreement.images_left_out) == (4, 0)
    assert metrics.agreement.captioner["BLEU-1"] > metrics.agreement.human["BLEU-1"]
    assert sum(group.images for group in metrics.by_length) == 4
    assert metrics.errors["colour"].captioner == Rate(checked=4, wrong=0)
    assert metrics.errors["colour"].human == Rate(checked=8, wrong=0)

    for text in (version, trained.inputs.encoder_id, "beam 3", "greedy", "red-5.jpg", "a yellow square"):
        assert text in report
    # Four pictures in each of three grids: best, worst, random.
    assert len(re.findall("data:image/jpeg;base64,", report)) == 12

    rows = read_captions(metrics, store)
    assert {row["image_id"] for row in rows} == images
    identity = ("image_id", "image_key", "image_etag")
    known = {tuple(row[name] for name in identity) for row in load(metrics.dataset, store).table.to_pylist()}
    assert {tuple(row[name] for name in identity) for row in rows} < known
    for row in rows:
        colour = row["image_id"].partition("-")[0]
        assert colour in row["caption"]
        assert row["references"] == [f"a {colour} square", f"the whole picture is {colour}"]
    profile = json.read(Profile, layout.evaluation(version, metrics.dataset, decoding).profile, store)
    assert (profile.captioned, profile.failed, profile.decoding) == (4, 0, decoding)


def test_the_log_says_what_takes_long(trained, store, caplog, monkeypatch):
    """Each step, within the captioning how much is done, and the scores by decoding."""
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level(logging.INFO)
    evaluate(trained.model.version, store)
    steps = (
        "captioning 4 test images: beam 2, 20 neighbours",
        "4 of 4 captions",
        "captioning them again: greedy",
        "scoring the captions",
        "scoring the human captions against each other",
        "greedy: ",
        "beam 2, 20 neighbours: ",
        "writing the report",
        "report: ",
    )
    logged = iter(record.getMessage() for record in caplog.records)
    assert [step for step in steps if any(line.startswith(step) for line in logged)] == list(steps)


def test_wrong_captions_are_shown_with_their_word(trained, store, monkeypatch):
    """A captioner that calls everything red is wrong about three of four pictures, and the report shows which."""
    monkeypatch.setattr(
        Captioner, "caption", lambda self, features, decoding: [Caption("a red square", -1.0, 0.5)] * len(features)
    )
    metrics, report = evaluate(trained.model.version, store)
    colour = metrics.errors["colour"]
    assert (colour.captioner, colour.words) == (Rate(checked=4, wrong=3), {"red": 3})
    assert {case.image for case in colour.cases} == {"blue-5.jpg", "green-5.jpg", "yellow-5.jpg"}
    assert "75.0 % (3 of 4)" in report
    assert report.count("“red”") == 3


def test_every_field_of_the_metrics_is_described():
    """The models of metrics.json say what each number is."""
    for model in (Metrics, Scores, Agreement, Diversity, LengthGroup, ErrorCount, Rate):
        assert all(field.description for field in model.model_fields.values()), model


def test_greedy_search_and_the_chosen_decoding_are_scored(trained, store, monkeypatch):
    """Greedy search has a beam of 1, the chosen decoding the given width, and each its own scores."""
    monkeypatch.setattr(
        Captioner,
        "caption",
        lambda self, features, decoding: (
            [Caption(" ".join(["a red square"] * decoding.beam_width), -1.0, 0.5)] * len(features)
        ),
    )
    metrics, _ = evaluate(trained.model.version, store, DecodingConfig(beam_width=4))
    assert (metrics.diversity["greedy"].mean_length, metrics.diversity["chosen"].mean_length) == (3, 12)
    assert metrics.summary["BLEU-1"] < metrics.scores["greedy"].corpus["BLEU-1"]


def test_each_dataset_and_decoding_has_its_own_evaluation(tmp_path, trained, store):
    """Another decoding, or another dataset, changes no object of an earlier evaluation; the same replaces it."""
    version = trained.model.version
    other = other_dataset(tmp_path, store)
    first, _ = evaluate(version, store)
    prefix = layout.evaluations(version)
    before = toy.etags(store, prefix)
    assert len(before) == 4
    second, _ = evaluate(version, store, GREEDY)
    third, _ = evaluate(version, store, dataset_id=other)
    after = toy.etags(store, prefix)
    assert {key: after[key] for key in before} == before
    folders = {key.removeprefix(prefix).partition("/")[0] for key in after}
    own, others = (dataset_id.replace("/", "-") for dataset_id in (trained.inputs.dataset, other))
    assert folders == {f"{own}-beam2-near20", f"{own}-greedy", f"{others}-beam2-near20"}
    for metrics in (first, second, third):
        assert find_metrics(version, metrics.dataset, metrics.decoding, store) == metrics
    assert find_metrics(version, other, GREEDY, store) is None
    # The evaluation on another dataset does not count as the model's own.
    assert latest_metrics(trained.model, store) == second
    again, _ = evaluate(version, store)
    assert toy.etags(store, prefix).keys() == after.keys()
    assert latest_metrics(trained.model, store) == again


def test_an_interrupted_evaluation_is_none(trained, local_store, monkeypatch):
    """The metrics are written last: an evaluation that dies before is not found, whatever else it has written."""
    version, put = trained.model.version, local_store.put

    def die(key, data, **options):
        if key.endswith("/metrics.json"):
            raise KeyboardInterrupt
        return put(key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local_store, "put", die)
        with pytest.raises(KeyboardInterrupt):
            evaluate(version, local_store)
    names = {key.rpartition("/")[2] for key in toy.etags(local_store, layout.evaluations(version))}
    assert names == {"captions.parquet", "report.html", "profile.json"}
    assert find_metrics(version, trained.inputs.dataset, BEAM, local_store) is None
    assert latest_metrics(trained.model, local_store) is None
    metrics, _ = evaluate(version, local_store)
    assert latest_metrics(trained.model, local_store) == metrics


def test_features_of_another_dataset_are_extracted(tmp_path, trained, store):
    """On a dataset that the model has never seen, the missing features of the test split are extracted, once."""
    version = trained.model.version
    other = other_dataset(tmp_path, store)
    known = len(feature_store.index(trained.inputs.encoder_id, store))
    metrics, _ = evaluate(version, store, dataset_id=other)
    assert (metrics.dataset, metrics.images) == (other, 4)
    # Only the test split is needed.
    assert len(feature_store.index(trained.inputs.encoder_id, store)) == known + 4
    features = toy.etags(store, "features/")

    # The scores are those of a model that was trained on this dataset.
    copy_as(version, other, trained.store, store)
    own, _ = evaluate("v2", store)
    assert (own.scores, own.errors, own.diversity) == (metrics.scores, metrics.errors, metrics.diversity)
    assert toy.etags(store, "features/") == features


def test_too_many_failed_test_images_are_an_error(tmp_path, trained, local_store):
    """Images whose features can't be extracted count: too many are an error, and fewer are left out of the scores."""
    source = open_bucket(str(tmp_path / "source"))
    table = toy.draw(source, seed=50, broken=("red-5.jpg",))
    other = ingest([table], local_store, name="other").dataset
    version = trained.model.version
    with pytest.raises(PipelineError, match=r"1 of 4 images failed, more than the allowed 0%.*red-5\.jpg"):
        evaluate(version, local_store, dataset_id=other)
    assert find_metrics(version, other, BEAM, local_store) is None
    metrics, _ = evaluate(version, local_store, dataset_id=other, max_failed_fraction=0.25)
    assert metrics.images == 3
    profile = json.read(Profile, layout.evaluation(version, other, BEAM).profile, local_store)
    assert (profile.captioned, profile.failed) == (3, 1)


def test_the_report_has_the_sources(tmp_path, trained, local_store):
    """If the dataset comes from several, their counts are below the heading; if not, nothing is said of sources."""
    tables = [toy.draw(open_bucket(str(tmp_path / name)), seed=seed) for name, seed in [("one", 50), ("two", 90)]]
    for sources in (tables, tables[:1]):
        found = ingest(sources, local_store, name="other")
        _, report = evaluate(trained.model.version, local_store, GREEDY, dataset_id=found.dataset)
        for table in tables:
            text = f"{table}: 24 images, 48 captions, 0 dropped"
            assert (text in report) is (sources == tables)


def test_a_removed_photograph_is_grey(tmp_path, trained, toy_encoder):
    """Features outlive their pictures: without these the scores are the same, and the report shows grey squares."""
    source, store = open_bucket(str(tmp_path / "source")), open_bucket(str(tmp_path / "store"))
    inputs = toy.prepare(source, store, toy_encoder)
    copy_as(trained.model.version, inputs.dataset, trained.store, store)
    before, report = evaluate("v2", store, GREEDY)
    for colour in toy.COLOURS:
        source.delete(f"pictures/{colour}-5.jpg")
    after, without = evaluate("v2", store, GREEDY)
    assert after.scores == before.scores
    thumbnails = re.findall(r"data:image/jpeg;base64,[\w+/=]+", without)
    assert (len(thumbnails), len(set(thumbnails))) == (report.count("data:image/jpeg"), 1)


@pytest.mark.parametrize("error", [ObjectChangedError, ObjectDeniedError, ObjectArchivedError, PipelineError])
def test_a_photograph_that_can_no_longer_be_read_is_grey(local_store, monkeypatch, error):
    """Whatever the storage says, the report does not fail for one picture."""

    def refuse(*_, **__):
        raise error("not now")

    monkeypatch.setattr(type(local_store), "get", refuse)
    with Image.open(io.BytesIO(_thumbnail(local_store, "a.jpg", "etag"))) as picture:
        assert picture.getextrema() == ((128, 128),) * 3


def test_the_human_baseline_is_computed_once(tmp_path, trained, local_store, monkeypatch):
    """Other decodings and models use the stored baseline of a dataset; other references have another."""
    computed, compute = [], Scorer.human_baseline
    monkeypatch.setattr(Scorer, "human_baseline", lambda scorer: computed.append(1) or compute(scorer))
    version, dataset_id = trained.model.version, trained.inputs.dataset
    first, _ = evaluate(version, local_store)
    assert local_store.exists(layout.human_baseline(dataset_id, "builtin"))
    copy_as(version, dataset_id, trained.store, local_store)
    second, _ = evaluate("v2", local_store, GREEDY)
    assert len(computed) == 1
    assert second.agreement.human == first.agreement.human

    evaluate(version, local_store, dataset_id=other_dataset(tmp_path, local_store))
    assert len(computed) == 2
    # A stored baseline of other references is not used.
    key = layout.human_baseline(dataset_id, "builtin")
    stored = json.read(HumanBaseline, key, local_store)
    json.write(stored.model_copy(update={"references": "0" * 16}), key, local_store)
    evaluate(version, local_store)
    assert len(computed) == 3
    assert json.read(HumanBaseline, key, local_store) == stored


def test_an_evaluation_has_one_scorer(trained, local_store, monkeypatch):
    """One for all captions and the human baseline, which has two processes of Java, as ``test_coco`` shows."""
    scorers, make = [], Scorer.__init__

    def count(scorer, *arguments, **options):
        scorers.append(scorer)
        make(scorer, *arguments, **options)

    monkeypatch.setattr(Scorer, "__init__", count)
    evaluate(trained.model.version, local_store)
    assert len(scorers) == 1


def test_no_such_model(bucket):
    """The error says where models are listed."""
    with pytest.raises(PipelineError, match=r"no model 'v9'.*`captioning status`"):
        evaluate("v9", bucket)


def test_no_such_dataset(trained, local_store):
    """The error says where datasets are listed."""
    with pytest.raises(PipelineError, match=r"no dataset none/0123456789abcdef .*`captioning datasets`"):
        evaluate(trained.model.version, local_store, dataset_id="none/0123456789abcdef")

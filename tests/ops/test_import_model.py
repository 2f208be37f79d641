"""A champion moves between stores: it captions, and is judged, there as here, whatever interrupts the import."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.captioner import bundle, registry
from pipeline.captioner.metadata import load_metadata
from pipeline.data import corrections
from pipeline.data import dataset as datasets
from pipeline.data.ingest import ingest
from pipeline.errors import PipelineError
from pipeline.evaluation import card
from pipeline.evaluation.drift import test_profile as profile_of_test
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.promotion_gate import GateConfig, run_gate
from pipeline.evaluation.results import candidate_metrics, comparable_metrics
from pipeline.features import encoder, extraction, openvino, quantization
from pipeline.features import store as feature_store
from pipeline.features.splits import read_split
from pipeline.ops import correction_use, forget, import_model, overview, status
from pipeline.ops import prune as pruning
from pipeline.storage import LocalBucket, ObjectChangedError, json, layout, open_bucket, parquet
from pipeline.training import inputs
from pipeline.work import runs
from tests.support import toy
from tests.support.loading import load_once
from tests.support.memory import CrashError, MemoryBucket
from tests.support.models import BEAM, write_evaluation, write_model
from tests.support.nights import night, rows_in

REASON = "the first champion, CIDEr 9.000"


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    load_once(monkeypatch)


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """A store with an evaluated champion, in a folder: only to be copied from."""
    store = open_bucket(str(tmp_path_factory.mktemp("staging")))
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        toy.copy(trained.store, store, "")
        evaluate_model(trained.model.version, store=store, decoding=BEAM, max_failed_fraction=0)
    registry.promote(trained.model.version, store, run="r", reason=REASON)
    return store


@pytest.fixture
def staging(made, new_bucket):
    """A copy of that store."""
    store = new_bucket()
    toy.copy(made, store, "")
    return store


@pytest.fixture
def production(new_bucket):
    """An empty store."""
    return new_bucket()


def contents(store):
    """All objects of a store, by key; of the champion's pointer what does not depend on the time."""
    found = {item.key: store.get(item.key) for item in store.list() if item.key != layout.CHAMPION}
    champion = registry.find_champion(store)
    return found | {layout.CHAMPION: champion and [(each.version, each.reason) for each in champion.history]}


def move(staging, production, version=None, **options):
    """Import a model into production; the number of objects copied."""
    return import_model.import_model(version, source=staging, target=production, **options).copied


def correct_an_upload(caption, store):
    """Somebody corrects the caption of a picture that is in no inbox."""
    corrections.add(
        toy.picture("blue", 70),
        caption=caption,
        model_caption="a blue square",
        model_version="m",
        corrected_by="ada",
        store=store,
    )


def texts(store):
    """The captions in a store, by image."""
    return {row["image_key"]: (row["caption"], row["log_prob"]) for row in rows_in(store)}


def copy_as(version, store, **changes):
    """Copy the champion of a store under another version, with changes to its metadata."""
    champion = load_metadata(registry.read_champion(store).version, store)
    for item in list(store.list(f"{layout.model_folder(champion.version)}/")):
        store.put(item.key.replace(champion.version, version), store.get(item.key))
    metadata = champion.model_copy(update={"version": version, **changes})
    json.write(metadata, layout.model_metadata(version), store)


@pytest.mark.all_buckets
def test_a_champion_goes_to_production(staging, production, inbox, trained):
    """It writes the same captions there, from the same encoder, and the gallery shows the same model."""
    version, before = trained.model.version, toy.etags(staging, "")
    assert move(staging, production) > 10
    assert toy.etags(staging, "") == before
    [promotion] = registry.read_champion(production).history
    assert (promotion.version, promotion.reason) == (version, f"imported: {REASON}")
    for store in (staging, production):
        assert night("n1", inbox, store, max_failed_fraction=0).captioned == 4
    assert texts(production) == texts(staging)
    model = load_metadata(version, production)
    assert overview.report(model, production) == overview.report(model, staging)
    [here], [there] = (
        overview.models(store, registry.find_champion(store), limit=9, damaged=[]) for store in (staging, production)
    )
    assert (here.metadata, here.metrics) == (there.metadata, there.metrics)
    assert profile_of_test(version, BEAM, production) == profile_of_test(version, BEAM, staging)
    status.show(production, limit=3, under="")


@pytest.mark.all_buckets
def test_nothing_is_copied_twice(staging, production, inbox):
    """A repeated import writes nothing; one after another evaluation copies this alone; and what was damaged."""
    move(staging, production)
    night("n1", inbox, production)
    before = contents(production)
    assert move(staging, production) == 0
    assert contents(production) == before
    version = registry.read_champion(staging).version
    evaluate_model(version, store=staging, decoding=BEAM.model_copy(update={"beam_width": 2}), max_failed_fraction=0)
    assert move(staging, production) == 4
    [model] = [item.key for item in production.list(layout.MODELS) if item.key.endswith(".keras")]
    [network] = [item.key for item in production.list(layout.ENCODERS) if item.key.endswith(".bin")]
    production.put(model, b"damaged")
    production.put(network, b"damaged")
    assert move(staging, production) == 3  # the encoder is registered again
    assert before.pop(layout.model_card(version)) != production.get(layout.model_card(version))
    assert contents(production).items() >= before.items()


def test_a_retraining_by_default_in_production(staging, production, inbox, trained):
    """It reads no photograph, learns from production's corrections, and is compared with the imported champion."""
    correct_an_upload("never seen in production", staging)
    move(staging, production)
    for item in list(inbox.list()):
        corrections.add(
            inbox.get(item.key),
            caption="corrected in production",
            model_caption="a square",
            model_version=trained.model.version,
            corrected_by="ada",
            image_key=item.key,
            image_etag=item.etag,
            store=production,
        )
    assert {use.reason for use in correction_use.list_corrections(production)} == {correction_use.WAITS}
    found = inputs.resolve("r1", dataset="", encoder="", default_dataset="x", default_encoder="x", store=production)
    assert (found.dataset, found.encoder) == (trained.inputs.dataset, trained.inputs.encoder_id)
    dataset_id = ingest(list(found.sources), production, corrections=True).dataset
    table = datasets.load(dataset_id, production).table
    assert len(table) == 28
    assert "corrected in production" in str(table["captions"]) and "never seen" not in str(table["captions"])
    planned = [
        len(extraction.plan_extraction(images, run="r1", source=source, encoder_id=found.encoder, store=production,
                                       shard_size=9))
        for source, images in sorted(datasets.listings_by_source(table).items(), key=lambda each: "store:" in each[0])
    ]  # fmt: skip
    assert planned == [0, 1]
    for shard in runs.recorded_shards("r1", runs.EXTRACTION, production):
        extraction.extract(shard, store=production)
    datasets.build_vocabulary(dataset_id, production, min_count=1)
    copy_as("v2", production, dataset=dataset_id)
    metrics = evaluate_model("v2", store=production, decoding=BEAM, max_failed_fraction=0)
    assert comparable_metrics(trained.model.version, metrics, production) is not None
    record = run_gate("v2", run="r1", decoding=BEAM, config=GateConfig(floor=0), store=production)
    assert (record.promoted, f"of the champion {trained.model.version}" in record.reason) == (True, True)


def test_a_rollback_in_production(staging, production):
    """The champion before is the champion again; the history says why each was promoted."""
    write_model("v0", production)
    registry.promote("v0", production)
    move(staging, production)
    assert [each.reason for each in registry.read_champion(production).history] == ["by hand", f"imported: {REASON}"]
    assert registry.roll_back(production).version == "v0"


def test_a_model_is_only_copied(staging, production, trained):
    """Without a promotion the champion stays, and the model can be judged or promoted as any other."""
    write_model("v0", production)
    registry.promote("v0", production)
    copy_as("v2", staging)
    write_evaluation("v2", staging, cider=0.5, dataset=trained.inputs.dataset)
    staging.put(layout.evaluation("v2", trained.inputs.dataset, BEAM).report, b"<html>")
    move(staging, production, "v2", promote=False)
    assert registry.read_champion(production).version == "v0"
    assert candidate_metrics("v2", BEAM, production).cider == 0.5
    move(staging, production, "v2")
    assert registry.read_champion(production).history[-1].reason == "imported"


def test_the_card_is_about_what_was_copied(staging, production, trained):
    """It is the same as in the other store, but for evaluations on other datasets, which are not copied."""
    version = trained.model.version
    key, before = layout.model_card(version), staging.get(layout.model_card(version))
    write_evaluation(version, staging, cider=0.5)
    card.write(trained.model, staging)
    assert staging.get(key) != before
    move(staging, production)
    assert production.get(key) == before


def test_what_is_about_the_other_inbox_stays(staging, production, inbox):
    """Neither captions nor features of its photographs, neither runs nor corrections are copied."""
    night("n1", inbox, staging)
    correct_an_upload("a ball", staging)
    move(staging, production)
    assert {item.key.partition("/")[0] for item in production.list()} == {"datasets", "encoders", "features", "models"}
    keys = feature_store.index(load_metadata(registry.read_champion(staging).version, staging).encoder_id, production)
    assert len(keys) == 24 and not set(keys["image_key"].to_pylist()) & {item.key for item in inbox.list()}
    assert not any(staging.uri.encode() in production.get(item.key) for item in production.list())


def test_an_import_that_dies_at_any_write_is_repeated(made, trained):
    """Until the last write the old champion stays, a model that can be seen is whole, and the result is the same."""
    version = trained.model.version
    source = MemoryBucket("staging")
    toy.copy(made, source, "")

    store = MemoryBucket("production")
    write_model("v0", store)
    registry.promote("v0", store)
    before = dict(store.objects)
    move(source, store)
    expected, writes = contents(store), 0
    for write in itertools.count(1):
        store.objects = dict(before)
        store.crash_in, store.crash_after_write = write, write % 2 == 0
        try:
            move(source, store)
            break
        except CrashError:
            writes += 1
        store.crash_in = None
        if registry.read_champion(store).version == version or store.exists(layout.model_metadata(version)):
            bundle.load(version, store)
            encoder.check(trained.inputs.encoder_id, store)
            assert candidate_metrics(version, BEAM, store)
        move(source, store)
        assert contents(store) == expected
    assert writes == len(expected) - 1  # v0 was there, and the pointer is written once more


def test_a_promotion_at_the_same_moment(staging, production, monkeypatch):
    """One is refused, and the import can be repeated."""
    write_model("v0", production)
    put = type(production).put

    def put_late(self, key, data, **options):
        if key == layout.CHAMPION and options.get("if_match") == "absent":
            monkeypatch.undo()
            registry.promote("v0", production)
        return put(self, key, data, **options)

    monkeypatch.setattr(type(production), "put", put_late)
    with pytest.raises(ObjectChangedError):
        move(staging, production)
    assert registry.read_champion(production).version == "v0"
    assert move(staging, production) == 0
    assert registry.roll_back(production).version == "v0"


@pytest.mark.all_buckets
def test_what_can_not_be_imported(staging, production, new_bucket, tmp_path):
    """The store itself, one that is not there, one without a champion, and an unknown version: nothing is written."""
    with pytest.raises(PipelineError, match=r"is the store itself: give the address of the other store"):
        move(staging, open_bucket(f"{staging.uri}/"))
    with pytest.raises(PipelineError, match="does not exist"):
        move(LocalBucket(tmp_path / "typo"), production)
    empty = new_bucket()
    empty.put("notes.txt", b"")
    with pytest.raises(
        PipelineError, match=f"No model has been promoted in {empty.uri}: check that this is the address"
    ):
        move(empty, production)
    with pytest.raises(
        PipelineError, match=f"There is no model 'v9' in {staging.uri}.*`CAPTION_STORE={staging.uri} captioning status`"
    ):
        move(staging, production, "v9")
    assert list(production.list()) == []


def half(data):
    """The first half of an object."""
    return data[: len(data) // 2]


def overwritten(data):
    """An object in whose beginning, where features are, zeros are written."""
    return data[:9] + bytes(40) + data[49:]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("encoders/.*bin", half, "is not the file that was saved.*Register the encoder again"),
        ("encoders/.*files.json", half, "is damaged, or not a document of this kind"),
        ("datasets/.*dataset.parquet", half, "is damaged, or not a Parquet file"),
        ("features/", overwritten, "(?s)is damaged.*Delete it: its images are then pending"),
        ("models/.*keras", half, "is not the file that was saved"),
        ("models/.*vocabulary", half, "is not the file that was saved"),
        ("models/.*captions.parquet", half, "captions.parquet is damaged.*captioning evaluate"),
        ("models/.*profile.json", half, "profile.json is damaged.*captioning evaluate"),
        ("models/.*metrics.json", half, "metrics.json is damaged.*captioning evaluate"),
        ("models/.*metadata.json", half, "is damaged, or not a document of this kind"),
        ("models/.*keras", None, "is missing"),
        ("datasets/.*dataset.parquet", None, "There is no dataset toy/"),
        ("models/.*report.html", None, "no object .*report.html"),
    ],
)
def test_a_damaged_source(made, name, damage, message):
    """The error names the object, no model can be seen, and when it is mended the import is complete."""
    source, production = MemoryBucket("staging"), MemoryBucket("production")
    toy.copy(made, source, "")
    key = next(item.key for item in source.list() if re.match(name, item.key))
    data = source.objects.pop(key)
    if damage:
        source.put(key, damage(data))
    with pytest.raises(PipelineError, match=message):
        move(source, production)
    assert not any(layout.model_of_metadata(item.key) for item in production.list())
    source.put(key, data)
    move(source, production)
    bundle.load(registry.read_champion(production).version, production)


def test_another_model_of_the_version(staging, production):
    """It is not replaced, and nothing is written."""
    version = registry.read_champion(staging).version
    write_model(version, production)
    before = contents(production)
    with pytest.raises(PipelineError, match=f"{version}/metadata.json describes another model than "):
        move(staging, production)
    assert contents(production) == before


def test_an_encoder_in_8_bit_integers(made, trained, monkeypatch):
    """It is copied as it is; one of the same id that was calibrated on other pictures is an error."""
    monkeypatch.setattr(openvino, "quantize", lambda network, pictures: network)
    staging, production, other = (MemoryBucket(name) for name in ("staging", "production", "other"))
    toy.copy(made, staging, "")
    exact = trained.inputs.encoder_id
    encoder_id = quantization.quantize(exact, trained.inputs.dataset, staging)
    for key in [key for key in staging.objects if key.startswith(layout.features_folder(exact))]:
        staging.objects[key.replace(exact, encoder_id)] = staging.objects[key]
        staging.times[key.replace(exact, encoder_id)] = staging.times[key]
    copy_as("v8", staging, encoder_id=encoder_id)
    move(staging, production, "v8")
    encoder.load(encoder_id, production)
    assert not production.exists(layout.encoder_files(exact))
    encoder.save_network(encoder_id, openvino.Network(b"other", b"other"), other)
    before = contents(other)
    with pytest.raises(PipelineError, match=f"has another encoder {encoder_id} than .* calibrated on different pict"):
        move(staging, other, "v8")
    assert contents(other) == before


def test_an_ensemble_on_several_crops(made, trained, toy_encoder):
    """All its models and the features of all crops are there."""
    staging, production = MemoryBucket("staging"), MemoryBucket("production")
    toy.copy(made, staging, "datasets/", "models/")
    encoder_id, dataset = encoder.register(str(toy_encoder), staging, crops=True), trained.inputs.dataset
    for source, images in datasets.listings_by_source(datasets.load(dataset, staging).table).items():
        extraction.extract_missing(images, run="r", source=source, encoder_id=encoder_id, store=staging)
    captioner, metadata = bundle.load(trained.model.version, staging)
    changes = {"version": "v2", "encoder_id": encoder_id, "ensemble": [*metadata.ensemble, *metadata.ensemble]}
    two = bundle.load_models(metadata, staging) * 2
    saved = bundle.save(two, captioner.vocabulary, captioner.neighbours, metadata.model_copy(update=changes), staging)
    move(staging, production, "v2")
    loaded, _ = bundle.load("v2", production)
    assert len(bundle.load_models(saved, production)) == 2
    here, there = (
        read_split(
            datasets.load(dataset, store), "test", encoder_id=encoder_id, store=store, max_failed_fraction=0
        ).features
        for store in (production, staging)
    )
    assert here.vectors.shape == (4, 6, 3)
    np.testing.assert_array_equal(here.vectors, there.vectors)
    assert len(loaded.caption(here, BEAM)) == 4


def test_the_features_that_a_store_lacks(staging, production, trained):
    """Only these are copied, wherever they are in the other store; what failed there and not here stays as it is."""
    encoder_id, version = trained.inputs.encoder_id, trained.model.version
    folder = layout.features_folder(encoder_id)
    [key] = [item.key for item in staging.list(f"{folder}/")]
    table = parquet.read(key, staging)
    staging.delete(key)
    failed = table.slice(20, 2).set_column(
        table.schema.get_field_index("status"), table.schema.field("status"), pa.array(["failed"] * 2)
    )
    for number, part in enumerate((table.slice(0, 10), table.slice(10, 10), failed, table.slice(20))):
        parquet.write(part, layout.shard_result(folder, f"{number:016x}"), staging)
    parquet.write(table.slice(5, 10), layout.shard_result(folder, "f" * 16), production)
    before = set(toy.etags(production, folder))
    move(staging, production, version)
    added = toy.etags(production, folder).keys() - before
    rows = pa.concat_tables([parquet.read(key, production) for key in added])
    assert (len(added), len(rows), set(rows["status"].to_pylist())) == (3, 14, {"ok"})
    listing = datasets.listing(datasets.load(trained.inputs.dataset, production).table)
    found = [
        feature_store.read_features(
            feature_store.look_up(listing, encoder_id=encoder_id, store=store), encoder_id=encoder_id, store=store
        ).vectors
        for store in (trained.store, production)
    ]
    np.testing.assert_array_equal(*found)


def test_what_was_forgotten_does_not_come_back(staging, production, inbox, trained):
    """Production has forgotten a test photograph of a dataset that it did not know: it gets everything but that."""
    picture = trained.inputs.source.get("pictures/red-5.jpg")
    forget.forget([], [picture], inbox=inbox, store=production, remove=True)
    move(staging, production)
    table = datasets.load(trained.inputs.dataset, production).table
    assert len(table) == 23 and "red-5.jpg" not in table["image_id"].to_pylist()
    assert len(feature_store.index(trained.inputs.encoder_id, production)) == 23
    version = trained.model.version
    captions = layout.evaluation(version, trained.inputs.dataset, BEAM).captions
    assert len(parquet.read(captions, production)) == 3
    found = forget.forget([], [], inbox=inbox, store=production, remove=False)
    assert found.objects == {}
    move(staging, production)
    assert len(feature_store.index(trained.inputs.encoder_id, production)) == 23
    # What the other store forgets is forgotten here by the same command.
    other = trained.inputs.source.get("pictures/red-0.jpg")
    forgotten = forget.forget([], [other], inbox=inbox, store=production, remove=True)
    assert forgotten.datasets == [f"{trained.inputs.dataset}/red-0.jpg"]


def test_a_pruned_production_keeps_it(staging, production, inbox):
    """The champion with its encoder and features is kept."""
    move(staging, production)
    night("n1", inbox, production)
    promoted = registry.read_champion(production).history[-1].promoted_at
    found = pruning.find(production, keep=1, before=promoted, records_before=promoted)
    kinds = {each.kind for each in found}
    assert not kinds & {"models", "encoders", "features"}
    assert pc.all(pc.equal(parquet.read(layout.CURRENT_CAPTIONS, production)["source"], "model")).as_py()

"""Steps of a retraining whose process ends at any of their writes.

The store is a bucket in memory, in which a write is done or not. A step that died is done again; then the store must
hold what it holds after an undisturbed step. The steps of nights are in ``test_any_history``; ``test_kills`` kills real
processes within their writes, and those that build or train a model.
"""

import itertools

import pytest

from pipeline.captioner import registry
from pipeline.data import dataset
from pipeline.data import ingest as ingestion
from pipeline.data.dataset import build_vocabulary
from pipeline.evaluation.promotion_gate import GateConfig, run_gate
from pipeline.features import extraction
from pipeline.training import inputs
from pipeline.work import runs
from tests.support import toy
from tests.support.kills import assert_same, contents
from tests.support.memory import CrashError, MemoryBucket
from tests.support.models import BEAM, write_evaluation, write_model


def crash_points():
    """Before the first write, after it, before the second, and so on."""
    return ((write, after) for write in itertools.count(1) for after in (False, True))


@pytest.fixture
def store(trained):
    """A store with the dataset, the encoder and the features of the toy world, a champion and a better candidate."""
    store = MemoryBucket("store")
    toy.copy(trained.store, store, "datasets/", "encoders/", "features/", "shards/")
    for version, cider in (("v1", 0.4), ("v2", 0.5)):
        write_model(version, store, dataset=trained.inputs.dataset, encoder_id=trained.inputs.encoder_id)
        write_evaluation(version, store, cider=cider, dataset=trained.inputs.dataset)
    registry.promote("v1", store)
    return store


def resolve(trained, store):
    """The inputs of a retraining, which begin its record."""
    inputs.resolve(
        "r", dataset=trained.inputs.dataset, encoder="", default_dataset="x", default_encoder="random", store=store
    )


def ingest(trained, store):
    """The same captions under another name."""
    ingestion.ingest([trained.inputs.source.url("captions.csv")], store, name="again")


def vocabulary(trained, store):
    """Another vocabulary of the dataset."""
    build_vocabulary(trained.inputs.dataset, store, min_count=2)


def extract(trained, store):
    """Features in three shards."""
    for key in list(store.objects):
        if key.startswith("features/"):
            del store.objects[key]
    table = dataset.load(trained.inputs.dataset, store).table
    for source, images in dataset.listings_by_source(table).items():
        planned = extraction.plan_extraction(
            images, run="r", source=source, encoder_id=trained.inputs.encoder_id, store=store, shard_size=9
        )
        for shard in planned:
            extraction.extract(shard, store=store)


def gate(trained, store):
    """The promotion of the candidate, with its record."""
    run_gate("v2", run="r", decoding=BEAM, config=GateConfig(), store=store)


def end(trained, store):
    """The record of a run that failed."""
    runs.end_run(runs.RETRAINING, "r", "train: error: too few captions", store)


@pytest.mark.parametrize("step", [resolve, ingest, vocabulary, extract, gate, end])
def test_a_step_that_dies_at_any_write_can_be_done_again(step, store, trained):
    """Before and after each of its writes; the store is then that of a step that nothing disturbed."""
    before = dict(store.objects)
    step(trained, store)
    expected = contents(store)
    crashes = 0
    for write, after in crash_points():
        store.objects = dict(before)
        store.crash_in, store.crash_after_write = write, after
        try:
            step(trained, store)
        except CrashError:
            crashes += 1
        else:
            break
        store.crash_in = None
        step(trained, store)
        assert_same(contents(store), expected)
    assert crashes >= 2

"""The cost model counts what S3 is asked."""

from collections import Counter

import pytest

from benchmarks.cost import Prices, Requests, estimate, main, requests
from pipeline.captioner import registry
from pipeline.captioner.captioner import Caption, Captioner
from pipeline.config import DecodingConfig
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.features import extraction
from pipeline.nightly import captions, night, reconcile
from pipeline.nightly.arrivals import count_arrivals
from pipeline.settings import PROJECT
from pipeline.storage import layout, open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.loading import load_once


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A store with a model that was evaluated, and the version of the model."""
    store = open_bucket(str(tmp_path_factory.mktemp("evaluated")))
    toy.copy(trained.store, store, "")
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        evaluate_model(trained.model.version, store=store, decoding=DecodingConfig(), max_failed_fraction=0)
    return store, trained.model.version


@pytest.fixture
def counted(s3_bucket_name, evaluated, tmp_path, monkeypatch):
    """A store with a champion and an empty inbox, on S3, and a count of the requests to the store and the inbox.

    Captioners are loaded, and write without being compiled, which would take most of the time.
    """
    monkeypatch.setattr(Captioner, "caption", lambda _, vectors, __: [Caption("a square", -1.0, 0.5)] * len(vectors))
    base, counts = f"s3://{s3_bucket_name}/{tmp_path.name}", Counter()
    store, inbox = open_bucket(f"{base}/store"), open_bucket(f"{base}/inbox")
    source, version = evaluated
    toy.copy(source, store, layout.MODELS, layout.ENCODERS)
    registry.promote(version, store)
    for bucket in (store, inbox):
        bucket.client.meta.events.register(
            "before-send.s3.*", lambda request, event_name, **_: counts.update([event_name.rpartition(".")[2]])
        )
    return store, inbox, counts


def work(run, store, inbox, shard_size, patch):
    """A night, each step with the counted clients; the number of extraction shards."""
    patch.setattr(extraction, "open_source", lambda name, store: inbox)
    night.list_inbox(run, inbox=inbox, store=store, options=night.NightOptions())
    shards = night.plan_extraction(run, store=store, shard_size=shard_size)
    for shard in shards:
        extraction.extract(shard, store=store)
    for shard in night.plan_captions(run, store=store, date="2026-01-01", shard_size=shard_size):
        captions.caption_shard(shard, store=store, decoding=DecodingConfig(), review_below=0.5)
    reconcile.reconcile(
        run, store=store, max_failed_fraction=0, max_shrink_fraction=0, drift_limit=99, review_below=0.5
    )
    runs.end_run(runs.NIGHT, run, None, store)
    return len(shards)


@pytest.mark.parametrize(("new", "shard_size", "earlier"), [(8, 8, 1), (16, 8, 1), (16, 4, 1), (8, 8, 4)])
def test_a_night_asks_s3_as_often_as_the_model_says(counted, new, shard_size, earlier, monkeypatch):
    """Reads and writes, by pictures, shards and earlier nights, to the last."""
    store, inbox, counts = counted
    for number in range(earlier):
        inbox.put(f"before-{number}.jpg", toy.picture("red", number))
        work(f"n{number}", store, inbox, shard_size, monkeypatch)
    for number in range(new):
        inbox.put(f"new-{number}.jpg", toy.picture("blue", 100 + number))
    counts.clear()
    shards = work("n", store, inbox, shard_size, monkeypatch)
    assert shards == new // shard_size
    found = Requests(
        reads=counts["GetObject"] + counts["HeadObject"],
        writes=counts["PutObject"] + counts["ListObjectsV2"],
    )
    expected = requests(new, shards=shards, earlier=earlier, listed=0)
    assert found == expected


@pytest.mark.parametrize(("arrived", "reads", "lists"), [(0, 3, 2), (2, 5, 3)])
def test_a_second_look_asks_s3_as_often_as_the_document_says(counted, arrived, reads, lists, monkeypatch):
    """It lists the inbox once more; only where something has arrived, it reads the captions of both earlier nights."""
    store, inbox, counts = counted
    for number in range(2):
        inbox.put(f"before-{number}.jpg", toy.picture("red", number))
        work(f"n{number}", store, inbox, 8, monkeypatch)
    for number in range(arrived):
        inbox.put(f"late-{number}.jpg", toy.picture("blue", number))
    counts.clear()
    assert count_arrivals("n1", inbox=inbox, store=store, options=night.NightOptions()) == arrived
    assert counts["GetObject"] + counts["HeadObject"] == reads
    assert counts["ListObjectsV2"] == lists == counts.total() - reads


def test_an_estimate_adds_up():
    """Ten million pictures: shards grow to stay within the maximum, and the money is that of hours and requests."""
    prices = Prices(worker=1, read=0.01, write=0.1, month=0)
    found = estimate(10_000_000, pace=10, hours=8, prices=prices, planning_mb=500)
    assert (found.shard, found.tasks) == (10_000, 1000)
    assert found.worker_hours == pytest.approx(277.78, abs=0.01)
    assert found.workers == 35
    assert found.reads == 47 + 10_000_000 + 11 * 1000
    assert found.writes == 22 + 3 * 1000 + 10_000
    assert found.dollars_per_million == pytest.approx((277.78 + found.reads / 1e5 + found.writes / 1e4) / 10, rel=1e-3)


def test_the_document_shows_what_the_model_gives(capsys, monkeypatch):
    """The table in docs/scaling.md is the program's."""
    monkeypatch.setattr("sys.argv", ["cost"])
    main()
    assert capsys.readouterr().out in (PROJECT / "docs" / "scaling.md").read_text()

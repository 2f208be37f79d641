"""The growth of years is counted as S3 would count it, and the document shows what was counted."""

import contextlib
import json
from collections import Counter

import pytest

from benchmarks import growth
from benchmarks.cost import RESULTS
from benchmarks.scale import promote_champion
from pipeline.settings import PROJECT
from pipeline.storage import open_bucket

NIGHTS = 3


@pytest.fixture
def on_s3(s3_bucket_name, tmp_path):
    """A store on S3 that stands in for the counting one: its counts are of what is sent to the server."""
    store = open_bucket(f"s3://{s3_bucket_name}/{tmp_path.name}")
    store.counts, store.now = Counter(), growth.START
    kinds = {"GetObject": "reads", "HeadObject": "reads", "PutObject": "writes", "ListObjectsV2": "writes"}
    events = store.client.meta.events
    for operation, kind in kinds.items():
        events.register(f"before-send.s3.{operation}", lambda request, kind=kind, **_: store.counts.update([kind]))
    events.register(
        "after-call.s3.GetObject", lambda parsed, **_: store.counts.update(read_bytes=parsed.get("ContentLength", 0))
    )

    @contextlib.contextmanager
    def uncounted():
        before = store.counts.copy()
        yield
        store.counts = before

    store.uncounted = uncounted
    return store


def test_requests_are_counted_as_on_s3(on_s3):
    """A night after three others asks S3 as often, and for as many bytes, as the bucket in memory."""
    in_memory = growth.CountingBucket()
    found = []
    for store in (in_memory, on_s3):
        promote_champion(store)
        for number in range(NIGHTS - 1):
            growth.leave(number, store)
        growth.work(NIGHTS - 1, store)
        store.counts.clear()
        growth.work(NIGHTS, store)
        found.append({name: store.counts[name] for name in ("reads", "writes", "read_bytes")})
    assert found[0]["reads"] == found[1]["reads"]
    assert found[0]["writes"] == found[1]["writes"]
    # Times and seconds of a run are longer or shorter texts.
    assert found[0]["read_bytes"] == pytest.approx(found[1]["read_bytes"], rel=1e-3)


def test_the_document_shows_what_was_counted():
    """The table in docs/scaling.md is that of the stored results."""
    assert growth.table(json.loads(RESULTS.read_text())) in (PROJECT / "docs" / "scaling.md").read_text()


def test_maintenance_keeps_what_nights_need():
    """After it, a night finds all earlier photographs done, and the store is smaller."""
    found = growth.measure(12)
    assert found["after_objects"] < found["before_objects"]
    assert found["after_reads"] <= found["before_reads"] + 12

"""A retraining that waits for a person, in a running Airflow."""

import os
import time
import urllib.error

import pytest

from pipeline.captioner import registry
from pipeline.storage import layout, open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.airflow_server import RETRAINING_DAG, start_airflow

RUNS = f"/api/v2/dags/{RETRAINING_DAG}/dagRuns"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, toy_encoder):
    """An Airflow, the store that it works on, and the conf of a quick retraining."""
    folder = tmp_path_factory.mktemp("approval")
    source = toy.draw(open_bucket(str(folder / "source")))
    training = toy.CONFIG.model_dump(exclude={"seed"})
    conf = {"dataset": source, "encoder": str(toy_encoder), "min_count": 1, "promotion": "approve", **training}
    store = open_bucket(str(folder / "store"))
    environment = {
        **os.environ,
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": (folder / "inbox").as_uri(),
        "CAPTION_TRACKING_URI": "",
    }
    with start_airflow(folder / "airflow", environment) as server:
        server.unpause(RETRAINING_DAG)
        yield server, store, conf


def question(server, run_id):
    """Wait until the run waits for a person, and return what they see."""
    task = f"{RUNS}/{run_id}/taskInstances/approval"
    deadline = time.monotonic() + 300
    while server.call("GET", task)["state"] != "awaiting_input":
        assert time.monotonic() < deadline, "nobody was asked"
        time.sleep(1)
    # The process of a task that waits lingers for a heartbeat, a second here; an answer within that second is lost.
    time.sleep(3)
    return server.call("GET", f"{task}/-1/hitlDetails")


def answer(server, run_id, choice):
    """Answer, wait until the run has ended, and return its state."""
    path = f"{RUNS}/{run_id}/taskInstances/approval/-1/hitlDetails"
    server.call("PATCH", path, {"chosen_options": [choice]})
    return server.wait_for_run(RETRAINING_DAG, run_id)["state"]


def test_a_person_decides(deployment):
    """The run waits with the scores and captions of both models; the answer is carried out and recorded."""
    server, store, conf = deployment
    first = server.trigger(RETRAINING_DAG, {**conf, "seed": 0})
    asked = question(server, first)
    [candidate] = filter(None, (layout.model_of_metadata(item.key) for item in store.list(layout.MODELS)))
    assert asked["subject"] == f"Promote {candidate}?"
    assert "There is no champion yet." in asked["body"]
    assert "| CIDEr |" in asked["body"]
    assert not store.exists(layout.CHAMPION)
    assert answer(server, first, "Promote") == "success"
    assert registry.read_champion(store).version == candidate
    assert registry.read_champion(store).history[-1].reason.startswith("admin approved it; CIDEr ")

    second = server.trigger(RETRAINING_DAG, {**conf, "seed": 1})
    asked = question(server, second)
    assert f"champion {candidate}" in asked["body"]
    assert answer(server, second, "Keep as a candidate") == "success"
    assert registry.read_champion(store).version == candidate
    record, _ = runs.list_records(runs.RETRAINING, store)
    assert (record.status, record.promoted) == ("succeeded", False)
    assert record.reason.startswith("admin rejected it; CIDEr ")


def test_bad_values_are_refused(deployment):
    """Values that the form refuses are refused by the API too, and no run is created."""
    server, _, conf = deployment
    before = len(server.runs(RETRAINING_DAG))
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.trigger(RETRAINING_DAG, {**conf, "promotion": "maybe"})
    assert refused.value.code == 400
    assert len(server.runs(RETRAINING_DAG)) == before

"""A retraining that waits for a person, in a running Airflow."""

import os
import time
import urllib.error

import pytest
import toy

from benchmarks.night import airflow
from pipeline import registry, runs
from pipeline.storage import open_bucket

DAG = "/api/v2/dags/retrain_captioner"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, toy_encoder):
    """A store, an Airflow that works on it, and what a quick retraining is told."""
    folder = tmp_path_factory.mktemp("approval")
    source = toy.draw(open_bucket(str(folder / "source")))
    recipe = {name: value for name, value in toy.RECIPE.model_dump().items() if name != "seed"}
    conf = {"dataset": source, "encoder": str(toy_encoder), "min_count": 1, "promotion": "approve", **recipe}
    store = open_bucket(str(folder / "store"))
    environment = {
        **os.environ,
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": (folder / "inbox").as_uri(),
        "CAPTION_TRACKING_URI": "",
    }
    with airflow(folder / "airflow", environment) as server:
        while not server._call("GET", "/api/v2/dags")["total_entries"]:
            time.sleep(0.5)
        server._call("PATCH", DAG, {"is_paused": False})
        yield server, store, conf


def retrain(server, conf):
    """Trigger a retraining; its run id."""
    return server._call("POST", f"{DAG}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]


def question(server, run_id):
    """Wait until the run waits for a person; what they see."""
    task = f"{DAG}/dagRuns/{run_id}/taskInstances/approval"
    deadline = time.monotonic() + 300
    while server._call("GET", task)["state"] != "awaiting_input":
        assert time.monotonic() < deadline, "nobody was asked"
        time.sleep(1)
    # The process of a task that waits lingers for a heartbeat, a second here; an answer within that second is lost.
    time.sleep(3)
    return server._call("GET", f"{task}/-1/hitlDetails")


def answer(server, run_id, choice):
    """Answer, and wait until the run has ended; its state."""
    path = f"{DAG}/dagRuns/{run_id}/taskInstances/approval/-1/hitlDetails"
    server._call("PATCH", path, {"chosen_options": [choice]})
    while (state := server._call("GET", f"{DAG}/dagRuns/{run_id}")["state"]) not in ("success", "failed"):
        time.sleep(1)
    return state


def test_a_person_decides(deployment):
    """The run waits with the scores and captions of both models, and what is answered is done and noted."""
    server, store, conf = deployment
    first = retrain(server, {**conf, "seed": 0})
    asked = question(server, first)
    [candidate] = [item.key.split("/")[1] for item in store.list("models/") if item.key.endswith("/metrics.json")]
    assert asked["subject"] == f"Promote {candidate}?"
    assert "There is no champion yet." in asked["body"]
    assert "| CIDEr |" in asked["body"]
    assert not store.exists(registry.CHAMPION)
    assert answer(server, first, "Promote") == "success"
    assert registry.champion(store).version == candidate
    assert registry.champion(store).history[-1].reason.startswith("admin has approved it; CIDEr ")

    second = retrain(server, {**conf, "seed": 1})
    asked = question(server, second)
    assert f"champion {candidate}" in asked["body"]
    assert answer(server, second, "Keep as a candidate") == "success"
    assert registry.champion(store).version == candidate
    record, _ = runs.finished(registry.KIND, store)
    assert (record["promoted"], record["reason"].startswith("admin has not approved it; CIDEr ")) == (False, True)


def test_bad_values_are_refused(deployment):
    """What the form would refuse, the trigger refuses too: no run is made."""
    server, _, conf = deployment
    with pytest.raises(urllib.error.HTTPError) as refused:
        retrain(server, {**conf, "promotion": "maybe"})
    assert refused.value.code == 400

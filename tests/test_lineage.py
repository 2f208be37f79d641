"""What a running Airflow shows of a retraining and of the night that its champion starts."""

import os
import time
from urllib.parse import quote

import pytest
import toy

from benchmarks.night import airflow
from pipeline import registry
from pipeline.storage import open_bucket

RETRAINING, NIGHT = "/api/v2/dags/retrain_captioner", "/api/v2/dags/caption_new_images"


class Shown:
    """A run, as the API gives it to the UI."""

    def __init__(self, server, dag, run):
        self.server, self.run, self.path = server, run, f"{dag}/dagRuns/{quote(run['dag_run_id'])}/taskInstances"
        self.tasks = server._call("GET", f"{self.path}?limit=100")["task_instances"]

    def notes(self):
        """The notes of the tasks that have one."""
        return {task["task_id"]: task["note"] for task in self.tasks if task["note"]}

    def names(self, task_id):
        """How the instances of a mapped task are called."""
        return [task["rendered_map_index"] for task in self.tasks if task["task_id"] == task_id]

    def links(self, task_id):
        """The extra links of a task: path on the server by name."""
        links = self.server._call("GET", f"{self.path}/{task_id}/links")["extra_links"]
        return {name: address.removeprefix(self.server.url) for name, address in links.items()}


def ended(server, dag, run_type):
    """Wait until a DAG has a run of a type that has ended, and return it."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for run in server._call("GET", f"{dag}/dagRuns")["dag_runs"]:
            if run["run_type"] == run_type and run["state"] in ("success", "failed"):
                return run
        time.sleep(1)
    raise AssertionError(f"no {run_type} run of {dag} has ended")


@pytest.fixture(scope="module")
def shown(tmp_path_factory, toy_encoder):
    """A server on which both DAGs are switched on, the first retraining, as it shows that, and the champion."""
    folder = tmp_path_factory.mktemp("lineage")
    source = toy.draw(open_bucket(str(folder / "source")))
    inbox, store = open_bucket(str(folder / "inbox")), open_bucket(str(folder / "store"))
    for number in range(3):
        inbox.put(f"{number}.jpg", toy.picture("red", number))
    inbox.put("broken.jpg", b"no picture")
    environment = {
        **os.environ,
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": inbox.uri,
        "CAPTION_TRACKING_URI": "",
    }
    conf = {"dataset": source, "encoder": str(toy_encoder), "min_count": 1, **toy.RECIPE.model_dump()}
    with airflow(folder / "airflow", environment) as server:
        while server._call("GET", "/api/v2/dags")["total_entries"] < 2:
            time.sleep(0.5)
        for dag in (NIGHT, RETRAINING):
            server._call("PATCH", dag, {"is_paused": False})
        # The night that was due at two o'clock: there is no champion yet.
        ended(server, NIGHT, "scheduled")
        server._call("POST", f"{RETRAINING}/dagRuns", {"logical_date": None, "conf": conf})
        first = Shown(server, RETRAINING, ended(server, RETRAINING, "manual"))
        yield server, first, registry.champion(store).version


def test_notes_say_what_a_retraining_did(shown):
    """Each task's note is its command's summary, and the run's says whether the candidate is champion, and why."""
    _, retraining, version = shown
    assert retraining.run["state"] == "success"
    assert retraining.run["note"].startswith(f"{version} is the new champion: the first champion, CIDEr ")
    notes = retraining.notes()
    assert notes["ingest"] == "24 images (16 train, 4 dev, 4 test), 48 captions"
    assert notes["evaluate"].startswith(f"{version}: BLEU-1 ")
    assert notes["consider"] == retraining.run["note"]
    assert retraining.names("extract") == ["1: 24 images"]


def test_tasks_link_to_the_report(shown):
    """Evaluation and decision lead to the candidate's report and to the models, the training to the models."""
    _, retraining, version = shown
    pages = {"Report": f"/captions/models/{version}/report", "Models": "/captions/models"}
    assert retraining.links("evaluate") == retraining.links("consider") == pages
    assert retraining.links("train") == {"Models": "/captions/models"}


def test_events_carry_what_was_made(shown):
    """The event of each asset says what its task made: counts, scores, and which model it is about."""
    server, _, version = shown
    # While a run that an event has made is queued, Airflow 3.3.2 answers 500 where it should list that event, because
    # the run has no start yet (apache/airflow#71360). The champion's event makes a night.
    ended(server, NIGHT, "asset_triggered")
    events = "/api/v2/assets/events?limit=100"
    extras = {
        (event["name"], event["source_task_id"]): event["extra"]
        for event in server._call("GET", events)["asset_events"]
        if event["source_dag_id"] == "retrain_captioner"
    }
    assert extras["captioning_dataset", "ingest"]["images"] == {"train": 16, "dev": 4, "test": 4}
    assert extras["captioning_dataset", "ingest"]["captions"] == 48
    assert extras["image_features", "extract"]["images"] == 24
    assert extras["candidate_captioner", "train"]["version"] == version
    evaluated, champion = extras["candidate_captioner", "evaluate"], extras["champion_captioner", "announce"]
    assert champion["version"] == evaluated["version"] == version
    assert champion["scores"]["CIDEr"] == evaluated["CIDEr"]
    assert champion["reason"]
    assert extras["image_features", "extract"]["encoder_id"]


def test_a_champion_starts_a_night(shown):
    """A night is started by the champion's event; its note counts, and its captions are linked to."""
    server, _, version = shown
    before = Shown(server, NIGHT, ended(server, NIGHT, "scheduled"))
    assert before.run["note"].startswith("list_inbox: error: No model has been promoted in ")
    night = Shown(server, NIGHT, ended(server, NIGHT, "asset_triggered"))
    assert night.run["note"] == (
        f"4 images listed = 3 captioned + 1 failed + 0 done before; features of 4 extracted; model {version}"
    )
    assert night.names("caption") == ["1: 4 images, 1 failed"]
    assert night.links("publish") == {"Captions": f"/captions/?night={night.run['run_after'][:10]}"}
    events = server._call("GET", "/api/v2/assets/events?limit=100")["asset_events"]
    [(source, extra)] = [(e["source_task_id"], e["extra"]) for e in events if e["name"] == "image_captions"]
    assert source == "publish"
    assert (extra["listed"], extra["captioned"], extra["failed"], extra["version"]) == (4, 3, 1, version)

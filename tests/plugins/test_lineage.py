"""Notes, links, names and asset events of a retraining, and of the night that its champion starts."""

import os
import time
from urllib.parse import quote

import pytest

from pipeline.captioner import registry
from pipeline.storage import open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.airflow_server import NIGHT_DAG, RETRAINING_DAG, start_airflow


class Shown:
    """A run, as the API describes it to the UI."""

    def __init__(self, server, dag_id, run):
        self.server, self.run = server, run
        self.path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run['dag_run_id'])}/taskInstances"
        self.tasks = server.call("GET", f"{self.path}?limit=100")["task_instances"]

    def state(self, task_id):
        """The state of a task that is not mapped."""
        return next(task["state"] for task in self.tasks if task["task_id"] == task_id)

    def notes(self):
        """The notes of the tasks that have one."""
        return {task["task_id"]: task["note"] for task in self.tasks if task["note"]}

    def names(self, task_id):
        """The names of the instances of a mapped task."""
        return [task["rendered_map_index"] for task in self.tasks if task["task_id"] == task_id]

    def links(self, task_id):
        """The extra links of a task: path on the server by name."""
        links = self.server.call("GET", f"{self.path}/{task_id}/links")["extra_links"]
        return {name: address.removeprefix(self.server.url) for name, address in links.items()}


def ended(server, dag_id, run_type):
    """Wait until a DAG has a run of a type that has ended, and return it."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for run in server.runs(dag_id):
            if run["run_type"] == run_type and run["state"] in ("success", "failed"):
                return run
        time.sleep(1)
    raise AssertionError(f"no {run_type} run of {dag_id} has ended")


@pytest.fixture(scope="module")
def shown(tmp_path_factory, toy_encoder):
    """A server on which both DAGs are unpaused, its first retraining, the champion's version, and the store."""
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
    conf = {"dataset": source, "encoder": str(toy_encoder), "min_count": 1, **toy.CONFIG.model_dump()}
    with start_airflow(folder / "airflow", environment) as server:
        server.unpause(NIGHT_DAG, RETRAINING_DAG)
        # The night that was due at two o'clock: there is no champion yet.
        ended(server, NIGHT_DAG, "scheduled")
        run = server.wait_for_run(RETRAINING_DAG, server.trigger(RETRAINING_DAG, conf))
        yield server, Shown(server, RETRAINING_DAG, run), registry.read_champion(store).version, store


def test_notes_of_a_retraining(shown):
    """Each task's note is its command's summary; the run's says whether the candidate is champion, and why."""
    _, retraining, version, _ = shown
    assert retraining.run["state"] == "success"
    assert retraining.run["note"].startswith(f"{version} is the new champion: the first champion, CIDEr ")
    notes = retraining.notes()
    assert notes["ingest"] == "24 images (16 train, 4 dev, 4 test), 48 captions"
    assert notes["evaluate"].startswith(f"{version}: BLEU-1 ")
    assert notes["gate"] == retraining.run["note"]
    assert retraining.names("extract") == ["1: 24 images"]


def test_tasks_link_to_the_report(shown):
    """Evaluation and gate link to the candidate's report and to the models, the training to the models."""
    _, retraining, version, _ = shown
    pages = {"Report": f"/captions/models/{version}/report", "Models": "/captions/models"}
    assert retraining.links("evaluate") == retraining.links("gate") == pages
    assert retraining.links("train") == {"Models": "/captions/models"}


def test_events_carry_results(shown):
    """The event of each asset holds the result of its task: counts, scores, and the model's version."""
    server, _, version, _ = shown
    # While a run that an event has made is queued, Airflow 3.3.2 answers 500 where it should list that event, because
    # the run has no start yet (apache/airflow#71360). The champion's event makes a night.
    ended(server, NIGHT_DAG, "asset_triggered")
    events = "/api/v2/assets/events?limit=100"
    extras = {
        (event["name"], event["source_task_id"]): event["extra"]
        for event in server.call("GET", events)["asset_events"]
        if event["source_dag_id"] == "retrain_captioner"
    }
    assert extras["captioning_dataset", "ingest"]["images"] == {"train": 16, "dev": 4, "test": 4}
    assert extras["captioning_dataset", "ingest"]["captions"] == 48
    assert extras["image_features", "extract"]["images"] == 24
    assert extras["candidate_captioner", "train"]["version"] == version
    evaluated, champion = extras["candidate_captioner", "evaluate"], extras["champion_captioner", "emit_champion_event"]
    assert champion["version"] == evaluated["version"] == version
    assert champion["scores"]["CIDEr"] == evaluated["CIDEr"]
    assert champion["reason"]
    assert extras["image_features", "extract"]["encoder_id"]


def test_a_champion_starts_a_night(shown):
    """A night is started by the champion's event; its note holds the counts, and it links to its captions."""
    server, _, version, _ = shown
    before = Shown(server, NIGHT_DAG, ended(server, NIGHT_DAG, "scheduled"))
    assert before.run["note"].startswith("list_inbox: error: No model has been promoted in ")
    night = Shown(server, NIGHT_DAG, ended(server, NIGHT_DAG, "asset_triggered"))
    assert night.run["note"] == (
        f"4 images listed = 3 captioned + 1 failed + 0 done before; features of 4 extracted; model {version}"
    )
    assert night.names("caption") == ["1: 4 images, 1 failed"]
    assert night.links("reconcile") == {"Captions": f"/captions/?night={night.run['run_after'][:10]}"}
    events = server.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]
    [(source, extra)] = [(e["source_task_id"], e["extra"]) for e in events if e["name"] == "image_captions"]
    assert source == "reconcile"
    assert (extra["listed"], extra["captioned"], extra["failed"], extra["version"]) == (4, 3, 1, version)


def test_every_run_has_a_record(shown):
    """A run that failed has a record with its error message; the end of a run leaves its state as it is."""
    server, retraining, _, store = shown
    failed = Shown(server, NIGHT_DAG, ended(server, NIGHT_DAG, "scheduled"))
    assert (failed.run["state"], failed.state("end_run")) == ("failed", "success")
    record = runs.read_record(failed.run["dag_run_id"], store)
    assert (record.kind, record.status) == ("night", "failed")
    assert record.message.startswith("list_inbox: error: No model has been promoted in ")
    assert (retraining.run["state"], retraining.state("end_run")) == ("success", "success")
    assert runs.read_record(retraining.run["dag_run_id"], store).status == "succeeded"

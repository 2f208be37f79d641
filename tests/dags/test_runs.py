"""Runs of all DAGs with commands that are replaced: what runs after what, and how runs end."""

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from types import MappingProxyType, SimpleNamespace

import pytest
from airflow.providers.standard.hooks.subprocess import SubprocessResult
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.definitions.asset import AssetUniqueKey
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor
from sqlalchemy import select

from captioning import arrivals
from captioning.arrivals import AwaitUploads
from captioning.assets import CHAMPION, INBOX
from tests.support.paths import PROJECT

RESULTS = {
    "resolve-inputs": {
        "sources": ["photos", "s3://more/a b"],
        "encoder": "random",
        "summary": "the champion's dataset and encoder",
    },
    "ingest": {"dataset": "photos/0123456789abcdef"},
    "vocabulary": {"vocabulary": "datasets/photos/0123456789abcdef/vocabulary-10.json"},
    "register-encoder": {"encoder_id": "resnet50-1"},
    "plan-extraction": ["shard0", "shard1", "shard2"],
    "extract": {"images": 3, "summary": "3 images"},
    "train": {"version": "m1", "summary": "m1: 3 epochs"},
    "evaluate": {"version": "m1", "CIDEr": 0.5},
    "evaluate-champion": {"champion": None, "summary": "there is no champion"},
    "gate": {"version": "m1", "promoted": True, "reason": "the first champion", "summary": "m1 is the new champion"},
    "end-run": {"summary": "the record stays", "measures": {"night.succeeded": 1}},
    "list": {"listed": 9},
    "plan-captions": ["shard3", "shard4"],
    "caption": {"captioned": 4, "summary": "4 images"},
    "compare": {"version": "m1", "comparison": "the scores of m1", "summary": "the scores of m1"},
    "forget": {"removed": True, "summary": "1 image in 4 objects forgotten"},
    "fold": {"corrections": 3, "summary": "3 corrections"},
    "backup": {"objects": 9, "summary": "9 objects, 2 of them copied (0.1 MB)"},
    "prune": {"removed": False, "summary": "0 objects (0.0 MB) can be removed"},
    "reconcile": {"captioned": 8, "warnings": [], "retraining_due": "", "arrived": 0, "summary": "9 images listed"},
}
"""The result of each command, of `night` by its second word."""


class Runs:
    """Runs DAGs; ``commands`` are the argument lists of the last run in their order."""

    def __init__(self, dags):
        self.dags = dags
        self.commands = []
        self.changed = {}

    def run_command(self, command, **options):
        """Stands in for the hook that runs a command: a result, or an error as the command line reports it."""
        arguments = command[3:]
        self.commands.append(arguments)
        name = arguments[1] if arguments[0] == "night" else arguments[0]
        result = self.changed.get(f"{name} {arguments[-1]}", self.changed.get(name, RESULTS[name]))
        if isinstance(result, Exception):
            raise result
        if isinstance(result, str):
            return SubprocessResult(exit_code=2, output=f"error: {result}")
        return SubprocessResult(exit_code=0, output=json.dumps(result))

    def run(self, dag_id, conf=None, *, options=MappingProxyType({}), **changed):
        """Run a DAG, with options of its test; the state of the run, and the states of its tasks."""
        self.commands.clear()
        self.changed = {name.replace("_", "-"): result for name, result in changed.items()}
        run = self.dags[dag_id].test(run_conf=conf or {}, **options)
        states = {}
        for instance in sorted(run.get_task_instances(), key=lambda each: each.map_index):
            states.setdefault(instance.task_id, []).append(instance.state)
        return run.state, {task_id: found[0] if len(found) == 1 else found for task_id, found in states.items()}

    def error(self):
        """The error message that the last command, which ends the run, gets; None without one."""
        assert self.commands[-1][0] == "end-run"
        assert [arguments[0] for arguments in self.commands].count("end-run") == 1
        return self.commands[-1][3].removeprefix("--error=") if len(self.commands[-1]) > 3 else None


@pytest.fixture
def runs(airflow_home, monkeypatch):
    """All DAGs with replaced commands."""
    from airflow.dag_processing.dagbag import DagBag

    from captioning import operators

    runs = Runs(DagBag(str(PROJECT / "dags")).dags)
    monkeypatch.setattr(operators.SubprocessHook, "run_command", lambda hook, *args, **kwargs: runs.run_command(*args))
    return runs


def test_a_retraining_succeeds(runs):
    """Each command gets the results of those before it, and the teardown no error."""
    state, tasks = runs.run("retrain_captioner", {"dataset": None, "neutral_wording": True, "seed": 7})
    assert state == "success"
    skipped = {task_id for task_id, found in tasks.items() if found == "skipped"}
    assert skipped == {"compare", "approval"}
    commands = {arguments[0]: arguments[1:] for arguments in runs.commands}
    dataset = RESULTS["ingest"]["dataset"]
    decoding = ["--beam-width=5", "--mbr-samples=0", "--neighbours=20"]
    assert commands["resolve-inputs"][1:] == ["--dataset=", "--encoder=", "--cause="]
    assert commands["ingest"] == ["photos", "s3://more/a b", "--language=", "--licence=", "--corrections"]
    assert commands["vocabulary"] == [dataset, "--min-count=10", "--neutral-wording"]
    assert commands["register-encoder"] == ["random", "--no-crops", "--regions=", "--int8="]
    assert commands["plan-extraction"][:2] == [dataset, "resnet50-1"]
    assert commands["train"][:3] == [dataset, RESULTS["vocabulary"]["vocabulary"], "resnet50-1"]
    assert "--set=seed=7" in commands["train"]
    assert commands["evaluate"] == ["m1", *decoding]
    assert commands["evaluate-champion"] == ["m1", *decoding, "--policy=auto", "--floor=0.1"]
    assert commands["gate"][:4] == ["m1", *decoding]
    assert commands["end-run"] == ["retraining", commands["resolve-inputs"][0]]


def test_a_candidate_that_is_not_promoted(runs):
    """The run succeeds, and emits no event of a new champion."""
    rejected = {**RESULTS["gate"], "promoted": False, "reason": "below the floor"}
    state, tasks = runs.run("retrain_captioner", gate=rejected, plan_extraction=[])
    assert (state, tasks["extract"], tasks["emit_champion_event"]) == ("success", "skipped", "skipped")
    assert (tasks["end_run"], runs.error()) == ("success", None)


def test_a_retraining_fails(runs):
    """A failed task fails the run, and its message ends up in the record."""
    state, tasks = runs.run("retrain_captioner", train="too few captions")
    assert (state, tasks["train"], tasks["emit_champion_event"]) == ("failed", "failed", "upstream_failed")
    assert (tasks["end_run"], runs.error()) == ("success", "train: error: too few captions")


def test_parallel_failures(runs):
    """The teardown waits for tasks beside the failed one, and reports all that failed."""
    state, tasks = runs.run("retrain_captioner", vocabulary="no words", **{"extract shard1": "disk full"})
    assert state == "failed"
    assert (tasks["extract"], tasks["train"]) == (["success", "failed", "success"], "upstream_failed")
    assert runs.error() == "extract[1]: error: disk full; vocabulary: error: no words"


def test_a_night_succeeds(runs):
    """List, plan, extract, plan, caption, reconcile, and the teardown without an error."""
    state, tasks = runs.run("caption_new_images")
    assert (state, tasks["extract"], tasks["caption"]) == ("success", ["success"] * 3, ["success"] * 2)
    names = [arguments[1] if arguments[0] == "night" else arguments[0] for arguments in runs.commands]
    assert list(dict.fromkeys(names)) == [
        "list", "plan-extraction", "extract", "plan-captions", "caption", "reconcile", "end-run",
    ]  # fmt: skip
    assert (runs.commands[-1][1], runs.error()) == ("night", None)


@pytest.fixture
def arriving(monkeypatch, runs):
    """Both DAGs, where reports of new photographs start a night."""
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("CAPTION_ARRIVAL_DELAY", "60")
    runs.dags = DagBag(str(PROJECT / "dags")).dags
    return runs


@pytest.fixture
def asset_triggered(monkeypatch):
    """The options with which a DAG's test begins as the scheduler begins a run for the last event of an asset."""
    from airflow.models import dagrun

    original = dagrun.get_or_create_dagrun

    def create(*, session, **kwargs):
        run = original(session=session, **kwargs)
        run.run_type = "asset_triggered"
        run.consumed_asset_events = last_events(session, "retraining_due")
        session.commit()
        return run

    monkeypatch.setattr(dagrun, "get_or_create_dagrun", create)
    # Airflow's test of a DAG would wait for the answer for ever.
    return {"logical_date": None, "mark_success_pattern": "approval"}


def last_events(session, name):
    """The last event of an asset, if there is one."""
    from airflow.models.asset import AssetEvent, AssetModel

    query = select(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
    return session.scalars(query.where(AssetModel.name == name).order_by(AssetEvent.id.desc()).limit(1)).all()


def test_a_night_starts_a_retraining_that_waits_for_an_approval(runs, asset_triggered):
    """Its event has the reason, which the retraining is given; whatever the form's default, a person decides."""
    state, tasks = runs.run("caption_new_images")
    assert (state, tasks["emit_retraining_event"], tasks["end_run"]) == ("success", "skipped", "success")
    due = {**RESULTS["reconcile"], "retraining_due": "12 corrections"}
    state, tasks = runs.run("caption_new_images", reconcile=due)
    assert (state, tasks["emit_retraining_event"]) == ("success", "success")

    state, tasks = runs.run("retrain_captioner", options=asset_triggered)
    assert state == "success"
    assert {tasks[name] for name in ("choose_approval", "compare", "approval", "gate")} == {"success"}
    commands = {arguments[0]: arguments[1:] for arguments in runs.commands}
    assert "--cause=12 corrections" in commands["resolve-inputs"]
    assert "--policy=approve" in commands["evaluate-champion"]
    assert {"--policy=approve", "--keep"} < set(commands["gate"])


def test_a_night_reports_what_has_arrived_meanwhile(arriving):
    """One look and one report, so that one more night follows; without arrivals there is none."""
    from airflow.settings import Session

    state, tasks = arriving.run("caption_new_images")
    assert (state, tasks["await_uploads"], tasks["emit_inbox_event"], tasks["end_run"]) == (
        "success", "success", "skipped", "success",
    )  # fmt: skip
    assert all(task.doc_md and task.owner == "captioning" for task in arriving.dags["caption_new_images"].tasks)
    [reconcile] = [arguments for arguments in arriving.commands if arguments[:2] == ["night", "reconcile"]]
    assert reconcile[3:] == ["--review-below=", "--look-again"]
    before = last_events(Session(), "captioning_inbox")
    state, tasks = arriving.run("caption_new_images", reconcile={**RESULTS["reconcile"], "arrived": 3})
    assert (state, tasks["emit_inbox_event"]) == ("success", "success")
    [event] = last_events(Session(), "captioning_inbox")
    assert event.extra == {"photographs": 3}
    assert event not in before


def test_a_night_that_fails_reports_nothing(arriving):
    """The next one is started by the clock, or by the next report."""
    state, tasks = arriving.run("caption_new_images", reconcile="an image has no row")
    assert (state, tasks["emit_inbox_event"], tasks["end_run"]) == ("failed", "upstream_failed", "success")


def test_by_default_no_night_looks_twice(runs):
    """A deployment whose nights only the clock starts lists its inbox once."""
    _, tasks = runs.run("caption_new_images")
    assert not {"await_uploads", "emit_inbox_event"} & tasks.keys()
    assert not any("--look-again" in arguments for arguments in runs.commands)


NOW = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("run_type", "events", "cause", "end"),
    [
        ("scheduled", {}, "by the clock", None),
        ("manual", {}, "by hand", None),
        ("asset_triggered", {}, "by an event", None),
        ("asset_triggered", {CHAMPION: [0]}, "by a new champion", None),
        ("asset_triggered", {INBOX: [0]}, "by 1 report of new photographs", 60),
        ("asset_triggered", {INBOX: [50, 20, 40]}, "by 3 reports of new photographs", 40),
        ("asset_triggered", {INBOX: [20], CHAMPION: [5]}, "by 1 report of new photographs and a new champion", 40),
        ("asset_triggered", {INBOX: [-7]}, "by 1 report of new photographs", 60),
        ("asset_triggered", {INBOX: [60]}, "by 1 report of new photographs", None),
    ],
)
def test_a_night_waits_for_the_end_of_an_upload(monkeypatch, run_type, events, cause, end):
    """Until a minute after the last report, in the triggerer; ages of reports are in seconds."""
    clock = SimpleNamespace(now=lambda _: NOW)
    monkeypatch.setattr(arrivals, "datetime", clock)
    accessor = TriggeringAssetEventsAccessor(
        defaultdict(list, {
            AssetUniqueKey.from_asset(asset): [SimpleNamespace(timestamp=NOW - timedelta(seconds=age)) for age in ages]
            for asset, ages in events.items()
        })
    )  # fmt: skip
    left = {}
    context = {
        "triggering_asset_events": accessor,
        "dag_run": SimpleNamespace(run_type=DagRunType(run_type)),
        "ti": SimpleNamespace(xcom_push=left.__setitem__),
    }
    task = AwaitUploads(task_id="await_uploads", delay=60)
    if end is None:
        task.execute(context)
    else:
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context)
        trigger = deferred.value.trigger
        assert (trigger.moment, trigger.end_from_trigger) == (NOW + timedelta(seconds=end), True)
        assert deferred.value.timeout == timedelta(seconds=660)
    assert left == {"summary": f"started {cause}"}


def test_a_killed_shard(runs):
    """A mapped task without a message is named with its index, after its siblings have ended."""
    state, tasks = runs.run("caption_new_images", **{"caption shard3": AirflowFailException("killed")})
    assert (state, tasks["caption"]) == ("failed", ["failed", "success"])
    assert runs.error().startswith("caption[0]: no error message: the task was killed or exceeded its time limit")


@pytest.mark.parametrize("failing", [{}, {"list": "no champion"}], ids=["succeeded", "failed"])
def test_the_metrics_of_a_run(runs, monkeypatch, failing):
    """The teardown sends them however the run went, with the DAG as their tag."""
    sent = []
    monkeypatch.setattr("airflow.sdk.observability.stats.gauge", lambda *args, **kwargs: sent.append((args, kwargs)))
    runs.run("caption_new_images", **failing)
    ours = [each for each in sent if each[0][0].startswith("captioning.")]
    assert ours == [(("captioning.night.succeeded", 1), {"tags": {"dag_id": "caption_new_images"}})]


def test_a_teardown_that_fails(runs):
    """It fails neither a run that succeeded, nor hides that another failed."""
    state, tasks = runs.run("caption_new_images", end_run="the store is down")
    assert (state, tasks["end_run"]) == ("success", "failed")
    state, tasks = runs.run("caption_new_images", list="no champion", end_run="the store is down")
    assert (state, tasks["end_run"], tasks["reconcile"]) == ("failed", "failed", "upstream_failed")
    assert runs.error() == "list_inbox: error: no champion"


def test_many_failures_are_counted(runs):
    """Ten messages are enough for a record."""
    failing = {f"extract shard{number}": "disk full" for number in range(12)}
    shards = [f"shard{number}" for number in range(12)]
    state, _ = runs.run("caption_new_images", plan_extraction=shards, **failing)
    assert state == "failed"
    assert runs.error().count("disk full") == 10
    assert runs.error().endswith("; and 2 more failed tasks")


@pytest.fixture
def backed_up(monkeypatch, runs):
    """All DAGs, where there is a place for backups."""
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("CAPTION_BACKUP", "s3://backups/captioning")
    runs.dags = DagBag(str(PROJECT / "dags")).dags
    return runs


def summary(run_dag):
    """The summary that the task `report` of the last maintenance has left."""
    from airflow.models.xcom import XComModel
    from airflow.settings import Session

    query = select(XComModel.value).where(XComModel.dag_id == run_dag, XComModel.task_id == "report")
    return Session().scalars(query.order_by(XComModel.timestamp.desc())).first()


def test_a_maintenance_by_the_clock(runs):
    """Nothing is forgotten or removed, and the report says why there is no backup."""
    state, tasks = runs.run("maintain_captioning")
    skipped = {task_id for task_id, found in tasks.items() if found == "skipped"}
    assert (state, skipped) == ("success", {"forget", "back_up", "recaption"})
    assert runs.commands == [["fold"], ["prune", "--keep=3", "--no-remove"]]
    assert summary("maintain_captioning") == (
        "forget: skipped: the form names no photograph; fold: 3 corrections; "
        "back_up: skipped: CAPTION_BACKUP names no place for a backup; prune: 0 objects (0.0 MB) can be removed"
    )


def test_a_maintenance_by_hand(backed_up):
    """It forgets, backs up, prunes, and starts a night that captions all photographs again."""
    from airflow.models import DagRun
    from airflow.settings import Session

    backed_up.run("caption_new_images")
    form = {"forget": "a.jpg\nb c.jpg", "remove_forgotten": True, "remove_pruned": True, "keep": 2, "recaption": True}
    state, tasks = backed_up.run("maintain_captioning", form)
    assert (state, set(tasks.values())) == ("success", {"success"})
    assert backed_up.commands == [
        ["forget", "--keys=a.jpg\nb c.jpg", "--remove"],
        ["fold"],
        ["backup", "s3://backups/captioning", "--check"],
        ["prune", "--keep=2", "--remove"],
    ]
    night = Session().scalars(select(DagRun).where(DagRun.dag_id == "caption_new_images").order_by(DagRun.id.desc()))
    assert night.first().conf == {"recaption": "*"}


def test_nothing_is_removed_after_a_backup_that_failed(backed_up):
    """The run fails, and so the note of the run has the error."""
    state, tasks = backed_up.run("maintain_captioning", {"remove_pruned": True}, backup="the copy is damaged")
    assert (state, tasks["back_up"], tasks["prune"]) == ("failed", "failed", "upstream_failed")
    assert (tasks["report"], tasks["recaption"]) == ("upstream_failed", "upstream_failed")
    assert [arguments[0] for arguments in backed_up.commands] == ["fold", "backup"]


@pytest.mark.parametrize(
    ("nights", "retrainings", "approvals", "waits"),
    [(0, 0, 0, False), (1, 0, 0, True), (0, 1, 0, True), (0, 1, 1, False), (1, 1, 1, True)],
)
def test_the_maintenance_waits_for_other_runs(airflow_home, nights, retrainings, approvals, waits):
    """For those that are going on, but not for a person's approval."""
    from captioning.maintenance import AwaitRuns

    asked = []

    def count_runs(dag_id, states):
        asked.append((dag_id, states))
        return {"caption_new_images": nights, "retrain_captioner": retrainings}[dag_id]

    instance = SimpleNamespace(get_dr_count=count_runs, get_ti_count=lambda *_, **__: approvals)
    assert AwaitRuns(task_id="await_runs").poke({"ti": instance}) is not waits
    assert asked == [("caption_new_images", ["running"]), ("retrain_captioner", ["running"])]


def test_the_maintenance_does_not_wait_for_ever(airflow_home, monkeypatch):
    """After two days it gives up, without a retry, and the error says what it waited for."""
    from airflow.sdk import BaseSensorOperator
    from airflow.sdk.exceptions import AirflowSensorTimeout

    from captioning.maintenance import AwaitRuns

    def time_out(sensor, context):
        assert not sensor.poke(context)
        raise AirflowSensorTimeout

    monkeypatch.setattr(BaseSensorOperator, "execute", time_out)
    left = {}
    instance = SimpleNamespace(
        get_dr_count=lambda *_, **__: 1, get_ti_count=lambda *_, **__: 0, xcom_push=left.__setitem__
    )
    task = AwaitRuns(task_id="await_runs")
    assert task.timeout == 2 * 24 * 3600
    with pytest.raises(AirflowFailException, match="caption_new_images and retrain_captioner still ran after 2 days"):
        task.execute({"ti": instance})
    assert list(left) == ["error"]

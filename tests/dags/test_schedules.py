"""When the DAGs run, and what tells deployments in one Airflow apart: the settings that only Airflow uses."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta

import pendulum
import pytest
from airflow.assets.evaluation import AssetEvaluator
from airflow.serialization.serialized_objects import DagSerialization

from tests.support.paths import PROJECT

BERLIN = "Europe/Berlin"


@pytest.fixture
def load(airflow_home, monkeypatch):
    """Loads all DAGs with some settings, as the DAG processor does; the DAGs and the errors of the imports."""
    from airflow.dag_processing.dagbag import DagBag

    def load(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"CAPTION_{name.upper()}", value)
        bag = DagBag(str(PROJECT / "dags"))
        return bag.dags, bag.import_errors

    return load


@pytest.fixture
def starts(monkeypatch):
    """The times at which a scheduler, which looks every ten minutes, starts runs of a DAG by the clock."""
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables import trigger
    from airflow.timetables.base import TimeRestriction

    def starts(dag, first, days):
        timetable, started, last = coerce_to_core_timetable(dag.timetable), [], None
        restriction = TimeRestriction(dag.start_date, None, catchup=False)
        now, end = first, first + timedelta(days=days)
        following = None
        while now < end:
            with monkeypatch.context() as patch:
                patch.setattr(trigger, "utcnow", lambda now=now: now)
                if following and following.run_after <= now:
                    started.append(following.run_after)
                    last, following = following.data_interval, None
                following = following or timetable.next_dagrun_info(
                    last_automated_data_interval=last, restriction=restriction
                )
            now += timedelta(minutes=10)
        return [each for each in started if each > first]

    return starts


@pytest.mark.parametrize(("month", "day"), [(3, 29), (10, 25)])
@pytest.mark.parametrize("time", ["0 2", "30 2", "0 3", "30 1"])
def test_every_day_has_one_night(load, starts, month, day, time):
    """Also the day on which the time of the night is skipped, and the day on which it comes twice."""
    dags, errors = load(night_schedule=f"{time} * * *", timezone=BERLIN)
    assert errors == {}
    first = pendulum.datetime(2026, month, day, 12, tz=BERLIN).subtract(days=3).in_timezone("UTC")
    nights = [each.in_timezone(BERLIN) for each in starts(dags["caption_new_images"], first, 6)]
    days = [first.in_timezone(BERLIN).add(days=number).to_date_string() for number in range(1, 7)]
    assert Counter(each.to_date_string() for each in nights) == dict.fromkeys(days, 1)
    # The skipped time is made up for an hour later; of two, the second is taken.
    minutes, hours = map(int, time.split())
    skipped = month == 3 and hours == 2
    expected = {date: f"{hours + (skipped and date == f'2026-0{month}-{day}'):02}:{minutes:02}" for date in days}
    assert {each.to_date_string(): each.format("HH:mm") for each in nights} == expected


def test_retrainings_run_by_the_clock_if_a_schedule_is_set(load, starts):
    """By default only events start them; with a schedule, its times do as well, and none when the DAG is unpaused."""
    dags, _ = load()
    assert not hasattr(dags["retrain_captioner"].timetable, "timetable")
    assert "retraining_due" in str(dags["retrain_captioner"].timetable.asset_condition)
    dags, errors = load(retraining_schedule="0 3 * * 0", timezone=BERLIN)
    assert errors == {}
    assert "retraining_due" in str(dags["retrain_captioner"].timetable.asset_condition)
    sundays = starts(dags["retrain_captioner"], pendulum.datetime(2026, 10, 20, tz="UTC"), 14)
    assert [each.in_timezone(BERLIN).format("MM-DD HH:mm") for each in sundays] == ["10-25 03:00", "11-01 03:00"]


def test_the_maintenance_runs_by_the_clock(load, starts):
    """Once a week, in the time zone of the settings."""
    dags, errors = load(maintenance_schedule="30 13 * * 6", timezone=BERLIN)
    assert errors == {}
    saturdays = starts(dags["maintain_captioning"], pendulum.datetime(2026, 10, 20, tz="UTC"), 14)
    assert [each.in_timezone(BERLIN).format("MM-DD HH:mm") for each in saturdays] == ["10-24 13:30", "10-31 13:30"]


@pytest.mark.parametrize(
    ("delay", "reported", "starts_a_night"),
    [
        ("0", {"champion_captioner"}, True),
        ("0", {"captioning_inbox"}, False),
        ("60", {"champion_captioner"}, True),
        ("60", {"captioning_inbox"}, True),
        ("60", {"captioning_dataset"}, False),
    ],
)
def test_reports_start_a_night_if_a_delay_is_set(load, delay, reported, starts_a_night):
    """Either a new champion or a report does, of which neither waits for the other; the clock goes on as before."""
    dags, errors = load(arrival_delay=delay)
    assert errors == {}
    dag = dags["caption_new_images"]
    condition = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable.asset_condition
    statuses = {key: key.name in reported for key, _ in condition.iter_assets()}
    assert AssetEvaluator(None).run(condition, statuses) is starts_a_night
    assert dag.timetable.timetable.expression == "0 2 * * *"


@pytest.mark.parametrize(
    ("run_type", "setting", "policy"),
    [
        ("scheduled", "", "approve"),
        ("scheduled", "auto", "auto"),
        ("asset_triggered", "auto", "approve"),
        ("manual", "auto", "never"),
    ],
)
def test_the_promotion_where_nobody_fills_in_the_form(load, run_type, setting, policy):
    """A person decides, unless the setting says otherwise of runs by the clock; whoever fills in the form chooses."""
    dags, _ = load(**({"scheduled_promotion": setting} if setting else {}))
    dag = dags["retrain_captioner"]
    context = {"dag_run": {"run_type": run_type}, "params": {"promotion": "never"}}
    for task_id, position in (("evaluate_champion", -2), ("gate", -5)):
        template = dag.get_template_env().from_string(dag.task_dict[task_id].arguments[position])
        assert template.render(**context) == f"--policy={policy}"
    choice = dag.get_template_env().from_string(dag.task_dict["choose_approval"].op_args[0])
    assert choice.render(**context) == policy


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("night_schedule", "2 o'clock", "expected five cron fields"),
        ("night_schedule", "61 2 * * *", "expected five cron fields"),
        ("night_schedule", "0 0 2 * * *", "expected five cron fields"),
        ("night_schedule", "", "expected five cron fields"),
        ("retraining_schedule", "weekly", "expected five cron fields"),
        ("maintenance_schedule", "", "expected five cron fields"),
        ("backup", "backups", "should match pattern"),
        ("arrival_delay", "-1", "greater than or equal to 0"),
        (
            "inbox_queue",
            "https://sqs.eu-central-1.amazonaws.com/123456789012/photos",
            "CAPTION_ARRIVAL_DELAY is above 0",
        ),
        ("inbox_queue", "arn:aws:sqs:eu-central-1:123456789012:photos", "should match pattern"),
        ("timezone", "Europe/Berlyn", "expected a name in the IANA database of time zones, such as Europe/Berlin"),
        ("scheduled_promotion", "maybe", "'auto', 'approve' or 'never'"),
        ("dag_prefix", "team a/", "should match pattern"),
        ("pool", "", "at least 1 character"),
    ],
)
def test_a_wrong_setting_is_an_import_error(load, setting, value, expected):
    """Of all DAGs; it names the variable and says what is expected."""
    dags, errors = load(**{setting: value})
    assert (dags, len(errors)) == ({}, 3)
    for error in errors.values():
        assert f"CAPTION_{setting.upper()}: " in error
        assert expected in error


SHOW = """
import json
from airflow.dag_processing.dagbag import DagBag

bag = DagBag("dags")
assert not bag.import_errors, bag.import_errors
tasks = [task for dag in bag.dags.values() for task in dag.tasks]
assets = [asset for task in tasks for asset in (*task.outlets, *task.inlets)]
conditions = [getattr(dag.timetable, "asset_condition", None) for dag in bag.dags.values()]
assets += [asset for condition in filter(None, conditions) for asset in condition.objects]
print(json.dumps({
    "dags": sorted(bag.dags),
    "assets": sorted({text for asset in assets for text in (asset.name, asset.uri)}),
    "pools": sorted({task.pool for task in tasks}),
    "queues": sorted({task.queue for task in tasks}),
    "watchers": sorted(
        f"{watcher.name} {watcher.trigger.serialize()}" for asset in set(assets) for watcher in asset.watchers
    ),
}))
"""


def test_deployments_share_no_dag_asset_pool_or_queue(airflow_home):
    """Two sets of variables make six DAGs, and no event of one deployment starts a run of the other."""

    def show(prefix, **settings):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "plugins")]),
            **{f"CAPTION_{name.upper()}": value for name, value in settings.items()},
            "CAPTION_DAG_PREFIX": prefix,
        }
        done = subprocess.run(
            [sys.executable, "-c", SHOW], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    address = "https://sqs.eu-central-1.amazonaws.com/123456789012"
    one, other = (
        show(prefix, pool=name, queue=name, arrival_delay="60", inbox_queue=f"{address}/{name}", inbox_connection=name)
        for prefix, name in (("team_a_", "a"), ("team-b.", "b"))
    )
    assert one["dags"] == ["team_a_caption_new_images", "team_a_maintain_captioning", "team_a_retrain_captioner"]
    assert other["dags"] == ["team-b.caption_new_images", "team-b.maintain_captioning", "team-b.retrain_captioner"]
    assert len(one["assets"]) == 14
    [watcher] = one["watchers"]
    arguments = {"queue": f"{address}/a", "connection_id": "a", "profile": ""}
    assert watcher == f"team_a_inbox_queue {('captioning.inbox_queue.InboxQueueTrigger', arguments)}"
    assert one["watchers"] != other["watchers"]
    assert not set(one["assets"]) & set(other["assets"])
    assert (one["pools"], one["queues"]) == (["a", "default_pool"], ["a", "default"])
    assert (other["pools"], other["queues"]) == (["b", "default_pool"], ["b", "default"])

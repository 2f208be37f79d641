"""The metrics of runs, sent by Airflow's client to real servers."""

import os
import subprocess
import sys

import pytest

from tests.support.metrics_servers import open_collector, open_statsd
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

SEND = """
from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

# Airflow begins the process of a task so, in airflow.sdk.execution_time.task_runner.
stats.initialize(
    factory=stats_utils.get_stats_factory(), export_legacy_names=conf.getboolean("metrics", "legacy_names_on")
)

from captioning import metrics

metrics.send({"night.captioned": 42, "champion.bleu_4": 0.25}, "caption_new_images")
"""


@pytest.fixture
def send(airflow_home):
    """Sends two metrics from a process with these variables."""

    def send(variables):
        path = os.pathsep.join([str(PROJECT), str(PROJECT / "plugins"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        command = [sys.executable, "-c", SEND]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Could not configure StatsClient" not in done.stdout + done.stderr

    return send


@pytest.mark.parametrize(
    ("opened", "tag"), [(open_statsd, ""), (open_collector, "{caption_new_images}")], ids=["StatsD", "OpenTelemetry"]
)
def test_they_arrive(send, opened, tag):
    """By either protocol, under Airflow's prefix; OpenTelemetry has tags, StatsD alone has none."""
    expected = {f"airflow.captioning.night.captioned{tag}": 42, f"airflow.captioning.champion.bleu_4{tag}": 0.25}
    with opened() as server:
        send(server.environment)
        wait_for("the metrics", lambda: server.gauges == expected, 10)


def test_tags_that_are_part_of_the_name(send):
    """As Telegraf and the StatsD exporter of Prometheus read them."""
    with open_statsd() as server:
        send({**server.environment, "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True"})
        name = "airflow.captioning.night.captioned,dag_id=caption_new_images"
        wait_for("the metrics", lambda: server.gauges.get(name) == 42, 10)


def test_nothing_is_sent_where_metrics_are_off(send):
    """Which is Airflow's default."""
    with open_statsd() as server:
        off = {"AIRFLOW__METRICS__STATSD_ON": "False", "AIRFLOW__METRICS__STATSD_PREFIX": "off"}
        send({**server.environment, **off})
        send(server.environment)
        wait_for("the metrics", lambda: "airflow.captioning.champion.bleu_4" in server.gauges, 10)
        # What was sent before would have been received before.
        assert not [name for name in server.gauges if name.startswith("off")]

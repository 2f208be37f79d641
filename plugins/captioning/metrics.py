"""Metrics of our runs, by Airflow's own client: StatsD, Datadog or OpenTelemetry, whichever Airflow is configured for.

A task has to send them: Airflow sets this client up in the processes of tasks, but not in the scheduler, where the
listeners run (apache/airflow#69172).
"""

from collections.abc import Mapping

from airflow.sdk.observability import stats


def send(measures: Mapping[str, float], dag_id: str) -> None:
    """Send measures as gauges, ``captioning.night.captioned`` for example; nothing where Airflow's metrics are off.

    Args:
        measures: the values by name; see ``pipeline.ops.measures``.
        dag_id: the tag ``dag_id`` tells deployments that share an Airflow apart, where the protocol has tags.
    """
    for name, value in measures.items():
        stats.gauge(f"captioning.{name}", value, tags={"dag_id": dag_id})

"""What a person is told, by mail or webhook, when a run fails, a night is late, or one ends with warnings.

Airflow calls `failed` and `warned` in the DAG processor and `late` in an executor, all after the fact: a receiver that
is down or slow delays no run.
"""

import html
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk import Connection, DeadlineAlert, DeadlineReference, SyncCallback

from dags.links import ui
from pipeline.settings import Settings

TIMEOUT = 10
"""Seconds for which the webhook's receiver may be silent. That of the mail server stands in its connection."""

LISTED = 10
"""Failed tasks that a notice names one by one."""

log = logging.getLogger(__name__)


def about_runs() -> dict[str, Any]:
    """The arguments of a DAG by which a person is told of its failures; none where the settings name nobody."""
    settings = Settings()
    return {"on_failure_callback": failed} if settings.notify_email or settings.notify_webhook else {}


def about_nights() -> dict[str, Any]:
    """The same for a DAG of nights: also of warnings, and of a run that has not ended in time."""
    if not (arguments := about_runs()):
        return {}
    deadline = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=Settings().night_deadline),
        callback=SyncCallback(late),
    )
    return {**arguments, "on_success_callback": warned, "deadline": deadline}


def failed(context: Mapping[str, Any]) -> None:
    """Tell of a failed run: which tasks failed, with what message, and where their logs are."""
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    try:
        tasks = _failed_tasks(context)
        lines = [_line(context, task_id, map_index) for task_id, map_index in tasks[:LISTED]]
    except Exception as error:
        # Airflow could not be asked: a notice that says less is better than none.
        tasks, lines = [], [f"* see there; Airflow did not answer: {error}"]
    if len(tasks) > LISTED:
        lines.append(f"* and {len(tasks) - LISTED} more")
    send(
        f"{dag_id} failed" + (f": {', '.join(dict(tasks))}" if tasks else ""),
        f"The run {run_id} of {dag_id} failed ({context['reason']}).\n\n"
        f"The run: {_address(dag_id, run_id)}\n\n"
        "What failed:\n\n" + "\n".join(lines) + "\n\n"
        "What to do: mend what the message names, then clear the failed task. The run goes on from there; what is done "
        "stays done.",
    )


def late(context: Mapping[str, Any]) -> None:
    """Tell of a run that has not ended by its deadline; nothing where it has failed, of which `failed` has told."""
    run = context["dag_run"]
    if run["state"] == "failed":
        return
    hours = f"{Settings().night_deadline:g} hours"
    send(
        f"{run['dag_id']} is late",
        f"The run {run['dag_run_id']} of {run['dag_id']} was queued at {run['queued_at']} and had not ended "
        f"{hours} later. Now its state is {run['state']}.\n\n"
        f"The run: {_address(run['dag_id'], run['dag_run_id'])}\n\n"
        "What to do: nothing, where there is much to caption, as in a first night or after a new champion. Otherwise "
        "open the run. The log of a running task says how far it is; one that has been queued for long waits for "
        "the pool gpu, or for a worker.",
    )


def warned(context: Mapping[str, Any]) -> None:
    """Tell of the warnings of a night that succeeded; nothing where there are none."""
    dag, run_id = context["dag"], context["run_id"]
    if not (warnings := context["ti"].xcom_pull(task_ids="publish", key="warnings")):
        return
    send(
        f"{dag.dag_id} ended with warnings",
        f"The run {run_id} of {dag.dag_id} succeeded: its captions are written. But:\n\n"
        + "\n".join(f"* {warning}" for warning in warnings)
        + f"\n\nThe run: {_address(dag.dag_id, run_id)}",
    )


def send(subject: str, text: str) -> None:
    """Post and mail a notice to whom the settings name. What can't be delivered is logged, and hinders nothing else."""
    settings = Settings()
    # The webhook first: it is the sooner to give up, and the DAG processor does not wait for ever.
    for deliver, receiver in ((_post, settings.notify_webhook), (_mail, settings.notify_email)):
        if not receiver:
            continue
        try:
            deliver(receiver, subject, text)
        except Exception as error:
            log.error("The notice “%s” could not be delivered to %s: %s", subject, receiver, error)


def _post(connection_id: str, subject: str, text: str) -> None:
    """Post a notice as JSON that Slack, Mattermost and the like show as it is."""
    from airflow.providers.http.notifications.http import HttpNotifier

    connection = Connection.get(connection_id)
    HttpNotifier(
        http_conn_id=connection_id,
        # A webhook's address is its secret: as the password it is hidden in forms and logs, as the host it is not.
        endpoint=None if connection.login else connection.password,
        json={"text": f"{subject}\n\n{text}"},
        extra_options={"timeout": TIMEOUT},
        # Not called, which would render the text as a template: errors quote what people wrote.
    ).notify({})


def _mail(to: str, subject: str, text: str) -> None:
    """Mail a notice through the connection ``smtp_default``."""
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    body = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
    SmtpNotifier(to=to, subject=subject, html_content=body).notify({})


def _failed_tasks(context: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Task id and map index, -1 where it is not mapped, of each task of the run that failed."""
    dag, run_id = context["dag"], context["run_id"]
    states = context["ti"].get_task_states(dag_id=dag.dag_id, run_ids=[run_id])[run_id]
    instances = []
    for name in (name for name, state in states.items() if state == "failed"):
        # Airflow names the instances of a mapped task extract_0, extract_1, ….
        task_id, _, map_index = (name, "", -1) if dag.has_task(name) else name.rpartition("_")
        instances.append((task_id, int(map_index)))
    return sorted(instances)


def _line(context: Mapping[str, Any], task_id: str, map_index: int) -> str:
    """What a failed task's command said last, and where its log is."""
    error = context["ti"].xcom_pull(task_ids=task_id, map_indexes=map_index, key="error")
    error = error or "no message, as of one that was killed or ran out of time: read its log"
    name = task_id if map_index < 0 else f"{task_id} [{map_index}]"
    return f"* {name}: {error}\n  {_address(context['dag'].dag_id, context['run_id'], task_id, map_index)}"


def _address(dag_id: str, run_id: str, task_id: str = "", map_index: int = -1) -> str:
    """The page of a run, or of a task in it, in Airflow's UI."""
    task = f"/tasks/{task_id}" if task_id else ""
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    return ui(f"dags/{dag_id}/runs/{quote(run_id)}{task}{mapped}")

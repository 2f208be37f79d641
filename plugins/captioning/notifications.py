"""Notifications by mail or webhook when a run fails, a night is late, or a night ends with warnings.

Airflow calls `notify_failure` and `notify_warnings` in the DAG processor and `notify_late` in an executor, all after
the fact: a receiver that is down or slow delays no run.
"""

import html
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Connection, DeadlineAlert, DeadlineReference, SyncCallback  # type: ignore[attr-defined] # not in its stub

from captioning.failures import LIMIT, FailedTask, error_message, failed_tasks
from captioning.links import run_url, task_url
from captioning.names import RECONCILE
from captioning.settings import read_settings
from pipeline.errors import PipelineError, printable

TIMEOUT = 10
"""Seconds to wait for the webhook's receiver. The timeout of the mail server is in its connection."""

log = logging.getLogger(__name__)


def run_callbacks() -> dict[str, Any]:
    """The arguments of a DAG that notify of its failures; empty where the settings name no receiver."""
    settings = read_settings()
    return {"on_failure_callback": notify_failure} if settings.notify_email or settings.notify_webhook else {}


def night_callbacks() -> dict[str, Any]:
    """The same for the DAG of nights, which also notify of warnings and of a run that misses its deadline."""
    if not (arguments := run_callbacks()):
        return {}
    deadline = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=read_settings().night_deadline),
        callback=SyncCallback(notify_late),
    )
    return {**arguments, "on_success_callback": notify_warnings, "deadline": deadline}


def notify_failure(context: Mapping[str, Any]) -> None:
    """Notify of a failed run: which tasks failed, with what message, and where their logs are."""
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    try:
        tasks = failed_tasks(context)
        lines = [_describe(task, context) for task in tasks[:LIMIT]]
    except Exception as error:
        # A notification without the messages is better than none.
        tasks, lines = [], [f"* Airflow could not list them ({error}): see the page of the run"]
    if len(tasks) > LIMIT:
        lines.append(f"* and {len(tasks) - LIMIT} more")
    send(
        f"{dag_id} failed" + (f": {', '.join(dict(tasks))}" if tasks else ""),
        f"The run {run_id} of {dag_id} failed ({context['reason']}).\n\n"
        f"Run: {run_url(dag_id, run_id)}\n\n"
        "Failed tasks:\n\n" + "\n".join(lines) + "\n\n"
        "To continue, fix the problem and clear the failed task. The run resumes there; finished work is not repeated.",
    )


def notify_late(context: Mapping[str, Any]) -> None:
    """Notify of a run that has missed its deadline, unless it has failed: `notify_failure` has reported that."""
    run = context["dag_run"]
    if run["state"] == "failed":
        return
    settings = read_settings()
    hours = f"{settings.night_deadline:g} hours"
    send(
        f"{run['dag_id']} is late",
        f"The run {run['dag_run_id']} of {run['dag_id']} was queued at {run['queued_at']} and had not ended "
        f"{hours} later. Its state is now {run['state']}.\n\n"
        f"Run: {run_url(run['dag_id'], run['dag_run_id'])}\n\n"
        "There is nothing to do if there is a lot to caption, as in a first night or after a new champion. Otherwise, "
        "open the run. The log of a running task shows its progress; a task that stays queued is waiting for the pool "
        f"{settings.pool} or for a worker.",
    )


def notify_warnings(context: Mapping[str, Any]) -> None:
    """Notify of the warnings of a night that succeeded; nothing where there are none."""
    dag, run_id = context["dag"], context["run_id"]
    if not (warnings := context["ti"].xcom_pull(task_ids=RECONCILE, key="warnings")):
        return
    send(
        f"{dag.dag_id} ended with warnings",
        f"The run {run_id} of {dag.dag_id} succeeded and its captions are written, with these warnings:\n\n"
        + "\n".join(f"* {printable(warning)}" for warning in warnings)
        + f"\n\nRun: {run_url(dag.dag_id, run_id)}",
    )


def send(subject: str, text: str) -> None:
    """Send a notification to the receivers in the settings; a failed delivery is logged, and stops no other."""
    settings = read_settings()
    # The webhook first: it gives up sooner, and the DAG processor does not wait forever.
    for deliver, receiver in ((_post, settings.notify_webhook), (_mail, settings.notify_email)):
        if not receiver:
            continue
        try:
            deliver(receiver, subject, text)
        except Exception as error:
            log.error("The notification “%s” could not be delivered to %s: %s", subject, receiver, error)


def _post(connection_id: str, subject: str, text: str) -> None:
    """Post a notification as JSON with the field ``text``, which Slack, Mattermost and Teams display as it is.

    Without the escapes, Slack and Mattermost would take a key such as ``<!channel>`` for an order to notify everybody,
    and Teams would take others for HTML. All three display the escapes as the characters.
    """
    import requests
    from airflow.providers.http.hooks.http import HttpHook

    # A webhook's address is its secret: forms and logs mask it as a password, but not as a host. The hook's own way to
    # send writes the whole address to the log of an executor, where nothing masks it, and so would requests' errors.
    hook, connection = HttpHook(http_conn_id=connection_id), Connection.get(connection_id)
    try:
        with hook.get_conn() as session:
            url = hook.url_from_endpoint(None if connection.login else connection.password)
            session.post(
                url, json={"text": html.escape(f"{subject}\n\n{text}", quote=False)}, timeout=TIMEOUT
            ).raise_for_status()
    except requests.RequestException as error:
        status = "" if error.response is None else f" {error.response.status_code}"
        raise PipelineError(f"{type(error).__name__}{status}") from None


def _mail(to: str, subject: str, text: str) -> None:
    """Mail a notification through the connection ``smtp_default``."""
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    body = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
    SmtpNotifier(to=to, subject=subject, html_content=body).notify({})


def _describe(task: FailedTask, context: Mapping[str, Any]) -> str:
    """A failed task's error message, and the URL of its log."""
    url = task_url(context["dag"].dag_id, context["run_id"], task.task_id, task.map_index)
    return f"* {task}: {error_message(task, context)}\n  {url}"

"""Notifications: mails and posts to local receivers, from the callbacks; ``test_journey`` has those of an Airflow."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.errors import PipelineError
from tests.support.paths import PROJECT
from tests.support.receivers import SECRET, open_receivers


@pytest.fixture
def receivers(monkeypatch, airflow_home):
    """Receivers that this process's environment names."""
    with open_receivers() as receivers:
        for name, value in receivers.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/")
        yield receivers


def test_no_notifications_by_default(airflow_home):
    """Where the settings name no receiver, the DAGs have no callbacks and no deadline."""
    from captioning import notifications

    assert notifications.run_callbacks() == notifications.night_callbacks() == {}


def test_wrong_settings_are_named(airflow_home, monkeypatch):
    """The error names the variable and shows no value, which may be a secret."""
    from captioning.settings import read_settings

    monkeypatch.setenv("CAPTION_NIGHT_DEADLINE", SECRET)
    with pytest.raises(PipelineError, match="CAPTION_NIGHT_DEADLINE: Input should be a valid number") as error:
        read_settings()
    assert SECRET not in str(error.value)


def test_a_night_has_a_deadline(receivers, monkeypatch):
    """The hours of the setting are the deadline of a night, counted from when it was queued; a retraining has none."""
    from captioning import notifications

    monkeypatch.setenv("CAPTION_NIGHT_DEADLINE", "1.5")
    deadline = notifications.night_callbacks()["deadline"]
    assert deadline.interval.total_seconds() == 5400
    assert deadline.reference.reference_name == "DagRunQueuedAtDeadline"
    assert deadline.callback.path == "captioning.notifications.notify_late"
    assert notifications.run_callbacks().keys() == {"on_failure_callback"}


def test_a_late_night_says_since_when(receivers, monkeypatch):
    """The notification of a missed deadline says when the run was queued, how long ago, and links to it."""
    from captioning import notifications

    monkeypatch.setenv("CAPTION_NIGHT_DEADLINE", "2.5")
    monkeypatch.setenv("CAPTION_POOL", "team_a")
    run = {
        "dag_id": "caption_new_images",
        "dag_run_id": "scheduled__2026-03-01T02:00:00+00:00",
        "queued_at": "2026-03-01T02:00:03Z",
    }
    notifications.notify_late({"dag_run": {**run, "state": "running"}})
    text = receivers.sent("caption_new_images is late")
    assert "was queued at 2026-03-01T02:00:03Z and had not ended 2.5 hours later. Its state is now running." in text
    assert "is waiting for the pool team_a or for a worker." in text
    assert (
        "https://airflow.example.com/dags/caption_new_images/runs/scheduled__2026-03-01T02%3A00%3A00%2B00%3A00" in text
    )
    notifications.notify_late({"dag_run": {**run, "state": "failed"}})
    assert len(receivers.mails) == 1


def test_a_notification_is_delivered_as_it_is(receivers):
    """Text that looks like a template or like markup, as a picture's name may, arrives as it was written."""
    from captioning import notifications

    text = "inbox/{{ 7 * 7 }}.jpg & <b>{% raw %}</b>: naïve"
    notifications.send("odd names", text)
    assert receivers.posts == [f"odd names\n\n{text}"]
    [(_, body)] = receivers.mails
    assert "inbox/{{ 7 * 7 }}.jpg &amp; &lt;b&gt;{% raw %}&lt;/b&gt;: naïve" in body


def test_a_key_notifies_nobody_in_slack(receivers):
    """What would be an order to Slack, and a link, is escaped by the rule of Slack."""
    from captioning import notifications

    notifications.send("odd names", "<!channel> <@U012> <https://example.com|a 'link'> &amp;")
    [(_, post)] = receivers.paths_and_posts
    assert post["text"] == (
        "odd names\n\n&lt;!channel&gt; &lt;@U012&gt; &lt;https://example.com|a 'link'&gt; &amp;amp;"
    )


def test_a_key_forges_no_line_of_a_notification(receivers):
    """Control and bidirectional characters in warnings and error messages are escaped."""
    from captioning import notifications

    warning = "a\n* everything is fine\u202egpj.b"
    context = {
        "dag": SimpleNamespace(dag_id="caption_new_images", has_task=lambda name: True),
        "run_id": "r1",
        "reason": "task_failure",
        "ti": SimpleNamespace(
            xcom_pull=lambda **options: [warning] if options["key"] == "warnings" else warning,
            get_task_states=lambda **_: {"r1": {"reconcile": "failed"}},
        ),
    }
    notifications.notify_warnings(context)
    notifications.notify_failure(context)
    escaped = r"a\n* everything is fine\u202egpj.b"
    assert f"\n* {escaped}\n" in receivers.sent("caption_new_images ended with warnings")
    assert f"\n* reconcile: {escaped}\n" in receivers.sent("caption_new_images failed: reconcile")


def test_a_webhook_with_a_login_is_posted_to_its_host(receivers, monkeypatch):
    """If the connection has a login, its password is a credential and not part of the address."""
    from captioning import notifications

    connection = {**json.loads(receivers.environment["AIRFLOW_CONN_CHAT"]), "login": "somebody"}
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps(connection))
    notifications.send("hello", "there")
    [(path, _)] = receivers.paths_and_posts
    assert path == "/services"


def test_a_silent_webhook_does_not_stop_the_mail(receivers, monkeypatch, caplog):
    """A webhook that accepts and never answers is given up, the mail is sent, and the log says so."""
    from captioning import notifications

    monkeypatch.setattr(notifications, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = {"conn_type": "http", "host": f"http://127.0.0.1:{silent.getsockname()[1]}", "password": SECRET}
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps(connection))
        notifications.send("hello", "there")
    assert [subject for subject, _ in receivers.mails] == ["hello"]
    assert "The notification “hello” could not be delivered to chat" in caplog.text


def test_a_webhook_that_is_down_keeps_its_secret(receivers, caplog, capfd):
    """Where nobody listens, and where the service refuses, the log names connection and error, and not the address."""
    from captioning import notifications

    receivers.refuse_posts()
    notifications.send("hello", "there")
    receivers.close_webhook()
    notifications.send("hello", "again")
    assert "could not be delivered to chat: HTTPError 404" in caplog.text
    assert "could not be delivered to chat: ConnectionError" in caplog.text
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
    assert len(receivers.mails) == 2


def test_the_command_that_tests_the_receivers(receivers, monkeypatch):
    """The command in docs/operations.md sends a notification, by connections that only the database has."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    page = (PROJECT / "docs" / "operations.md").read_text()
    [command] = re.findall(r"^_AIRFLOW\w+=server python -c \\\n.*$", page, re.MULTILINE)
    variable, _, *arguments = shlex.split(command.replace("\\\n", " "))
    monkeypatch.setenv(*variable.split("="))
    connection = json.loads(os.environ["AIRFLOW_CONN_CHAT"])
    monkeypatch.delenv("AIRFLOW_CONN_CHAT")
    with create_session() as session:
        session.add(Connection(conn_id="chat", **connection))  # noqa: AIR311 - the row, not what tasks see
    subprocess.run([sys.executable, *arguments], check=True)
    assert receivers.sent("A test") == "It works."

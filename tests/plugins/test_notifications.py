"""Notifications: mails and posts to local receivers, from the callbacks alone and from a whole Airflow."""

import contextlib
import email
import email.policy
import html
import json
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import psutil
import pytest
import requests
from aiosmtpd.controller import Controller

from pipeline.captioner.registry import promote
from pipeline.errors import PipelineError
from pipeline.storage import layout, open_bucket
from pipeline.work import runs
from tests.support import toy
from tests.support.airflow_server import free_ports, start_airflow
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

SECONDS = 300
"""Time limit for what a running Airflow does."""

SECRET = "T0123/very-secret-end"
TO = "night@example.com, duty@example.com"


class Mailbox:
    """The mails that a mail server has received."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


class Webhook(BaseHTTPRequestHandler):
    """Remembers the path and the content of each post."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, json.loads(content)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Receivers:
    """A mail server and a webhook, what they received, and the environment that names them."""

    def __init__(self, smtp_port, webhook):
        self.mailbox, self.webhook = Mailbox(), webhook
        webhook.posts = []
        mail = {"from_email": "pipeline@example.com", "disable_ssl": True, "disable_tls": True}
        self.environment = {
            "CAPTION_NOTIFY_EMAIL": TO,
            "CAPTION_NOTIFY_WEBHOOK": "chat",
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(
                {"conn_type": "smtp", "host": "127.0.0.1", "port": smtp_port, "extra": mail}
            ),
            "AIRFLOW_CONN_CHAT": json.dumps(
                {
                    "conn_type": "http",
                    "host": f"http://127.0.0.1:{webhook.server_address[1]}/services",
                    "password": SECRET,
                }
            ),
        }

    @property
    def mails(self):
        """The subject and the text of each mail, which went to all addresses."""
        assert all(mail["To"] == TO and mail["From"] == "pipeline@example.com" for mail in self.mailbox.mails)
        return [(mail["Subject"], mail.get_body().get_content()) for mail in self.mailbox.mails]

    @property
    def posts(self):
        """The text of each post, which went to the complete address."""
        assert all(path == f"/services/{SECRET}" and post.keys() == {"text"} for path, post in self.webhook.posts)
        return [post["text"] for _, post in self.webhook.posts]

    def sent(self, subject, containing=""):
        """The text of the only mail with this subject and about this; the webhook was posted the same."""
        [text] = [text for found, text in self.mails if found == subject and containing in text]
        [post] = [post for post in self.posts if post.startswith(f"{subject}\n\n") and containing in post]
        shown = html.unescape(re.sub("</?pre.*?>", "", text))
        assert shown.split() == post.removeprefix(subject).split()
        return shown


@contextlib.contextmanager
def open_receivers():
    """A mail server and a webhook in threads of their own."""
    [port] = free_ports(1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as webhook:
        receivers = Receivers(port, webhook)
        threading.Thread(target=webhook.serve_forever).start()
        controller = Controller(receivers.mailbox, hostname="127.0.0.1", port=port)
        controller.start()
        yield receivers
        controller.stop()
        webhook.shutdown()


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
    run = {
        "dag_id": "caption_new_images",
        "dag_run_id": "scheduled__2026-03-01T02:00:00+00:00",
        "queued_at": "2026-03-01T02:00:03Z",
    }
    notifications.notify_late({"dag_run": {**run, "state": "running"}})
    text = receivers.sent("caption_new_images is late")
    assert "was queued at 2026-03-01T02:00:03Z and had not ended 2.5 hours later. Its state is now running." in text
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


def test_a_webhook_with_a_login_is_posted_to_its_host(receivers, monkeypatch):
    """If the connection has a login, its password is a credential and not part of the address."""
    from captioning import notifications

    connection = {**json.loads(receivers.environment["AIRFLOW_CONN_CHAT"]), "login": "somebody"}
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps(connection))
    notifications.send("hello", "there")
    [(path, _)] = receivers.webhook.posts
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


OTHER_DAGS = """
from airflow.sdk import DAG, task
from captioning import notifications
from captioning.operators import PipelineOperator, end_run

@task
def extract(shard):
    raise OSError("disk full")

@task(multiple_outputs=True)
def reconcile():
    return {"warnings": ["The captions differ from last week's.", "6 % are alike."]}

with DAG("failing", schedule="@once", **notifications.run_callbacks()):
    failing = PipelineOperator(task_id="a_command", arguments=["promote", "nothing"])
    [failing, extract.expand(shard=list(range(12)))] >> end_run("night")

with DAG("warning", schedule="@once", **notifications.night_callbacks()):
    reconcile() >> end_run("night")
"""


class Deployment:
    """A running Airflow with a store, an inbox and two receivers, in which a night has begun on an empty store."""

    def __init__(self, folder, server, receivers):
        self.folder, self.server, self.receivers = folder, server, receivers
        self.store, self.inbox = (open_bucket(str(folder / name)) for name in ("store", "inbox"))

    def call(self, method, path, body=None):
        """The answer of Airflow's REST API."""
        answer = requests.request(
            method,
            f"{self.server.url}/api/v2/dags/{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.server.token}"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()

    def run(self, dag_id):
        """Run a DAG, and return the run's id."""
        return self.call("POST", f"{dag_id}/dagRuns", {"logical_date": None})["dag_run_id"]

    def first_run(self, dag_id):
        """The id of the run that the schedule made."""
        return wait_for("a run", lambda: self.call("GET", f"{dag_id}/dagRuns")["dag_runs"], SECONDS)[0]["dag_run_id"]

    def end(self, dag_id, run_id):
        """Wait for the end of a run, and return its state."""
        path = f"{dag_id}/dagRuns/{quote(run_id)}"

        def ended():
            state = self.call("GET", path)["state"]
            return state in ("success", "failed") and state

        return wait_for("the end of a run", ended, SECONDS)

    def notification(self, subject, containing):
        """Wait until both receivers have this notification, and return its text."""

        def arrived():
            return any(s == subject and containing in t for s, t in self.receivers.mails) and any(
                post.startswith(subject) and containing in post for post in self.receivers.posts
            )

        wait_for(f"the notification {subject}", arrived, SECONDS)
        return self.receivers.sent(subject, containing)

    def tries(self, run_id, task_id):
        """How often each instance of a task has been tried."""
        path = f"caption_new_images/dagRuns/{quote(run_id)}/taskInstances?task_id={task_id}"
        instances = self.call("GET", path)["task_instances"]
        return [instance["try_number"] for instance in sorted(instances, key=lambda each: each["map_index"])]

    def command(self, name, other_than=()):
        """Wait for a task that runs a command of this name, and return the command's process."""

        def running():
            for process in psutil.process_iter():
                # One that has ended, or is not ours to look at, is none.
                with contextlib.suppress(psutil.Error):
                    ours = process.cmdline()[1:3] == ["-m", "pipeline"] and process.pid not in other_than
                    here = ours and process.environ().get("CAPTION_STORE") == self.store.uri
                    if here and process.cmdline()[3] == name:
                        return process
            return None

        return wait_for(f"the command {name}", running, SECONDS)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """Airflow as `make up` starts it, with a deadline of a second for nights, and two more DAGs."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "other").mkdir()
    (folder / "other" / "some.py").write_text(OTHER_DAGS)
    bundles = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(path)},
        }
        for name, path in (("ours", PROJECT / "dags"), ("other", folder / "other"))
    ]
    with open_receivers() as receivers:
        environment = {
            **os.environ,
            **receivers.environment,
            "CAPTION_STORE": (folder / "store").as_uri(),
            "CAPTION_INBOX": (folder / "inbox").as_uri(),
            "CAPTION_SHARD_SIZE": "4",
            "CAPTION_NIGHT_DEADLINE": str(1 / 3600),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        }
        with start_airflow(folder / "airflow", environment) as server:
            yield Deployment(folder, server, receivers)


def test_a_failed_night(deployment):
    """A night without a champion fails; mail and webhook name the failed task, its message and the URL of its log."""
    run_id = deployment.first_run("caption_new_images")
    text = deployment.notification("caption_new_images failed: list_inbox", run_id)
    address = f"{deployment.server.url}/dags/caption_new_images/runs/{quote(run_id)}"
    assert f"Run: {address}\n" in text
    assert "* list_inbox: error: No model has been promoted" in text
    assert f"  {address}/tasks/list_inbox\n" in text
    assert "clear the failed task" in text


def test_a_late_night(deployment):
    """A night that misses its deadline is reported."""
    run_id = deployment.first_run("caption_new_images")
    assert "had not ended" in deployment.notification("caption_new_images is late", run_id)


def test_many_failed_tasks_are_counted(deployment):
    """Of many failed tasks ten are listed, with their logs; for a task without a message the list says so."""
    run_id = deployment.first_run("failing")
    text = deployment.notification("failing failed: a_command, extract", run_id)
    assert deployment.end("failing", run_id) == "failed"
    record = runs.read_record(run_id, deployment.store)
    assert (record.kind, record.status) == ("night", "failed")
    assert record.message.startswith("a_command: error: ")
    assert record.message.endswith(
        "; extract[8]: no error message: the task was killed or exceeded its time limit; "
        "see its log; and 3 more failed tasks"
    )
    address = f"{deployment.server.url}/dags/failing/runs/{quote(run_id)}"
    assert "* extract[8]: no error message" in text
    assert f"  {address}/tasks/extract/mapped/8\n" in text
    assert "extract[9]" not in text
    assert "* and 3 more" in text


def test_warnings_of_a_night_that_succeeded(deployment):
    """The warnings that `reconcile` returns are sent, one per line, and `end_run` leaves the run a success."""
    run_id = deployment.first_run("warning")
    text = deployment.notification("warning ended with warnings", run_id)
    assert deployment.end("warning", run_id) == "success"
    assert "* The captions differ from last week's.\n* 6 % are alike.\n" in text


def test_a_night_survives_killed_processes(deployment, trained):
    """Where a task's command is killed, and where the whole worker of a task is, the task is tried again and the night
    ends whole."""
    toy.copy(trained.store, deployment.store, layout.ENCODERS, layout.MODELS)
    promote(trained.model.version, deployment.store)
    for number in range(8):
        deployment.inbox.put(f"{number}.jpg", toy.picture("red", 100 + number))
    run_id = deployment.run("caption_new_images")
    first = deployment.command("extract")
    first.kill()
    second = deployment.command("extract", other_than=(first.pid,))
    worker = second.parent().parent()
    assert "scheduler" not in worker.cmdline()
    worker.kill()
    assert deployment.end("caption_new_images", run_id) == "success"
    assert deployment.tries(run_id, "extract") == [2, 2]
    record = next(runs.list_records(runs.NIGHT, deployment.store))
    assert (record.status, record.listed, record.captioned, record.failed) == ("succeeded", 8, 8, 0)


def test_a_webhook_that_is_down(deployment):
    """Where nobody listens at the webhook's address a run fails as ever and the mail goes out; the log says what was
    not delivered, and neither log nor database holds the secret end of the address."""
    deployment.receivers.webhook.shutdown()
    deployment.receivers.webhook.server_close()
    run_id = deployment.run("failing")
    assert deployment.end("failing", run_id) == "failed"
    wait_for("the mail", lambda: any(run_id in text for _, text in deployment.receivers.mails), SECONDS)
    written = b"".join(path.read_bytes() for path in (deployment.folder / "airflow").rglob("*") if path.is_file())
    assert b"could not be delivered to chat" in written
    assert b"/services/***" in written
    assert SECRET.encode() not in written

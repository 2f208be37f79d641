"""Who is told of what: mails and posts to local receivers, from the callbacks alone and from a whole Airflow."""

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
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import requests
import toy
from aiosmtpd.controller import Controller
from waiting import wait_for

from benchmarks.night import airflow, free_ports
from pipeline import runs
from pipeline.registry import promote
from pipeline.storage import open_bucket

PROJECT = Path(__file__).resolve().parents[1]

SECONDS = 300
"""For which what a running Airflow does may last."""

SECRET = "T0123/very-secret-end"
TO = "night@example.com, duty@example.com"


class Mailbox:
    """A mail server's side of what it is sent."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


class Webhook(BaseHTTPRequestHandler):
    """Remembers where something was posted and what."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, json.loads(content)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Receivers:
    """A mail server and a webhook, what they were sent, and the environment that names them."""

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
        """The subject and the text of each mail, which went to everybody."""
        assert all(mail["To"] == TO and mail["From"] == "pipeline@example.com" for mail in self.mailbox.mails)
        return [(mail["Subject"], mail.get_body().get_content()) for mail in self.mailbox.mails]

    @property
    def posts(self):
        """The text of each post, which came to the whole address."""
        assert all(path == f"/services/{SECRET}" and post.keys() == {"text"} for path, post in self.webhook.posts)
        return [post["text"] for _, post in self.webhook.posts]

    def sent(self, subject, about=""):
        """The text of the only mail with this subject and about this; the webhook was posted the same."""
        [text] = [text for found, text in self.mails if found == subject and about in text]
        [post] = [post for post in self.posts if post.startswith(f"{subject}\n\n") and about in post]
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


def test_nobody_is_told_by_default(airflow_home):
    """Where the settings name nobody, the DAGs have no callbacks and no deadline."""
    from dags import notices

    assert notices.about_runs() == notices.about_nights() == {}


def test_a_night_has_a_deadline(receivers, monkeypatch):
    """The hours of the setting are the deadline of a night, counted from when it was queued; a retraining has none."""
    from dags import notices

    monkeypatch.setenv("CAPTION_NIGHT_DEADLINE", "1.5")
    deadline = notices.about_nights()["deadline"]
    assert deadline.interval.total_seconds() == 5400
    assert deadline.reference.reference_name == "DagRunQueuedAtDeadline"
    assert deadline.callback.path == "dags.notices.late"
    assert notices.about_runs().keys() == {"on_failure_callback"}


def test_a_late_night_says_since_when(receivers, monkeypatch):
    """The notice of a missed deadline says when the run was queued, how long ago that is, and where to look."""
    from dags import notices

    monkeypatch.setenv("CAPTION_NIGHT_DEADLINE", "2.5")
    run = {
        "dag_id": "caption_new_images",
        "dag_run_id": "scheduled__2026-03-01T02:00:00+00:00",
        "queued_at": "2026-03-01T02:00:03Z",
    }
    notices.late({"dag_run": {**run, "state": "running"}})
    text = receivers.sent("caption_new_images is late")
    assert "was queued at 2026-03-01T02:00:03Z and had not ended 2.5 hours later. Now its state is running." in text
    assert (
        "https://airflow.example.com/dags/caption_new_images/runs/scheduled__2026-03-01T02%3A00%3A00%2B00%3A00" in text
    )
    notices.late({"dag_run": {**run, "state": "failed"}})
    assert len(receivers.mails) == 1


def test_a_notice_is_delivered_as_it_is(receivers):
    """What looks like a template or like markup, as a picture's name may, arrives as it was written."""
    from dags import notices

    text = "inbox/{{ 7 * 7 }}.jpg & <b>{% raw %}</b>: naïve"
    notices.send("odd names", text)
    assert receivers.posts == [f"odd names\n\n{text}"]
    [(_, body)] = receivers.mails
    assert "inbox/{{ 7 * 7 }}.jpg &amp; &lt;b&gt;{% raw %}&lt;/b&gt;: naïve" in body


def test_a_webhook_with_a_login_is_posted_to_its_host(receivers, monkeypatch):
    """Login and password of the connection are credentials where both are there, and no part of the address."""
    from dags import notices

    connection = {**json.loads(receivers.environment["AIRFLOW_CONN_CHAT"]), "login": "somebody"}
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps(connection))
    notices.send("hello", "there")
    [(path, _)] = receivers.webhook.posts
    assert path == "/services"


def test_a_silent_receiver_keeps_nobody_from_being_told(receivers, monkeypatch, caplog):
    """Where the webhook accepts and never answers, it is given up, the mail goes out, and the log says so."""
    from dags import notices

    monkeypatch.setattr(notices, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = {"conn_type": "http", "host": f"http://127.0.0.1:{silent.getsockname()[1]}", "password": SECRET}
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps(connection))
        notices.send("hello", "there")
    assert [subject for subject, _ in receivers.mails] == ["hello"]
    assert "The notice “hello” could not be delivered to chat" in caplog.text


OTHER_DAGS = """
from airflow.sdk import DAG, task
from dags import notices
from dags.tasks import PipelineOperator

@task
def extract(shard):
    raise OSError("disk full")

@task(multiple_outputs=True)
def publish():
    return {"warnings": ["The captions differ from last week's.", "6 % are alike."]}

with DAG("failing", schedule="@once", **notices.about_runs()):
    PipelineOperator(task_id="a_status", arguments=["promote", "nothing"])
    extract.expand(shard=list(range(12)))

with DAG("warning", schedule="@once", **notices.about_nights()):
    publish()
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

    def notice(self, subject, about):
        """Wait until both receivers have this notice, and return its text."""

        def arrived():
            return any(s == subject and about in t for s, t in self.receivers.mails) and any(
                post.startswith(subject) and about in post for post in self.receivers.posts
            )

        wait_for(f"the notice {subject}", arrived, SECONDS)
        return self.receivers.sent(subject, about)

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
        with airflow(folder / "airflow", environment) as server:
            yield Deployment(folder, server, receivers)


def test_a_failed_night_is_told(deployment):
    """A night without a champion fails, and mail and webhook say which task, what it said, and where to look."""
    run_id = deployment.first_run("caption_new_images")
    text = deployment.notice("caption_new_images failed: list_inbox", run_id)
    address = f"{deployment.server.url}/dags/caption_new_images/runs/{quote(run_id)}"
    assert f"The run: {address}\n" in text
    assert "* list_inbox: error: No model has been promoted" in text
    assert f"  {address}/tasks/list_inbox\n" in text
    assert "clear the failed task" in text


def test_a_late_night_is_told(deployment):
    """A night that has not ended by its deadline is told of while it goes on."""
    run_id = deployment.first_run("caption_new_images")
    assert "had not ended" in deployment.notice("caption_new_images is late", run_id)


def test_many_failed_tasks_are_counted(deployment):
    """Of many failed tasks ten are named, with their pages; what left no message says so."""
    run_id = deployment.first_run("failing")
    text = deployment.notice("failing failed: a_status, extract", run_id)
    address = f"{deployment.server.url}/dags/failing/runs/{quote(run_id)}"
    assert "* extract [8]: no message" in text
    assert f"  {address}/tasks/extract/mapped/8\n" in text
    assert "extract [9]" not in text
    assert "* and 3 more" in text


def test_warnings_of_a_night_that_succeeded_are_told(deployment):
    """What `publish` returns as warnings reaches a person, one a line."""
    run_id = deployment.first_run("warning")
    text = deployment.notice("warning ended with warnings", run_id)
    assert "* The captions differ from last week's.\n* 6 % are alike.\n" in text


def test_a_night_survives_killed_processes(deployment, trained):
    """Where a task's command is killed, and where the whole worker of a task is, the task is tried again and the night
    ends whole."""
    toy.copy(trained.store, deployment.store, "encoders/", "models/")
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
    record = next(runs.finished("caption_new_images", deployment.store))
    assert (record["listed"], record["captioned"], record["failed"]) == (8, 8, 0)


def test_a_webhook_that_is_down_hinders_nothing(deployment):
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

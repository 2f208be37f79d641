"""A whole Airflow whose nights uploads start: reported over REST, by the queue of a bucket, and by the night itself."""

import json
import subprocess
import uuid
from collections import Counter
from types import SimpleNamespace

import boto3
import pytest

from pipeline.captioner import registry
from pipeline.nightly import current
from pipeline.settings import PROJECT
from pipeline.storage import layout, open_bucket
from tests.support import secrets, toy
from tests.support.airflow_server import NIGHT_DAG, start_airflow
from tests.support.waiting import wait_for

pytestmark = pytest.mark.airflow

DELAY = 5


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, s3_server, trained):
    """Airflow with a champion, and an inbox of one photograph whose folder camera/ has a queue."""
    folder = tmp_path_factory.mktemp("airflow")
    store = open_bucket((folder / "store").as_uri())
    toy.copy(trained.store, store, layout.MODELS, layout.ENCODERS)
    registry.promote(trained.model.version, store)
    name, s3, sqs = f"photos-{uuid.uuid4().hex}", boto3.client("s3"), boto3.client("sqs")
    s3.create_bucket(Bucket=name)
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "camera/"}]}}
    configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"], "Filter": rule}]}
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=configuration)
    inbox = open_bucket(f"s3://{name}")
    inbox.put("old/red.jpg", toy.picture("red", 1))
    environment = {
        **secrets.without_credentials(),
        **secrets.by_connection(s3_server),
        "CAPTION_STORE": store.uri,
        "CAPTION_INBOX": inbox.uri,
        "CAPTION_ARRIVAL_DELAY": str(DELAY),
        "CAPTION_INBOX_QUEUE": queue,
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    with start_airflow(folder, environment) as server:
        yield SimpleNamespace(server=server, inbox=inbox, store=store, queue=queue, folder=folder)


class Nights:
    """The nights of a deployment, in the order in which they began."""

    def __init__(self, server):
        self.server = server
        self.seen = set()

    def next(self):
        """Wait for the next night, and for its end; it must succeed."""
        [run] = wait_for("a night", self.new, 120)
        self.seen.add(run.id)
        run.seconds()
        return run

    def new(self):
        """The nights that were not waited for."""
        return [run for run in self.server.runs(NIGHT_DAG) if run.id not in self.seen]


def cause(night):
    """What has started a night, as the note of its first task says."""
    return night.notes()["await_uploads"].partition(" (")[0]


@pytest.fixture(scope="module")
def nights(deployment):
    """The nights after the one that the clock starts at once."""
    nights = Nights(deployment.server)
    assert cause(nights.next()) == "started by the clock"
    return nights


def captioned(deployment):
    """The keys of the inbox that have a caption, and how many rows each has."""
    return Counter(row["image_key"] for row in current.read(deployment.store).to_pylist() if row["caption"])


def report(deployment):
    """Report new photographs as docs/airflow.md says."""
    text = (PROJECT / "docs" / "airflow.md").read_text()
    [script] = [block for block in text.split("```sh\n") if "/api/v2/assets/events" in block.partition("```")[0]]
    environment = {"AIRFLOW": deployment.server.url, "TOKEN": deployment.server.token, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-eu", "-c", script.partition("```")[0]], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_report_over_rest_starts_a_night(deployment, nights):
    """After the delay, in which no task has a slot."""
    deployment.inbox.put("old/blue.jpg", toy.picture("blue", 2))
    event = report(deployment)
    assert event["name"] == "captioning_inbox"
    night = nights.next()
    assert night.shown["run_type"] == "asset_triggered"
    assert cause(night) == "started by 1 report of new photographs"
    assert captioned(deployment) == {"old/red.jpg": 1, "old/blue.jpg": 1}
    [waited] = night.tasks("await_uploads")
    assert waited["state"] == "success"
    assert waited["duration"] >= DELAY - 2


def test_an_upload_starts_a_night(deployment, nights):
    """One: its notifications are one report, and gone from the queue when the night is queued."""
    for number in range(12):
        deployment.inbox.put(f"camera/green-{number}.jpg", toy.picture("green", number))
    night = nights.next()
    assert cause(night) == "started by 1 report of new photographs"
    assert sum(captioned(deployment).values()) == 14
    assert nights.new() == []
    sqs = boto3.client("sqs")
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.get_queue_attributes(QueueUrl=deployment.queue, AttributeNames=names)["Attributes"]
    assert set(attributes.values()) == {"0"}


def test_what_arrives_during_a_night_starts_one_more(deployment, nights):
    """Nobody reports it but the night itself, once."""
    night = deployment.server.trigger(NIGHT_DAG)
    night.wait_for_task("list_inbox", "success")
    deployment.inbox.put("old/yellow.jpg", toy.picture("yellow", 3))
    night.seconds()
    nights.seen.add(night.id)
    assert captioned(deployment)["old/yellow.jpg"] == 0
    further = nights.next()
    assert cause(further) == "started by 1 report of new photographs"
    assert captioned(deployment)["old/yellow.jpg"] == 1
    assert further.of_tasks("emit_inbox_event", "state") == ["skipped"]
    assert nights.new() == []

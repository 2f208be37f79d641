"""The queue of the inbox: notifications of a bucket become reports, and nothing that happens to a queue ends them."""

import asyncio
import contextlib
import json
import uuid

import boto3
import pytest
from airflow.triggers.shared_stream import AdvanceItem, AdvanceOutcome, SharedStreamManager
from botocore.exceptions import ClientError

from captioning import inbox_queue
from captioning.inbox_queue import InboxQueue, InboxQueueTrigger, count_photographs

STORED, LOST = AdvanceOutcome(acked=1, failed=0), AdvanceOutcome(acked=0, failed=1)


@pytest.fixture
def quick(airflow_home, monkeypatch):
    """Requests wait for a second at most, and the next one follows at once."""
    monkeypatch.setattr(inbox_queue, "WAIT", 1)
    monkeypatch.setattr(inbox_queue, "PAUSE", 0.0)
    monkeypatch.setattr(inbox_queue, "GAP", 0.0)


@pytest.fixture
def sqs(quick, s3_server):
    """A client of SQS."""
    return boto3.client("sqs")


@pytest.fixture
def queue(sqs):
    """The URL of an empty queue."""
    return sqs.create_queue(QueueName=f"inbox-{uuid.uuid4().hex}")["QueueUrl"]


@pytest.fixture
def inbox(sqs, queue):
    """The name of a bucket that tells the queue of each new object."""
    name = f"photos-{uuid.uuid4().hex}"
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=name)
    configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=configuration)
    return name


@contextlib.asynccontextmanager
async def opened(queue, connection_id="aws_default"):
    """What reads a queue, and its stream."""
    reader = InboxQueue(queue, connection_id, "")
    stream = reader.open_stream()
    yield reader, stream
    await stream.aclose()


async def until(condition):
    """Let the queue's threads work until something is so."""
    while not condition():
        await asyncio.sleep(0)


async def stop(task):
    """Cancel a task, as a triggerer that stops does."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def held(sqs, queue):
    """How many messages a queue has, delivered ones included."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(map(int, attributes.values()))


def notification(key, event="ObjectCreated:Put"):
    """A notification as S3 sends it."""
    return {"Records": [{"eventName": event, "s3": {"bucket": {"name": "photos"}, "object": {"key": key}}}]}


def event_of_eventbridge(key, kind):
    """The same from EventBridge."""
    return {"source": "aws.s3", "detail-type": kind, "detail": {"object": {"key": key}}}


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (notification("2026/a+red%2Bdog.jpg"), 1),
        (notification("a.jpg", "s3:ObjectCreated:CompleteMultipartUpload"), 1),
        (notification("no suffix", "ObjectCreated:Copy"), 1),
        (notification("a.jpg", "ObjectRestore:Completed"), 1),
        (notification("a.jpg", "ObjectRestore:Post"), 0),
        (notification("a.jpg", "ObjectRemoved:Delete"), 0),
        (notification("a.jpg.xmp"), 0),
        ({"Records": notification("a.jpg")["Records"] * 3}, 3),
        ({"Records": []}, 0),
        ({"Type": "Notification", "Message": json.dumps(notification("a.jpg"))}, 1),
        (event_of_eventbridge("a red dog.jpg", "Object Created"), 1),
        (event_of_eventbridge("a.jpg", "Object Restore Completed"), 1),
        (event_of_eventbridge("a.jpg", "Object Deleted"), 0),
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos"}, 0),
        ({"Type": "Notification", "Message": "an alarm"}, None),
        ({"Records": [{"eventSource": "aws:kinesis"}]}, None),
        ({"Records": 7}, None),
        ({}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_what_a_message_reports(message, count):
    """Written or restored photographs, or that it is no notification of a bucket."""
    assert count_photographs(json.dumps(message)) == count


@pytest.mark.parametrize("body", ["", "{", "new pictures", "[" * 100_000, '{"Records": [{"eventName": 1}]}'])
def test_a_damaged_message(body):
    """It is no notification, and no error."""
    assert count_photographs(body) is None


def test_airflow_gets_a_report_and_then_the_messages_are_deleted(sqs, queue, inbox):
    """Through Airflow's own stream: they stay in the queue until Airflow says that the report is in its database."""
    trigger = InboxQueueTrigger(queue=queue, connection_id="aws_default", profile="")
    path, arguments = trigger.serialize()
    assert (path, InboxQueueTrigger(**arguments).serialize()) == (
        "captioning.inbox_queue.InboxQueueTrigger",
        trigger.serialize(),
    )
    for key in ("a.jpg", "2026/a red + dog.png", "a.xmp"):
        boto3.client("s3").put_object(Bucket=inbox, Key=key, Body=b"x")

    streams, key, got = SharedStreamManager(), trigger.shared_stream_key(), []

    async def run():
        """As the triggerer runs it."""
        async for event in trigger.filter_shared_stream(streams.subscribe(trigger_id=1, trigger=trigger, key=key)):
            number = streams.bind_pending_event(trigger_id=1, key=key)
            got.append((event.payload, number))

    async def read():
        running = asyncio.create_task(run())
        await until(lambda: got)
        before = held(sqs, queue)
        streams.confirm_persisted([number for _, number in got])
        await until(lambda: not held(sqs, queue))
        assert not running.done()
        await stop(running)
        await streams.unsubscribe(1, key)
        return before

    # The bucket has also sent a test event when it was told of the queue.
    assert asyncio.run(read()) >= 3
    assert sum(payload["photographs"] for payload, _ in got) == 2


async def read_one(queue, outcome, sqs):
    """Read one report, and hand its messages back with an outcome; the report, and the messages then in the queue."""
    async with opened(queue) as (reader, stream):
        report, receipts = await anext(stream)
        await reader.advance([AdvanceItem(receipts, outcome)])
        return report, held(sqs, queue)


def test_a_report_that_airflow_could_not_store_is_delivered_again(sqs, queue, monkeypatch):
    """Its messages stay in the queue, and are visible again after a while."""
    monkeypatch.setattr(inbox_queue, "INVISIBLE", 1)
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(notification("a.jpg")))
    assert asyncio.run(read_one(queue, LOST, sqs)) == ({"photographs": 1}, 1)
    assert asyncio.run(read_one(queue, STORED, sqs)) == ({"photographs": 1}, 0)


@pytest.mark.parametrize(("pauses", "reported"), [(0, 13), (3, 16), (9, 19)])
def test_an_upload_is_one_report(sqs, queue, monkeypatch, pauses, reported):
    """Messages are gathered until none comes for a while, whatever SQS gives at once; a long upload is several."""
    left = [json.dumps(notification(f"{number}.jpg")) for number in range(13 + pauses)]

    def send(count):
        for _ in range(min(count, len(left))):
            sqs.send_message(QueueUrl=queue, MessageBody=left.pop())

    async def sleep(seconds):
        send(1)

    send(13)
    monkeypatch.setattr(inbox_queue.asyncio, "sleep", sleep)
    assert asyncio.run(read_one(queue, STORED, sqs))[0] == {"photographs": reported}


def test_other_messages_block_nothing(sqs, queue, caplog):
    """They are deleted without a report, with one line that shows one of them as text."""
    for body in ("new\u202epictures", "{", json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"})):
        sqs.send_message(QueueUrl=queue, MessageBody=body)

    async def read():
        async with opened(queue) as (_, stream):
            reading = asyncio.ensure_future(anext(stream))
            await until(lambda: not held(sqs, queue))
            sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(notification("a.jpg")))
            return (await reading)[0]

    assert asyncio.run(read()) == {"photographs": 1}
    [warning] = [record.message for record in caplog.records if "no event notifications" in record.message]
    assert "of S3: 2, such as “" in warning
    assert "\u202e" not in warning


class Refusing:
    """A client whose requests of a kind are refused so many times; then there is one message, and no other."""

    def __init__(self, refused, times):
        self.refused, self.times, self.requests = refused, times, []
        self.messages = [{"ReceiptHandle": "r", "Body": json.dumps(notification("a.jpg"))}]

    def __getattr__(self, name):
        def request(**options):
            self.requests.append(name)
            if name == self.refused and self.times:
                self.times -= 1
                raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not you"}}, name)
            return {"Messages": [self.messages.pop()]} if name == "receive_message" and self.messages else {}

        return request


def test_a_queue_that_refuses_is_tried_again(airflow_home, monkeypatch, caplog):
    """With pauses that grow up to a limit, each with a line that says why, for as long as it takes."""
    client, pauses = Refusing("receive_message", 9), []
    monkeypatch.setattr(inbox_queue, "_client", lambda *_: client)

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(inbox_queue.asyncio, "sleep", sleep)

    async def read():
        async with opened("https://sqs.eu-central-1.amazonaws.com/1/photos") as (_, stream):
            return (await anext(stream))[0]

    assert asyncio.run(read()) == {"photographs": 1}
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300, inbox_queue.GAP]
    lines = [record.message for record in caplog.records if "CAPTION_INBOX_QUEUE" in record.message]
    assert len(lines) == 9
    assert "AccessDenied" in lines[0]
    assert lines[0].endswith("start no night. Trying again in 5 seconds.")


def test_messages_that_cannot_be_deleted_start_no_night_after_the_other(quick, monkeypatch):
    """SQS would deliver them again and again: nothing is received before they are deleted."""
    client = Refusing("delete_message_batch", 3)
    monkeypatch.setattr(inbox_queue, "_client", lambda *_: client)

    async def read():
        async with opened("https://sqs.eu-central-1.amazonaws.com/1/photos") as (reader, stream):
            _, receipts = await anext(stream)
            received = client.requests.count("receive_message")
            await reader.advance([AdvanceItem(receipts, STORED)])
            reading = asyncio.ensure_future(anext(stream))
            await until(lambda: client.requests.count("receive_message") > received)
            await stop(reading)
            return client.requests[received:]

    requests = asyncio.run(read())
    assert requests[:4] == ["delete_message_batch"] * 4
    assert set(requests[4:]) == {"receive_message"}


def test_a_queue_that_does_not_exist_yet(sqs, caplog):
    """Its messages are read as soon as it does."""
    name = f"late-{uuid.uuid4().hex}"
    url = f"{sqs.meta.endpoint_url}/123456789012/{name}"

    async def read():
        async with opened(url) as (_, stream):
            reading = asyncio.ensure_future(anext(stream))
            await until(lambda: "NonExistentQueue" in caplog.text)
            sqs.create_queue(QueueName=name)
            sqs.send_message(QueueUrl=url, MessageBody=json.dumps(notification("a.jpg")))
            return (await reading)[0]

    assert asyncio.run(read()) == {"photographs": 1}


def test_a_missing_connection_says_so(quick, caplog):
    """By its name, and again and again."""

    async def read():
        async with opened("https://sqs.eu-central-1.amazonaws.com/1/photos", "photos_queue") as (_, stream):
            reading = asyncio.ensure_future(anext(stream))
            await until(lambda: caplog.text.count("There is no Airflow connection photos_queue") > 1)
            await stop(reading)

    asyncio.run(read())


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-central-1.amazonaws.com/123456789012/photos", "eu-central-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/photos", "cn-north-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/123456789012/photos", "us-gov-west-1"),
        ("https://us-west-2.queue.amazonaws.com/123456789012/photos", "us-west-2"),
        ("https://vpce-1a2b.sqs.us-east-2.vpce.amazonaws.com/123456789012/photos", "us-east-2"),
        ("http://localhost:4566/000000000000/photos", "eu-west-3"),
    ],
)
def test_where_a_queue_is(airflow_home, monkeypatch, url, region):
    """As its URL says; the endpoint of the connection, or of the environment, is that of S3. The keys are its own."""
    extra = {"endpoint_url": "http://s3.example:8333", "region_name": "eu-west-3"}
    connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_PHOTOS", json.dumps(connection))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example:8333")
    client = inbox_queue._client(url, "photos", "")
    assert (client.meta.endpoint_url, client.meta.region_name) == (url[: url.index("/", 8)], region)
    credentials = client._get_credentials()
    assert (credentials.access_key, credentials.secret_key) == ("key", "secret")


def test_the_triggers_of_deployments_differ():
    """One triggerer serves all of them: each reads its own queue with its own connection."""
    keys = {InboxQueueTrigger(*arguments, "").shared_stream_key() for arguments in (("a", "x"), ("b", "x"), ("a", "y"))}
    assert len(keys) == 3

"""The queue of the inbox's event notifications: a trigger for Airflow's triggerer that reports new photographs.

A report is only a hint that starts a night, and says how many photographs the messages name; what is captioned, the
night's own listing decides. Airflow says when a report is in its database, and only then its messages are deleted, so a
triggerer that dies loses none. A message that is delivered twice starts at most one night that finds nothing to do.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from captioning.connections import connection_environment, private_folder
from pipeline.errors import printable

WAIT = 5
"""Seconds for which a request waits for messages. A triggerer that stops waits for the end of the request."""

BATCH = 10
"""Messages of a request: SQS gives and takes no more."""

GATHERED = 1000
"""Messages that are received in a row."""

GAP, GAPS = 10.0, 6
"""Seconds without a message after which a report is made of all before, and how many of such gaps it takes at most.

An upload that is one report starts one night. A second report, which comes while the first night runs, starts another.
"""

INVISIBLE = 300
"""Seconds after which SQS delivers messages again that were not deleted."""

PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds before the first retry and, as they double, at most."""

SHOWN = 200
"""Characters of a message that a warning shows."""

_REPORTING = ("ObjectCreated", "ObjectRestore:Completed", "Object Created", "Object Restore Completed")
"""How the names of events begin after which there is something to caption: of S3, then of EventBridge."""

_REGION = re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\.|^([a-z0-9-]+)\.queue\.")
"""The region in the host of a queue's URL on AWS."""

log = logging.getLogger(__name__)


class InboxQueueTrigger(BaseEventTrigger):
    """Emits the number of photographs that new messages report, as often as there are some.

    Args:
        queue: URL of the queue.
        connection_id: the Airflow connection whose credentials may read the queue.
        profile: the AWS profile if the connection names none; may be empty.
    """

    def __init__(self, queue: str, connection_id: str, profile: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arguments = {"queue": queue, "connection_id": connection_id, "profile": profile}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and the arguments from which a triggerer makes this trigger again."""
        return f"{__name__}.{type(self).__name__}", self._arguments

    def shared_stream_key(self) -> Hashable:
        """What makes two triggers share a queue, and Airflow call the methods below instead of ``run``."""
        return (__name__, *self._arguments.values())

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """What reads the queue, and deletes its messages."""
        return InboxQueue(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """An event a report."""
        async for report in shared_stream:
            yield TriggerEvent(report)  # type: ignore[no-untyped-call]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Never called, as there is a key of a shared stream."""
        raise NotImplementedError
        yield


class InboxQueue(SharedStreamProducer):
    """Reads a queue, in threads: boto3 blocks. Arguments as of ``InboxQueueTrigger``."""

    def __init__(self, queue: str, connection_id: str, profile: str) -> None:
        self._queue, self._connection_id, self._profile = queue, connection_id, profile
        self._client: Any = None
        self._done: list[str] = []
        self._advanced = asyncio.Event()

    async def open_stream(self) -> AsyncIterator[tuple[dict[str, int], list[str]]]:
        """Reports, each with the receipts of its messages; the next one when Airflow has dealt with the one before.

        It never ends, and an error never ends it: the queue may be created, or access to it granted, at any time.
        """
        pause = PAUSE
        while True:
            try:
                photographs, receipts = await self._gather()
            except Exception as error:
                log.error(
                    "The queue of the inbox (CAPTION_INBOX_QUEUE) can't be used: %s. Until it can, uploads start no "
                    "night. Trying again in %.0f seconds.",
                    printable(str(error)).rstrip("."),
                    pause,
                )
                self._client = None  # the connection may have been corrected
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = PAUSE
            if photographs:
                self._advanced.clear()
                yield {"photographs": photographs}, receipts
                await self._advanced.wait()
            else:
                self._done += receipts

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Delete the messages of reports that are in the database; the others are delivered again."""
        self._done += (receipt for item in batch if item.outcome.is_clean for receipt in item.broker_payload)
        # The stream tries again before it receives anything, and says why.
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self._delete)
        self._advanced.set()

    async def _gather(self) -> tuple[int, list[str]]:
        """The photographs that new messages report, and the receipts of the messages; of one upload if it is short."""
        photographs, receipts = await asyncio.to_thread(self._receive, WAIT)
        more = photographs
        for _ in range(GAPS):
            if not more:
                break
            await asyncio.sleep(GAP)
            more, further = await asyncio.to_thread(self._receive, 0)
            photographs += more
            receipts += further
        return photographs, receipts

    def _receive(self, wait: int) -> tuple[int, list[str]]:
        """What waiting messages report, and their receipts, if there are any within ``wait`` seconds."""
        if self._client is None:
            self._client = _client(self._queue, self._connection_id, self._profile)
        # Otherwise messages that can't be deleted would start a night whenever they are delivered again.
        self._delete()
        photographs = 0
        receipts: list[str] = []
        others: list[str] = []
        while len(receipts) < GATHERED:
            received = self._client.receive_message(
                QueueUrl=self._queue,
                MaxNumberOfMessages=BATCH,
                WaitTimeSeconds=0 if receipts else wait,
                VisibilityTimeout=INVISIBLE,
            ).get("Messages")
            if not received:
                break
            for message in received:
                receipts.append(message["ReceiptHandle"])
                if (count := count_photographs(message["Body"])) is None:
                    others.append(printable(message["Body"][:SHOWN]))
                else:
                    photographs += count
        if others:
            log.warning(
                "The queue of the inbox (CAPTION_INBOX_QUEUE) held messages that are no event notifications of S3: %d, "
                "such as “%s”. They are deleted, and start no night.",
                len(others),
                others[0],
            )
        return photographs, receipts

    def _delete(self) -> None:
        """Delete the messages that are done with."""
        while batch := self._done[:BATCH]:
            entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(batch)]
            # Those that SQS refuses one by one, as too old, are delivered again.
            self._client.delete_message_batch(QueueUrl=self._queue, Entries=entries)
            del self._done[:BATCH]


def count_photographs(body: str) -> int | None:
    """The photographs that a message reports as written or restored; ``None`` if it is no notification of a bucket.

    Notifications come directly from S3, through SNS, or through EventBridge. Objects whose suffix is not that of a
    picture, as that of a sidecar, are not counted.
    """
    from pipeline.data.images import is_image

    try:
        message = json.loads(body)
        if message.get("Type") == "Notification":  # of SNS
            message = json.loads(message["Message"])
        if message.get("Event") == "s3:TestEvent":
            return 0
        if "detail-type" in message:
            events = [(message["detail-type"], message["detail"]["object"]["key"])]
        else:
            events = [
                (record["eventName"].removeprefix("s3:"), unquote_plus(record["s3"]["object"]["key"]))
                for record in message["Records"]
            ]
        return sum(bool(name.startswith(_REPORTING)) and is_image(key) is not False for name, key in events)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _client(queue: str, connection_id: str, profile: str) -> Any:
    """A client of SQS. Raises ``PipelineError`` if the connection is missing or unusable.

    The URL of the queue says where it is: the endpoint of the connection is that of S3.
    """
    import boto3
    from botocore.config import Config

    from pipeline.storage.s3 import profile_session

    parts = urlsplit(queue)
    region = _REGION.search(parts.hostname or "")
    with private_folder() as folder:
        environment = connection_environment(folder, connection_id, profile)
        name = environment.get("AWS_PROFILE")
        session = profile_session(name, environment) if name else boto3.Session()
        return session.client(
            "sqs",
            region_name=(region[1] or region[2]) if region else environment.get("AWS_DEFAULT_REGION"),
            endpoint_url=f"{parts.scheme}://{parts.netloc}",
            verify=environment.get("AWS_CA_BUNDLE"),
            config=Config(connect_timeout=10, read_timeout=WAIT + 10, retries={"mode": "standard"}),
        )

"""S3, and anything that speaks it, as a bucket."""

import contextlib
import io
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from pipeline.bucket import (
    ABSENT,
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    StoredObject,
    is_utf8,
)
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef

log = logging.getLogger(__name__)

_S3_ADVICE = (
    "Check the bucket's name, and the endpoint and the credentials in the environment (AWS_ENDPOINT_URL, AWS_…)."
)

KEY_BYTES = 1024
"""Of an S3 key, at most."""

READ_ATTEMPTS = 4
"""How often an object, or a part of one, is asked for whose bytes break off."""

READ_PAUSE = 1.0
"""Seconds before it is asked for again, twice as many each time."""

READ_TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""

READ_SECONDS = 600.0
"""In which an object's bytes must have come, all attempts together, however steadily they drip."""


class S3Bucket(Bucket):
    """S3 or anything that speaks it.

    Args:
        uri: ``s3://bucket[/prefix]``.
        environment: endpoint, region and credentials as the variables that boto3 reads; what is not in it boto3 looks
            for in its usual places.
    """

    def __init__(self, uri: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(uri)
        self.name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.client = _s3_client(environment or {})

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix + prefix)
        with self._errors(prefix, None, denied=PipelineError):
            for page in pages:
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):
                        key = item["Key"].removeprefix(self.prefix)
                        modified = item["LastModified"].astimezone(UTC)
                        yield StoredObject(key, item["ETag"].strip('"'), item["Size"], modified)

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        return self._read(key, etag, limit=limit)

    def open(self, key: str) -> IO[bytes]:
        with self._errors(key, None):
            head = self.client.head_object(Bucket=self.name, Key=self._full(key))
        reader = _RangeReader(self, key, head["ETag"].strip('"'), head["ContentLength"])
        return io.BufferedReader(reader, buffer_size=1 << 16)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        condition = {}
        if if_match == ABSENT:
            condition = {"IfNoneMatch": "*"}
        elif if_match is not None:
            condition = {"IfMatch": f'"{if_match}"'}
        try:
            with self._errors(key, if_match):
                response = self.client.put_object(Bucket=self.name, Key=self._full(key), Body=data, **condition)  # type: ignore[arg-type]
        except ObjectChangedError as error:
            if (etag := self._etag_if_ours(key, data, error)) is None:
                raise
            return etag
        return response["ETag"].strip('"')

    def delete(self, key: str) -> None:
        with self._errors(key, None):
            self.client.delete_object(Bucket=self.name, Key=self._full(key))

    def etag(self, key: str) -> str:
        try:
            with self._errors(key, None):
                return self.client.head_object(Bucket=self.name, Key=self._full(key))["ETag"].strip('"')
        except ObjectNotFoundError:
            return ABSENT

    def clean(self, older_than: datetime) -> Sequence[str]:
        return []  # S3 shows nothing of a write that has not ended

    def _full(self, key: str) -> str:
        """The key as S3 knows it."""
        if not key or key.endswith("/"):
            raise self._bad_key(key, "is a folder's")
        if not is_utf8(key):
            raise self._bad_key(key, "is not UTF-8")
        if (size := len(f"{self.prefix}{key}".encode())) > KEY_BYTES:
            raise self._bad_key(key, f"has {size} bytes with the bucket's prefix, more than S3's {KEY_BYTES}")
        return self.prefix + key

    def _range(self, key: str, etag: str, start: int, stop: int) -> bytes:
        return self._read(key, etag, Range=f"bytes={start}-{stop - 1}")

    def _read(self, key: str, etag: str | None, *, limit: int | None = None, **request: str) -> bytes:
        """The bytes that answer a GET, asked for again where they break off: botocore retries until they begin."""
        from botocore.exceptions import IncompleteReadError
        from urllib3.exceptions import HTTPError

        if etag is not None:
            request["IfMatch"] = f'"{etag}"'
        deadline = time.monotonic() + READ_SECONDS
        attempt = 0
        with self._errors(key, etag):
            while True:
                attempt += 1
                try:
                    response = self.client.get_object(Bucket=self.name, Key=self._full(key), **request)  # type: ignore[arg-type]
                    return self._body(key, response, limit=limit, deadline=deadline)
                except (HTTPError, IncompleteReadError) as error:
                    if attempt == READ_ATTEMPTS:
                        raise
                    log.warning("%s: %s; attempt %d of %d", self.url(key), error, attempt, READ_ATTEMPTS)
                    time.sleep(READ_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1))

    def _body(self, key: str, response: "GetObjectOutputTypeDef", *, limit: int | None, deadline: float) -> bytes:
        from botocore.exceptions import IncompleteReadError

        size = response["ContentLength"]
        data = io.BytesIO()
        with response["Body"] as stream:
            if limit is not None and size > limit:
                raise self._too_large(key, size, limit)
            # urllib3's stream gives what has come, and botocore has it not mind an early end; botocore's own would wait
            # for all that was asked for, however slowly it came.
            while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
                data.write(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{self.url(key)}: {data.tell()} of {size} bytes came within {READ_SECONDS:.0f} s. "
                        "Look into the connection."
                    )
        if data.tell() != size:
            raise IncompleteReadError(actual_bytes=data.tell(), expected_bytes=size)
        return data.getvalue()

    def _etag_if_ours(self, key: str, data: bytes, error: ObjectChangedError) -> str | None:
        """The object's etag, if it may be a conditional put's own doing that the condition does not hold any more.

        Where the answer to a put is lost, botocore repeats it, and the second meets what the first has written.
        """
        from botocore.exceptions import ClientError

        cause = error.__cause__
        if not isinstance(cause, ClientError) or not cause.response["ResponseMetadata"].get("RetryAttempts"):
            return None
        etag = self.etag(key)
        return etag if etag != ABSENT and self.get(key, etag=etag) == data else None

    @contextlib.contextmanager
    def _errors(self, key: str, etag: str | None, *, denied: type[PipelineError] = ObjectDeniedError) -> Iterator[None]:
        """Translate the answers that mean something; let the others through with the object's name."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (NoCredentialsError, ParamValidationError) as error:
            raise PipelineError(f"{self.url(key)}: {error}. {_S3_ADVICE}") from error
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if etag is not None and code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise self._changed(key, etag) from error
            if code in ("NoSuchKey", "404"):
                # A conditional write to an object that has gone is a change, not a missing input.
                raise (self._not_found(key) if etag is None else self._changed(key, etag)) from error
            if code in ("AccessDenied", "403", "InvalidObjectState"):  # the last: it is in an archive
                raise denied(f"{self.url(key)}: {error}. {_S3_ADVICE}") from error
            if code in ("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
                raise PipelineError(f"{self.url(key)}: {error}. {_S3_ADVICE}") from error
            error.add_note(f"while accessing {self.url(key)}")
            raise
        except (BotoCoreError, HTTPError) as error:
            error.add_note(f"while accessing {self.url(key)}")
            raise


class _RangeReader(io.RawIOBase):
    """Seekable reads by ranged GET, so that a reader of one Parquet column does not fetch the others."""

    def __init__(self, bucket: S3Bucket, key: str, etag: str, size: int) -> None:
        # The etag makes every range come from one version: an object written meanwhile raises ObjectChangedError.
        self._bucket, self._key, self._etag, self._size, self._position = bucket, key, etag, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._bucket._range(self._key, self._etag, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        # The inherited one asks for a few KiB at a time, each a request.
        data = bytearray(max(self._size - self._position, 0))
        self.readinto(memoryview(data))
        return bytes(data)


def _s3_client(environment: Mapping[str, str]) -> "S3Client":
    import boto3
    from botocore.config import Config

    # S3-alikes reject, or store inside the object, the checksums that boto3 adds by default since 1.36. Adaptive mode
    # retries throttling, time-outs and lost connections with backoff; it is the only retrying in this package.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "adaptive", "max_attempts": 8},
        max_pool_connections=32,
        connect_timeout=10,
        read_timeout=READ_TIMEOUT,
    )
    # What is None boto3 looks for itself.
    return boto3.client(
        "s3",
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
        region_name=environment.get("AWS_DEFAULT_REGION"),
        endpoint_url=environment.get("AWS_ENDPOINT_URL"),
        config=config,
    )

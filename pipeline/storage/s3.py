"""A bucket on S3 or an S3-compatible service."""

import contextlib
import io
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from pipeline.errors import PipelineError, printable
from pipeline.settings import read_settings
from pipeline.storage import s3_errors
from pipeline.storage.bucket import (
    ABSENT,
    HIDDEN,
    MARKERS,
    Bucket,
    ObjectArchivedError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    StoredObject,
    hidden_part,
    is_utf8,
)

if TYPE_CHECKING:
    import boto3
    from botocore.exceptions import ClientError
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef

log = logging.getLogger(__name__)

KEY_BYTES = 1024
"""Maximum length of an S3 key, in bytes."""

TAIL = 1 << 17
"""Bytes at the end of an object that come with its opening: the footer of a Parquet table, or a small table."""

READ_ATTEMPTS = 4
"""Maximum number of requests for an object, or a range of one, if responses break off."""

READ_PAUSE = 1.0
"""Seconds before the first retry; they double with each further one."""

READ_TIMEOUT = 60.0
"""Seconds without data after which a read times out."""

READ_SECONDS = 600.0
"""Limit for reading an object or a range, all attempts together, even if data keeps arriving slowly."""

_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects must be restored before they can be read."""

_PROBE = ".conditional-write"
"""Key of an object that does not exist: the service must refuse to replace it."""

_conditional: set[tuple[str, str]] = set()
"""The endpoints and buckets that are known to this process to support conditional writes."""


class S3Bucket(Bucket):
    """S3 or an S3-compatible service.

    Args:
        uri: ``s3://bucket[/prefix]``.
        environment: endpoint, region, credentials, profile, config file and CA bundle, under the names of boto3's
            environment variables; boto3 looks for missing ones in its usual places.

    Raises:
        PipelineError: the name or the environment is invalid.
    """

    def __init__(self, uri: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(uri)
        self.name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        if self.name.startswith("arn:"):
            raise PipelineError(f"{uri}: an ARN is not a bucket's name. Use the alias of the access point (…-s3alias).")
        if not re.fullmatch(r"[\w.-]{1,255}", self.name, re.ASCII):
            raise PipelineError(f"{uri}: what follows s3:// can't be the name of a bucket. {s3_errors.ADVICE}")
        self.prefix = f"{prefix}/" if prefix else ""
        with self._translate_errors("", None):
            self.client = _s3_client(environment or {})

    @property
    def location(self) -> str:
        return f"{self.client.meta.endpoint_url} {self.uri}"

    def require(self) -> None:
        with self._translate_errors("", None):
            self.client.list_objects_v2(Bucket=self.name, MaxKeys=1)

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        counts = Counter[str]() if passed_over is None else passed_over
        last_hidden = None
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=self.prefix + prefix, OptionalObjectAttributes=["RestoreStatus"]
        )
        with self._translate_errors(prefix, None):
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self.prefix)
                    if (hidden := hidden_part(key)) is not None:
                        # The keys below a hidden folder follow one another.
                        counts[HIDDEN] += hidden != last_hidden
                        last_hidden = hidden
                    elif not key or key.endswith("/"):
                        counts[MARKERS] += 1
                    else:
                        is_restored = "RestoreExpiryDate" in item.get("RestoreStatus", {})
                        yield StoredObject(
                            key,
                            item["ETag"].strip('"'),
                            item["Size"],
                            item["LastModified"].astimezone(UTC),
                            archived=item.get("StorageClass") in _ARCHIVES and not is_restored,
                        )

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        with self._translate_errors(key, etag):
            return self._fetch(key, etag, limit=limit)[1]

    def first_bytes(self, key: str, count: int) -> bytes:
        fetched = self._fetch_range(key, f"bytes=0-{count - 1}")
        return fetched[1][:count] if fetched else b""

    def open(self, key: str) -> IO[bytes]:
        if (fetched := self._fetch_range(key, f"bytes=-{TAIL}")) is None:
            return io.BytesIO()
        response, tail = fetched
        # "bytes 168928-299999/300000"; absent if the service has sent the whole object
        size = int(response.get("ContentRange", "").rpartition("/")[2] or len(tail))
        if size == len(tail):
            return io.BytesIO(tail)
        reader = _RangeReader(self, key, response["ETag"].strip('"'), size, tail)
        return io.BufferedReader(reader, buffer_size=1)  # each read is one request: no read-ahead

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        self._refuse_hidden(key)
        condition = {}
        if if_match == ABSENT:
            condition = {"IfNoneMatch": "*"}
        elif if_match is not None:
            condition = {"IfMatch": f'"{if_match}"'}
        full = self._full(key)
        if condition:
            self._require_conditional_writes()
        try:
            with self._translate_errors(key, if_match):
                response = self.client.put_object(Bucket=self.name, Key=full, Body=data, **condition)  # type: ignore[arg-type]
                return response["ETag"].strip('"')
        except ObjectChangedError as error:
            if (etag := self._etag_if_ours(key, data, error)) is None:
                raise
            return etag

    def delete(self, key: str) -> None:
        self._refuse_hidden(key)
        with self._translate_errors(key, None):
            self.client.delete_object(Bucket=self.name, Key=self._full(key))

    def etag(self, key: str) -> str:
        from botocore.exceptions import ClientError

        try:
            with self._translate_errors(key, None):
                try:
                    return self.client.head_object(Bucket=self.name, Key=self._full(key))["ETag"].strip('"')
                except ClientError as error:
                    if s3_errors.code(error) not in ("400", "403"):
                        raise
                # The error of a HEAD has no body and so no code, which that of a GET has.
                response = self.client.get_object(Bucket=self.name, Key=self._full(key), Range="bytes=0-0")
                response["Body"].close()
                return response["ETag"].strip('"')
        except ObjectNotFoundError:
            return ABSENT

    def modified(self, key: str) -> datetime:
        with self._translate_errors(key, None):
            response = self.client.head_object(Bucket=self.name, Key=self._full(key))
        return response["LastModified"].astimezone(UTC)

    def clean(self, older_than: datetime) -> Sequence[str]:
        return []  # unfinished writes are not visible on S3

    def _full(self, key: str) -> str:
        """The object's key in the S3 bucket, with the prefix."""
        if not key or key.endswith("/"):
            raise self._bad_key(key, "is a folder")
        if not is_utf8(key):
            raise self._bad_key(key, "is not UTF-8")
        if (size := len(f"{self.prefix}{key}".encode())) > KEY_BYTES:
            raise self._bad_key(key, f"has {size} bytes with the bucket's prefix, more than S3's {KEY_BYTES}")
        return self.prefix + key

    def _fetch_range(self, key: str, bytes_range: str) -> "tuple[GetObjectOutputTypeDef, bytes] | None":
        """Response and body for the first or last bytes of an object; ``None`` for an empty one, which has neither."""
        from botocore.exceptions import ClientError

        with self._translate_errors(key, None):
            try:
                return self._fetch(key, None, Range=bytes_range)
            except ClientError as error:
                if s3_errors.code(error) not in ("InvalidRange", "416"):
                    raise
                return None

    def _range(self, key: str, etag: str, start: int, stop: int) -> bytes:
        with self._translate_errors(key, etag):
            return self._fetch(key, etag, Range=f"bytes={start}-{stop - 1}")[1]

    def _fetch(
        self, key: str, etag: str | None, *, limit: int | None = None, **request: str
    ) -> tuple["GetObjectOutputTypeDef", bytes]:
        """Response and body of a GET, retried if it breaks off: botocore itself retries only until the body begins."""
        from botocore.exceptions import IncompleteReadError
        from urllib3.exceptions import HTTPError

        if etag is not None:
            request["IfMatch"] = f'"{etag}"'
        deadline = time.monotonic() + READ_SECONDS
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self.client.get_object(Bucket=self.name, Key=self._full(key), **request)  # type: ignore[arg-type]
                return response, self._body(key, response, limit=limit, deadline=deadline)
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
            # The raw urllib3 stream returns the data that has arrived; botocore's read would block until the chunk is
            # full. botocore disables urllib3's length check, hence the one below.
            while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
                data.write(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{self.url(key)}: {data.tell()} of {size} bytes arrived within {READ_SECONDS:.0f} s. "
                        "Check the connection."
                    )
        if data.tell() != size:
            raise IncompleteReadError(actual_bytes=data.tell(), expected_bytes=size)
        return data.getvalue()

    def _require_conditional_writes(self) -> None:
        """Raise ``PipelineError`` if the service ignores conditions; asked once in each process, but never of Amazon's.

        Without them, two runs would both claim the same images, and each would overwrite what the other has written.
        """
        endpoint = self.client.meta.endpoint_url
        if (endpoint, self.name) in _conditional or re.search(r"\.amazonaws\.com(\.cn)?$", endpoint):
            return
        key, etag = f"{self.prefix}{_PROBE}", "0" * 32
        try:
            with self._translate_errors(_PROBE, etag):
                self.client.put_object(Bucket=self.name, Key=key, Body=b"", IfMatch=f'"{etag}"')
        except (ObjectChangedError, ObjectDeniedError):  # the latter says nothing about the other keys
            _conditional.add((endpoint, self.name))
            return
        with contextlib.suppress(ObjectDeniedError), self._translate_errors(_PROBE, None):
            self.client.delete_object(Bucket=self.name, Key=key)
        raise self._no_conditional_writes()

    def _no_conditional_writes(self) -> PipelineError:
        return PipelineError(
            f"{self.uri}: this S3 service does not support conditional writes (PutObject with If-Match and "
            "If-None-Match), which keep two runs from overwriting each other's work. Put the store into a service that "
            "does, such as Amazon S3, SeaweedFS, Ceph, MinIO or Cloudflare R2, or into a local folder (CAPTION_STORE). "
            "If this is the inbox, write no sidecars into it (CAPTION_SIDECARS)."
        )

    def _etag_if_ours(self, key: str, data: bytes, error: ObjectChangedError) -> str | None:
        """The object's etag if the conditional put failed only because an earlier attempt had succeeded, else ``None``.

        If the response to a put is lost, botocore retries it, and the retry finds the object that the first one wrote.
        """
        from botocore.exceptions import ClientError

        cause = error.__cause__
        if not isinstance(cause, ClientError) or not cause.response["ResponseMetadata"].get("RetryAttempts"):
            return None
        etag = self.etag(key)
        return etag if etag != ABSENT and self.get(key, etag=etag) == data else None

    @contextlib.contextmanager
    def _translate_errors(self, key: str, etag: str | None) -> Iterator[None]:
        """Translate errors that concern this object or the settings; add its name to all others."""
        from botocore.exceptions import ClientError

        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            if isinstance(error, ClientError):
                if (translated := self._translate_answer(error, key, etag)) is not None:
                    raise translated from error
            elif (wrong := s3_errors.wrong_settings(error)) is not None:
                raise PipelineError(f"{self.url(key)}: {wrong}") from None  # the error itself may show a token
            error.add_note(f"while accessing {printable(self.url(key))}")
            raise

    def _translate_answer(self, error: "ClientError", key: str, etag: str | None) -> PipelineError | None:
        """The error for an answer of the service; ``None`` if a later request may be answered otherwise."""
        code = s3_errors.code(error)
        is_gone = s3_errors.concerns_object(error) and code in ("NoSuchKey", "404")
        if etag is not None and (is_gone or code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")):
            return self._changed(key, etag)
        if is_gone:
            return self._not_found(key)
        if etag is not None and code == "NotImplemented" and error.operation_name == "PutObject":
            return self._no_conditional_writes()
        if s3_errors.may_pass(error):
            return None
        text = str(error).rstrip(".")
        if (advice := s3_errors.advice_on_settings(error)) is not None:
            return PipelineError(f"{self.url(key)}: {text}. {advice}")
        kind = ObjectArchivedError if code == s3_errors.ARCHIVED else ObjectDeniedError
        return kind(f"{self.url(key)}: {text}. {s3_errors.advice_on_object(error)}", s3_errors.reason(error))


class _RangeReader(io.RawIOBase):
    """Seekable reads by range requests, so that reading one Parquet column does not fetch the others."""

    def __init__(self, bucket: S3Bucket, key: str, etag: str, size: int, tail: bytes) -> None:
        # The etag ensures that all ranges are of one version: a write in between raises ObjectChangedError.
        self._bucket, self._key, self._etag, self._size, self._tail = bucket, key, etag, size, tail
        self._position = 0

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
        start, stop, tail = self._position, min(self._position + len(buffer), self._size), self._size - len(self._tail)
        if stop <= start:
            return 0
        data = b"" if start >= tail else self._bucket._range(self._key, self._etag, start, min(stop, tail))
        data += self._tail[max(start - tail, 0) : max(stop - tail, 0)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        # The inherited method would send a request for every few KiB.
        data = bytearray(max(self._size - self._position, 0))
        self.readinto(memoryview(data))
        return bytes(data)


def _s3_client(environment: Mapping[str, str]) -> "S3Client":
    import boto3
    from botocore.config import Config

    # Some S3-compatible services reject the checksums that boto3 adds by default since 1.36, or store them inside the
    # object. Adaptive mode retries throttling, timeouts and lost connections with backoff; only `_fetch` retries, too.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "adaptive", "max_attempts": 8},
        max_pool_connections=32,
        connect_timeout=10,
        read_timeout=READ_TIMEOUT,
    )
    session = profile_session(profile, environment) if (profile := environment.get("AWS_PROFILE")) else boto3
    # boto3 looks for values that are None in its usual places.
    client: S3Client = session.client(
        "s3",
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
        region_name=environment.get("AWS_DEFAULT_REGION"),
        endpoint_url=environment.get("AWS_ENDPOINT_URL"),
        verify=environment.get("AWS_CA_BUNDLE"),
        config=config,
    )
    # For a redirect without a region botocore asks HeadBucket for it. If that is redirected as well, it asks for ever.
    client.meta.events.register(
        "before-call.s3.HeadBucket", lambda context, **_: context["s3_redirect"].update(redirected=True)
    )
    if read_settings().requester_pays:
        client.meta.events.register(
            "before-call.s3", lambda params, **_: params["headers"].update({"x-amz-request-payer": "requester"})
        )
    return client


def profile_session(profile: str, environment: Mapping[str, str]) -> "boto3.Session":
    """A session of boto3 with a profile, in the config file that ``environment`` of an ``S3Bucket`` names."""
    import boto3
    import botocore.session

    session = botocore.session.Session(profile=profile)
    if "AWS_CONFIG_FILE" in environment:
        session.set_config_variable("config_file", environment["AWS_CONFIG_FILE"])
    return boto3.Session(botocore_session=session)

"""Buckets: one contract over a local folder (``file://``) and S3 (``s3://bucket/prefix``).

Keys are relative to the bucket's URI and use ``/``. Every write is atomic: a reader sees the old object or the new one,
whole. Both kinds pass the same contract test.
"""

import contextlib
import fcntl
import io
import os
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ABSENT = "absent"
"""The etag to pass as ``if_match`` for an object that must not exist yet."""


class ObjectNotFoundError(PipelineError):
    """No object lies under this key."""


class ObjectChangedError(PipelineError):
    """The object's etag is not the expected one: somebody wrote or removed it meanwhile."""


@dataclass(frozen=True, slots=True, order=True)
class StoredObject:
    """One row of a listing. ``etag`` changes whenever the object's bytes do; ``size`` is in bytes."""

    key: str
    etag: str
    size: int
    modified: datetime


class Bucket(ABC):
    """A flat namespace of immutable-looking objects."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def url(self, key: str) -> str:
        """The object's full URI, as it is written in logs and records."""
        return f"{self.uri}/{key}"

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose key begins with ``prefix``, by key (UTF-8 byte order).

        Folder markers and unfinished writes are left out; a local folder's hidden files and folders too.
        """

    @abstractmethod
    def get(self, key: str, *, etag: str | None = None) -> bytes:
        """The object's bytes.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectChangedError: ``etag`` was given and is not the object's any more, or the object has gone.
        """

    @abstractmethod
    def open(self, key: str) -> IO[bytes]:
        """A seekable reader that fetches only what is read. Raises ``ObjectNotFoundError``."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write the object at once and return its new etag.

        With ``if_match``, only if the object still has that etag (``ABSENT``: only if there is none).

        Raises:
            ObjectChangedError: ``if_match`` does not hold.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""

    def clean(self, before: datetime) -> None:
        """Placeholder until the merge."""

    @abstractmethod
    def etag(self, key: str) -> str:
        """The object's etag, or ``ABSENT``."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        return self.etag(key) != ABSENT

    def _not_found(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"There is no object {self.url(key)}: check the URI, or run the step that writes it."
        )

    def _changed(self, key: str, expected: str) -> ObjectChangedError:
        return ObjectChangedError(f"{self.url(key)} was written or removed meanwhile (its etag was {expected}).")


def open_bucket(uri: str) -> Bucket:
    """The bucket at ``file:///folder`` (created on the first write), ``s3://bucket[/prefix]`` or a plain path."""
    scheme, separator, rest = uri.partition("://")
    if scheme == "s3" and rest.partition("/")[0]:
        return S3Bucket(uri)
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return LocalBucket(Path(unquote(rest.removeprefix("localhost"))))
    if uri and not separator and not uri.startswith(("s3:", "file:")):
        return LocalBucket(Path(uri))
    raise PipelineError(f"Not a bucket: expected file:///folder, s3://bucket/prefix or a path. Received: {uri!r}")


def open_object(uri: str) -> tuple[Bucket, str]:
    """Split an object's URI or path into its bucket and its key."""
    start = uri.rfind("/") + 1
    if not uri[start:]:
        raise PipelineError(
            f"Not an object: expected file:///folder/name, s3://bucket/key or a path. Received: {uri!r}"
        )
    name = unquote(uri[start:]) if uri.startswith("file://") else uri[start:]
    return open_bucket(uri[:start] or "."), name


class LocalBucket(Bucket):
    """A folder. An etag is the file's modification time and size: cheap, and it changes with each write."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        super().__init__(self.root.as_uri())

    def url(self, key: str) -> str:
        return f"{self.uri}/{quote(key, safe='/=+@,')}"

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        # Only the folder that the prefix names is walked, and keys are sorted as S3 sorts them: by their UTF-8 bytes.
        folder, _, _ = prefix.rpartition("/")
        top = self._path(folder) if folder else self.root
        found = []
        # Links are followed: the photographs of a dataset often lie on another disk.
        for directory, folders, names in os.walk(top, onerror=_raise_unless_absent, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(directory, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # removed while we were walking
                        status = path.stat()
                        if stat.S_ISREG(status.st_mode):
                            found.append(
                                StoredObject(
                                    _utf8(key, self.root),
                                    _local_etag(status),
                                    status.st_size,
                                    datetime.fromtimestamp(status.st_mtime, UTC),
                                )
                            )
        yield from sorted(found, key=lambda item: item.key.encode())

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        try:
            file = self.open(key)
        except ObjectNotFoundError as error:
            if etag is None:
                raise
            raise self._changed(key, etag) from error
        with file:
            if etag is not None and _local_etag(os.fstat(file.fileno())) != etag:
                raise self._changed(key, etag)
            return file.read()

    def open(self, key: str) -> IO[bytes]:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self._not_found(key) from error

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                # A file system's own clock ticks every few milliseconds: two writes within a tick would share an etag.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                os.fsync(file.fileno())
                etag = _local_etag(os.fstat(file.fileno()))
            with self._locked(path) if if_match is not None else contextlib.nullcontext():
                if if_match is not None and self.etag(key) != if_match:
                    raise self._changed(key, if_match)
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return etag

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def etag(self, key: str) -> str:
        try:
            status = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        return _local_etag(status) if stat.S_ISREG(status.st_mode) else ABSENT

    def _path(self, key: str) -> Path:
        parts = PurePosixPath(key)
        if not key or parts.is_absolute() or ".." in parts.parts:
            raise PipelineError(f"Not a key: {key!r} would lie outside {self.uri}.")
        return self.root / key

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        # A file system has no compare-and-swap: conditional writers of one object take turns.
        with (path.parent / f".lock-{path.name}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _raise_unless_absent(error: OSError) -> None:
    # A folder that is not there is an empty listing, as on S3. One that must not be read is not: what it holds would
    # silently be missing.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _utf8(key: str, root: Path) -> str:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise PipelineError(f"{root}: the file name {os.fsencode(key)!r} is not UTF-8. Rename or remove it.") from None
    return key


_S3_ADVICE = (
    "Check the bucket's name, and the endpoint and the credentials in the environment (AWS_ENDPOINT_URL, AWS_…)."
)


class S3Bucket(Bucket):
    """S3 or anything that speaks it. Endpoint, region and credentials come from boto3's usual environment."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.client = _s3_client()

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix + prefix)
        with self._errors(prefix, None):
            for page in pages:
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):
                        key = item["Key"].removeprefix(self.prefix)
                        yield StoredObject(key, item["ETag"].strip('"'), item["Size"], item["LastModified"])

    def get(self, key: str, *, etag: str | None = None) -> bytes:
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
        with self._errors(key, etag):
            response = self.client.get_object(Bucket=self.name, Key=self.prefix + key, **condition)  # type: ignore[arg-type]
            return response["Body"].read()

    def open(self, key: str) -> IO[bytes]:
        with self._errors(key, None):
            head = self.client.head_object(Bucket=self.name, Key=self.prefix + key)
        return io.BufferedReader(_RangeReader(self, key, head["ETag"], head["ContentLength"]), buffer_size=1 << 16)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        condition = {}
        if if_match == ABSENT:
            condition = {"IfNoneMatch": "*"}
        elif if_match is not None:
            condition = {"IfMatch": f'"{if_match}"'}
        with self._errors(key, if_match):
            response = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=data, **condition)  # type: ignore[arg-type]
        return response["ETag"].strip('"')

    def delete(self, key: str) -> None:
        with self._errors(key, None):
            self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def etag(self, key: str) -> str:
        try:
            with self._errors(key, None):
                return self.client.head_object(Bucket=self.name, Key=self.prefix + key)["ETag"].strip('"')
        except ObjectNotFoundError:
            return ABSENT

    def _range(self, key: str, etag: str, start: int, stop: int) -> bytes:
        with self._errors(key, etag):
            response = self.client.get_object(
                Bucket=self.name, Key=self.prefix + key, Range=f"bytes={start}-{stop - 1}", IfMatch=etag
            )
            return response["Body"].read()

    @contextlib.contextmanager
    def _errors(self, key: str, etag: str | None) -> Iterator[None]:
        """Translate the answers that mean something; let the others through with the object's name."""
        from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError

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
            if code in ("NoSuchBucket", "AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise PipelineError(f"{self.url(key)}: {error}. {_S3_ADVICE}") from error
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


def _s3_client() -> "S3Client":
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
        read_timeout=60,
    )
    return boto3.client("s3", config=config)

"""Buckets: one contract over a local folder (``file://``) and S3 (``s3://bucket/prefix``).

Keys are relative to the bucket's URI and use ``/``. Every write is atomic: a reader sees the old object or the new one,
whole. Both kinds pass the same contract test. An error that a person has to mend, or that is one object's own, is a
``PipelineError``; every other (a network down, a disk full) keeps its kind and carries a note that names the object.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import random
import re
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef

log = logging.getLogger(__name__)

ABSENT = "absent"
"""The etag to pass as ``if_match`` for an object that must not exist yet."""


class ObjectNotFoundError(PipelineError):
    """No object lies under this key."""


class ObjectChangedError(PipelineError):
    """The object's etag is not the expected one: somebody wrote or removed it meanwhile."""


class ObjectDeniedError(PipelineError):
    """This object may not be accessed; others of its bucket may be."""


class ObjectTooLargeError(PipelineError):
    """The object has more bytes than were to be read."""


class BadKeyError(PipelineError):
    """No object of this bucket can have this key."""


@dataclass(frozen=True, slots=True, order=True)
class StoredObject:
    """One row of a listing.

    Attributes:
        key: relative to the bucket's URI.
        etag: changes whenever the object's bytes do.
        size: in bytes.
        modified: when it was written, in UTC.
    """

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
    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        """The object's bytes.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectChangedError: ``etag`` was given and is not the object's any more, or the object has gone.
            ObjectTooLargeError: it has more than ``limit`` bytes, and was not read.
            ObjectDeniedError: this object may not be read.
            BadKeyError: there can't be such an object.
        """

    @abstractmethod
    def open(self, key: str) -> IO[bytes]:
        """A seekable reader that fetches only what is read. Raises as ``get``, and its reads as well."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write the object at once and return its new etag.

        With ``if_match``, only if the object still has that etag (``ABSENT``: only if there is none).

        Raises:
            ObjectChangedError: ``if_match`` does not hold.
            ObjectDeniedError: this object may not be written.
            BadKeyError: there can't be such an object.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; does nothing where there is none. Raises ``ObjectDeniedError`` and ``BadKeyError``."""

    @abstractmethod
    def etag(self, key: str) -> str:
        """The object's etag, or ``ABSENT``."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        return self.etag(key) != ABSENT

    @abstractmethod
    def clean(self, older_than: datetime) -> Sequence[str]:
        """Remove what writes that were interrupted before ``older_than`` have left; return the names of that."""

    def _not_found(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"There is no object {self.url(key)}: check the URI, or run the step that writes it."
        )

    def _changed(self, key: str, expected: str) -> ObjectChangedError:
        return ObjectChangedError(f"{self.url(key)} was written or removed meanwhile (its etag was {expected}).")

    def _too_large(self, key: str, size: int, limit: int) -> ObjectTooLargeError:
        return ObjectTooLargeError(f"{self.url(key)} has {size} bytes, more than the {limit} that are read of it.")

    def _bad_key(self, key: str, why: str) -> BadKeyError:
        return BadKeyError(f"Not a key: {key!r} {why}, in {self.uri}. Rename the object.")


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
    """A folder. An etag is the file's modification time and size: cheap, and it changes with each write.

    Links are followed where they are read and listed, also out of the folder: the photographs of a dataset often lie on
    another disk. Nothing is written or removed through them.
    """

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
        for directory, folders, names in os.walk(top, onerror=_raise_unless_absent, followlinks=True):
            here = Path(directory)
            folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(here / name)]
            for name in names:
                path = here / name
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not _is_hidden(key):
                    status = _status(path)
                    if status is not None:
                        modified = datetime.fromtimestamp(status.st_mtime, UTC)
                        found.append(StoredObject(_utf8(key, self.root), _local_etag(status), status.st_size, modified))
        yield from sorted(found, key=lambda item: item.key.encode())

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        try:
            file = self.open(key)
        except ObjectNotFoundError as error:
            if etag is None:
                raise
            raise self._changed(key, etag) from error
        with file, self._errors(key):
            before = os.fstat(file.fileno())
            if limit is not None and before.st_size > limit:
                raise self._too_large(key, before.st_size, limit)
            data = file.read()
            # Looked at after the reading: somebody else's program may write into a file where it lies.
            if etag is not None and _local_etag(os.fstat(file.fileno())) != etag:
                raise self._changed(key, etag)
            return data

    def open(self, key: str) -> IO[bytes]:
        path = self._path(key)
        with self._errors(key):
            try:
                return path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise self._not_found(key) from error

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        path = self._path_to_write(key)
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
        with self._errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    # A file system's own clock ticks every few milliseconds: two writes within a tick would share an
                    # etag.
                    now = time.time_ns()
                    os.utime(file.fileno(), ns=(now, now))
                    os.fsync(file.fileno())
                    etag = _local_etag(os.fstat(file.fileno()))
                with _locked(path) if if_match is not None else contextlib.nullcontext():
                    if if_match is not None and self.etag(key) != if_match:
                        raise self._changed(key, if_match)
                    os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return etag

    def delete(self, key: str) -> None:
        path = self._path_to_write(key)
        absent = contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        # Under the lock: a conditional writer that has just found the object must not bring it back.
        with self._errors(key), absent, _locked(path):
            path.unlink()

    def etag(self, key: str) -> str:
        path = self._path(key)
        with self._errors(key):
            status = _status(path)
        return ABSENT if status is None else _local_etag(status)

    def clean(self, older_than: datetime) -> Sequence[str]:
        removed = []
        for directory, _, names in os.walk(self.root, onerror=_raise_unless_absent):
            for name in names:
                path = Path(directory, name)
                # Locks are left alone: whoever takes one next removes it.
                if re.fullmatch(r"\.tmp-[0-9a-f]{32}", name):
                    with contextlib.suppress(FileNotFoundError):  # its writer has done it
                        if path.stat().st_mtime < older_than.timestamp():
                            path.unlink()
                            removed.append(path.relative_to(self.root).as_posix())
        return sorted(removed)

    def _path(self, key: str) -> Path:
        if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise self._bad_key(key, "is not made of a file system's names")
        return self.root / key

    def _path_to_write(self, key: str) -> Path:
        path = self._path(key)
        if _is_hidden(key):
            raise self._bad_key(key, "would be a hidden file, which is not listed")
        if not _is_utf8(key):
            raise self._bad_key(key, "is not UTF-8")
        if not Path(os.path.realpath(path.parent)).is_relative_to(self.root):
            raise self._bad_key(key, "would be written through a link that leads out of the folder")
        return path

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate what is this object's own; let the rest through with the object's name."""
        try:
            yield
        except PermissionError as error:
            raise ObjectDeniedError(
                f"{self.url(key)}: {error.strerror}. Check the modes of the file and of its folders."
            ) from error
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise self._bad_key(key, "is a folder's, or lies below a file") from error
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise self._bad_key(key, f"can't be found by the file system ({error})") from error
            error.add_note(f"while accessing {self.url(key)}")
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A file system has no compare-and-swap: those who would change an object under a condition take turns."""
    lock = path.parent / f".lock-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}"
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The one before us has removed the lock that we waited for: its successor may be somebody else's by now.
            status = _status(lock)
            if status is not None and os.path.samestat(status, os.fstat(file.fileno())):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _status(path: Path) -> os.stat_result | None:
    """What the file system knows of a regular file; ``None`` of what is none, or is not there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads nowhere, as a broken one
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _leads_back(folder: Path) -> bool:
    """Whether this is a link to a folder above it, in which it would be found again without end."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _is_hidden(key: str) -> bool:
    return "/." in f"/{key}"


def _raise_unless_absent(error: OSError) -> None:
    # A folder that is not there is an empty listing, as on S3. One that must not be read is not: what it holds would
    # silently be missing.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _utf8(key: str, root: Path) -> str:
    if not _is_utf8(key):
        raise PipelineError(f"{root}: the file name {os.fsencode(key)!r} is not UTF-8. Rename or remove it.")
    return key


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """S3 or anything that speaks it. Endpoint, region and credentials come from boto3's usual environment."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.client = _s3_client()

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
        if not _is_utf8(key):
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
        read_timeout=READ_TIMEOUT,
    )
    return boto3.client("s3", config=config)

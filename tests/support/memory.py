"""A bucket in memory that can fail at any write, for tests that try out very many histories."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import IO

from pipeline.storage import ABSENT, Bucket, StoredObject


class CrashError(BaseException):
    """The process ends here: nothing of ours catches it."""


class MemoryBucket(Bucket):
    """Objects in a dictionary; etags as S3's. The ``crash_in``-th write from now ends the process, done or not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"memory://{name}")
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, datetime] = {}
        self.crash_in: int | None = None
        self.crash_after_write = False

    def require(self) -> None:
        """It is always there."""

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        """As S3 does."""
        for key in sorted(self.objects, key=str.encode):
            if key.startswith(prefix):
                data = self.objects[key]
                yield StoredObject(key, _md5(data), len(data), self.times[key])

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        """As S3 does."""
        if etag is not None and self.etag(key) != etag:
            raise self._changed(key, etag)
        if key not in self.objects:
            raise self._not_found(key)
        return self.objects[key]

    def first_bytes(self, key: str, count: int) -> bytes:
        """As S3 does."""
        return self.get(key)[:count]

    def open(self, key: str) -> IO[bytes]:
        """The whole object."""
        return io.BytesIO(self.get(key))

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """As S3 does."""
        if if_match is not None and self.etag(key) != if_match:
            raise self._changed(key, if_match)

        def write() -> None:
            self.objects[key] = data
            self.times[key] = datetime.now(UTC)

        self._write(write)
        return self.etag(key)

    def delete(self, key: str) -> None:
        """As S3 does."""
        self._write(lambda: self.objects.pop(key, None))

    def etag(self, key: str) -> str:
        """The MD5 of the bytes, so that what comes back as it was has the etag that it had."""
        data = self.objects.get(key)
        return ABSENT if data is None else _md5(data)

    def modified(self, key: str) -> datetime:
        """When it was put."""
        if key not in self.objects:
            raise self._not_found(key)
        return self.times[key]

    def clean(self, older_than: datetime) -> Sequence[str]:
        """A write leaves nothing behind."""
        return []

    def _write(self, write) -> None:
        crashes = self.crash_in == 1
        if self.crash_in is not None:
            self.crash_in -= 1
        if crashes and not self.crash_after_write:
            raise CrashError
        write()
        if crashes:
            raise CrashError


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324 - as S3's

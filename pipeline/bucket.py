"""What a bucket is: one contract for all kinds of storage.

Keys are relative to the bucket's URI and use ``/``. Every write is atomic: a reader sees the old object or the new one,
whole. An error that a person has to mend, or that is one object's own, is a ``PipelineError``; every other (a network
down, a disk full) keeps its kind and carries a note that names the object.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from pipeline.errors import PipelineError

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


def is_utf8(key: str) -> bool:
    """Whether the key has no bytes of a file's name that are not UTF-8."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True

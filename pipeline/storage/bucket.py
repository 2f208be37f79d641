"""The contract of a bucket, the same for all kinds of storage.

Keys are relative to the bucket's URI and use ``/``. Every write is atomic: a reader sees either the old object or the
new one, complete. An error that a person has to fix, or that concerns a single object, is a ``PipelineError``; all
others (a network failure, a full disk) keep their type and carry a note that names the object.
"""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TypeVar

from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 16
"""Objects that are read in parallel."""

ABSENT = "absent"
"""The etag to pass as ``if_match`` for an object that must not exist yet."""


HIDDEN_NAMES = frozenset(
    {"lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "Thumbs.db", "desktop.ini"}
)
"""Files and folders that operating systems and storage appliances create beside photographs."""

HIDDEN, MARKERS, SPECIAL, NOT_UTF8 = "hidden", "folder markers", "broken links and special files", "names not in UTF-8"
"""The kinds of entries that a listing passes over."""


class ObjectNotFoundError(PipelineError):
    """There is no object with this key."""


class ObjectChangedError(PipelineError):
    """The etag of the object is not the expected one: it was written or removed in the meantime."""


class ObjectDeniedError(PipelineError):
    """The storage refuses this object, for a reason of its own; other objects of the bucket may be accessible.

    Attributes:
        reason: the reason and what to do, without the name of the object.
    """

    def __init__(
        self, message: str, reason: str = "access denied; grant read access to it, and retry failed images"
    ) -> None:
        super().__init__(message)
        self.reason = reason


class ObjectArchivedError(ObjectDeniedError):
    """The object can be read only after it has been restored from an archive."""


class ObjectTooLargeError(PipelineError):
    """The object has more bytes than the reader allows."""


class DamagedObjectError(PipelineError):
    """The object is not what was written under its key: it is damaged, or another program wrote it."""


class BadKeyError(PipelineError):
    """No object in this bucket can have this key."""


@dataclass(frozen=True, slots=True, order=True)
class StoredObject:
    """One row of a listing.

    Attributes:
        key: relative to the bucket's URI.
        etag: changes whenever the object's bytes do.
        size: in bytes.
        modified: when it was written, in UTC.
        archived: it must be restored from an archive before it can be read.
    """

    key: str
    etag: str
    size: int
    modified: datetime
    archived: bool = False


class Bucket(ABC):
    """A flat namespace of immutable-looking objects."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def url(self, key: str) -> str:
        """The full URI of the object, for logs and records."""
        return f"{self.uri}/{key}"

    @property
    def location(self) -> str:
        """Where the bucket is: two buckets with the same location are one, and the same URI may mean two servers."""
        return self.uri

    @abstractmethod
    def require(self) -> None:
        """Raise ``PipelineError`` if there is no such bucket or folder, or it may not be listed."""

    @abstractmethod
    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        """The objects whose key begins with ``prefix``, by key (UTF-8 byte order); none if there is no such folder.

        Hidden files and folders (see ``hidden_part``), folder markers, and what is no file are passed over, and counted
        in ``passed_over`` by kind. A hidden folder counts as one.

        Raises:
            PipelineError: a folder, or the bucket, may not be listed.
        """

    @abstractmethod
    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        """The object's bytes.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectChangedError: ``etag`` was given and the object has another one, or is gone.
            ObjectTooLargeError: it has more than ``limit`` bytes, and was not read.
            ObjectDeniedError: this object can't be read.
            ObjectArchivedError: it has to be restored first.
            BadKeyError: no object can have this key.
        """

    @abstractmethod
    def first_bytes(self, key: str, count: int) -> bytes:
        """The object's first ``count`` bytes, or all of a shorter one. Raises the errors of ``get``."""

    @abstractmethod
    def open(self, key: str) -> IO[bytes]:
        """A seekable reader that fetches only the bytes that are read. It and its reads raise the errors of ``get``."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write the object at once and return its new etag.

        With ``if_match``, only if the object still has that etag (``ABSENT``: only if there is none).

        Raises:
            ObjectChangedError: ``if_match`` does not hold.
            ObjectDeniedError: this object may not be written.
            BadKeyError: no object can have this key.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object, if there is one. Raises ``ObjectDeniedError`` and ``BadKeyError``."""

    @abstractmethod
    def etag(self, key: str) -> str:
        """The object's etag, or ``ABSENT``."""

    @abstractmethod
    def modified(self, key: str) -> datetime:
        """When the object was written, in UTC. Raises the errors of ``get``."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        return self.etag(key) != ABSENT

    @abstractmethod
    def clean(self, older_than: datetime) -> Sequence[str]:
        """Remove the remains of writes that were interrupted before ``older_than``; return their names."""

    def _not_found(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"There is no object {self.url(key)}: check the URI, or run the step that writes it."
        )

    def _changed(self, key: str, expected: str) -> ObjectChangedError:
        return ObjectChangedError(f"{self.url(key)} was written or removed in the meantime (its etag was {expected}).")

    def _too_large(self, key: str, size: int, limit: int) -> ObjectTooLargeError:
        return ObjectTooLargeError(f"{self.url(key)} has {size} bytes, more than the limit of {limit}.")

    def _refuse_hidden(self, key: str) -> None:
        """Raise ``BadKeyError`` if no listing would show an object with this key."""
        if (hidden := hidden_part(key)) is not None:
            raise self._bad_key(key, f"would not be listed, because {hidden.rpartition('/')[2]!r} is a hidden name")

    def _bad_key(self, key: str, why: str) -> BadKeyError:
        return BadKeyError(f"{key!r} is not a valid key in {self.uri}: it {why}. Rename the object.")


def read_version(read: Callable[[str], T], key: str, bucket: Bucket) -> tuple[T | None, str]:
    """An object that is written by compare-and-swap, with the etag to pass to the write.

    Args:
        read: reads the object, given the etag that it must have.
        key: of the object.
        bucket: where it is.

    Returns:
        What ``read`` gave, and the etag; ``None`` and ``ABSENT`` if there is no such object.
    """
    while (etag := bucket.etag(key)) != ABSENT:
        # It may be written again between the two requests.
        with contextlib.suppress(ObjectChangedError, ObjectNotFoundError):
            return read(etag), etag
    return None, ABSENT


def read_each(
    read: Callable[[str], T], keys: Iterable[str], *, damaged: list[str] | None = None
) -> Iterator[tuple[str, T]]:
    """Read many objects in parallel, and leave out those that are damaged, or were removed since they were listed.

    A damaged object is logged as a warning, and its message is added to ``damaged``.

    Args:
        read: reads the object with a key.
        keys: of the objects.
        damaged: gets the messages of damaged objects.

    Returns:
        Each key with what ``read`` gave, in the order of the keys.
    """

    def read_unless_gone(key: str) -> tuple[str, T] | DamagedObjectError | None:
        try:
            return key, read(key)
        except ObjectNotFoundError:
            return None
        except DamagedObjectError as error:
            return error

    for found in _map_in_threads(read_unless_gone, keys):
        if isinstance(found, DamagedObjectError):
            log.warning("%s", found)
            if damaged is not None:
                damaged.append(str(found))
        elif found is not None:
            yield found


def _map_in_threads(read: Callable[[str], T], keys: Iterable[str]) -> Iterator[T]:
    """The results for the keys in their order, with few of them in memory, however slowly they are consumed."""
    running: deque[Future[T]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for key in keys:
            running.append(pool.submit(read, key))
            if len(running) == 2 * READERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def hidden_part(key: str) -> str | None:
    """The part of the key that ends with its first hidden name; ``None`` if no name in it is hidden.

    On S3 ``.`` and ``..`` are names as any other.
    """
    names = key.split("/")
    for place, name in enumerate(names):
        if (name.startswith(".") and name not in (".", "..")) or name in HIDDEN_NAMES:
            return "/".join(names[: place + 1])
    return None


def is_utf8(key: str) -> bool:
    """Whether the key can be encoded as UTF-8, which not every file name can."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True

"""A local folder as a bucket."""

import contextlib
import errno
import fcntl
import getpass
import hashlib
import logging
import os
import re
import stat
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import quote

from pipeline.errors import PipelineError
from pipeline.storage.bucket import (
    ABSENT,
    HIDDEN,
    NOT_UTF8,
    SPECIAL,
    Bucket,
    ObjectDeniedError,
    ObjectNotFoundError,
    StoredObject,
    hidden_part,
    is_utf8,
)

log = logging.getLogger(__name__)


class LocalBucket(Bucket):
    """A folder. An etag is the file's modification time and size: cheap, and it changes with each write.

    Reading and listing follow links, even out of the folder, because the photographs of a dataset are often on another
    disk. Nothing is written or removed outside the folder.
    """

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.expanduser().resolve()
        except (RuntimeError, ValueError) as error:  # the home of nobody, a link to itself, a null byte
            raise PipelineError(f"{str(root)!r} is not the path of a folder: {error}. Correct the address.") from error
        super().__init__(self.root.as_uri())

    def url(self, key: str) -> str:
        return f"{self.uri}/{quote(key, safe='/=+@,')}"

    def require(self) -> None:
        try:
            what = None if stat.S_ISDIR(self.root.stat().st_mode) else "is a file, not a folder"
        except PermissionError as error:
            raise _unreadable(self.root) from error
        except (FileNotFoundError, NotADirectoryError):
            what = "does not exist"
        if what:
            raise PipelineError(
                f"{self.uri} {what}. Check the address and, if it is on another disk, that the disk is mounted."
            )

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        # Walk only the folder in the prefix, and sort the keys as S3 does, by their UTF-8 bytes.
        folder, _, _ = prefix.rpartition("/")
        top = self._path(folder) if folder else self.root
        counts = Counter[str]() if passed_over is None else passed_over
        found = []
        for directory, folders, names in os.walk(top, onerror=_raise_unless_missing, followlinks=True):
            here = Path(directory)
            folders[:] = [
                name for name in folders if not self._is_passed_over(here / name, counts) and not _is_cycle(here / name)
            ]
            for name in names:
                path = here / name
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and not self._is_passed_over(path, counts):
                    status = _listed_status(path)
                    if status is None:
                        counts[SPECIAL] += 1
                    else:
                        modified = datetime.fromtimestamp(status.st_mtime, UTC)
                        found.append(StoredObject(key, _local_etag(status), status.st_size, modified))
        yield from sorted(found, key=lambda item: item.key.encode())

    def _is_passed_over(self, path: Path, counts: Counter[str]) -> bool:
        """Whether a listing passes over this file or folder, which is then counted."""
        key = path.relative_to(self.root).as_posix()
        if not is_utf8(key):
            log.warning("%s is passed over, because its name is not UTF-8: rename it", ascii(str(path)))
            counts[NOT_UTF8] += 1
            return True
        if hidden_part(key) is not None:
            # The remains of unfinished writes are nobody's files.
            counts[HIDDEN] += not _is_unfinished(path.name)
            return True
        return False

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        try:
            file = self.open(key)
        except ObjectNotFoundError as error:
            if etag is None:
                raise
            raise self._changed(key, etag) from error
        with file, self._translate_errors(key):
            before = os.fstat(file.fileno())
            if limit is not None and before.st_size > limit:
                raise self._too_large(key, before.st_size, limit)
            data = file.read(-1 if limit is None else limit + 1)
            if limit is not None and len(data) > limit:  # another program is appending to it
                raise self._too_large(key, os.fstat(file.fileno()).st_size, limit)
            # Checked after reading: another program may have overwritten the file in place meanwhile.
            if etag is not None and _local_etag(os.fstat(file.fileno())) != etag:
                raise self._changed(key, etag)
            return data

    def first_bytes(self, key: str, count: int) -> bytes:
        with self.open(key) as file, self._translate_errors(key):
            return file.read(count)

    def open(self, key: str) -> IO[bytes]:
        path = self._path(key)
        with self._translate_errors(key):
            try:
                # To open a named pipe would block until somebody writes to it.
                file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - it is returned
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise self._not_found(key) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise self._not_regular(key)
        return file

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        path = self._path_to_write(key)
        temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
        with self._translate_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    # The file system's own clock advances only every few milliseconds, so two writes could get the same
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
        # Under the lock, so that a conditional put that has just checked the etag can't restore the object.
        with self._translate_errors(key), absent, _locked(path):
            path.unlink()

    def etag(self, key: str) -> str:
        path = self._path(key)
        with self._translate_errors(key):
            status = _status(path)
        return ABSENT if status is None else _local_etag(status)

    def modified(self, key: str) -> datetime:
        path = self._path(key)
        with self._translate_errors(key):
            status = _status(path)
        if status is None:
            raise self._not_found(key)
        return datetime.fromtimestamp(status.st_mtime, UTC)

    def clean(self, older_than: datetime) -> Sequence[str]:
        removed = []
        for directory, _, names in os.walk(self.root, onerror=_raise_unless_missing):
            for name in names:
                path = Path(directory, name)
                # Locks are kept: the next writer that acquires one removes it.
                if name.startswith(".tmp-") and _is_unfinished(name):
                    with contextlib.suppress(FileNotFoundError):  # its writer has renamed or removed it
                        if path.stat().st_mtime < older_than.timestamp():
                            path.unlink()
                            removed.append(path.relative_to(self.root).as_posix())
        return sorted(removed)

    def _path(self, key: str) -> Path:
        if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise self._bad_key(key, "is not a valid path")
        return self.root / key

    def _path_to_write(self, key: str) -> Path:
        path = self._path(key)
        self._refuse_hidden(key)
        if not is_utf8(key):
            raise self._bad_key(key, "is not UTF-8")
        if not Path(os.path.realpath(path.parent)).is_relative_to(self.root):
            raise self._bad_key(key, "would be written through a link that leads out of the folder")
        return path

    def _not_regular(self, key: str) -> ObjectDeniedError:
        reason = "is a named pipe, a socket or a device; put a regular file in its place"
        return ObjectDeniedError(f"{self.url(key)} {reason}.", f"it {reason}")

    @contextlib.contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        """Translate errors that concern this object alone; add its name to all others."""
        try:
            yield
        except PermissionError as error:
            raise ObjectDeniedError(
                f"{self.url(key)}: {error.strerror}. Check the modes of the file and of its folders."
            ) from error
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise self._bad_key(key, "is a folder, or has a file as one of its folders") from error
        except OSError as error:
            if error.errno == errno.EROFS:
                raise ObjectDeniedError(
                    f"{self.url(key)}: {error.strerror}. Mount the file system so that it can be written to."
                ) from error
            if error.errno == errno.ENXIO:  # a socket, or a device without a driver
                raise self._not_regular(key) from error
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise self._bad_key(key, f"can't be resolved by the file system ({error})") from error
            error.add_note(f"while accessing {self.url(key)}")
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock an object during a conditional write, since file systems have no compare-and-swap."""
    lock = path.parent / f".lock-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}"
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder removes the lock file, so this may be a deleted one, and another process may hold the
            # new one.
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
    """The status of a regular file; ``None`` if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is treated as a broken link
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _listed_status(path: Path) -> os.stat_result | None:
    """The status of a file that a listing found; ``None`` if it is no regular file, or a link that leads nowhere."""
    try:
        return _status(path)
    except PermissionError as error:
        # The folder may be listed, but not entered; or this is a link to such a place.
        raise _unreadable(path if _is_link(path) else path.parent) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and _is_link(path):
            return None
        raise


def _is_link(path: Path) -> bool:
    """Whether this is a symbolic link, as far as its folder tells."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _is_cycle(folder: Path) -> bool:
    """Whether this is a link to one of its parent folders, which would be walked without end."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.parents)


def _is_unfinished(name: str) -> bool:
    """Whether this is the temporary file, or the lock, of a write."""
    return re.fullmatch(r"\.(tmp|lock)-[0-9a-f]{32}", name) is not None


def _raise_unless_missing(error: OSError) -> None:
    # A missing folder is an empty listing, as on S3. An unreadable one is an error: its objects would be left out
    # silently.
    if isinstance(error, PermissionError):
        raise _unreadable(Path(error.filename)) from error
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        error.add_note(f"while listing {error.filename}")
        raise error


def _unreadable(place: Path) -> PipelineError:
    what = "the folder that this link leads to" if _is_link(place) else "this folder"
    return PipelineError(
        f"{place.as_uri()} may not be read. Give the user {_user()} the permission to list and to enter {what}, "
        "or move it elsewhere."
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())

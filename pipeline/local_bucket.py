"""A local folder as a bucket."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import quote

from pipeline.bucket import ABSENT, Bucket, ObjectDeniedError, ObjectNotFoundError, StoredObject, is_utf8
from pipeline.errors import PipelineError


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
        if not is_utf8(key):
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
    if not is_utf8(key):
        raise PipelineError(f"{root}: the file name {os.fsencode(key)!r} is not UTF-8. Rename or remove it.")
    return key

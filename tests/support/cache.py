"""What is slow to make and the same for all test processes: made once, and kept in pytest's cache."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.support.paths import PROJECT


def made_once(name: str, sources: Iterable[Path], make: Callable[[Path], None], config: pytest.Config) -> Path:
    """A folder with what ``make`` has put there; it is made again when one of the source files has changed.

    Args:
        name: of the folder in the cache.
        sources: the files on which the content depends, in the checkout.
        make: fills an empty folder, which stays where it is.
        config: of this pytest.
    """
    folder = config.cache.mkdir(name)
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    done = folder / "made-from"
    # Other test processes wait for the first one.
    with (folder.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != digest.hexdigest():
            shutil.rmtree(folder)
            (folder / "content").mkdir(parents=True)
            make(folder / "content")
            done.write_text(digest.hexdigest())
    return folder / "content"

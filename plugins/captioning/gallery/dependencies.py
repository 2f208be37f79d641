"""The dependencies of the routes: the deployment's buckets, with the credentials of Airflow's connection if it exists.

The tasks open the buckets in the same way. Viewers of the gallery do not learn where the buckets are.
"""

import atexit
import contextlib
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from captioning.checkout import find_code
from captioning.child import Child, prepare_child
from captioning.connections import INBOX, STORE, bucket_environment, child_environment, private_folder
from captioning.gallery import limits
from pipeline.errors import PipelineError
from pipeline.settings import read_settings
from pipeline.storage import Bucket, open_bucket, source_uri

SECONDS = 600
"""Time after which the connections are read again: a person may have changed their keys."""

_open_folders = contextlib.ExitStack()
atexit.register(_open_folders.close)


async def store() -> Bucket:
    """The store, for one request."""
    return await _opened(read_settings().store, STORE)


async def inbox() -> Bucket:
    """The inbox, for one request."""
    return await _opened(read_settings().inbox, INBOX)


def open_source(name: str, store: Bucket) -> Bucket:
    """The bucket of a dataset's photographs, for one request, with the connection by which the tasks read it.

    Args:
        name: of the source, as the dataset has it.
        store: the store.
    """
    uri = source_uri(name, store)
    in_inbox = f"{uri}/".startswith(f"{read_settings().inbox.rstrip('/')}/")
    bucket = _open(uri, INBOX if in_inbox else STORE, int(time.monotonic() / SECONDS))
    return limits.ExpiringBucket(bucket, seconds=limits.THUMBNAIL_SECONDS)


def child() -> Child:
    """How a child process that opens the store is run. Raises ``PipelineError`` if a setting or connection is wrong."""
    on_s3 = read_settings().store.startswith("s3://")
    return prepare_child(child_environment(_folder()) if on_s3 else os.environ, find_code())


async def _opened(uri: str, profile: str) -> Bucket:
    bucket = await limits.openers.call(_open, uri, profile, int(time.monotonic() / SECONDS))
    return limits.ExpiringBucket(bucket, seconds=limits.PAGE_SECONDS)


def concealer() -> Callable[[str], str]:
    """A function that replaces the addresses of the store, the inbox and any server in a message for viewers."""
    names: dict[str, str] = {}
    with contextlib.suppress(PipelineError):  # the message is then about a setting, and does not show its value
        settings = read_settings()
        for name, uri in (("the store", settings.store), ("the inbox", settings.inbox)):
            names |= dict.fromkeys(_addresses(uri), name)
    # One may be inside of the other.
    known = [rf"(?<![\w/]){re.escape(address)}(?![\w-])" for address in sorted(names, key=len, reverse=True)]
    pattern = re.compile("|".join([*known, r"https?://\w[^\s\"']*"]))
    return lambda text: pattern.sub(lambda found: names.get(found[0], "the server"), text)


def _addresses(uri: str) -> set[str]:
    """The address of a bucket as it is set and as it was opened, which may be elsewhere, and the paths of a folder."""
    uris = {uri.rstrip("/"), _opened_as.get(uri, uri)}
    return (uris | {unquote(each.removeprefix("file://")) for each in uris}) - {"", "/", "file:"}


_opened_as: dict[str, str] = {}
"""The address of each bucket that was opened, by the one that is set."""


@lru_cache(maxsize=8)
def _open(uri: str, profile: str, _period: int) -> Bucket:
    bucket = open_bucket(uri, bucket_environment(_folder(), profile) if uri.startswith("s3://") else None)
    _opened_as[uri] = bucket.uri
    return bucket


def _folder() -> Path:
    """The folder of the profiles of this process.

    This process runs for months, and systemd removes from ``/tmp`` what was not used for some days.
    """
    if not (folder := _make_folder()).is_dir():
        _make_folder.cache_clear()
        folder = _make_folder()
    return folder


@lru_cache(maxsize=1)
def _make_folder() -> Path:
    return _open_folders.enter_context(private_folder())

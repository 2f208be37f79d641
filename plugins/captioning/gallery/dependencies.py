"""The dependencies of the routes: the deployment's buckets, with the credentials of Airflow's connection if it exists.

The tasks open the buckets in the same way.
"""

import atexit
import contextlib
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from captioning.connections import INBOX, STORE, bucket_environment, child_environment, private_folder
from captioning.gallery import limits
from pipeline.settings import read_settings
from pipeline.storage import Bucket, open_bucket

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


def environment() -> Mapping[str, str]:
    """The environment of a child process that opens the store."""
    return child_environment(_folder()) if read_settings().store.startswith("s3://") else os.environ


async def _opened(uri: str, profile: str) -> Bucket:
    bucket = await limits.openers.call(_open, uri, profile, int(time.monotonic() / SECONDS))
    return limits.ExpiringBucket(bucket, seconds=limits.PAGE_SECONDS)


@lru_cache(maxsize=4)
def _open(uri: str, profile: str, _period: int) -> Bucket:
    return open_bucket(uri, bucket_environment(_folder(), profile) if uri.startswith("s3://") else None)


@lru_cache(maxsize=1)
def _folder() -> Path:
    """The folder of the profiles of this process."""
    return _open_folders.enter_context(private_folder())

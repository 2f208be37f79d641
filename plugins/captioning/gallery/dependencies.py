"""The dependencies of the routes: the deployment's buckets, with the credentials of Airflow's connection if it exists.

The tasks open the buckets in the same way.
"""

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from captioning.connections import aws_environment
from pipeline.settings import read_settings
from pipeline.storage import Bucket, open_bucket

SECONDS = 600
"""Time after which the connection is read again: its credentials may expire."""


def store() -> Bucket:
    """The store."""
    return _open(read_settings().store, _period())


def inbox() -> Bucket:
    """The inbox."""
    return _open(read_settings().inbox, _period())


def environment() -> Mapping[str, str]:
    """The environment of a child process that opens the same buckets."""
    return {**os.environ, **_connection(_period())}


def _period() -> int:
    return int(time.monotonic() / SECONDS)


@lru_cache(maxsize=4)
def _open(uri: str, period: int) -> Bucket:
    return open_bucket(uri, _connection(period) if uri.startswith("s3://") else None)


@lru_cache(maxsize=1)
def _connection(_period: int) -> Mapping[str, str]:
    return MappingProxyType(aws_environment())

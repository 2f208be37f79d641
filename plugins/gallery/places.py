"""The deployment's buckets, reached as the tasks reach them: by Airflow's connection, where there is one."""

import logging
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from dags.connections import aws_environment
from pipeline.settings import Settings
from pipeline.storage import Bucket, open_bucket

log = logging.getLogger(__name__)

SECONDS = 600
"""After which the connection is asked again: it may give credentials that expire."""


def store() -> Bucket:
    """The store."""
    return _open(Settings().store, _period())


def inbox() -> Bucket:
    """The inbox."""
    return _open(Settings().inbox, _period())


def environment() -> Mapping[str, str]:
    """That of a process which opens the same."""
    return {**os.environ, **_connection(_period())}


def _period() -> int:
    return int(time.monotonic() / SECONDS)


@lru_cache(maxsize=4)
def _open(uri: str, period: int) -> Bucket:
    return open_bucket(uri, _connection(period) if uri.startswith("s3://") else None)


@lru_cache(maxsize=1)
def _connection(_period: int) -> Mapping[str, str]:
    return MappingProxyType(aws_environment(log))

"""Buckets by their URI: a local folder (``file://``) or S3 (``s3://bucket/prefix``)."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from pipeline.bucket import (
    ABSENT,
    BadKeyError,
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoredObject,
)
from pipeline.errors import PipelineError
from pipeline.local_bucket import LocalBucket
from pipeline.s3_bucket import S3Bucket

__all__ = [
    "ABSENT",
    "BadKeyError",
    "Bucket",
    "LocalBucket",
    "ObjectChangedError",
    "ObjectDeniedError",
    "ObjectNotFoundError",
    "ObjectTooLargeError",
    "S3Bucket",
    "StoredObject",
    "open_bucket",
    "open_object",
]


def open_bucket(uri: str, environment: Mapping[str, str] | None = None) -> Bucket:
    """The bucket at ``file:///folder`` (created on the first write), ``s3://bucket[/prefix]`` or a plain path.

    ``environment`` says how S3 is reached, before this process's own (see ``S3Bucket``).
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "s3" and rest.partition("/")[0]:
        return S3Bucket(uri, environment)
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return LocalBucket(Path(unquote(rest.removeprefix("localhost"))))
    if uri and not separator and not uri.startswith(("s3:", "file:")):
        return LocalBucket(Path(uri))
    raise PipelineError(f"Not a bucket: expected file:///folder, s3://bucket/prefix or a path. Received: {uri!r}")


def open_object(uri: str) -> tuple[Bucket, str]:
    """Split an object's URI or path into its bucket and its key."""
    start = uri.rfind("/") + 1
    if not uri[start:]:
        raise PipelineError(
            f"Not an object: expected file:///folder/name, s3://bucket/key or a path. Received: {uri!r}"
        )
    name = unquote(uri[start:]) if uri.startswith("file://") else uri[start:]
    return open_bucket(uri[:start] or "."), name

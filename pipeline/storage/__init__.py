"""Buckets, opened by their URI: a local folder (``file://``) or S3 (``s3://bucket/prefix``)."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import PipelineError
from pipeline.settings import read_settings
from pipeline.storage import layout
from pipeline.storage.bucket import (
    ABSENT,
    BadKeyError,
    Bucket,
    DamagedObjectError,
    ObjectArchivedError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoredObject,
)
from pipeline.storage.local import LocalBucket
from pipeline.storage.s3 import S3Bucket

__all__ = [
    "ABSENT",
    "BadKeyError",
    "Bucket",
    "DamagedObjectError",
    "LocalBucket",
    "ObjectArchivedError",
    "ObjectChangedError",
    "ObjectDeniedError",
    "ObjectNotFoundError",
    "ObjectTooLargeError",
    "S3Bucket",
    "StoredObject",
    "has_portable_names",
    "open_bucket",
    "open_object",
    "open_source",
    "source_name",
    "source_uri",
]

_IN_STORE = "store:"
"""Begins the name of a source that is inside the store."""

_OTHER_CLOUDS = {"abfs", "abfss", "az", "gcs", "gs", "wasb", "wasbs"}
"""Schemes of Google's and Microsoft's storage, which do not speak S3."""


def open_bucket(uri: str, environment: Mapping[str, str] | None = None) -> Bucket:
    """The bucket at ``file:///folder`` (created on the first write), ``s3://bucket[/prefix]`` or a plain path.

    ``environment`` configures access to S3 and takes precedence over the environment of this process (see
    ``S3Bucket``). Without it, the setting ``inbox_profile`` chooses the profile of the inbox.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "s3" and rest.partition("/")[0]:
        return S3Bucket(uri, _profile(uri) if environment is None else environment)
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return LocalBucket(Path(unquote(rest.removeprefix("localhost"))))
    if uri and not separator and not uri.startswith(("s3:", "file:")):
        return LocalBucket(Path(uri))
    if scheme in _OTHER_CLOUDS:
        raise PipelineError(
            f"{scheme}:// needs a gateway that speaks S3, such as S3Proxy: set AWS_ENDPOINT_URL to its address, and "
            f"write s3:// instead of {scheme}://. Received: {uri!r}"
        )
    raise PipelineError(f"Not a bucket: expected file:///folder, s3://bucket/prefix or a path. Received: {uri!r}")


def _profile(uri: str) -> Mapping[str, str]:
    """The variable that chooses the profile of the inbox, if the URI is in it: a store inside of it is not."""
    settings = read_settings()
    inside = [place for place in (settings.inbox, settings.store) if f"{uri}/".startswith(f"{place.rstrip('/')}/")]
    if settings.inbox_profile and inside and max(inside, key=len) == settings.inbox:
        return {"AWS_PROFILE": settings.inbox_profile}
    return {}


def open_object(uri: str) -> tuple[Bucket, str]:
    """Split the URI or path of an object into its bucket and its key."""
    start = uri.rfind("/") + 1
    if not uri[start:]:
        raise PipelineError(
            f"Not an object: expected file:///folder/name, s3://bucket/key or a path. Received: {uri!r}"
        )
    name = unquote(uri[start:]) if uri.startswith("file://") else uri[start:]
    return open_bucket(uri[:start] or "."), name


def source_name(bucket: Bucket, store: Bucket) -> str:
    """The name under which the store refers to a bucket of photographs.

    It is the URI of the bucket, or ``store:<folder>`` for a folder of the store: the store does not hold its own
    address, so a copy of it works elsewhere.
    """
    inside = f"{bucket.uri}/".removeprefix(f"{store.uri}/")
    if inside == f"{bucket.uri}/":
        return bucket.uri
    folder = inside.rstrip("/")
    return f"{_IN_STORE}{unquote(folder) if bucket.uri.startswith('file://') else folder}"


def has_portable_names(source: str) -> bool:
    """Whether the names of a source's objects identify their content, as those of corrected pictures do.

    Their etags are not compared, because these differ in a copy of the store.
    """
    return source == f"{_IN_STORE}{layout.CORRECTIONS.rstrip('/')}"


def source_uri(name: str, store: Bucket) -> str:
    """The URI of the bucket that ``source_name`` named."""
    if not name.startswith(_IN_STORE):
        return name
    folder = name.removeprefix(_IN_STORE)
    return store.url(folder) if folder else store.uri


def open_source(name: str, store: Bucket) -> Bucket:
    """The bucket that ``source_name`` named."""
    return open_bucket(source_uri(name, store))

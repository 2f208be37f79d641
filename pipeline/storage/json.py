"""Typed JSON documents in a bucket."""

import logging
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError

log = logging.getLogger(__name__)

T = TypeVar("T")


def write(document: Any, key: str, bucket: Bucket, *, if_match: str | None = None) -> None:
    """Write a pydantic model, or a structure of plain values, as indented JSON.

    Raises:
        ObjectChangedError: the object's etag is not ``if_match``.
    """
    bucket.put(key, dump(document), if_match=if_match)


def dump(document: Any) -> bytes:
    """A pydantic model, or a structure of plain values, as indented JSON."""
    model = type(document) if isinstance(document, BaseModel) else Any
    return TypeAdapter(model).dump_json(document, indent=2)


def read(kind: type[T], key: str, bucket: Bucket, *, etag: str | None = None, advice: str = "") -> T:
    """Read a document of a type that pydantic can validate.

    Args:
        kind: the type, such as a pydantic model or ``dict[str, str]``.
        key: of the object.
        bucket: where it is.
        etag: the version that is expected.
        advice: what to do if the document is invalid; ends the error message.

    Raises:
        ObjectNotFoundError: there is no such object.
        ObjectChangedError: it does not have this etag any more.
        DamagedObjectError: it is not a valid document of this type.
    """
    return parse(kind, bucket.get(key, etag=etag), bucket.url(key), advice=advice)


def parse(kind: type[T], data: str | bytes, name: str, *, advice: str = "") -> T:
    """Parse a document of a type that pydantic can validate; arguments as for ``read``.

    Raises:
        DamagedObjectError: it is not a valid document of this type. The message begins with ``name``.
    """
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()
        )
        message = f"{name} is damaged, or not a document of this kind: {wrong}."
        raise DamagedObjectError(f"{message} {advice}".rstrip()) from error


def find(kind: type[T], key: str, bucket: Bucket) -> T | None:
    """The document, or ``None`` if there is none, or a damaged one, which is logged as a warning.

    For documents that can be made again, or done without.
    """
    try:
        return read(kind, key, bucket)
    except ObjectNotFoundError:
        return None
    except DamagedObjectError as error:
        log.warning("%s", error)
        return None

"""Files that are loaded only as they were saved.

A file's name ends in the beginning of its content's SHA-256, and a document that is written after all files of a bundle
keeps the whole sums. So whoever finds the document finds the files that it means: another writer of the same bundle, at
the same time or after an interruption, puts its own files, which need not be the same byte by byte, beside them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import StringConstraints

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError

Checksums = dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]]
"""The SHA-256 of each file of a bundle, in hexadecimal digits, by the file's name without the sum."""


def put(folder: str, files: Mapping[str, bytes], store: Bucket) -> Checksums:
    """Write a bundle's files, and return their sums, to be kept in a document that is written next."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        store.put(key(folder, name, sums), data)
    return sums


def get(folder: str, names: Iterable[str], sums: Checksums, store: Bucket, *, advice: str) -> list[bytes]:
    """Files of a bundle.

    Raises:
        PipelineError: one is missing, or isn't the one that was saved; the message ends in ``advice``.
    """
    return [_get(folder, name, sums, store, advice) for name in names]


def key(folder: str, name: str, sums: Checksums) -> str:
    """Where a file of a bundle lies."""
    path = PurePosixPath(folder, name)
    return str(path.with_stem(f"{path.stem}-{sums[name][:12]}"))


def _get(folder: str, name: str, sums: Checksums, store: Bucket, advice: str) -> bytes:
    if name not in sums:
        raise PipelineError(f"{store.url(folder)} has no checksum of its {name}. {advice}")
    place = key(folder, name, sums)
    try:
        data = store.get(place)
    except ObjectNotFoundError:
        raise PipelineError(f"{store.url(place)} is missing. {advice}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sums[name]:
        raise PipelineError(
            f"{store.url(place)} isn't the file that was saved: its SHA-256 is {found}, and not {sums[name]}. {advice}"
        )
    return data

"""Files with checksums: only the file that was saved is ever loaded.

The name of a file ends in the beginning of its content's SHA-256, and a document written after all files of a bundle
holds the complete checksums. A reader of the document therefore finds the files that belong to it: another writer of
the same bundle, concurrent or after an interruption, puts its own files beside them, which may differ in their bytes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import StringConstraints

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError

Checksums = dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]]
"""The SHA-256 of each file of a bundle, in hexadecimal digits, by the name of the file without the checksum."""


def put(folder: str, files: Mapping[str, bytes], store: Bucket) -> Checksums:
    """Write the files of a bundle and return their checksums, for the document that is written next."""
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        store.put(artifact_key(folder, name, checksums), data)
    return checksums


def get(folder: str, names: Iterable[str], checksums: Checksums, store: Bucket, *, advice: str) -> list[bytes]:
    """Read files of a bundle.

    Raises:
        PipelineError: a file is missing, or is not the one that was saved; the message ends in ``advice``.
    """
    return [_get(folder, name, checksums, store, advice) for name in names]


def copy_files(folder: str, checksums: Checksums, source: Bucket, target: Bucket, *, advice: str) -> int:
    """Copy the files of a bundle that another store lacks, or has damaged, and return how many.

    Raises:
        PipelineError: as for ``get``, about a file of the source.
    """
    lacking = [name for name in checksums if not _has(artifact_key(folder, name, checksums), checksums[name], target)]
    for name in lacking:
        [data] = get(folder, [name], checksums, source, advice=advice)
        target.put(artifact_key(folder, name, checksums), data)
    return len(lacking)


def artifact_key(folder: str, name: str, checksums: Checksums) -> str:
    """The key of a file of a bundle."""
    path = PurePosixPath(folder, name)
    return str(path.with_stem(f"{path.stem}-{checksums[name][:12]}"))


def _has(key: str, checksum: str, store: Bucket) -> bool:
    try:
        return hashlib.sha256(store.get(key)).hexdigest() == checksum
    except ObjectNotFoundError:
        return False


def _get(folder: str, name: str, checksums: Checksums, store: Bucket, advice: str) -> bytes:
    if name not in checksums:
        raise PipelineError(f"{store.url(folder)} has no checksum of its {name}. {advice}")
    key = artifact_key(folder, name, checksums)
    try:
        data = store.get(key)
    except ObjectNotFoundError:
        raise PipelineError(f"{store.url(key)} is missing. {advice}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != checksums[name]:
        raise PipelineError(
            f"{store.url(key)} is not the file that was saved: its SHA-256 is {found}, expected {checksums[name]}. "
            f"{advice}"
        )
    return data

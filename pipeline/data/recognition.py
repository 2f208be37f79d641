"""Which files of a folder are photographs: by their suffix or, where this says nothing, by their first bytes."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType

from pipeline.data.images import START_BYTES, format_of, is_image
from pipeline.storage import Bucket, ObjectDeniedError, ObjectNotFoundError, StoredObject

PAGE = 50_000
"""Files that are in memory at once."""

READERS = 32
"""Files that are looked at at once."""


def recognize(
    files: Iterable[StoredObject], bucket: Bucket, known: Mapping[int, bool] = MappingProxyType({})
) -> Iterator[list[tuple[StoredObject, bool | None]]]:
    """Page by page, each file, and whether it is a photograph; ``None`` if it can't be read.

    A file with an unknown suffix, or none, is a photograph if its first bytes are those of a picture.

    Args:
        files: files of the bucket, in any order.
        bucket: the bucket.
        known: earlier answers about files that were looked at, by ``identity``.
    """
    remaining = iter(files)

    def answer(item: StoredObject) -> bool | None:
        by_suffix = is_image(item.key)
        return known.get(identity(item.key, item.etag)) if by_suffix is None else by_suffix

    with ThreadPoolExecutor(READERS) as threads:
        while page := list(islice(remaining, PAGE)):
            answers = list(map(answer, page))
            new = [item for item, found in zip(page, answers, strict=True) if found is None]
            looked_at = threads.map(lambda item: _look_at(item, bucket), new)
            yield [
                (item, next(looked_at) if found is None else found) for item, found in zip(page, answers, strict=True)
            ]


def identity(key: str, etag: str) -> int:
    """A number for a version of a file, in this process: as a key it takes a third of the memory of the texts."""
    return hash((key, etag))


def _look_at(item: StoredObject, bucket: Bucket) -> bool | None:
    """Whether a file is a photograph; ``None`` if it can't be read, which may be different another time."""
    try:
        return item.size > 0 and format_of(bucket.first_bytes(item.key, START_BYTES)) is not None
    except (ObjectDeniedError, ObjectNotFoundError):
        return None

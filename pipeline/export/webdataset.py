"""WebDataset: tar files in which each captioned photograph is a picture, its caption, and its row as JSON.

The files of a photograph have one name up to the first dot: its key, of which dots and what file systems refuse are
percent-encoded.
"""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.data.images import FORMATS, MAX_BYTES, format_of
from pipeline.errors import PipelineError
from pipeline.export.rows import json_row
from pipeline.progress import track
from pipeline.storage import (
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectTooLargeError,
    layout,
)
from pipeline.storage import json as documents

log = logging.getLogger(__name__)

SUMMARY = "captions.json"
"""Written when all shards are there: what they hold."""

SHARD_BYTES = 100_000_000
"""A shard that has reached this size is written. It is in memory until then."""

READERS = 16
"""Pictures that are read in parallel."""


def write(table: pa.Table, folder: Bucket, *, inbox: Bucket, overwrite: bool) -> dict[str, Any]:
    """Write captioned photographs as ``captions-000000.tar`` and so on, and last a summary, ``captions.json``.

    A photograph that was changed or removed since it was captioned, or can't be read, is left out and counted.

    Args:
        table: rows of the current captions, all of which have a caption.
        folder: where to write.
        inbox: the bucket of the photographs.
        overwrite: replace the shards that are there.

    Returns:
        The ``destination`` and counts.

    Raises:
        PipelineError: there are shards, which are not to be overwritten, or there is no inbox.
    """
    inbox.require()
    # The summary is the first in the order of removal, so that it is never beside half of the shards.
    old = [item.key for item in folder.list("captions") if item.key == SUMMARY or _is_shard(item.key)]
    if old and not overwrite:
        raise PipelineError(
            f"{folder.url(old[0])} exists. Choose another folder, or replace its shards with --overwrite."
        )
    for key in sorted(old, key=_is_shard):
        folder.delete(key)
    shard, counts = _Shard(), Counter(shards=0, pictures=0, changed=0, unreadable=0)
    for row, picture in track(_pictures(table, inbox), total=len(table), unit="pictures", log=log):
        if isinstance(picture, str):
            counts[picture] += 1
            continue
        counts["pictures"] += 1
        shard.add(row, picture)
        if shard.size >= SHARD_BYTES:
            folder.put(f"captions-{counts['shards']:06d}.tar", shard.close())
            counts["shards"] += 1
            shard = _Shard()
    if shard.size or not counts["shards"]:
        folder.put(f"captions-{counts['shards']:06d}.tar", shard.close())
        counts["shards"] += 1
    documents.write(dict(counts), SUMMARY, folder)
    return {"destination": folder.uri, **counts}


class _Shard:
    """A tar file in memory."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 - ``close`` closes it

    @property
    def size(self) -> int:
        """In bytes."""
        return self._file.tell()

    def add(self, row: dict[str, Any], picture: bytes) -> None:
        """Add a picture of a known format, its caption and its row."""
        name = layout.safe_name(row["image_key"], dotless=True)
        suffix = FORMATS[str(format_of(picture))][0]
        described = json.dumps(json_row(row), ensure_ascii=False).encode()
        # Unknown until the next night if a correction was withdrawn, so that the model's caption counts again.
        written = int(row["captioned_at"].timestamp()) if row["captioned_at"] else 0
        for ending, data in ((suffix, picture), (".txt", row["caption"].encode()), (".json", described)):
            member = tarfile.TarInfo(f"{name}{ending}")
            member.size, member.mtime = len(data), written
            self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> bytes:
        """The bytes of the complete file."""
        self._tar.close()
        return self._file.getvalue()


def _is_shard(key: str) -> bool:
    return key.startswith("captions-") and key.endswith(".tar")


def _pictures(table: pa.Table, inbox: Bucket) -> Iterator[tuple[dict[str, Any], bytes | str]]:
    """Each row with the bytes of its picture, or with the count to which it belongs."""

    def read(row: dict[str, Any]) -> bytes | str:
        try:
            picture = inbox.get(row["image_key"], etag=row["image_etag"], limit=MAX_BYTES)
        except ObjectChangedError:
            return "changed"
        except (ObjectDeniedError, ObjectTooLargeError) as error:
            log.warning("%s", error)
            return "unreadable"
        return picture if format_of(picture) else "unreadable"

    with ThreadPoolExecutor(READERS) as pool:
        # Batch by batch: a pool reads ahead without limit, and pictures are large.
        for batch in table.to_batches(2 * READERS):
            rows = batch.to_pylist()
            yield from zip(rows, pool.map(read, rows), strict=True)

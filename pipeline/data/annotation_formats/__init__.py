"""The formats of published captions: each module reads one of them into ``Annotations``.

To add a format, write a module with two functions: ``find``, which gives the keys of the files of captions of this
format in a folder, and ``read``. Then add it to ``read_annotations``.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable

from pipeline.data.annotation_formats import coco, flickr8k, json_file, karpathy, parquet_table, sidecars, table
from pipeline.data.annotations import Annotations, Source
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, ObjectNotFoundError, open_bucket, open_object

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".parquet")
"""Sources that end in one of these are files of captions, unless there is a folder of this name."""

FORMATS = (
    f"{flickr8k.TOKEN_FILE} (official Flickr8k), dataset_*.json (Karpathy's splits), "
    "captions_train*.json and captions_val*.json (COCO), captions.txt (Kaggle's Flickr8k), results.csv (Flickr30k), "
    "one table of captions (.csv, .tsv or .parquet), and .txt files beside images of the same name, with captions and "
    "not only numbers in them"
)
"""The formats, as an error lists them."""

_IN_FOLDERS: tuple[tuple[Callable[[Source], list[str]], Callable[[Source, list[str]], Annotations]], ...] = (
    (flickr8k.find, flickr8k.read),
    (karpathy.find, karpathy.read),
    (coco.find, coco.read),
    (table.find_published, table.read),
    (sidecars.find, sidecars.read),
    (table.find, table.read),
    (parquet_table.find, parquet_table.read),
)
"""What finds, and what reads, the captions of a folder. The first format that is found counts."""


def read_annotations(source: str) -> tuple[Bucket, Annotations]:
    """Read a source, by the path or URI of a folder or of a file of captions.

    Returns:
        The bucket of the photographs, and the captions.

    Raises:
        PipelineError: there is no such folder or file, its format or its columns are unknown, or a name means several
            image files.
    """
    bucket, key = _open(source)
    found = Source.of(bucket)
    if key is None:
        for find, read in _IN_FOLDERS:
            if keys := find(found):
                return bucket, read(found, keys)
        raise _unknown(found)
    name = key.lower().rpartition("/")[2]
    if name == flickr8k.TOKEN_FILE.lower():
        return bucket, flickr8k.read(found, [key])
    if name.endswith(".json"):
        module = karpathy if karpathy.matches(json_file.load(found, key)) else coco
        return bucket, module.read(found, [key])
    if name.endswith(".parquet"):
        return bucket, parquet_table.read(found, [key])
    return bucket, table.read(found, [key])


def _open(source: str) -> tuple[Bucket, str | None]:
    """The folder of a source, and the key of the file of captions, if the source is one."""
    if source.lower().endswith(SUFFIXES):
        bucket, key = open_object(source)
        if bucket.exists(key):
            if above := re.fullmatch("(.+://.+)/annotations", bucket.uri):  # COCO's images are beside this folder
                return open_bucket(above[1]), f"annotations/{key}"
            return bucket, key
        if not any(bucket.list(f"{key}/")):
            raise ObjectNotFoundError(f"{bucket.url(key)} does not exist. Check the address of the captions.")
    bucket = open_bucket(source)
    if isinstance(bucket, LocalBucket) and bucket.root.is_file():
        raise PipelineError(
            f"{bucket.uri} is a file, not a folder, and its name does not end in {', '.join(SUFFIXES)}. Pass the file "
            "of captions, or the folder of the photographs and captions."
        )
    bucket.require()
    return bucket, None


def _unknown(source: Source) -> PipelineError:
    """The error for a folder in which no format was recognized."""
    kinds = Counter(posixpath.splitext(key)[1].lower() or "without suffix" for key in source.keys)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    return PipelineError(
        f"{source.bucket.uri} holds no captions in a known format. Looked for {FORMATS}. Found {len(source.keys)} files"
        f"{f' ({shown})' if shown else ''}, {len(source.photographs.by_key)} of them images."
    )

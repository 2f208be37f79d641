"""The Flickr8k layout: the file of captions, the three lists of images that define the splits, and the image files.

The files may be anywhere in the folder (Hodosh, Young and Hockenmaier, 2013, "Framing Image Description as a Ranking
Task", JAIR 47).
"""

import codecs
import posixpath
import re
from collections.abc import Iterator

from pipeline.data.annotations import SPLITS, Annotations, Photographs, Row, ambiguous
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject

TOKEN_FILE = "Flickr8k.token.txt"  # noqa: S105 - the file of captions, not a secret
KAGGLE_FILE = "captions.txt"
"""The file of captions in Kaggle's download of Flickr8k: a CSV table."""

SPLIT_FILES = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}


def read(bucket: Bucket) -> Annotations:
    """Read a folder in the Flickr8k layout. Raises ``PipelineError`` if it has another layout."""
    files = list(bucket.list())
    photographs = Photographs(files)
    annotations = Annotations(_single_file(TOKEN_FILE, files, photographs, bucket))
    captioned = set()
    for line, text in _lines(bucket, annotations.file, annotations):
        # 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing up a set of stairs .
        match = re.fullmatch(r"([^\t]+)#([0-9]{1,9})\t(.*)", text)
        if match is None:
            annotations.drop(line, "malformed", text)
            continue
        image, number, caption = match.groups()
        captioned.add(image)
        annotations.rows.append(Row(line, text, photographs.find(image), int(number), caption.strip()))
    for split, name in SPLIT_FILES.items():
        file = _single_file(name, files, photographs, bucket)
        for line, text in _lines(bucket, file, annotations):
            image = text.strip()
            photograph = photographs.find(image)
            if photograph is None:
                annotations.drop(line, "split names a missing image", text, file=file)
            elif image not in captioned:
                annotations.drop(line, "split names an image without captions", text, file=file)
            else:
                if annotations.splits[photograph.key] - {split}:
                    annotations.drop(line, "image in two splits", text, file=file)
                annotations.splits[photograph.key].add(split)
    return annotations


def _single_file(name: str, files: list[StoredObject], photographs: Photographs, bucket: Bucket) -> str:
    """The key of the only file of this name. Raises ``PipelineError`` if there is none or more than one."""
    keys = [item.key for item in files if posixpath.basename(item.key) == name]
    if len(keys) > 1:
        raise ambiguous(name, keys)
    if not keys:
        tables = [item.key for item in files if posixpath.basename(item.key) == KAGGLE_FILE]
        advice = (
            f" If {tables[0]} is such a table, copy it to captions.csv beside it, and pass the copy." if tables else ""
        )
        raise PipelineError(
            f"{bucket.uri} has an unknown layout: there is no {name} in it (it holds {len(files)} files, "
            f"{len(photographs.by_key)} of them images). Expected a folder with {TOKEN_FILE}, "
            f"{', '.join(SPLIT_FILES.values())} and the image files, or a .csv or .parquet table with the columns "
            f"image, caption and, optionally, split.{advice}"
        )
    return keys[0]


def _lines(bucket: Bucket, key: str, annotations: Annotations) -> Iterator[tuple[int, str]]:
    """The non-blank lines, numbered from 1; lines that are not UTF-8 are dropped."""
    # Not splitlines(), which also splits at characters that can occur within a caption.
    for number, line in enumerate(bucket.get(key).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError:
            annotations.drop(number, "not UTF-8", line.decode(errors="replace"), file=key)
            continue
        if text.strip():
            yield number, text

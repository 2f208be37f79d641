"""A folder of pictures, each with its captions beside it: ``a.jpg`` and ``a.txt``, which has a caption in each line."""

import posixpath
from collections import defaultdict

from pipeline.data.annotations import SPLITS, Annotations, Row, Source
from pipeline.data.text import has_letters

TRIED = 20
"""Text files, at most, of which one must have a letter."""


def find(source: Source) -> list[str]:
    """The keys of all text files in a folder, if some are beside images of their names, and hold letters.

    Annotations of objects, as of YOLO, are text files beside images, too, but hold nothing but numbers.
    """
    texts = source.named("*.txt")
    stems = {_stem(key) for key in source.photographs.by_key}
    beside = [key for key in texts if _stem(key) in stems]
    return texts if any(has_letters(source.bucket.get(key).decode(errors="ignore")) for key in beside[:TRIED]) else []


def read(source: Source, keys: list[str]) -> Annotations:
    """Read the captions. A text file without an image is one dropped row."""
    images = defaultdict(list)
    for key, photograph in source.photographs.by_key.items():
        images[_stem(key)].append(photograph)
    annotations = Annotations(keys)
    for key in keys:
        photographs = images.get(_stem(key), [])
        if not photographs:
            annotations.drop(key, 1, "image missing", posixpath.basename(key))
            continue
        annotations.undecided |= {photograph.key: SPLITS for photograph in photographs}
        lines = list(source.lines(key, annotations))
        if not lines:
            annotations.drop(key, 1, "empty caption", "")
        for line, text in lines:
            annotations.rows += [Row(key, line, text, photograph, line, text.strip()) for photograph in photographs]
    return annotations


def _stem(key: str) -> str:
    return posixpath.splitext(key)[0]

"""A folder of pictures, each with its captions beside it: ``a.jpg`` and ``a.txt``, which has a caption in each line."""

import posixpath
from collections import defaultdict

from pipeline.data.annotations import SPLITS, Annotations, Row, Source


def find(source: Source) -> list[str]:
    """The keys of all text files in a folder, if one of them is beside an image of its name."""
    texts = source.named("*.txt")
    stems = {_stem(key) for key in source.photographs.by_key}
    return texts if any(_stem(key) in stems for key in texts) else []


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

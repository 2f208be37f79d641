"""The Flickr8k layout: the file of captions, the three lists of images that define the splits, and the image files.

The files may be anywhere in the folder (Hodosh, Young and Hockenmaier, 2013, "Framing Image Description as a Ranking
Task", JAIR 47).
"""

import posixpath
import re

from pipeline.data.annotations import SPLITS, Annotations, Row, Source
from pipeline.errors import PipelineError

TOKEN_FILE = "Flickr8k.token.txt"  # noqa: S105 - the file of captions, not a secret

SPLIT_FILES = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}


def find(source: Source) -> list[str]:
    """The keys of the files of captions in a folder."""
    return source.named(TOKEN_FILE)


def read(source: Source, keys: list[str]) -> Annotations:
    """Read the captions and the splits. Raises ``PipelineError`` if a file is missing, or is there twice."""
    key = source.single(keys)
    photographs = source.photographs
    annotations = Annotations([key])
    captioned = set()
    for line, text in source.lines(key, annotations):
        # 1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress is climbing up a set of stairs .
        match = re.fullmatch(r"([^\t]+)#([0-9]{1,9})\t(.*)", text)
        if match is None:
            annotations.drop(key, line, "malformed", text)
            continue
        image, number, caption = match.groups()
        photograph = photographs.find(image)
        if photograph is not None:
            captioned.add(photograph.key)
        annotations.rows.append(Row(key, line, text, photograph, int(number), caption.strip()))
    for split, name in SPLIT_FILES.items():
        lists = source.named(name)
        if not lists:
            raise PipelineError(
                f"{source.bucket.uri} has {posixpath.basename(key)}, but not {name}. Add the lists of the splits, "
                f"{', '.join(SPLIT_FILES.values())}, or pass another file of captions, such as captions.txt."
            )
        file = source.single(lists)
        for line, text in source.lines(file, annotations):
            photograph = photographs.find(text.strip())
            if photograph is None:
                annotations.drop(file, line, "split names a missing image", text)
            elif photograph.key not in captioned:
                annotations.drop(file, line, "split names an image without captions", text)
            else:
                if annotations.splits[photograph.key] - {split}:
                    annotations.drop(file, line, "image in two splits", text)
                annotations.splits[photograph.key].add(split)
    return annotations

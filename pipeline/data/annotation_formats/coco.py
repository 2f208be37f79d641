"""COCO's captions: ``captions_train2017.json``, ``captions_val2017.json`` and their like, beside folders of images.

COCO publishes no captions of its test images. So the images of train are those of train, and a hash of their bytes
divides those of val between dev and test. Of a single file, the hash divides the images among all three splits.
"""

import posixpath
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.data.annotation_formats import json_file
from pipeline.data.annotations import SPLITS, Annotations, Row, Source
from pipeline.storage import StoredObject


class Image(BaseModel):
    """An image; ``file_name`` is the name of its file, in a folder that is named as the file of captions is."""

    id: int | str
    file_name: str


class Caption(BaseModel):
    """One caption."""

    image_id: int | str
    caption: str


def find(source: Source) -> list[str]:
    """The keys of the files of captions in a folder."""
    return source.named("captions_train*.json", "captions_val*.json")


def read(source: Source, keys: list[str]) -> Annotations:
    """Read the captions. The line of a caption is its number in its file.

    Raises:
        PipelineError: a file is damaged or has another format, or there are several of train or of val.
    """
    for subset in ("train", "val"):
        if named := [key for key in keys if _subset(key).startswith(subset)]:
            source.single(named)
    annotations = Annotations(sorted(keys))
    for key in annotations.files:
        content, url = json_file.load(source, key), source.bucket.url(key)
        images = _images(json_file.records(content, "images", url), source, _subset(key))
        for line, record in enumerate(json_file.records(content, "annotations", url), 1):
            try:
                caption = Caption.model_validate(record)
            except ValidationError:
                annotations.drop(key, line, "malformed", str(record))
                continue
            name, photograph = images.get(caption.image_id, (f"image {caption.image_id}", None))
            if photograph is not None and len(keys) == 1:
                annotations.undecided[photograph.key] = SPLITS
            elif photograph is not None and _subset(key).startswith("val"):
                annotations.undecided[photograph.key] = ("dev", "test")
            elif photograph is not None:
                annotations.splits[photograph.key].add("train")
            text = f"{name}, {caption.caption}"
            annotations.rows.append(Row(key, line, text, photograph, line, caption.caption.strip()))
    return annotations


def _images(records: list[Any], source: Source, subset: str) -> dict[int | str, tuple[str, StoredObject | None]]:
    """The name and the photograph of each image of a file, by its id."""
    images = {}
    for record in records:
        try:
            image = Image.model_validate(record)
        except ValidationError:  # its captions are dropped, because their image is missing
            continue
        in_subset = posixpath.join(subset, image.file_name)
        photograph = source.photographs.find(in_subset) or source.photographs.find(image.file_name)
        images[image.id] = image.file_name, photograph
    return images


def _subset(key: str) -> str:
    """``train2017`` of ``annotations/captions_train2017.json``."""
    return re.sub(r"^captions_|\.json$", "", posixpath.basename(key), flags=re.IGNORECASE)

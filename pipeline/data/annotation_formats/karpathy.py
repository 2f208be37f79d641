"""Karpathy's splits of Flickr8k, Flickr30k and COCO: ``dataset_flickr8k.json`` and its like.

An image has a file name, for COCO a folder, a split and its sentences (Karpathy and Fei-Fei, 2015, "Deep
Visual-Semantic Alignments for Generating Image Descriptions", CVPR). The split ``restval`` is meant for training.
"""

import posixpath
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.data.annotation_formats import json_file
from pipeline.data.annotations import SPLIT_NAMES, Annotations, Row, Source


class Sentence(BaseModel):
    """One caption."""

    raw: str


class Image(BaseModel):
    """An image and its captions."""

    filename: str
    filepath: str = ""
    split: str
    sentences: list[Sentence]


def find(source: Source) -> list[str]:
    """The keys of the files of captions in a folder."""
    return source.named("dataset_*.json")


def matches(content: dict[str, Any]) -> bool:
    """Whether the content of a JSON file has this format."""
    return "images" in content and "annotations" not in content


def read(source: Source, keys: list[str]) -> Annotations:
    """Read the captions and the splits. The line of a caption is its number in the file.

    Raises:
        PipelineError: the file is damaged or has another format, or there are several.
    """
    key = source.single(keys)
    annotations = Annotations([key])
    line = 0
    for record in json_file.records(json_file.load(source, key), "images", source.bucket.url(key)):
        try:
            image = Image.model_validate(record)
        except ValidationError:
            line += 1
            annotations.drop(key, line, "malformed", str(record))
            continue
        name = posixpath.join(image.filepath, image.filename)
        folder = posixpath.dirname(key)
        # The images need not be in the folders that the file names.
        photograph = source.photographs.find(name, folder) or source.photographs.find(image.filename, folder)
        split = SPLIT_NAMES.get(image.split.lower())
        if photograph is not None and split is not None:
            annotations.splits[photograph.key].add(split)
        for sentence in image.sentences:
            line += 1
            text = f"{name}, {sentence.raw}, {image.split}"
            if split is None:
                annotations.drop(key, line, "unknown split", text)
            else:
                annotations.rows.append(Row(key, line, text, photograph, line, sentence.raw.strip()))
    return annotations

"""COCO's captions: ``images`` and ``annotations``, which ``captioning ingest`` reads, too."""

import json
import logging

import pyarrow as pa

from pipeline.export.rows import json_rows

log = logging.getLogger(__name__)


def render(table: pa.Table) -> bytes:
    """The file of captioned photographs: each is an image with one annotation of the same id, counted from 1."""
    images, annotations = [], []
    for number, row in enumerate(json_rows(table, log), 1):
        images.append({"id": number, "file_name": row["image_key"], "width": row["width"], "height": row["height"]})
        annotations.append({"id": number, "image_id": number, "caption": row["caption"]})
    content = {"info": {"description": "current captions"}, "images": images, "annotations": annotations}
    return json.dumps(content, ensure_ascii=False).encode()

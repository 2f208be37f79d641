"""JSON files of captions."""

import json
from typing import Any

from pipeline.data.annotations import Source
from pipeline.errors import PipelineError, printable


def load(source: Source, key: str) -> dict[str, Any]:
    """The content of a file. Raises ``PipelineError`` if it is damaged, or is not an object."""
    url = source.bucket.url(key)
    try:
        content = json.loads(source.bucket.get(key))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{url} is not a complete JSON file ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{url} holds a {type(content).__name__}, and {_EXPECTED}.")
    return content


def records(content: dict[str, Any], name: str, url: str) -> list[Any]:
    """The list of this name in the content of a file. Raises ``PipelineError`` if there is none."""
    found = content.get(name)
    if not isinstance(found, list):
        names = printable(", ".join(content))[:500] or "none"
        raise PipelineError(f"{url} has no list {name}, and {_EXPECTED}. Its keys: {names}")
    return found


_EXPECTED = (
    "is in neither of the known formats: Karpathy's splits (images with sentences) and COCO (images, annotations)"
)

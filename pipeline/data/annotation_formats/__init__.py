"""The formats of published captions: each module reads one of them into ``Annotations``.

To add a format, write a module with a function ``read``, and let ``read_annotations`` call it for its sources.
"""

from pipeline.data.annotation_formats import flickr8k, table
from pipeline.data.annotations import Annotations
from pipeline.storage import Bucket, open_bucket, open_object


def read_annotations(source: str) -> tuple[Bucket, Annotations]:
    """Read a source: a folder in the Flickr8k layout, or the URI or path of a table.

    Returns:
        The bucket of the photographs, and the captions.

    Raises:
        PipelineError: the layout or the columns are unknown, or two image files share a name.
    """
    if source.lower().endswith(table.SUFFIXES):
        bucket, key = open_object(source)
        return bucket, table.read(bucket, key)
    bucket = open_bucket(source)
    return bucket, flickr8k.read(bucket)

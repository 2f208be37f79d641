"""The formats of published captions: each module reads one of them into ``Annotations``.

To add a format, write a module with a function ``read``, and let ``read_annotations`` call it for its sources.
"""

from pipeline.data.annotation_formats import flickr8k, table
from pipeline.data.annotations import Annotations
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, open_bucket, open_object


def read_annotations(source: str) -> tuple[Bucket, Annotations]:
    """Read a source: a folder in the Flickr8k layout, or the URI or path of a table.

    Returns:
        The bucket of the photographs, and the captions.

    Raises:
        PipelineError: there is no such folder, the layout or the columns are unknown, or two image files share a name.
    """
    if source.lower().endswith(table.SUFFIXES):
        bucket, key = open_object(source)
        return bucket, table.read(bucket, key)
    if source.lower().endswith(".txt"):
        raise PipelineError(
            f"{source} is neither a folder nor a .csv or .parquet table. If it has the form of a CSV file, copy it to "
            f"{source[:-4]}.csv, and pass the copy."
        )
    bucket = open_bucket(source)
    bucket.require()
    return bucket, flickr8k.read(bucket)

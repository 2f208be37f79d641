"""Tables of captions in Parquet, with a caption or a list of captions in each row."""

from typing import TYPE_CHECKING

from pipeline.data.annotation_formats.columns import Columns, TableRow, missing_columns, read_rows
from pipeline.data.annotations import Annotations, Source
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import pyarrow as pa


def find(source: Source) -> list[str]:
    """The keys of the tables in a folder."""
    return source.named("*.parquet")


def read(source: Source, keys: list[str]) -> Annotations:
    """Read a table.

    Raises:
        PipelineError: a column is missing or does not hold text, there are several tables, or the file is damaged.
    """
    import pyarrow as pa

    from pipeline.storage import parquet

    key = source.single(keys)
    url = source.bucket.url(key)
    annotations = Annotations([key])
    with parquet.opened(key, source.bucket) as file:
        schema = file.schema_arrow
        columns = Columns.find(schema.names)
        if columns is None:
            raise missing_columns(schema.names, url)
        names = [name for name in (columns.image, columns.caption, columns.split) if name is not None]
        for name in names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind):
                raise PipelineError(
                    f"{url}: the column {name} is a struct ({kind}), as Hugging Face stores pictures inside a table. "
                    "Save the pictures as files below the folder of the table, and put their paths in the column image."
                )
            if not _is_text(kind) and not (name == columns.caption and _is_list(kind)):
                raise PipelineError(f"{url}: the column {name} has the type {kind}. Expected text.")
        table = file.read(columns=names)
    cells = table.to_pydict()
    rows = (
        # A missing value is an empty text.
        TableRow(
            line,
            ", ".join(str(cells[name][line - 1]) for name in names),
            cells[columns.image][line - 1] or "",
            cells[columns.caption][line - 1] or "",
            None if columns.split is None else cells[columns.split][line - 1] or "",
        )
        for line in range(1, len(table) + 1)
    )
    read_rows(rows, source, key, annotations)
    return annotations


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    # A column without any value has the type null.
    return any(
        matches(value)
        for matches in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    )


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _is_text(kind.value_type)

"""CSV: UTF-8 with a header, for spreadsheets.

A text that a spreadsheet would take for a formula gets an apostrophe in front: anybody who may put a file into the
inbox chooses a key. Programs read the texts as they are from Parquet or JSON lines.
"""

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"
"""How texts begin that some spreadsheet takes for a formula."""


def render(table: pa.Table, *, header: bool = True) -> bytes:
    """The file, or its rows alone: texts in quotes, null as an empty field without any, times as in ISO 8601."""
    for place, field in enumerate(table.schema):
        if field.type == pa.string():
            column = table.column(place)
            is_formula = pc.match_substring_regex(column, FORMULA)
            guarded = pc.if_else(is_formula, pc.binary_join_element_wise("'", column, ""), column)
            table = table.set_column(place, field, guarded)
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=header))
    return bytes(sink.getvalue())

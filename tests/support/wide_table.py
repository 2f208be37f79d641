"""A Parquet table of which one column is small and the other large: reading the small one need not read the other."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Bucket


def put_wide_table(bucket: Bucket, key: str) -> int:
    """Put a table with a small and a large column, and return its size in bytes."""
    sink = pa.BufferOutputStream()
    large = [np.random.default_rng(row).bytes(2000) for row in range(1000)]
    pq.write_table(pa.table({"small": range(1000), "large": large}), sink)
    data = bytes(sink.getvalue())
    bucket.put(key, data)
    return len(data)

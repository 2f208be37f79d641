"""Features that no encoder computed."""

import numpy as np
import pyarrow as pa

from pipeline.features import store as feature_store
from pipeline.features.store import Encoded, Features
from pipeline.storage import layout
from pipeline.work.outcomes import IDENTITY


def write_features(store, vectors, name, *, etag="e", encoder_id="encoder-1"):
    """Write a file of features, by key; of a photograph that failed they are None."""
    shape = np.shape(next(each for each in vectors.values() if each is not None))
    arrays = np.array([np.zeros(shape) if each is None else each for each in vectors.values()], np.float16)
    errors = ["bad" if each is None else None for each in vectors.values()]
    table = pa.table(
        [list(vectors), [etag] * len(vectors), pa.array([0] * len(vectors), pa.int32())], [*IDENTITY, "attempt"]
    )
    key = layout.shard_result(layout.features_folder(encoder_id), f"{name:016x}")
    feature_store.write(table, Encoded(Features(arrays), errors, [(8, 8)] * len(vectors)), key, store)
    return key

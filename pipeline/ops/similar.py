"""Photographs like one: those of the inbox whose features are nearest to its own, by the cosine.

There is no index. The files of features are searched from the newest on, a few thousand photographs a second, and a
search ends after a while: what it found is then of the photographs that it says it has compared. The features are those
of the champion's encoder, so nothing is encoded.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner.metadata import load_metadata
from pipeline.captioner.registry import read_champion
from pipeline.nightly import current
from pipeline.storage import Bucket, DamagedObjectError, ObjectNotFoundError, layout, parquet
from pipeline.work import shards
from pipeline.work.outcomes import IDENTITY

SECONDS = 4.0
"""Time after which a search ends."""

READERS = 4
"""Files that are read in parallel, for all searches together: their host has other work to do."""

BATCH = 8
"""Files that are read before the time is looked at."""

ROWS = 1000
"""Photographs that are compared at once."""

CANDIDATES = 400
"""Nearest photographs of which those in the inbox are shown: the others are training photographs, or older versions."""

NEAR_DUPLICATE = 0.9
"""Cosine from which two photographs are nearly the same one, measured with EfficientNet-Lite2: of two photographs of
Flickr8k it is at most .87; of one and a copy that was cropped by a tenth, mirrored or brightened, mostly over .91."""

T = TypeVar("T")

_pool = ThreadPoolExecutor(READERS, thread_name_prefix="similar")

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Photograph:
    """A photograph of the inbox, and how near it is.

    Attributes:
        image_key: of the photograph.
        image_etag: its version.
        caption: the one that counts; None if it has none.
        cosine: of the two vectors of features.
    """

    image_key: str
    image_etag: str
    caption: str | None
    cosine: float

    @property
    def is_near_duplicate(self) -> bool:
        """Whether it is nearly the same photograph."""
        return self.cosine >= NEAR_DUPLICATE


@dataclass(frozen=True)
class Similar:
    """The photographs like one.

    Attributes:
        photographs: the nearest first.
        known: whether the photograph's own features were found.
        compared: how many photographs of the feature store it was compared with.
        complete: whether these were all.
    """

    photographs: Sequence[Photograph]
    known: bool
    compared: int
    complete: bool


def find_similar(key: str, etag: str, *, store: Bucket, count: int, seconds: float = SECONDS) -> Similar:
    """The photographs of the inbox that are most like one.

    Args:
        key: of the photograph.
        etag: its version.
        store: the store.
        count: how many are wanted.
        seconds: after which the search ends.

    Raises:
        PipelineError: there is no champion.
    """
    deadline = time.monotonic() + seconds
    encoder_id = load_metadata(read_champion(store).version, store).encoder_id
    folder = f"{layout.features_folder(encoder_id)}/"
    listed = [item for item in store.list(folder) if layout.shard_of_result(item.key)]
    files = [item.key for item in sorted(listed, key=lambda item: item.modified, reverse=True)]

    def own(file: str) -> Vectors | None:
        return _own(file, key, etag, store)

    vector = next((found for found in _each(own, files, deadline) if found is not None), None)
    if vector is None:
        return Similar([], known=False, compared=0, complete=False)

    def compare(file: str) -> tuple[int, list[_Candidate]]:
        return _compare(file, vector, store)

    compared, read, nearest = 0, 0, list[_Candidate]()
    for found in _each(compare, files, deadline):
        read += 1
        photographs, candidates = found or (0, [])
        compared += photographs
        nearest = heapq.nlargest(CANDIDATES, [*nearest, *candidates])
    others = {(each, version): cosine for cosine, each, version in nearest if each != key}
    return Similar(_in_inbox(others, store)[:count], known=True, compared=compared, complete=read == len(files))


_Candidate = tuple[float, str, str]
"""Cosine, key and etag of a photograph."""


def _each(read: Callable[[str], T], files: Sequence[str], deadline: float) -> Iterator[T | None]:
    """What ``read`` gives for each file, until the time is over; None for those that are damaged or gone."""

    def read_unless_damaged(file: str) -> T | None:
        try:
            return read(file)
        except (DamagedObjectError, ObjectNotFoundError):
            return None

    for start in range(0, len(files), BATCH):
        if start and time.monotonic() > deadline:
            return
        yield from _pool.map(read_unless_damaged, files[start : start + BATCH])


def _own(file: str, key: str, etag: str, store: Bucket) -> Vectors | None:
    """The direction (D,) of a photograph's vector; None if a file has none of it."""
    with parquet.opened(file, store, by_ranges=True, advice=shards.REDONE) as opened:
        if not (groups := parquet.groups_with(opened, "image_key", [key])):
            return None
        of_image = (pc.field("image_key") == key) & (pc.field("image_etag") == etag) & pc.field("feature").is_valid()
        rows = parquet.select(opened, [*IDENTITY, "feature"], groups=groups).filter(of_image)
        return _directions(rows["feature"].combine_chunks())[0] if len(rows) else None


def _compare(file: str, vector: Vectors, store: Bucket) -> tuple[int, list[_Candidate]]:
    """How many photographs a file has, and those that are nearest to a direction."""
    compared, nearest = 0, list[_Candidate]()
    with parquet.opened(file, store, by_ranges=True, advice=shards.REDONE) as opened:
        for batch in parquet.select_batches(opened, [*IDENTITY, "feature"], rows=ROWS):
            readable = batch.filter(batch["feature"].is_valid())
            cosines = _directions(readable["feature"]) @ vector
            best = np.argsort(-cosines)[:CANDIDATES]
            names = (readable[name].take(pa.array(best)).to_pylist() for name in IDENTITY)
            nearest += zip(cosines[best].tolist(), *names, strict=True)
            compared += len(readable)
    return compared, heapq.nlargest(CANDIDATES, nearest)


def _directions(column: pa.Array) -> Vectors:
    """Vectors, of which none is null, or the means of several crops, as (N, D) of length 1."""
    shape = []
    while isinstance(column, pa.FixedSizeListArray):
        shape.append(column.type.list_size)
        column = column.flatten()
    vectors = np.asarray(column).astype(np.float32).reshape(-1, *shape)
    if vectors.ndim == 3:
        vectors = vectors.mean(axis=1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return directions


def _in_inbox(cosines: dict[tuple[str, str], float], store: Bucket) -> list[Photograph]:
    """Those of the photographs that the current captions have in this version, the nearest first."""
    found = (
        Photograph(row["image_key"], row["image_etag"], row["caption"], cosines[identity])
        for row in current.find({key for key, _ in cosines}, store).to_pylist()
        if (identity := (row["image_key"], row["image_etag"])) in cosines
    )
    return sorted(found, key=lambda photograph: photograph.cosine, reverse=True)

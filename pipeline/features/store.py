"""The feature store: one row per image and attempt, with the feature vector that the encoder computed.

Each image is encoded only once. The features of a shard of images are one Parquet file. The regions of an encoder that
has them are a column of their own, ten times as large as the vectors, so that whoever needs only these reads no more.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, layout, parquet
from pipeline.storage.parquet import column
from pipeline.work import shards, tombstones
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import IDENTITY, latest_outcome, of_images

SIZE = pa.schema(
    [
        column("width", pa.int32(), "width of the upright image in pixels; null if it could not be decoded"),
        column("height", pa.int32(), "height of the upright image in pixels; null if it could not be decoded"),
    ]
)
"""The size of an image."""

ROWS = pa.schema(
    [
        *IMAGES,
        column("attempt", pa.int32(), "number of failed attempts before this one"),
        column("status", pa.string(), "ok or failed"),
        column("error", pa.string(), "why the image failed; null if it did not"),
        *SIZE,
    ]
)
"""A row without its vector."""

INDEX = pa.schema([*ROWS, column("shard", pa.string(), "name of the shard that holds the features of the image")])
"""The feature store without its vectors: the outcome of each attempt, and the shard that holds it."""


@dataclass(frozen=True)
class Features:
    """The features of N images.

    Attributes:
        vectors: (N, D), or (N, C, D) of C crops, floats.
        regions: (N, R, K) floats, a vector of K numbers for each of R places of the picture; None if the encoder has no
            regions, or they were not read.
    """

    vectors: npt.NDArray[np.floating]
    regions: npt.NDArray[np.floating] | None = None

    @property
    def arrays(self) -> list[npt.NDArray[np.floating]]:
        """The vectors and, if they are there, the regions."""
        return [self.vectors] if self.regions is None else [self.vectors, self.regions]

    @property
    def inputs(self) -> dict[str, npt.NDArray[np.floating]]:
        """The inputs of a captioner for these images, by name."""
        return dict(zip(("features", "regions"), self.arrays, strict=False))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, images: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> "Features":
        """The features of some of the images."""
        return Features(*(array[images] for array in self.arrays))


READ_ROWS = 100
"""Rows of a file of features that are decoded at once."""


class Encoded(NamedTuple):
    """N encoded images.

    Attributes:
        features: float16; zero if the image failed.
        errors: why an image failed, or None.
        sizes: (width, height) of each upright image in pixels, or None if it could not be decoded.
    """

    features: Features
    errors: list[str | None]
    sizes: list[tuple[int, int] | None]


def schema(shape: tuple[int, ...], regions: tuple[int, ...] = ()) -> pa.Schema:
    """The schema of a file of features of this shape, (D,) or (C, D), and of regions (R, K) if the encoder has them."""
    columns = [
        column("feature", _list_type(shape), "feature vector of the image, or one vector per crop; null if it failed")
    ]
    if regions:
        columns.insert(0, column("regions", _list_type(regions), "a vector per region; null if the image failed"))
    # The largest columns come first, so that the others are at the end, which one request fetches.
    return pa.schema([*columns, *ROWS])


def write(images: pa.Table, encoded: Encoded, key: str, store: Bucket) -> None:
    """Write the features of a shard, without images that were forgotten meanwhile.

    Args:
        images: the columns ``IDENTITY`` and ``attempt``, N rows.
        encoded: the images, encoded.
        key: of the file.
        store: the store.
    """
    failed = [error is not None for error in encoded.errors]
    arrays = encoded.features.arrays
    table = pa.table(
        [
            *(_column(array, null=failed) for array in reversed(arrays)),
            *images.select([*IDENTITY, "attempt"]),
            pa.array(["failed" if each else "ok" for each in failed], pa.string()),
            pa.array(encoded.errors, pa.string()),
            *(pa.array([size and size[side] for size in encoded.sizes], pa.int32()) for side in (0, 1)),
        ],
        schema=schema(*(array.shape[1:] for array in arrays)),
    )
    parquet.write(tombstones.read(store).drop(table), key, store)


def index(encoder_id: str, store: Bucket, *, images: pa.Table | None = None) -> pa.Table:
    """The rows of an encoder's features without the vectors, as a table of schema ``INDEX``.

    Damaged files are left out, with a warning: their images have no features then, and are encoded again.

    Args:
        encoder_id: the encoder.
        store: the store.
        images: the images whose rows are wanted, with the columns ``IDENTITY``; None for all.
    """
    if images is not None and not len(images):  # a night that finds nothing new
        return INDEX.empty_table()
    keys = shards.results(f"{layout.features_folder(encoder_id)}/", store)
    tables = parquet.read_all(keys, store, columns=ROWS, by_ranges=True, advice=shards.REDONE)
    named = (table.append_column("shard", pa.repeat(layout.shard_of_result(key), len(table))) for key, table in tables)
    return pa.concat_tables([INDEX.empty_table(), *(named if images is None else of_images(images, named))])


def look_up(images: pa.Table, *, encoder_id: str, store: Bucket) -> pa.Table:
    """The rows of the index that count for these images: one per image, in the order of the images.

    Raises:
        PipelineError: an image has no row.
    """
    order = images.select(IDENTITY).append_column("position", pa.array(range(len(images)), pa.int64()))
    # A join holds its right side in memory, which is the smaller one here.
    attempts = index(encoder_id, store, images=images).join(order, keys=IDENTITY, join_type="inner")
    found = latest_outcome(attempts, by="attempt").sort_by("position").select(INDEX.names)
    if len(found) < len(images):
        raise PipelineError(
            f"{len(images) - len(found)} of {len(images)} images have no features of {encoder_id} in {store.uri}: "
            "run `captioning plan-extraction` and `captioning extract` first."
        )
    return found


def read_features(rows: pa.Table, *, encoder_id: str, store: Bucket, regions: bool = False) -> Features:
    """The features of index rows whose status is ok, in their order: vectors in float32, regions as stored, in float16.

    All of them are in memory: regions take up to 25 KB a photograph, 150 MB for the 6,000 of Flickr8k.

    Args:
        rows: rows of the index.
        encoder_id: encoder of the features.
        store: the store.
        regions: whether the regions are read as well.

    Raises:
        PipelineError: there are no rows.
    """
    columns = {"feature": np.float32} | ({"regions": np.float16} if regions else {})
    wanted: dict[str, dict[tuple[str, str], int]] = {}
    for position, (key, etag, shard) in enumerate(
        zip(*(rows[name].to_pylist() for name in (*IDENTITY, "shard")), strict=True)
    ):
        wanted.setdefault(shard, {})[key, etag] = position
    found: dict[str, npt.NDArray[np.floating]] = {}
    for shard, positions in wanted.items():
        key = layout.shard_result(layout.features_folder(encoder_id), shard)
        with parquet.opened(key, store, by_ranges=True, advice=shards.REDONE) as file:
            # Little at a time: decoding takes several times the room of the regions.
            for batch in parquet.select_batches(file, [*IDENTITY, *columns], rows=READ_ROWS):
                identities = zip(*(batch[name].to_pylist() for name in IDENTITY), strict=True)
                in_batch = [
                    (row, positions[identity]) for row, identity in enumerate(identities) if identity in positions
                ]
                for name, kind in columns.items() if in_batch else ():
                    taken = batch[name].take(pa.array([row for row, _ in in_batch]))
                    shape = []
                    while isinstance(taken, pa.FixedSizeListArray):
                        shape.append(taken.type.list_size)
                        taken = taken.flatten()
                    if name not in found:
                        found[name] = np.zeros((len(rows), *shape), kind)
                    found[name][[position for _, position in in_batch]] = np.asarray(taken).reshape(-1, *shape)
    # Arrow keeps what it has freed, which is as much again.
    pa.default_memory_pool().release_unused()
    if not found:
        raise PipelineError(
            f"There are no images to read features of {encoder_id} for: all of them failed, or there are none."
        )
    return Features(found["feature"], found.get("regions"))


def copy_features(images: pa.Table, *, encoder_id: str, source: Bucket, target: Bucket) -> int:
    """Copy the features of images to another store that lacks them, and return the number of objects written.

    An object holds those of one shard. Its name is a hash of what it holds, so a repeated copy writes the same object.

    Args:
        images: the columns ``IDENTITY``.
        encoder_id: encoder of the features.
        source: the store that has them.
        target: the other store. Images that were forgotten there are left out.
    """
    outcome = [*IDENTITY, "status"]
    known = index(encoder_id, source, images=images)
    missing = latest_outcome(known, by="attempt").join(
        index(encoder_id, target).select(outcome), keys=outcome, join_type="left anti"
    )
    missing = tombstones.read(target).drop(missing)
    folder = layout.features_folder(encoder_id)
    by_shard = missing.group_by("shard").aggregate([(name, "list") for name in IDENTITY]).sort_by("shard").to_pylist()
    for row in by_shard:
        wanted = set(zip(*(row[f"{name}_list"] for name in IDENTITY), strict=True))
        table = parquet.read(layout.shard_result(folder, row["shard"]), source, advice=shards.REDONE)
        identities = zip(*(table[name].to_pylist() for name in IDENTITY), strict=True)
        name = hashlib.sha256(repr((row["shard"], sorted(wanted))).encode()).hexdigest()[:16]
        rows = table.filter(pa.array([identity in wanted for identity in identities], pa.bool_()))
        parquet.write(rows, layout.shard_result(folder, name), target)
    return len(by_shard)


def _list_type(shape: tuple[int, ...]) -> pa.DataType:
    """Fixed-size lists of 16-bit floats, nested as in an array of this shape."""
    kind = pa.float16()
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def _column(vectors: npt.NDArray[np.floating], *, null: list[bool]) -> pa.Array:
    """Vectors, (N, D) or (N, C, D), float16, as a column of fixed-size lists."""
    column = pa.array(vectors.reshape(-1))
    for size in reversed(vectors.shape[2:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return pa.FixedSizeListArray.from_arrays(column, vectors.shape[1], mask=pa.array(null))

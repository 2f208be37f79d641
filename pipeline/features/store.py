"""The feature store: one row per image and attempt, with the feature vector that the encoder computed.

Each image is encoded only once. The features of a shard of images are one Parquet file.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, layout, parquet
from pipeline.storage.parquet import column
from pipeline.work import shards, tombstones
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import IDENTITY, latest_outcome

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


class Encoded(NamedTuple):
    """N encoded images.

    Attributes:
        vectors: (N, D) or (N, C, D) of C crops, float16; zero if the image failed.
        errors: why an image failed, or None.
        sizes: (width, height) of each upright image in pixels, or None if it could not be decoded.
    """

    vectors: npt.NDArray[np.float16]
    errors: list[str | None]
    sizes: list[tuple[int, int] | None]


def schema(shape: tuple[int, ...]) -> pa.Schema:
    """The schema of a file of features of this shape."""
    feature = pa.float16()
    for size in reversed(shape):
        feature = pa.list_(feature, size)
    description = "feature vector of the image, or one vector per crop; null if the image failed"
    # The vectors come first, so that the other columns are at the end, which one request fetches.
    return pa.schema([column("feature", feature, description), *ROWS])


def write(images: pa.Table, encoded: Encoded, key: str, store: Bucket) -> None:
    """Write the features of a shard, without images that were forgotten meanwhile.

    Args:
        images: the columns ``IDENTITY`` and ``attempt``, N rows.
        encoded: the images, encoded.
        key: of the file.
        store: the store.
    """
    failed = [error is not None for error in encoded.errors]
    table = pa.table(
        [
            _column(encoded.vectors, null=failed),
            *images.select([*IDENTITY, "attempt"]),
            pa.array(["failed" if each else "ok" for each in failed], pa.string()),
            pa.array(encoded.errors, pa.string()),
            *(pa.array([size and size[side] for size in encoded.sizes], pa.int32()) for side in (0, 1)),
        ],
        schema=schema(encoded.vectors.shape[1:]),
    )
    parquet.write(tombstones.read(store).drop(table), key, store)


def index(encoder_id: str, store: Bucket) -> pa.Table:
    """Every row of an encoder's features without the vectors, as a table of schema ``INDEX``.

    Damaged files are left out, with a warning: their images have no features then, and are encoded again.
    """
    parts = [INDEX.empty_table()]
    keys = shards.results(f"{layout.features_folder(encoder_id)}/", store)
    tables = parquet.read_all(keys, store, columns=ROWS, by_ranges=True, advice=shards.REDONE)
    for key, table in tables:
        shard = layout.shard_of_result(key)
        parts.append(table.append_column("shard", pa.array([shard] * len(table), pa.string())))
    return pa.concat_tables(parts)


def look_up(images: pa.Table, *, encoder_id: str, store: Bucket) -> pa.Table:
    """The rows of the index that count for these images: one per image, in the order of the images.

    Raises:
        PipelineError: an image has no row.
    """
    order = images.select(IDENTITY).append_column("position", pa.array(range(len(images)), pa.int64()))
    # A join holds its right side in memory, which is the smaller one here.
    attempts = index(encoder_id, store).join(order, keys=IDENTITY, join_type="inner")
    found = latest_outcome(attempts, by="attempt").sort_by("position").select(INDEX.names)
    if len(found) < len(images):
        raise PipelineError(
            f"{len(images) - len(found)} of {len(images)} images have no features of {encoder_id} in {store.uri}: "
            "run `captioning plan-extraction` and `captioning extract` first."
        )
    return found


def read_vectors(rows: pa.Table, *, encoder_id: str, store: Bucket) -> npt.NDArray[np.float32]:
    """The features of index rows whose status is ok, in their order: float32, (rows, D) or (rows, C, D) of C crops.

    Raises:
        PipelineError: there are no rows.
    """
    wanted: dict[str, dict[tuple[str, str], int]] = {}
    for position, (key, etag, shard) in enumerate(
        zip(*(rows[name].to_pylist() for name in (*IDENTITY, "shard")), strict=True)
    ):
        wanted.setdefault(shard, {})[key, etag] = position
    vectors: npt.NDArray[np.float32] | None = None
    for shard, positions in wanted.items():
        key = layout.shard_result(layout.features_folder(encoder_id), shard)
        table = parquet.read(key, store, columns=[*IDENTITY, "feature"], by_ranges=True, advice=shards.REDONE)
        identities = zip(*(table[name].to_pylist() for name in IDENTITY), strict=True)
        in_shard = [(row, positions[identity]) for row, identity in enumerate(identities) if identity in positions]
        taken = table["feature"].combine_chunks().take(pa.array([row for row, _ in in_shard]))
        shape = []
        while isinstance(taken, pa.FixedSizeListArray):
            shape.append(taken.type.list_size)
            taken = taken.flatten()
        values = np.asarray(taken).reshape(len(in_shard), *shape)
        if vectors is None:
            vectors = np.zeros((len(rows), *shape), np.float32)
        vectors[[position for _, position in in_shard]] = values
    if vectors is None:
        raise PipelineError(
            f"There are no images to read features of {encoder_id} for: all of them failed, or there are none."
        )
    return vectors


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
    known = index(encoder_id, source).join(images.select(IDENTITY), keys=IDENTITY, join_type="left semi")
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


def _column(vectors: npt.NDArray[np.float16], *, null: list[bool]) -> pa.Array:
    """Vectors, (N, D) or (N, C, D), as a column of fixed-size lists."""
    column = pa.array(vectors.reshape(-1))
    for size in reversed(vectors.shape[2:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return pa.FixedSizeListArray.from_arrays(column, vectors.shape[1], mask=pa.array(null))

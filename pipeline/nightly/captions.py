"""The table of captions: written shard by shard from stored features, one row per image and attempt."""

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner import bundle
from pipeline.captioner.captioner import Caption
from pipeline.config import DecodingConfig
from pipeline.evaluation.drift import Profile
from pipeline.features import store as feature_store
from pipeline.storage import Bucket, parquet
from pipeline.storage.parquet import column
from pipeline.timing import Stopwatch
from pipeline.work import shards, tombstones
from pipeline.work.listing import IMAGES
from pipeline.work.outcomes import IDENTITY

log = logging.getLogger(__name__)

JUDGEMENT = pa.schema(
    [
        column(
            "confidence",
            pa.float32(),
            "probability that a person would accept the caption; null if there is none by a model, or the model has no "
            "calibration",
        ),
        column("novel", pa.bool_(), "whether the photograph is unlike all training photographs; null likewise"),
        column(
            "review",
            pa.bool_(),
            "whether a person should look at the caption: it is not a person's own, and the photograph is novel or the "
            "confidence low; null if there is no caption",
        ),
    ]
)
"""How far a caption can be trusted."""

SCHEMA = pa.schema(
    [
        *IMAGES,
        column("caption", pa.string(), "the caption; null if the image failed"),
        column("log_prob", pa.float32(), "mean natural log probability of the words; null if the image failed"),
        *JUDGEMENT,
        column("status", pa.string(), "ok or failed"),
        column("error", pa.string(), "why the image failed; null if it did not"),
        *feature_store.SIZE,
        column("model_version", pa.string(), "version of the model that captioned the image"),
        column("encoder_id", pa.string(), "id of the encoder that extracted the features of the image"),
        column("captioned_at", pa.timestamp("us", tz="UTC"), "time at which the caption was written, in UTC"),
    ]
)
"""A row of captions."""

OUTCOME = pa.schema([SCHEMA.field(name) for name in (*IDENTITY, "status", "error", "captioned_at")])
"""The columns that tell the outcome of an attempt."""


class CaptionStats(shards.ShardStats):
    """Time and statistics of a shard of captions."""

    profile: Profile | None = None


def caption_shard(name: str, *, store: Bucket, decoding: DecodingConfig, review_below: float) -> dict[str, Any]:
    """Write the captions of a shard, unless they are written already.

    Args:
        name: of the shard.
        store: the store.
        decoding: how the captions are decoded.
        review_below: confidence below which a person should look at a caption.

    Returns:
        The name of the ``shard``, how many ``images`` were captioned or failed, the ``version`` of the model and the
        ``encoder_id`` of the features, and a ``summary``.
    """
    shard = shards.read(name, store, parameters=("version", "encoder_id"), columns=feature_store.INDEX.names)
    version, encoder_id = shard.spec["version"], shard.spec["encoder_id"]
    made_by = {"version": version, "encoder_id": encoder_id}
    if shards.is_done(shard, store, columns=OUTCOME):
        log.info("%s exists: nothing to do", store.url(shard.result_key))
        return {"shard": name, "images": 0, **made_by, "summary": shards.summary(0, 0)}
    stopwatch = Stopwatch()
    readable = shard.images.filter(pc.field("status") == "ok")
    failed = len(shard.images) - len(readable)
    captions: dict[str, Caption] = {}
    profiles = []
    if len(readable):
        with stopwatch.section("load"):
            captioner, _ = bundle.load(version, store)
    # One file of features after the other, as the regions of all images would take much memory.
    for part in _by_file(readable):
        with stopwatch.section("read"):
            features = feature_store.read_features(part, encoder_id=encoder_id, store=store, regions=captioner.attends)
        with stopwatch.section("caption"):
            found = captioner.caption(features, decoding)
            profiles.append(Profile.of(captioner.standardized(features), found, failed=0, decoding=decoding))
        del features
        captions |= zip(part["image_key"].to_pylist(), found, strict=True)
    table = _table(shard, captions, review_below)
    table = tombstones.read(store).drop(table)  # as late as possible: images may be forgotten meanwhile
    with stopwatch.section("write"):
        parquet.write(table, shard.result_key, store)
    profile = Profile.together(profiles).model_copy(update={"failed": failed}) if profiles else None
    shards.write_stats(name, CaptionStats(seconds=stopwatch.seconds, profile=profile), store)
    log.info("seconds: %s", stopwatch)
    summary = shards.summary(len(shard.images), failed)
    log.info("%s: %s", store.url(shard.result_key), summary)
    return {
        "shard": name,
        "images": len(shard.images),
        "captioned": len(captions),
        "failed": failed,
        **made_by,
        "summary": summary,
    }


def _by_file(images: pa.Table) -> Iterator[pa.Table]:
    """The images of each file of features, in the order of the first ones."""
    for file in images["shard"].unique().to_pylist():
        yield images.filter(pc.field("shard") == file)


def _table(shard: shards.Shard, captions: dict[str, Caption], review_below: float) -> pa.Table:
    """The rows of a shard, with the captions of the images that have one."""
    now = datetime.now(UTC)
    rows = []
    for image in shard.images.to_pylist():
        caption = captions.get(image["image_key"])
        rows.append(
            {
                **{name: image[name] for name in (*IDENTITY, "status", "error", *feature_store.SIZE.names)},
                "caption": caption and caption.text,
                **{name: caption and getattr(caption, name) for name in ("log_prob", "confidence", "novel")},
                "model_version": shard.spec["version"],
                "encoder_id": shard.spec["encoder_id"],
                "captioned_at": now,
            }
        )
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    place = table.column_names.index("review")
    return table.set_column(place, SCHEMA.field(place), needs_review(table, review_below))


def needs_review(captions: pa.Table, below: float) -> pa.ChunkedArray:
    """The column ``review`` of captions by models, from their columns ``caption``, ``confidence`` and ``novel``."""
    unsure = pc.fill_null(pc.less(captions["confidence"], pa.scalar(below, pa.float32())), False)
    return pc.if_else(captions["caption"].is_valid(), pc.or_(unsure, pc.fill_null(captions["novel"], False)), None)


def read(
    keys: Iterable[str], store: Bucket, *, columns: pa.Schema = OUTCOME, damaged: list[str] | None = None
) -> pa.Table:
    """Columns of all rows in these objects; the arguments are those of ``read_each``."""
    return pa.concat_tables([columns.empty_table(), *read_each(keys, store, columns=columns, damaged=damaged)])


def read_each(
    keys: Iterable[str], store: Bucket, *, columns: pa.Schema = OUTCOME, damaged: list[str] | None = None
) -> Iterator[pa.Table]:
    """Columns of the rows in these objects, one after another.

    A damaged object is left out, with a warning; its message is added to ``damaged``. Its images have no captions then,
    and are captioned again.
    """
    for _, table in parquet.read_all(keys, store, columns=columns, advice=shards.REDONE, damaged=damaged):
        yield table

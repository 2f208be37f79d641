"""The nightly job: what is new in the inbox gets its caption, in the store, and every image is accounted for.

A night goes through five steps, each of which can be repeated: list the inbox and fix the champion for the whole
night; plan and extract what has no features; plan and write the captions that this champion has not written; count.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline import features, registry, runs, tables, timing
from pipeline.captioner import load, load_metadata
from pipeline.errors import PipelineError
from pipeline.features import IMAGES, INDEX
from pipeline.images import is_image
from pipeline.recipe import Search
from pipeline.storage import Bucket, ObjectNotFoundError, open_bucket
from pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

KIND = "caption_new_images"

SHARDS = 5
"""Planned images make so many times as large shards as for extraction: captioning is as much quicker, and each of its
processes loads Keras."""

SCHEMA = pa.schema(
    [
        ("image_key", pa.string()),
        ("image_etag", pa.string()),
        ("caption", pa.string()),
        ("log_prob", pa.float32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("model_version", pa.string()),
        ("encoder_id", pa.string()),
        ("captioned_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""A shard of captions. ``status`` is ok or failed; then ``caption`` is null and ``error`` says why. ``log_prob`` is the
mean natural logarithm of the words' probabilities."""


def list_inbox(run: str, *, inbox: str, store: Bucket) -> dict[str, Any]:
    """List the inbox's photographs and write down which model the night works with.

    Returns:
        The number of images ``listed``, and the champion's ``version``.

    Raises:
        PipelineError: there is no champion yet.
    """
    version = registry.champion(store).version
    images = (item for item in open_bucket(inbox).list() if is_image(item.key))
    table = features.as_table(images)
    encoder_id = load_metadata(version, store).encoder_id
    about = {"inbox": inbox, "version": version, "encoder_id": encoder_id, "listed_at": datetime.now(UTC).isoformat()}
    tables.write(table, _listing_key(run), store, about=about)
    log.info("%d images in %s, to be captioned by %s", len(table), inbox, version)
    return {"listed": len(table), "version": version}


def plan_extraction(run: str, *, store: Bucket, shard_size: int) -> list[str]:
    """The shards of images that have no features of the champion's encoder yet."""
    images, about = _listing(run, store)
    return features.plan(
        images, run=run, source=about["inbox"], encoder_id=about["encoder_id"], store=store, shard_size=shard_size
    )


def plan_captions(run: str, *, store: Bucket, date: str, shard_size: int) -> list[str]:
    """The shards of images that the champion has not captioned yet; ``date`` (YYYY-MM-DD) names their partition.

    Repeated, it goes on in the partition that it began, and what the run has written stays counted as the run's.
    """
    images, about = _listing(run, store)
    earlier = _earlier_plan(run, about["listed_at"], store)
    date = earlier.get("date", date)
    written = [s for s in earlier.get("shards", []) if store.exists(_captions_key(about["version"], date, s))]
    done = read(about["version"], store, columns=["image_key", "image_etag"]).rename_columns(IMAGES.names)
    pending = features.look_up(
        images.join(done, keys=["key", "etag"], join_type="left anti"), encoder_id=about["encoder_id"], store=store
    )
    # Images of one shard of features stay together, so that each of those is read once.
    pending = pending.sort_by([("shard", "ascending"), ("key", "ascending")])
    shards = features.write_plans(
        pending.select(INDEX.names),
        {"version": about["version"], "encoder_id": about["encoder_id"], "inbox": about["inbox"], "date": date},
        store=store,
        shard_size=SHARDS * shard_size,
    )
    already_done = len(images) - len(pending) - sum(len(features.read_plan(shard, store)[0]) for shard in written)
    plan = {"listed_at": about["listed_at"], "date": date, "already_done": already_done, "shards": [*written, *shards]}
    runs.write(run, "captions", plan, store)
    log.info(
        "%d of %d images have a caption of %s, %d are pending",
        len(images) - len(pending),
        len(images),
        about["version"],
        len(pending),
    )
    return shards


def caption(shard: str, *, store: Bucket, search: Search, sidecars: bool) -> dict[str, Any]:
    """Write the captions of a planned shard; does nothing where they are written already."""
    rows, about = features.read_plan(shard, store)
    key = _captions_key(about["version"], about["date"], shard)
    if store.exists(key):
        log.info("%s exists: nothing to do", store.url(key))
        return {"shard": shard, "images": 0}
    stopwatch = Stopwatch()
    ok = [status == "ok" for status in rows["status"].to_pylist()]
    written = {}
    if any(ok):
        with stopwatch.stage("load"):
            captioner, _ = load(about["version"], store)
        readable = rows.filter(pa.array(ok))
        with stopwatch.stage("read"):
            vectors = features.read_vectors(readable, encoder_id=about["encoder_id"], store=store)
        with stopwatch.stage("caption"):
            written = dict(zip(readable["key"].to_pylist(), captioner.caption(vectors, search), strict=True))
    now = datetime.now(UTC)
    table = pa.Table.from_pylist(
        [
            {
                "image_key": row["key"],
                "image_etag": row["etag"],
                "caption": written[row["key"]].text if row["key"] in written else None,
                "log_prob": written[row["key"]].log_prob if row["key"] in written else None,
                "status": row["status"],
                "error": row["error"],
                "model_version": about["version"],
                "encoder_id": about["encoder_id"],
                "captioned_at": now,
            }
            for row in rows.to_pylist()
        ],
        schema=SCHEMA,
    )
    with stopwatch.stage("write"):
        if sidecars:
            for row in table.to_pylist():
                store.put(f"sidecars/{row['image_key']}.json", json.dumps(row, indent=2, default=str).encode())
        # The shard comes last: once it is there, nobody comes back to these images.
        tables.write(table, key, store)
    timing.save(shard, stopwatch, store)
    log.info("seconds: %s", stopwatch)
    log.info("%s: %d captions, %d failed", store.url(key), len(written), len(rows) - len(written))
    return {"shard": shard, "images": len(rows), "captioned": len(written), "failed": len(rows) - len(written)}


def publish(run: str, *, store: Bucket, max_failed_fraction: float) -> dict[str, Any]:
    """Count the night, write its record, and fail where images are unaccounted for or too many failed.

    Returns:
        The record: how many images were listed, done before, extracted, captioned and failed, the errors by kind, the
        seconds by stage, and the images a second from the listing to this count.
    """
    images, about = _listing(run, store)
    plan = runs.read(run, "captions", store)
    rows = [
        row
        for shard in plan["shards"]
        for row in tables.read(
            _captions_key(about["version"], plan["date"], shard), store, columns=["image_key", "status", "error"]
        ).to_pylist()
    ]
    failed = [(row["image_key"], row["error"]) for row in rows if row["status"] == "failed"]
    extracted = runs.extracted(run, store)
    seconds = Counter(extracted["seconds"]) + Counter(timing.total(plan["shards"], store))
    finished_at = datetime.now(UTC)
    clock = (finished_at - datetime.fromisoformat(about["listed_at"])).total_seconds()
    record = {
        "kind": KIND,
        "inbox": about["inbox"],
        "version": about["version"],
        "encoder_id": about["encoder_id"],
        "listed": len(images),
        "already_done": plan["already_done"],
        "extracted": extracted["extracted"],
        "captioned": len(rows) - len(failed),
        "failed": len(failed),
        "errors": dict(Counter(error for _, error in failed).most_common()),
        "seconds": dict(seconds),
        "images_per_second": round(len(rows) / max(clock, 1e-9), 2),
        "started_at": about["listed_at"],
        "finished_at": finished_at.isoformat(),
    }
    runs.finish(run, record, store)
    log.info(
        "%d images listed: %d captioned, %d failed, %d done before; features of %d extracted",
        *(record[name] for name in ("listed", "captioned", "failed", "already_done", "extracted")),
    )
    counted = record["captioned"] + record["failed"] + record["already_done"]
    if counted != record["listed"]:
        raise PipelineError(
            f"{record['listed']} images were listed in {about['inbox']}, but {record['captioned']} captioned + "
            f"{record['failed']} failed + {record['already_done']} done before are {counted}: run the night again."
        )
    features.check_failures(failed, len(rows), allowed_fraction=max_failed_fraction)
    return record


def read(version: str, store: Bucket, *, columns: Sequence[str]) -> pa.Table:
    """Some columns of ``SCHEMA`` of every row that a model has written."""
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    shards = store.list(f"captions/model={version}/")
    return pa.concat_tables([schema.empty_table(), *(tables.read(item.key, store, columns=columns) for item in shards)])


def _earlier_plan(run: str, listed_at: str, store: Bucket) -> dict[str, Any]:
    """What an earlier ``plan_captions`` of the run noted for the same listing; empty where there was none."""
    try:
        plan = runs.read(run, "captions", store)
    except ObjectNotFoundError:
        return {}
    return plan if plan["listed_at"] == listed_at else {}


def _captions_key(version: str, date: str, shard: str) -> str:
    return f"captions/model={version}/date={date}/{shard}.parquet"


def _listing_key(run: str) -> str:
    return f"{runs.folder(run)}/listing.parquet"


def _listing(run: str, store: Bucket) -> tuple[pa.Table, dict[str, str]]:
    table = tables.read(_listing_key(run), store)
    return table, tables.about(table)

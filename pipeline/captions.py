"""The table of captions: written shard by shard from stored features, a row an image, and read.

The shards of a model (see ``plans``) lie under ``captions/model=<version>/date=<YYYY-MM-DD>/``.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import features, plans, tables
from pipeline.captioner import Caption, load
from pipeline.drift import Profile
from pipeline.keys import safe_name
from pipeline.plans import IDENTITY
from pipeline.recipe import Search
from pipeline.storage import Bucket
from pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

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


def caption(shard: str, *, store: Bucket, search: Search, sidecars: bool) -> dict[str, Any]:
    """Write the captions of a planned shard; does nothing where they are written already."""
    plan = plans.read(shard, store)
    if store.exists(plan.result):
        log.info("%s exists: nothing to do", store.url(plan.result))
        return {"shard": shard, "images": 0, "summary": plans.summary(0, 0)}
    version, encoder_id = plan.about["version"], plan.about["encoder_id"]
    stopwatch = Stopwatch()
    readable = plan.images.filter(pc.field("status") == "ok")
    failed = len(plan.images) - len(readable)
    written: dict[str, Caption] = {}
    profile = None
    if len(readable):
        with stopwatch.stage("load"):
            captioner, _ = load(version, store)
        with stopwatch.stage("read"):
            vectors = features.read_vectors(readable, encoder_id=encoder_id, store=store)
        with stopwatch.stage("caption"):
            found = captioner.caption(vectors, search)
        written = dict(zip(readable["key"].to_pylist(), found, strict=True))
        profile = Profile.of(captioner.standardised(vectors), found, failed=failed, search=search)
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
                "model_version": version,
                "encoder_id": encoder_id,
                "captioned_at": now,
            }
            for row in plan.images.to_pylist()
        ],
        schema=SCHEMA,
    )
    with stopwatch.stage("write"):
        if sidecars:
            for row in table.to_pylist():
                key = f"sidecars/{safe_name(row['image_key'])}.json"
                store.put(key, json.dumps(row, indent=2, default=str).encode())
        # The shard comes last: once it is there, nobody comes back to these images.
        tables.write(table, plan.result, store)
    note = {"seconds": stopwatch.seconds, "profile": profile and profile.model_dump()}
    plans.write_note(shard, note, store)
    log.info("seconds: %s", stopwatch)
    summary = plans.summary(len(plan.images), failed)
    log.info("%s: %s", store.url(plan.result), summary)
    return {
        "shard": shard,
        "images": len(plan.images),
        "captioned": len(written),
        "failed": failed,
        "summary": summary,
    }


def read(version: str, store: Bucket, *, columns: Sequence[str]) -> pa.Table:
    """Some columns of ``SCHEMA`` of every row that a model has written."""
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    shards = store.list(folder(version))
    return pa.concat_tables([schema.empty_table(), *(tables.read(item.key, store, columns=columns) for item in shards)])


def folder(version: str) -> str:
    """Prefix of a model's captions."""
    return f"captions/model={version}/"


def rows(keys: Iterable[str], store: Bucket) -> pa.Table:
    """Key, etag, status and error of all rows in these objects."""
    columns = {"image_key": "key", "image_etag": "etag", "status": "status", "error": "error"}
    empty = pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
    parts = (tables.read(key, store, columns=list(columns)) for key in keys)
    return pa.concat_tables([empty, *parts]).rename_columns(list(columns.values()))


def decided(written: pa.Table) -> pa.Table:
    """One of each image's rows: the caption where there is one, otherwise the last failure."""
    ordered = written.append_column("order", pa.array(range(len(written)), pa.int64()))
    ordered = ordered.sort_by([("status", "descending"), ("order", "descending")])  # "ok" comes after "failed"
    found = ordered.group_by(IDENTITY, use_threads=False).aggregate([("status", "first"), ("error", "first")])
    return found.select([*IDENTITY, "status_first", "error_first"]).rename_columns([*IDENTITY, "status", "error"])

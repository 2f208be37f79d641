"""Tables of captions that no model wrote, and corrections of them."""

import hashlib
from datetime import UTC, datetime

import pyarrow as pa

from pipeline.data import corrections
from pipeline.nightly import captions, current
from pipeline.storage import layout, parquet
from tests.support import toy


def row(key, caption="a dog", *, log_prob=-1.0, confidence=None, novel=None, error=None, version="m1"):
    """A row of captions."""
    return {
        "image_key": key,
        "image_etag": "e",
        "caption": None if error else caption,
        "log_prob": None if error else log_prob,
        "confidence": None if error else confidence,
        "novel": None if error else novel,
        "status": "failed" if error else "ok",
        "error": error,
        "width": None if error else 640,
        "height": None if error else 480,
        "model_version": version,
        "encoder_id": "x",
        "captioned_at": datetime(2026, 1, 1, tzinfo=UTC),
    }


def shard_key(night, shard, *, version="m1"):
    """The key of a shard of captions, with a name as those of shards are."""
    name = hashlib.sha256(shard.encode()).hexdigest()[:16]
    return layout.shard_result(layout.captions_folder(version, night), name)


def write(store, rows, *, night, shard, version="m1"):
    """Write a shard of captions."""
    table = pa.Table.from_pylist([{**each, "model_version": version} for each in rows], schema=captions.SCHEMA)
    parquet.write(table, shard_key(night, shard, version=version), store)


def current_row(key, caption="a dog", *, etag="e", error=None, version="m1", confidence=None, novel=None, **values):
    """A row of the current captions by a model; without caption and error, the image waits."""
    return {
        **dict.fromkeys(current.SCHEMA.names),
        "image_key": key,
        "image_etag": etag,
        "caption": None if error else caption,
        "error": error,
        **(
            {"source": "model", "model_version": version, "confidence": confidence, "novel": novel, "review": False}
            if caption and not error
            else {}
        ),
        **values,
    }


def write_current(store, rows, *, row_group_size=None):
    """Write the current captions, as a night does."""
    ordered = sorted(rows, key=lambda each: each["image_key"])
    table = pa.Table.from_pylist(ordered, schema=current.SCHEMA)
    night = {"listed_at": "2026-01-01T00:00:00+00:00"}
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=night, row_group_size=row_group_size)


def correct(store, key, caption, *, etag="e", **options):
    """Correct the caption of an image, or confirm it."""
    words = {"model_caption": "a dog", "model_version": "m1", "corrected_by": "ann"}
    corrections.add(
        toy.picture("red"), caption=caption, image_key=key, image_etag=etag, store=store, **{**words, **options}
    )

"""The nightly job: what is new in the inbox gets its caption, in the store, and every image is accounted for.

A night goes through five steps, each of which can be repeated: list the inbox and fix the champion for the whole
night; plan and extract what has no features; plan and write the captions that this champion has not written; count.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import drift, features, plans, registry, runs, tables
from pipeline.captioner import Caption, load, load_metadata
from pipeline.drift import Profile
from pipeline.errors import PipelineError
from pipeline.images import is_image
from pipeline.plans import IDENTITY
from pipeline.recipe import Search
from pipeline.storage import Bucket, open_bucket
from pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

KIND = "caption_new_images"

EXTRACTION, CAPTIONS = "extraction", "captions"
"""Stages of a night that work in shards."""

PROFILE = "profile.json"
"""In a run's folder: what its pictures and captions were like."""

NIGHTS = 30
"""Earlier nights that a night is compared with."""

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


class Archive(StrEnum):
    """What a new champion captions: all that is listed, or only what no model has captioned yet."""

    ALL = "all"
    NEW = "new"


class Night(BaseModel):
    """What is fixed for a whole night when the inbox is listed."""

    model_config = ConfigDict(frozen=True)

    inbox: str
    version: str = Field(description="of the champion")
    encoder_id: str
    archive: Archive
    retry_failed: bool = Field(description="whether what failed in earlier nights is tried again")
    listed_at: AwareDatetime

    @property
    def writers(self) -> str:
        """Prefix of the captions that make an image done."""
        return "captions/" if self.archive is Archive.NEW else _folder(self.version)


def list_inbox(
    run: str, *, inbox: str, store: Bucket, archive: Archive = Archive.ALL, retry_failed: bool = False
) -> dict[str, Any]:
    """List the inbox's photographs and write down which model the night works with, and on what.

    Returns:
        The number of images ``listed``, and the champion's ``version``.

    Raises:
        PipelineError: there is no champion yet.
    """
    version = registry.champion(store).version
    night = Night(
        inbox=inbox,
        version=version,
        encoder_id=load_metadata(version, store).encoder_id,
        archive=archive,
        retry_failed=retry_failed,
        listed_at=datetime.now(UTC),
    )
    table = _photographs(inbox)
    for stage in (EXTRACTION, CAPTIONS):
        runs.forget_shards(run, stage, store)
    tables.write(table, _listing_key(run), store, about={"night": night.model_dump_json()})
    log.info("%d images in %s, to be captioned by %s", len(table), inbox, version)
    return {"listed": len(table), "version": version}


def plan_extraction(run: str, *, store: Bucket, shard_size: int) -> list[str]:
    """The shards of images that are to be captioned and have no features of the champion's encoder yet."""
    images, night = _listing(run, store)
    return features.plan(
        _not_done(images, night, store),
        run=run,
        source=night.inbox,
        encoder_id=night.encoder_id,
        store=store,
        shard_size=shard_size,
        retry_failed=night.retry_failed,
    )


def plan_captions(run: str, *, store: Bucket, date: str, shard_size: int) -> list[str]:
    """The shards of images that are to be captioned; ``date`` (YYYY-MM-DD) names the partition of new ones.

    Repeated, it finds what is still to be done, and what the run has written stays counted as the run's.
    """
    images, night = _listing(run, store)
    shards = plans.claim(
        lambda: features.look_up(_not_done(images, night, store), encoder_id=night.encoder_id, store=store),
        {
            "folder": f"{_folder(night.version)}date={date}",
            "version": night.version,
            "encoder_id": night.encoder_id,
        },
        product=f"captions-{night.version}",
        # Images of one shard of features stay together, so that each of those is read once.
        order=["shard", "key"],
        store=store,
        shard_size=SHARDS * shard_size,
    )
    runs.note_shards(run, CAPTIONS, shards, store)
    log.info("%d images: captions of %s are to be written in %d shards", len(images), night.version, len(shards))
    return shards


def caption(shard: str, *, store: Bucket, search: Search, sidecars: bool) -> dict[str, Any]:
    """Write the captions of a planned shard; does nothing where they are written already."""
    plan = plans.read(shard, store)
    if store.exists(plan.result):
        log.info("%s exists: nothing to do", store.url(plan.result))
        return {"shard": shard, "images": 0}
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
                store.put(f"sidecars/{row['image_key']}.json", json.dumps(row, indent=2, default=str).encode())
        # The shard comes last: once it is there, nobody comes back to these images.
        tables.write(table, plan.result, store)
    note = {"seconds": stopwatch.seconds, "profile": profile and profile.model_dump()}
    plans.write_note(shard, note, store)
    log.info("seconds: %s", stopwatch)
    log.info("%s: %d captions, %d failed", store.url(plan.result), len(written), failed)
    return {"shard": shard, "images": len(plan.images), "captioned": len(written), "failed": failed}


def publish(run: str, *, store: Bucket, max_failed_fraction: float, drift_limit: float) -> dict[str, Any]:
    """Count the night, write its record, and fail where images are unaccounted for or too many failed.

    Returns:
        The record: how many images were listed, done before, extracted, captioned and failed, the errors by kind, the
        seconds by stage, the images a second from the listing to this count, how far the night lies from the model's
        test and from earlier nights (see ``drift``), and ``warnings`` about that.
    """
    images, night = _listing(run, store)
    shards = runs.planned_shards(run, CAPTIONS, store)
    results = [plans.read(shard, store).result for shard in shards]
    written = _decided(rows(results, store).join(images, keys=IDENTITY, join_type="inner"))
    elsewhere = rows((item.key for item in store.list(night.writers) if item.key not in set(results)), store)
    before = images.join(written, keys=IDENTITY, join_type="left anti")
    missing = before.join(elsewhere, keys=IDENTITY, join_type="left anti")
    failed = written.filter(pc.field("status") == "failed")
    failures = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    extracted = runs.extracted(run, store)
    notes = plans.read_notes(shards, store)
    found, warnings = _drift(run, notes, night, failed=len(failures), limit=drift_limit, store=store)
    finished_at = datetime.now(UTC)
    record = {
        "kind": KIND,
        **night.model_dump(mode="json", exclude={"listed_at"}),
        "listed": len(images),
        "already_done": len(before) - len(missing),
        "extracted": extracted["extracted"],
        "captioned": len(written) - len(failures),
        "failed": len(failures),
        "errors": dict(Counter(error for _, error in failures).most_common()),
        "drift": found,
        "warnings": warnings,
        "seconds": Counter(extracted["seconds"]) + Counter(runs.seconds(notes)),
        "images_per_second": round(len(written) / max((finished_at - night.listed_at).total_seconds(), 1e-9), 2),
        "started_at": night.listed_at.isoformat(),
        "finished_at": finished_at.isoformat(),
    }
    runs.finish(run, record, store)
    log.info(
        "%d images listed: %d captioned, %d failed, %d done before; features of %d extracted",
        *(record[name] for name in ("listed", "captioned", "failed", "already_done", "extracted")),
    )
    for warning in warnings:
        log.warning("%s", warning)
    if len(missing):
        raise PipelineError(
            f"{len(images)} images were listed in {night.inbox}, but {record['captioned']} captioned + "
            f"{record['failed']} failed + {record['already_done']} done before are {len(images) - len(missing)}: "
            f"{', '.join(missing['key'].to_pylist()[:5])} and others have no row. Run the night again."
        )
    features.check_failures(failures, len(written), allowed_fraction=max_failed_fraction)
    return record


@dataclass(frozen=True)
class Coverage:
    """What the champion has done of the inbox, as it is now.

    Attributes:
        listed: images in the inbox.
        captioned: how many of them have a caption.
        errors: how many failed, by kind.
        pending: what the next night will caption.
    """

    listed: int
    captioned: int
    errors: Mapping[str, int]
    pending: int


def coverage(version: str, *, inbox: str, store: Bucket) -> Coverage:
    """Compare the inbox with a model's captions."""
    images = _photographs(inbox)
    written = rows((item.key for item in store.list(_folder(version))), store)
    here = _decided(written.join(images, keys=IDENTITY, join_type="inner"))
    done = here.join(features.settled(here, retry_failed=False), keys=IDENTITY, join_type="inner")
    errors = Counter(done.filter(pc.field("status") == "failed")["error"].to_pylist())
    return Coverage(len(images), len(done) - errors.total(), dict(errors.most_common()), len(images) - len(done))


def read(version: str, store: Bucket, *, columns: Sequence[str]) -> pa.Table:
    """Some columns of ``SCHEMA`` of every row that a model has written."""
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    shards = store.list(_folder(version))
    return pa.concat_tables([schema.empty_table(), *(tables.read(item.key, store, columns=columns) for item in shards)])


def _folder(version: str) -> str:
    """Prefix of a model's captions."""
    return f"captions/model={version}/"


def _listing_key(run: str) -> str:
    return f"{runs.folder(run)}/listing.parquet"


def _listing(run: str, store: Bucket) -> tuple[pa.Table, Night]:
    table = tables.read(_listing_key(run), store)
    return table, Night.model_validate_json(tables.about(table)["night"])


def _not_done(images: pa.Table, night: Night, store: Bucket) -> pa.Table:
    """The listed images that are still to be captioned."""
    written = rows((item.key for item in store.list(night.writers)), store)
    return images.join(features.settled(written, retry_failed=night.retry_failed), keys=IDENTITY, join_type="left anti")


def _photographs(inbox: str) -> pa.Table:
    """The listing of an inbox, of schema ``features.IMAGES``."""
    return features.as_table(item for item in open_bucket(inbox).list() if is_image(item.key))


def rows(keys: Iterable[str], store: Bucket) -> pa.Table:
    """Key, etag, status and error of all rows in these objects."""
    columns = {"image_key": "key", "image_etag": "etag", "status": "status", "error": "error"}
    empty = pa.schema([SCHEMA.field(name) for name in columns]).empty_table()
    parts = (tables.read(key, store, columns=list(columns)) for key in keys)
    return pa.concat_tables([empty, *parts]).rename_columns(list(columns.values()))


def _decided(written: pa.Table) -> pa.Table:
    """One of each image's rows: the caption where there is one, otherwise the last failure."""
    ordered = written.append_column("order", pa.array(range(len(written)), pa.int64()))
    ordered = ordered.sort_by([("status", "descending"), ("order", "descending")])  # "ok" comes after "failed"
    found = ordered.group_by(IDENTITY, use_threads=False).aggregate([("status", "first"), ("error", "first")])
    return found.select([*IDENTITY, "status_first", "error_first"]).rename_columns([*IDENTITY, "status", "error"])


def _drift(
    run: str, notes: Sequence[Mapping[str, Any]], night: Night, *, failed: int, limit: float, store: Bucket
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """How far the night lies from the model's test and from earlier nights, and what of it deserves a warning."""
    profiles = [Profile.model_validate(note["profile"]) for note in notes if note["profile"]]
    if not profiles:
        return {}, []
    here = Profile.together(profiles).model_copy(update={"failed": failed})
    drift.save(_profile_key(run), here, store)
    earlier = [
        profile
        for record in islice(runs.finished(KIND, store), NIGHTS)
        if record["version"] == night.version and record["run"] != run
        if (profile := drift.load(_profile_key(record["run"]), store)) and profile.search == here.search
    ]
    references = {"the model's test": drift.load(drift.test_key(night.version), store)}
    if earlier:
        references["earlier nights"] = Profile.together(earlier)
    found: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    for name, reference in references.items():
        if reference is not None:
            found[name] = drift.differences(here, reference)
            warnings += drift.warnings(found[name], here, reference, name=name, limit=limit)
    return found, warnings


def _profile_key(run: str) -> str:
    return f"{runs.folder(run)}/{PROFILE}"

"""The sweep: every object of a store that may hold a forgotten photograph is written again without it, or removed.

It goes by the tombstones alone, so it can be repeated at any time, and in a backup. Objects are written by
compare-and-swap, so that nothing that others write meanwhile is lost.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioner.metadata import load_metadata
from pipeline.data import dataset as datasets
from pipeline.data.ingest import IngestReport
from pipeline.errors import PipelineError
from pipeline.evaluation.drift import Profile
from pipeline.evaluation.evaluate import render_report
from pipeline.evaluation.results import CAPTIONS, Metrics
from pipeline.nightly.captions import CaptionStats
from pipeline.ops import review
from pipeline.progress import track
from pipeline.storage import Bucket, DamagedObjectError, ObjectChangedError, ObjectNotFoundError, json, layout, parquet
from pipeline.storage.bucket import READERS
from pipeline.storage.layout import EvaluationKeys
from pipeline.training import mlflow
from pipeline.work import runs
from pipeline.work.runs import AnyRecord, NightRecord
from pipeline.work.tombstones import IDENTIFYING, Tombstones

log = logging.getLogger(__name__)

TRIES = 20
"""How often an object is written again that others write at the same time."""

REDACTED = "removed, because it named a photograph that was forgotten"
"""Stands for a text in the record of a run."""

PREFIXES = (
    layout.CAPTIONS,
    layout.CURRENT,
    layout.SIDECARS,
    layout.CORRECTIONS,
    layout.REVIEW,
    layout.FEATURES,
    layout.SHARDS,
    layout.MODELS,
    layout.DATASETS,
    layout.RUNS,
)
"""The folders of the store that may hold photographs, or say something about them."""


def sweep(
    forgotten: Tombstones,
    store: Bucket,
    *,
    remove: bool,
    tracking_uri: str = "",
    prefixes: Iterable[str] = PREFIXES,
) -> list[str]:
    """Remove what was forgotten from every object of a store that may hold it.

    Args:
        forgotten: the tombstones.
        store: the store, or a backup.
        remove: whether anything is written; otherwise, the objects are only found.
        tracking_uri: of MLflow; empty if there is none.
        prefixes: where objects are searched.

    Returns:
        The keys of the objects that held something.

    Raises:
        PipelineError: an object can't be read, so it may hold a photograph.
    """
    if not forgotten.hashes:
        return []
    keys = [item.key for prefix in prefixes for item in store.list(prefix)]
    search = _Sweep(forgotten, store, remove, tracking_uri)
    with ThreadPoolExecutor(READERS) as pool:
        found = track(pool.map(search.clean, keys), total=len(keys), unit="objects", log=log)
        held = [key for key, holds in zip(keys, found, strict=True) if holds]
    if search.damaged:
        raise PipelineError(
            f"{len(search.damaged)} damaged objects may hold a forgotten photograph. Delete them, and repeat the "
            f"command. The first: {search.damaged[0]}"
        )
    return held


@dataclass(frozen=True)
class _Sweep:
    """The search for forgotten photographs. Each method returns whether the object with a key holds something."""

    forgotten: Tombstones
    store: Bucket
    remove: bool
    tracking_uri: str
    damaged: list[str] = field(default_factory=list)

    def clean(self, key: str) -> bool:
        """Remove what was forgotten from an object, if it holds anything."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._clean(key)
            except ObjectNotFoundError:
                return False  # it was removed since the listing
            except ObjectChangedError:
                if attempt == TRIES:
                    raise
            except DamagedObjectError as error:
                self.damaged.append(str(error))
                break
        return False

    def _clean(self, key: str) -> bool:
        if layout.is_shadow(key):
            return self._clean_table(key)
        if key.startswith(layout.MODELS):
            evaluation = EvaluationKeys(key.rpartition("/")[0])
            return key == evaluation.captions and self._clean_evaluation(evaluation)
        if key.startswith(layout.SIDECARS):
            return self._delete_if(self.forgotten.has("sidecar", key), key)
        if key.startswith(f"{layout.CORRECTIONS}{layout.CORRECTION_PICTURES}"):
            return self._delete_if(self.forgotten.has("content", PurePosixPath(key).stem), key)
        return self._clean_table(key) if key.endswith(".parquet") else self._clean_document(key)

    def _clean_document(self, key: str) -> bool:
        shard = layout.shard_of_key(key)
        if shard and key == layout.shard_slow_images(shard):
            return self._clean_slow_images(key)
        if (shard and key == layout.shard_stats(shard)) or key.startswith(layout.PROFILES):
            return self._delete_if(self._is_of_one_image(key), key)
        if key == layout.ingest_report(key.rpartition("/")[0].removeprefix(layout.DATASETS)):
            return self._clean_ingest_report(key)
        if key == layout.REVIEW_STATE:
            return self._clean_review(key)
        for kind in runs.RECORDS:
            if key.startswith(layout.run_records(kind)):
                return self._clean_record(kind, key)
        return False

    def _delete_if(self, holds: bool, key: str) -> bool:
        if holds and self.remove:
            self.store.delete(key)
        return holds

    def _clean_table(self, key: str) -> bool:
        etag = self.store.etag(key)
        with parquet.opened(key, self.store, by_ranges=True) as file:
            names = [name for name in IDENTIFYING if name in file.schema_arrow.names]
            mask = self.forgotten.mask(file.read(columns=names)) if "image_key" in names else pa.array([], pa.bool_())
            groups = file.metadata.num_row_groups
            row_group_size = file.metadata.row_group(0).num_rows if groups > 1 else None
        if not pc.any(mask).as_py():
            return False
        if layout.correction_of_key(key):
            return self._delete_if(True, key)
        if self.remove:
            table = parquet.read(key, self.store, etag=etag)
            parquet.write(
                table.filter(pc.invert(mask)),
                key,
                self.store,
                metadata=parquet.metadata(table),
                row_group_size=row_group_size,
                if_match=etag,
            )
        return True

    def _clean_evaluation(self, keys: EvaluationKeys) -> bool:
        """Write an evaluation without images. Its captions go last: while they name an image, all is done again."""
        etag = self.store.etag(keys.captions)
        table = parquet.read(keys.captions, self.store, columns=CAPTIONS, etag=etag)
        mask = self.forgotten.mask(table)
        if not pc.any(mask).as_py() or not self.remove:
            return bool(pc.any(mask).as_py())
        gone, rest = set(table.filter(mask)["image_id"].to_pylist()), table.filter(pc.invert(mask))
        metrics = json.find(Metrics, keys.metrics, self.store)
        if metrics is None:  # the evaluation was interrupted, and will be done again
            self.store.delete(keys.report)
        else:
            metrics = _without(metrics, gone)
            model, dataset = load_metadata(metrics.version, self.store), datasets.load(metrics.dataset, self.store)
            page = render_report(metrics, rest, model, dataset, self.store)
            if self.tracking_uri and model.dataset == metrics.dataset:
                mlflow.replace_report(metrics.version, page, self.tracking_uri)
            self.store.put(keys.report, page.encode())
            json.write(metrics, keys.metrics, self.store)
        parquet.write(rest, keys.captions, self.store, if_match=etag)
        return True

    def _clean_slow_images(self, key: str) -> bool:
        etag = self.store.etag(key)
        slow = json.read(dict[str, str | None], key, self.store, etag=etag)
        rest = {image: error for image, error in slow.items() if not self.forgotten.has("name", image)}
        return self._replace_if(rest != slow, rest, key, etag)

    def _is_of_one_image(self, key: str) -> bool:
        """Whether statistics are those of a single image: the mean is then its features. They don't say which one."""
        if key.startswith(layout.PROFILES):
            profile: Profile | None = json.read(Profile, key, self.store)
        else:
            profile = json.read(CaptionStats, key, self.store).profile
        return profile is not None and profile.captioned == 1

    def _clean_ingest_report(self, key: str) -> bool:
        etag = self.store.etag(key)
        report = json.read(IngestReport, key, self.store, etag=etag)
        rows = report.dropped_rows
        rest = tuple(
            row.model_copy(update={"text": ""}) if self.forgotten.mentioned_in(row.text) else row for row in rows
        )
        return self._replace_if(rest != rows, report.model_copy(update={"dropped_rows": rest}), key, etag)

    def _clean_review(self, key: str) -> bool:
        etag = self.store.etag(key)
        state = json.read(review.State, key, self.store, etag=etag)

        def forgotten(each: review.Lease | review.Skip) -> bool:
            return self.forgotten.has("key", each.subject.image_key)

        rest = review.State(
            leases={user: lease for user, lease in state.leases.items() if not forgotten(lease)},
            skipped=tuple(skip for skip in state.skipped if not forgotten(skip)),
        )
        return self._replace_if(rest != state, rest, key, etag)

    def _clean_record(self, kind: str, key: str) -> bool:
        etag = self.store.etag(key)
        record: AnyRecord = json.read(runs.RECORDS[kind], key, self.store, etag=etag)
        update: dict[str, object] = {"message": self._redacted(record.message)}
        if isinstance(record, NightRecord):
            errors: Counter[str] = Counter()
            for error, count in record.errors.items():
                errors[self._redacted(error)] += count
            update |= {"warnings": list(map(self._redacted, record.warnings)), "errors": dict(errors)}
        rest = record.model_copy(update=update)
        return self._replace_if(rest != record, rest, key, etag)

    def _redacted(self, text: str) -> str:
        return REDACTED if self.forgotten.mentioned_in(text) else text

    def _replace_if(self, holds: bool, rest: object, key: str, etag: str) -> bool:
        if holds and self.remove:
            json.write(rest, key, self.store, if_match=etag)
        return holds


def _without(metrics: Metrics, images: set[str]) -> Metrics:
    """Scores without those of single images; the others stay as they are."""
    scores = {
        name: each.model_copy(
            update={"image_cider": {image: value for image, value in each.image_cider.items() if image not in images}}
        )
        for name, each in metrics.scores.items()
    }
    errors = {
        kind: each.model_copy(update={"cases": [case for case in each.cases if case.image not in images]})
        for kind, each in metrics.errors.items()
    }
    return metrics.model_copy(update={"scores": scores, "errors": errors})

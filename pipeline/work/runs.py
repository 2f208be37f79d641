"""Records of runs: what a night or a retraining did, and how it ended.

A record is written when the run begins, with the status ``running``, and again when it ends, whether it succeeded or
failed. The shards that a run works on are stored in its folder until then.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.progress import counted
from pipeline.storage import (
    ABSENT,
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    json,
    layout,
)
from pipeline.storage.bucket import read_each
from pipeline.work import shards
from pipeline.work.shards import ShardStats

EXTRACTION, CAPTIONS = "extraction", "captions"
"""The stages of a run that work on shards."""

NIGHT, RETRAINING = "night", "retraining"
"""The kinds of run."""

BATCH = 8
"""Records that are read at once."""

Status = Literal["running", "succeeded", "failed"]


class RunRecord(BaseModel):
    """The part that the records of all runs share."""

    model_config = ConfigDict(frozen=True)

    run: str = Field(description="name of the run; the run id of Airflow, for example")
    status: Status = "running"
    message: str = Field("", description="why it failed")
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    extracted: int = Field(0, description="images whose features were extracted")
    seconds: dict[str, float] = Field({}, description="seconds by section, summed over all processes and threads")


class NightRecord(RunRecord):
    """The record of a nightly run."""

    kind: Literal["night"] = "night"
    inbox: str = Field("", description="URI of the bucket that was listed")
    version: str = Field("", description="model that captioned the images")
    encoder_id: str = ""
    archive: str = Field("", description="which images were captioned: all, or only new ones")
    retry_failed: bool = Field(False, description="whether images that failed in earlier nights were tried again")
    listed: int = 0
    passed_over: dict[str, int] = Field({}, description="what the inbox holds besides the listed images, by kind")
    already_done: int = Field(0, description="images that had a caption, or had failed, before the run")
    postponed: int = Field(0, description="images that are left to later nights, by the limit of a night")
    requested: int = Field(0, description="images that were captioned again, on request")
    captioned: int = 0
    novel: int = Field(0, description="captioned images that are unlike all training photographs")
    failed: int = 0
    gone: int = Field(0, description="images that were removed or replaced after they were listed")
    errors: dict[str, int] = Field({}, description="failed images by error, the most frequent first")
    drift: dict[str, dict[str, float]] = Field(
        {}, description="differences from the model's test and from earlier nights, in standard deviations"
    )
    drifted: bool = Field(False, description="whether one of these is larger than allowed; warnings says which")
    warnings: list[str] = []
    images_per_second: float = 0.0

    def __str__(self) -> str:
        warnings = f"; warnings: {len(self.warnings)}" if self.warnings else ""
        novel = f"; unlike the training photographs: {self.novel:,}" if self.novel else ""
        others = {"gone since": self.gone, "postponed": self.postponed}
        rest = "".join(f" + {count:,} {name}" for name, count in others.items() if count)
        return (
            f"{counted(self.listed, 'image')} listed = {self.captioned:,} captioned + {self.failed:,} failed + "
            f"{self.already_done:,} done before{rest}; features of {self.extracted:,} extracted; "
            f"model {self.version}{novel}{describe_passed_over(self.passed_over)}{warnings}"
        )


class RetrainingRecord(RunRecord):
    """The record of a retraining."""

    kind: Literal["retraining"] = "retraining"
    cause: str = Field("", description="why it was started; empty if a person started it")
    dataset: str = Field("", description="the sources of its captioned photographs, then the id of the dataset")
    encoder: str = Field("", description="the requested encoder")
    version: str = Field("", description="the model that it trained")
    promoted: bool = False
    reason: str = Field("", description="why the model was promoted or not")
    scores: dict[str, float] = Field({}, description="on the test split, by their usual names")


AnyRecord = NightRecord | RetrainingRecord

RECORDS: dict[str, type[NightRecord] | type[RetrainingRecord]] = {NIGHT: NightRecord, RETRAINING: RetrainingRecord}


def write_record(record: AnyRecord, store: Bucket) -> None:
    """Write the record of a run, in place of an earlier one."""
    json.write(record, layout.run_record(record.kind, record.run), store)


def read_record(kind: str, run: str, store: Bucket, *, etag: str | None = None) -> AnyRecord:
    """The record of a run of a kind.

    Raises:
        ObjectNotFoundError: it has not begun.
        ObjectChangedError: ``etag`` was given, and its record has another one.
        DamagedObjectError: it can't be read.
    """
    return _read(kind, layout.run_record(kind, run), store, etag=etag)


def list_records(kind: str, store: Bucket, *, damaged: list[str] | None = None) -> Iterator[AnyRecord]:
    """The records of the runs of one kind, the last written first; only those that are asked for are read.

    A damaged record is left out: it is logged as a warning, and its message is added to ``damaged``.
    """
    found = sorted(store.list(layout.run_records(kind)), key=lambda item: item.modified, reverse=True)

    keys = [item.key for item in found]
    for start in range(0, len(keys), BATCH):
        batch = read_each(lambda key: _read(kind, key, store), keys[start : start + BATCH], damaged=damaged)
        # As a list: how many of a batch are read must not depend on which thread is first.
        yield from (record for _, record in list(batch))


def describe_passed_over(counts: Mapping[str, int]) -> str:
    """What a listing passed over, as the end of a sentence; empty if it was nothing."""
    return "; passed over: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) if counts else ""


def write_failure(record: AnyRecord, message: str, store: Bucket, *, if_match: str | None = None) -> None:
    """Write a run as failed. The message is stored without the address of the store.

    Raises:
        ObjectChangedError: the etag of the record is not ``if_match``.
    """
    update = {
        "status": "failed",
        "message": message.replace(store.uri, "the store"),
        "finished_at": datetime.now(UTC),
    }
    json.write(record.model_copy(update=update), layout.run_record(record.kind, record.run), store, if_match=if_match)


def end_run(kind: str, run: str, error: str | None, store: Bucket) -> bool:
    """End a run that failed outside the steps that write its record, and return whether its record was changed.

    Args:
        kind: of the run.
        run: the run.
        error: why it failed, whatever its record says. None if that is not known: then only a record that still says
            running, or that does not exist, is written as failed.
        store: the store.
    """
    while True:
        etag = store.etag(layout.run_record(kind, run))
        try:
            record: AnyRecord = RECORDS[kind](run=run, started_at=datetime.now(UTC))
            if etag != ABSENT:
                # A damaged record says nothing: it is written again.
                with contextlib.suppress(DamagedObjectError):
                    record = read_record(kind, run, store, etag=etag)
            if not error and record.status != "running":
                return False
            write_failure(record, error or "The run ended before its last step.", store, if_match=etag)
        except ObjectChangedError:
            continue  # a step has written its end in the meantime
        return True


def record_shards(run: str, stage: str, names: Sequence[str], store: Bucket) -> None:
    """Record the shards that a stage of the run works on, in addition to those recorded before."""
    known = recorded_shards(run, stage, store)
    json.write(list(dict.fromkeys([*known, *names])), layout.run_shards(run, stage), store)


def recorded_shards(run: str, stage: str, store: Bucket) -> list[str]:
    """The shards that a stage of the run works on; empty if none were recorded."""
    # If the list is damaged, the images of its shards count as done before: none is lost.
    return json.find(list[str], layout.run_shards(run, stage), store) or []


def forget_shards(run: str, stage: str, store: Bucket) -> None:
    """Remove the recorded shards of a stage of the run."""
    store.delete(layout.run_shards(run, stage))


def extraction_stats(run: str, store: Bucket) -> tuple[int, dict[str, float]]:
    """How many images the run extracted features from, and the seconds by section that this took."""
    names = recorded_shards(run, EXTRACTION, store)
    images = sum(len(shard.images) for shard in shards.read_existing(names, store))
    return images, total_seconds(shards.read_stats(names, store, kind=ShardStats))


def total_seconds(stats: Iterable[ShardStats]) -> dict[str, float]:
    """Seconds by section, summed over shards."""
    total: Counter[str] = Counter()
    for each in stats:
        total.update(each.seconds)
    return dict(total)


def _read(kind: str, key: str, store: Bucket, *, etag: str | None = None) -> AnyRecord:
    advice = "Delete it: the run is then no longer shown."
    return json.read(RECORDS[kind], key, store, etag=etag, advice=advice)

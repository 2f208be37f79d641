"""What became of corrections: which models have learned from each, or why none has."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import list_models, load_metadata
from pipeline.captioner.registry import find_champion
from pipeline.data import corrections, dataset
from pipeline.data.corrections import WITHDRAWN, Correction
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, has_portable_names

log = logging.getLogger(__name__)

MODELS = 20
"""Models, the newest ones, that are searched for those that have learned from a correction."""

WAITS = "the next retraining will use it"

UNKNOWN = "it is not known whether a retraining learns from it, because the champion's dataset can't be read"


class Use(BaseModel):
    """A correction, and what became of it."""

    model_config = ConfigDict(frozen=True)

    correction: Correction
    state: Literal["counts", "replaced", "withdrawn"] = Field(
        description="counts; or replaced by a later one about the same version of the image, or withdrawn"
    )
    learned_by: tuple[str, ...] = Field(description="models that have learned from it, the newest first")
    reason: str = Field(description="why no model has learned from it; empty if one has")


def list_corrections(store: Bucket, *, limit: int | None = None, damaged: list[str] | None = None) -> list[Use]:
    """The last corrections, the newest first, and what became of them.

    Args:
        store: the store.
        limit: number of corrections; None: all.
        damaged: gets the messages of damaged models and corrections, which are left out. By default, they are errors.

    Raises:
        DamagedObjectError: a model or a correction is damaged.
    """
    events = corrections.read(store, damaged=damaged).drop_columns("name").to_pylist()
    every = [Correction(**row) for row in events]
    if not every:
        return []
    last = {_about(each): each for each in every}
    learned = _learned(store, damaged)
    explain = Explainer(store)
    found = []
    for each in every[::-1][:limit]:
        by = learned[each.picture, each.caption]
        if last[_about(each)].action == WITHDRAWN:
            state, reason = "withdrawn", "it was withdrawn"
        elif last[_about(each)] is not each:
            state, reason = "replaced", "a later one replaces it"
        else:
            state, reason = "counts", explain.next_training(each)
        found.append(Use(correction=each, state=state, learned_by=by, reason="" if by else reason))
    return found


class Explainer:
    """Says whether the next retraining learns from a correction; it reads the champion's dataset once."""

    def __init__(self, store: Bucket) -> None:
        self._dataset, self._held_out, self._waits = "", set[str](), WAITS
        try:
            if champion := find_champion(store):
                self._dataset = load_metadata(champion.version, store).dataset
                self._held_out = dataset.held_out_pictures(self._dataset, store)
        except PipelineError as error:
            log.warning("it is not known which corrections are held out: %s", error)
            self._waits = UNKNOWN

    def is_held_out(self, correction: Correction) -> bool:
        """Whether the picture is one by which models are judged."""
        return PurePosixPath(correction.picture).stem in self._held_out

    def next_training(self, correction: Correction) -> str:
        """A clause about a correction from which no model has learned yet."""
        if self.is_held_out(correction):
            return f"no retraining learns from it: the photograph is in dev or test of {self._dataset}"
        return self._waits


def withdraw(image_key: str, *, by: str, store: Bucket) -> Correction:
    """Withdraw what counts about the newest corrected version of an image, by its key, or an upload, by ``picture``.

    Raises:
        PipelineError: there is no such correction.
    """
    counting = corrections.by_image(corrections.latest(corrections.read(store)))
    versions = [said for (key, etag), said in counting.items() if (key or etag) == image_key]
    if not versions:
        raise PipelineError(
            f"There is no correction of {image_key!r} to withdraw: `captioning corrections` lists them."
        )
    newest = max(versions, key=lambda said: said.corrected_at)
    return corrections.write_withdrawal(newest, by=by, store=store)


def tabulate(found: Iterable[Use]) -> pa.Table:
    """Corrections and what became of them as a table, a row for each; ``learned_by`` is a text."""
    rows = [
        {
            **each.correction.model_dump(),
            **each.model_dump(exclude={"correction"}),
            "learned_by": " ".join(each.learned_by),
        }
        for each in found
    ]
    added = [pa.field(name, pa.string()) for name in Use.model_fields if name != "correction"]
    return pa.Table.from_pylist(rows, schema=pa.schema([*corrections.SCHEMA, *added]))


def _about(correction: Correction) -> tuple[str, str]:
    return corrections.identity(correction.image_key, correction.image_etag, correction.picture)


def _learned(store: Bucket, damaged: list[str] | None) -> defaultdict[tuple[str, str | None], tuple[str, ...]]:
    """The newest models that have learned a caption of a corrected picture, by the key of its copy and the caption."""
    by_dataset: defaultdict[str, list[str]] = defaultdict(list)
    for model in list_models(store, limit=MODELS, damaged=damaged):
        by_dataset[model.dataset].append(model.version)
    learned: defaultdict[tuple[str, str | None], tuple[str, ...]] = defaultdict(tuple)
    for dataset_id, versions in by_dataset.items():
        try:
            table = dataset.load(dataset_id, store).table
        except PipelineError as error:
            log.warning("it is not known what %s have learned from: %s", ", ".join(versions), error)
            continue
        sources = [source for source in table["source"].unique().to_pylist() if has_portable_names(source)]
        for row in table.filter(pc.is_in(table["source"], pa.array(sources, pa.string()))).to_pylist():
            for caption in row["captions"]:
                learned[row["image_key"], caption] += tuple(versions)
    return learned

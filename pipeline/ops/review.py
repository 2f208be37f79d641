"""The review queue: the current captions that a person should look at, one at a time, the least sure first.

A caption waits if its ``review`` is true and no person's word about the picture counts. Novel photographs come first,
because a confidence says little about them, then the others by confidence. A caption that somebody has skipped waits no
longer; it comes back if the next night writes another caption, or the photograph is replaced.

A reviewer has one caption at a time, for a while, in which no other reviewer gets it. This only saves people from doing
the same work: that nobody replaces what they have not seen is up to ``corrections`` (``seen``). Who has which caption,
and what was skipped, is one small object, written by compare-and-swap, so any number of servers may share it.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.data import corrections
from pipeline.nightly import current
from pipeline.storage import (
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectNotFoundError,
    json,
    layout,
    parquet,
)
from pipeline.storage.bucket import read_version
from pipeline.work.outcomes import IDENTITY

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE = timedelta(minutes=10)
"""How long a reviewer has a caption for themselves."""

TRIES = 20
"""How often the state is written again if others write it at the same time."""

ROWS = pa.schema(
    [
        current.SCHEMA.field(name)
        for name in ("image_key", "image_etag", "caption", "model_version", "confidence", "novel")
    ]
)
"""What the queue holds of the current captions."""


class Subject(BaseModel):
    """A caption of a version of an image."""

    model_config = ConfigDict(frozen=True)

    image_key: str = Field(description="key of the image in the inbox")
    image_etag: str = Field(description="version of the image")
    caption: str = Field(description="the generated caption")


SUBJECT = list(Subject.model_fields)
"""The columns that identify a caption."""


class Lease(BaseModel):
    """The caption that a reviewer has."""

    model_config = ConfigDict(frozen=True)

    subject: Subject
    until: AwareDatetime = Field(description="when others may get it")


class Skip(BaseModel):
    """A caption that somebody has skipped."""

    model_config = ConfigDict(frozen=True)

    subject: Subject
    by: str = Field(description="user who skipped it")
    at: AwareDatetime = Field(description="when")


class State(BaseModel):
    """Who has which caption, and what was skipped."""

    model_config = ConfigDict(frozen=True)

    leases: dict[str, Lease] = Field({}, description="by user")
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What a reviewer gets.

    Attributes:
        subject: the caption; None if none waits that nobody else has.
        model_version: model that generated it; empty without a caption.
        confidence: probability that a person would accept it; None if it is not known.
        novel: the photograph is unlike those that the model learned from.
        seen: what was said about the picture, as ``corrections.last_said`` gives it.
        left: captions that wait, those of other reviewers among them.
    """

    subject: Subject | None
    model_version: str
    confidence: float | None
    novel: bool
    seen: str
    left: int


class Queue:
    """The queue of a store. It keeps what it has read of the current captions until these change.

    All methods raise ``DamagedObjectError`` if the current captions are damaged. Their argument ``damaged`` gets the
    messages of damaged corrections, which are left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version, self._rows = ("", ""), ROWS.empty_table()

    def count(self, store: Bucket, *, damaged: list[str]) -> int:
        """How many captions wait."""
        rows = self._read(store)
        settled = _settled(rows, corrections.read(store, damaged=damaged))
        state, _ = _read_state(store)
        return len(rows) - len(settled | _skipped(rows, state))

    def take(self, by: str, store: Bucket, *, after: str = "", damaged: list[str]) -> Turn:
        """Give a reviewer the next caption, and take back the one that they had.

        Args:
            by: the user.
            store: the store.
            after: key of the image that they saw last: those behind it come first. Empty: begin with the least sure.
            damaged: see ``Queue``.

        Raises:
            ObjectChangedError: others write the state all the time.
        """
        rows = self._read(store)
        events = corrections.read(store, damaged=damaged)
        settled = _settled(rows, events)
        start: int = pc.index(rows["image_key"], after).as_py() + 1

        def choose(state: State) -> tuple[Turn, State]:
            others = {user: lease for user, lease in state.leases.items() if user != by}
            gone = settled | _skipped(rows, state)
            leased = set(_places(rows, SUBJECT, (_identity(lease.subject) for lease in others.values())).values())
            taken, left = gone | leased, len(rows) - len(gone)
            place = next((each for each in chain(range(start, len(rows)), range(start)) if each not in taken), None)
            if place is None:
                return Turn(None, "", None, False, "", left), state.model_copy(update={"leases": others})
            [row] = rows.slice(place, 1).to_pylist()
            subject = Subject(**{name: row[name] for name in SUBJECT})
            turn = Turn(
                subject=subject,
                model_version=row["model_version"] or "",
                confidence=row["confidence"],
                novel=bool(row["novel"]),
                seen=corrections.last_said(events, subject.image_key, subject.image_etag),
                left=left,
            )
            mine = Lease(subject=subject, until=datetime.now(UTC) + LEASE)
            return turn, state.model_copy(update={"leases": {**others, by: mine}})

        return _change(store, rows, choose)

    def skip(self, subject: Subject, *, by: str, store: Bucket) -> None:
        """Take a caption out of the queue without saying anything about it.

        Raises:
            ObjectChangedError: others write the state all the time.
        """

        def add(state: State) -> tuple[None, State]:
            rest = [skip for skip in state.skipped if skip.subject != subject]
            skip = Skip(subject=subject, by=by, at=datetime.now(UTC))
            return None, state.model_copy(update={"skipped": (*rest, skip)})

        _change(store, self._read(store), add)

    def _read(self, store: Bucket) -> pa.Table:
        """The captions to review, in the order of the queue: columns ``ROWS``."""
        version = store.uri, store.etag(layout.CURRENT_CAPTIONS)
        with self._lock:  # two requests need not read them both
            if version != self._version:
                self._rows, self._version = _read_rows(store), version
            return self._rows


def _read_rows(store: Bucket) -> pa.Table:
    """The rows of the current captions that a person should look at, in the order of the queue.

    One column tells which rows these are, and no more than one row group of the others is in memory.
    """
    parts = [ROWS.empty_table()]
    try:
        with parquet.opened(layout.CURRENT_CAPTIONS, store, by_ranges=True, advice=current.ADVICE) as file:
            review = parquet.select(file, pa.schema([current.SCHEMA.field("review")]))["review"].combine_chunks()
            start = 0
            for group in range(file.num_row_groups):
                wanted = review.slice(start, rows := file.metadata.row_group(group).num_rows)
                start += rows
                if pc.any(wanted).as_py():
                    parts.append(parquet.select(file, ROWS, groups=[group]).filter(wanted))
    except ObjectNotFoundError:
        pass  # no night has ended yet
    found = pa.concat_tables(part.replace_schema_metadata(None) for part in parts)
    known = found.append_column("known", pc.invert(pc.fill_null(found["novel"], False)))
    order = [("known", "ascending"), ("confidence", "ascending"), ("image_key", "ascending")]
    return found.take(pc.sort_indices(known, sort_keys=order)).combine_chunks()


def _settled(rows: pa.Table, events: pa.Table) -> set[int]:
    """The places of the rows about whose image a person's word counts."""
    counting = corrections.latest(events)
    return set(_places(rows, IDENTITY, zip(*(counting[name].to_pylist() for name in IDENTITY), strict=True)).values())


def _skipped(rows: pa.Table, state: State) -> set[int]:
    """The places of the rows that were skipped."""
    return set(_places(rows, SUBJECT, (_identity(skip.subject) for skip in state.skipped)).values())


def _identity(subject: Subject) -> tuple[str, ...]:
    return tuple(getattr(subject, name) for name in SUBJECT)


def _places(rows: pa.Table, names: Sequence[str], values: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """The place of each row whose columns of these names, the first of which is the key, have one of the values."""
    wanted = set(values)
    keys = pa.array([value[0] for value in wanted], pa.string())
    places = pc.indices_nonzero(pc.is_in(rows["image_key"], keys))
    found = (tuple(row.values()) for row in rows.select(names).take(places).to_pylist())
    return {value: place for value, place in zip(found, places.to_pylist(), strict=True) if value in wanted}


def _change(store: Bucket, rows: pa.Table, change: Callable[[State], tuple[T, State]]) -> T:
    """Replace the state by what ``change`` makes of it, and return what else it gives.

    Leases that have ended, and skipped captions that are not among the rows any more, are removed.
    """
    for attempt in range(1, TRIES + 1):
        state, etag = _read_state(store)
        now = datetime.now(UTC)
        leases = {user: lease for user, lease in state.leases.items() if lease.until > now}
        known = _places(rows, SUBJECT, (_identity(skip.subject) for skip in state.skipped))
        skipped = tuple(skip for skip in state.skipped if _identity(skip.subject) in known)
        result, new = change(State(leases=leases, skipped=skipped))
        try:
            json.write(new, layout.REVIEW_STATE, store, if_match=etag)
        except ObjectChangedError:
            if attempt == TRIES:
                raise
        else:
            break
    return result


def _read_state(store: Bucket) -> tuple[State, str]:
    """The state and its etag; a damaged one counts as empty: what was skipped is then asked again."""
    try:
        state, etag = read_version(
            lambda etag: json.read(State, layout.REVIEW_STATE, store, etag=etag), layout.REVIEW_STATE, store
        )
    except DamagedObjectError as error:
        log.warning("%s", error)
        return State(), store.etag(layout.REVIEW_STATE)
    return state or State(), etag

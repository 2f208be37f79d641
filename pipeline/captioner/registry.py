"""The registry: the pointer to the champion, the model that captions the nights, and its history."""

import logging
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.errors import PipelineError
from pipeline.storage import ABSENT, Bucket, DamagedObjectError, json, layout

log = logging.getLogger(__name__)


class Promotion(BaseModel):
    """One entry of the champion's history."""

    model_config = ConfigDict(frozen=True)

    version: str
    promoted_at: AwareDatetime
    run: str = Field(description="of the retraining; empty if a person promoted the model by hand")
    reason: str


class Champion(BaseModel):
    """The pointer to the champion."""

    model_config = ConfigDict(frozen=True)

    version: str
    history: list[Promotion] = Field(description="every promotion that was not rolled back, the newest last")


def read_champion(store: Bucket) -> Champion:
    """The present champion. Raises ``PipelineError`` if no model has been promoted yet."""
    if (found := find_champion(store)) is None:
        has_models = any(layout.model_of_metadata(item.key) for item in store.list(layout.MODELS))
        by_hand = ", or promote a model that `captioning status` lists with `captioning promote VERSION`"
        raise PipelineError(
            f"No model has been promoted in {store.uri}: trigger a retraining{by_hand if has_models else ''}."
        )
    return found


def find_champion(store: Bucket) -> Champion | None:
    """The present champion, or None if no model has been promoted yet."""
    return _read(store)[0]


def promote(version: str, store: Bucket, *, run: str = "", reason: str = "by hand") -> Champion:
    """Make a model the champion, whatever its scores; ``run`` and ``reason`` go into the history.

    Raises:
        PipelineError: there is no such model.
        ObjectChangedError: another promotion happened at the same moment.
    """
    load_metadata(version, store)
    try:
        current, etag = _read(store)
    except DamagedObjectError as error:
        log.warning("%s The history of promotions is lost.", error)
        current, etag = None, store.etag(layout.CHAMPION)
    if current is not None and current.version == version:
        return current
    history = current.history if current else []
    promotion = Promotion(version=version, promoted_at=datetime.now(UTC), run=run, reason=reason)
    promoted = Champion(version=version, history=[*history, promotion])
    json.write(promoted, layout.CHAMPION, store, if_match=etag)
    return promoted


def roll_back(store: Bucket) -> Champion:
    """Make the previous champion the champion again. Raises ``PipelineError`` if there is none, or it was pruned."""
    current, etag = _read(store)
    if current is None or len(current.history) < 2:
        raise PipelineError(f"There is no earlier champion in {store.uri} to roll back to.")
    history = current.history[:-1]
    load_metadata(history[-1].version, store)
    previous = Champion(version=history[-1].version, history=history)
    json.write(previous, layout.CHAMPION, store, if_match=etag)
    return previous


def _read(store: Bucket) -> tuple[Champion | None, str]:
    etag = store.etag(layout.CHAMPION)
    if etag == ABSENT:
        return None, ABSENT
    advice = "`captioning promote VERSION` writes it again."
    return json.read(Champion, layout.CHAMPION, store, etag=etag, advice=advice), etag

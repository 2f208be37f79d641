"""The registry: the pointer to the champion, the model that captions the nights, and its history."""

import logging
import time
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import load_metadata
from pipeline.errors import PipelineError
from pipeline.storage import ABSENT, Bucket, DamagedObjectError, json, layout, signatures
from pipeline.storage.signatures import SignatureError

log = logging.getLogger(__name__)


class Promotion(BaseModel):
    """One entry of the champion's history."""

    model_config = ConfigDict(frozen=True)

    version: str
    promoted_at: AwareDatetime
    run: str = Field(description="of the retraining; empty if a person promoted the model by hand")
    reason: str


class Rollback(BaseModel):
    """A promotion that was taken back."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="the model that was the champion until then")
    rolled_back_at: AwareDatetime
    reason: str


class Champion(BaseModel):
    """The pointer to the champion."""

    model_config = ConfigDict(frozen=True)

    version: str
    history: list[Promotion] = Field(description="every promotion that was not rolled back, the newest last")
    counter: int = Field(0, description="grows with each change, so that an old pointer is not taken for the newest")
    rollbacks: list[Rollback] = Field([], description="the newest last")


class ChampionChangedError(PipelineError):
    """Another model has become the champion than the person had seen."""


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


def promote(
    version: str, store: Bucket, *, run: str = "", reason: str = "by hand", seen: str | None = None
) -> Champion:
    """Make a model the champion, whatever its scores; ``run`` and ``reason`` go into the history.

    Args:
        version: of the model.
        store: the store.
        run: of the retraining; empty for a person.
        reason: why.
        seen: version of the champion that the person saw, empty if there was none; None: whichever it is.

    Raises:
        PipelineError: there is no such model, or the pointer must be signed and there is no private key.
        ChampionChangedError: the champion is not the one that was ``seen``.
        SignatureError: the settings ask for signatures, and the model or the pointer has none of a trusted key.
        ObjectChangedError: another promotion happened at the same moment.
    """
    signatures.require_signing_key(f"promote {version}")
    load_metadata(version, store)
    try:
        current, etag = _read(store)
    except SignatureError:
        raise
    except DamagedObjectError as error:
        log.warning("%s The history of promotions is lost.", error)
        current, etag = None, store.etag(layout.CHAMPION)
    _require_seen(current, seen)
    if current is not None and current.version == version:
        return current
    history, rollbacks = (current.history, current.rollbacks) if current else ([], [])
    promotion = Promotion(version=version, promoted_at=datetime.now(UTC), run=run, reason=reason)
    promoted = Champion(version=version, history=[*history, promotion], rollbacks=rollbacks)
    return _write(promoted, current, store, etag)


def roll_back(store: Bucket, *, reason: str = "by hand", seen: str | None = None) -> Champion:
    """Make the previous champion the champion again.

    Args:
        store: the store.
        reason: why.
        seen: as for ``promote``.

    Raises:
        PipelineError: there is none, it was pruned, or the pointer must be signed and there is no private key.
        ChampionChangedError: the champion is not the one that was ``seen``.
        SignatureError: the settings ask for signatures, and that model or the pointer has none of a trusted key.
        ObjectChangedError: a promotion happened at the same moment.
    """
    signatures.require_signing_key("roll back the champion")
    current, etag = _read(store)
    _require_seen(current, seen)
    if current is None or len(current.history) < 2:
        raise PipelineError(f"There is no earlier champion in {store.uri} to roll back to.")
    history = current.history[:-1]
    load_metadata(history[-1].version, store)
    undone = Rollback(version=current.version, rolled_back_at=datetime.now(UTC), reason=reason)
    previous = Champion(version=history[-1].version, history=history, rollbacks=[*current.rollbacks, undone])
    return _write(previous, current, store, etag)


def sign_champion(store: Bucket) -> Champion | None:
    """Sign the pointer as it is, whoever wrote it, as the newest; None if no model has been promoted yet.

    Raises:
        PipelineError: no private key can be read.
        ObjectChangedError: a promotion happened at the same moment.
    """
    current, etag = _read(store, verify=False)
    return None if current is None else _write(current, current, store, etag)


def _require_seen(current: Champion | None, seen: str | None) -> None:
    now = current.version if current else ""
    if seen is not None and seen != now:
        raise ChampionChangedError(f"Nothing was changed: the champion is now {now or 'none'}. Look at it first.")


def _write(champion: Champion, previous: Champion | None, store: Bucket, etag: str) -> Champion:
    # The time is above every counter there has been, even if the store was restored from an old backup.
    counter = max(time.time_ns() // 1_000_000, previous.counter + 1 if previous else 0)
    champion = champion.model_copy(update={"counter": counter})
    signatures.put(layout.CHAMPION, json.dump(champion), store, if_match=etag)
    if signatures.is_verifying():
        signatures.check_counter(counter, 0, layout.CHAMPION, store)
    return champion


def _read(store: Bucket, *, verify: bool = True) -> tuple[Champion | None, str]:
    checks = verify and signatures.is_verifying()
    # Before the pointer is read: another process may see a newer one meanwhile.
    seen = signatures.highest_counter(layout.CHAMPION, store) if checks else 0
    etag = store.etag(layout.CHAMPION)
    found = None
    if etag != ABSENT:
        data = signatures.get(layout.CHAMPION, store, etag=etag, verify=verify)
        advice = "`captioning promote VERSION` writes it again."
        found = json.parse(Champion, data, store.url(layout.CHAMPION), advice=advice)
    if checks:
        signatures.check_counter(found.counter if found else 0, seen, layout.CHAMPION, store)
    return found, etag

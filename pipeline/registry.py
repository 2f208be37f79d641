"""The champion: which model captions the nights, and how another takes its place."""

import logging
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import runs
from pipeline.captioner import load_metadata
from pipeline.errors import PipelineError
from pipeline.evaluation import Metrics, cider_on, load_metrics
from pipeline.storage import ABSENT, Bucket, ObjectNotFoundError

log = logging.getLogger(__name__)

KIND = "retrain_captioner"

CHAMPION = "models/champion.json"


class Promotion(BaseModel):
    """One entry of the champion's history."""

    model_config = ConfigDict(frozen=True)

    version: str
    promoted_at: AwareDatetime
    run: str = Field(description="of the retraining; empty where it was promoted by hand")
    reason: str


class Champion(BaseModel):
    """The content of ``models/champion.json``."""

    model_config = ConfigDict(frozen=True)

    version: str
    history: list[Promotion] = Field(description="every promotion that was not taken back, the newest last")


class Policy(StrEnum):
    """What may happen to a candidate: the gate decides, a person does, or it stays one."""

    AUTO = "auto"
    APPROVE = "approve"
    NEVER = "never"


class Answer(BaseModel):
    """What a person has decided."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    by: str = Field(description="who it was")


class Decision(BaseModel):
    """Whether a candidate became the champion, and why."""

    model_config = ConfigDict(frozen=True)

    version: str
    promoted: bool
    reason: str
    scores: dict[str, float] = Field(description="on the test split, by their usual names")

    def __str__(self) -> str:
        return f"{self.version} {'is the new champion' if self.promoted else 'was not promoted'}: {self.reason}"


def champion(store: Bucket) -> Champion:
    """The present champion. Raises ``PipelineError`` where there is none yet."""
    if (found := _read(store)[0]) is None:
        raise PipelineError(
            f"No model has been promoted in {store.uri}: trigger retrain_captioner, or promote a model by hand with "
            "`python -m pipeline promote VERSION`."
        )
    return found


def consider(
    version: str,
    *,
    run: str,
    policy: Policy,
    tolerance: float,
    floor: float,
    store: Bucket,
    max_failed_fraction: float,
    answer: Answer | None = None,
) -> Decision:
    """Decide on a candidate, promote it if that is the decision, and write the retraining's record.

    With the policy ``approve`` the answer of a person decides. Otherwise the gate does, which it passes when its CIDEr
    is neither below ``floor`` nor below the champion's by more than ``tolerance``. Both are scored on the test split of
    the candidate's dataset, with the same search; a champion that was not evaluated so is scored again.

    Raises:
        PipelineError: it was not evaluated, or the policy asks for an answer and there is none.
    """
    metrics = load_metrics(version, store)
    cider = metrics.cider
    current, _ = _read(store)
    if policy is Policy.NEVER:
        promoted, reason = False, f"the policy is never; CIDEr {cider:.3f}"
    elif current is not None and current.history[-1].run == run and current.version == version:
        # This run has promoted it, and was interrupted before it could say so.
        promoted, reason = True, current.history[-1].reason
    elif policy is Policy.APPROVE:
        if answer is None:
            raise PipelineError("The policy approve needs the answer of a person: --promote or --keep, and --by.")
        promoted = answer.promote
        reason = f"{answer.by} has {'approved' if promoted else 'not approved'} it; CIDEr {cider:.3f}"
    elif cider < floor:
        promoted, reason = False, f"CIDEr {cider:.3f} is below the floor of {floor:.3f}"
    elif current is None:
        promoted, reason = True, f"the first champion, CIDEr {cider:.3f}"
    elif current.version == version:
        promoted, reason = False, f"it is the champion already, CIDEr {cider:.3f}"
    else:
        reference = champion_cider(current.version, metrics, store=store, max_failed_fraction=max_failed_fraction)
        promoted = cider >= reference - tolerance
        reason = (
            f"CIDEr {cider:.3f} against {reference:.3f} of the champion {current.version}, tolerance {tolerance:.3f}"
        )
    if promoted:
        promote(version, store, run=run, reason=reason)
    decision = Decision(version=version, promoted=promoted, reason=reason, scores=metrics.summary)
    log.info("%s", decision)
    record = {
        "kind": KIND,
        **decision.model_dump(),
        "dataset": metrics.dataset,
        **runs.extracted(run, store),
        "finished_at": datetime.now(UTC).isoformat(),
    }
    runs.finish(run, record, store)
    return decision


def promote(version: str, store: Bucket, *, run: str = "", reason: str = "by hand") -> Champion:
    """Make a model the champion, whatever its scores; ``run`` and ``reason`` are noted in the history.

    Raises:
        PipelineError: there is no such model.
        ObjectChangedError: somebody else promoted at the same moment.
    """
    load_metadata(version, store)
    current, etag = _read(store)
    if current is not None and current.version == version:
        return current
    history = current.history if current else []
    promotion = Promotion(version=version, promoted_at=datetime.now(UTC), run=run, reason=reason)
    promoted = Champion(version=version, history=[*history, promotion])
    store.put(CHAMPION, promoted.model_dump_json(indent=2).encode(), if_match=etag)
    return promoted


def roll_back(store: Bucket) -> Champion:
    """Give the place back to the champion before. Raises ``PipelineError`` where there was none or it was pruned."""
    current, etag = _read(store)
    if current is None or len(current.history) < 2:
        raise PipelineError(f"There is no earlier champion in {store.uri} to roll back to.")
    history = current.history[:-1]
    load_metadata(history[-1].version, store)
    previous = Champion(version=history[-1].version, history=history)
    store.put(CHAMPION, previous.model_dump_json(indent=2).encode(), if_match=etag)
    return previous


def champion_cider(version: str, candidate: Metrics, *, store: Bucket, max_failed_fraction: float) -> float:
    """The champion's CIDEr on what a candidate was evaluated on, as it was; scored anew where that is not known."""
    if (known := evaluated_alike(version, candidate, store)) is not None:
        return known.cider
    return cider_on(
        candidate.dataset, version, search=candidate.search, store=store, max_failed_fraction=max_failed_fraction
    )


def evaluated_alike(version: str, candidate: Metrics, store: Bucket) -> Metrics | None:
    """A model's metrics, where it was evaluated on the dataset and with the search that a candidate was."""
    try:
        known = load_metrics(version, store)
    except ObjectNotFoundError:  # promoted by hand, without an evaluation
        return None
    return known if (known.dataset, known.search) == (candidate.dataset, candidate.search) else None


def _read(store: Bucket) -> tuple[Champion | None, str]:
    etag = store.etag(CHAMPION)
    if etag == ABSENT:
        return None, ABSENT
    return Champion.model_validate_json(store.get(CHAMPION, etag=etag)), etag

"""The promotion gate: whether a candidate becomes the champion.

``decide_promotion`` is a pure function of scores and policy. ``run_gate`` reads the scores, promotes the candidate if
that is the decision, and writes the record of the retraining.
"""

import logging
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from pipeline.captioner import registry
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation.results import candidate_metrics, comparable_metrics
from pipeline.storage import Bucket, json, layout
from pipeline.work import runs
from pipeline.work.runs import RetrainingRecord

log = logging.getLogger(__name__)


class Policy(StrEnum):
    """Who decides on a candidate: the gate, a person, or nobody."""

    AUTO = "auto"
    APPROVE = "approve"
    NEVER = "never"


class Approval(BaseModel):
    """The decision of a person."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    by: str = Field(description="name of the person")


class GateConfig(BaseModel):
    """The rules of the gate."""

    model_config = ConfigDict(frozen=True)

    policy: Policy = Field(
        Policy.AUTO,
        description="auto: the gate decides by tolerance and floor; approve: a person decides; never: the model stays "
        "a candidate",
    )
    tolerance: float = Field(
        0.015, ge=0, description="how far a new champion's CIDEr may be below the current champion's"
    )
    floor: float = Field(0.1, ge=0, description="minimum CIDEr of a champion")


class Decision(BaseModel):
    """Whether a candidate becomes the champion, and why."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    reason: str


class ChampionScore(BaseModel):
    """The present champion and its score; ``cider`` is None if it was not evaluated as the candidate was."""

    model_config = ConfigDict(frozen=True)

    version: str
    cider: float | None


def decide_alone(version: str, cider: float, champion: str | None, config: GateConfig) -> Decision | None:
    """The decision on a candidate if it does not depend on the champion's score, otherwise None.

    Args:
        version: of the candidate.
        cider: of the candidate.
        champion: version of the present champion; None if there is none.
        config: the rules.
    """
    if config.policy is Policy.NEVER:
        return Decision(promoted=False, reason=f"the policy is never; CIDEr {cider:.3f}")
    if config.policy is Policy.APPROVE:
        return None
    if cider < config.floor:
        return Decision(promoted=False, reason=f"CIDEr {cider:.3f} is below the floor of {config.floor:.3f}")
    if champion is None:
        return Decision(promoted=True, reason=f"the first champion, CIDEr {cider:.3f}")
    if champion == version:
        return Decision(promoted=False, reason=f"it is the champion already, CIDEr {cider:.3f}")
    return None


def decide_promotion(
    version: str, cider: float, champion: ChampionScore | None, config: GateConfig, approval: Approval | None = None
) -> Decision:
    """Decide on a candidate.

    With the policy ``approve`` a person decides. Otherwise a candidate passes when its CIDEr is neither below the floor
    nor below the champion's by more than the tolerance.

    Args:
        version: of the candidate.
        cider: of the candidate.
        champion: the present champion, scored on the same test images with the same decoding; None if there is none.
        config: the rules.
        approval: the decision of a person, for the policy ``approve``.

    Raises:
        PipelineError: the decision of a person or the score of the champion is missing.
    """
    if config.policy is Policy.APPROVE:
        if approval is None:
            raise PipelineError("The policy approve needs the decision of a person: --promote or --keep, and --by.")
        verb = "approved" if approval.promote else "rejected"
        return Decision(promoted=approval.promote, reason=f"{approval.by} {verb} it; CIDEr {cider:.3f}")
    decision = decide_alone(version, cider, champion.version if champion else None, config)
    if decision is not None:
        return decision
    assert champion is not None  # noqa: S101 - for mypy: without a champion, the candidate is decided on alone
    if champion.cider is None:
        raise PipelineError(
            f"The champion {champion.version} was not evaluated on the test images of {version} with the same "
            f"decoding: run `captioning evaluate-champion {version}` first, with the same options for decoding."
        )
    return Decision(
        promoted=cider >= champion.cider - config.tolerance,
        reason=f"CIDEr {cider:.3f} against {champion.cider:.3f} of the champion {champion.version}, tolerance "
        f"{config.tolerance:.3f}",
    )


def run_gate(
    version: str,
    *,
    run: str,
    decoding: DecodingConfig,
    config: GateConfig,
    store: Bucket,
    approval: Approval | None = None,
) -> RetrainingRecord:
    """Decide on a candidate, promote it if it passes, and write the record of the retraining, which it returns.

    Both models are compared by their evaluations with this decoding on the candidate's test split.

    Raises:
        PipelineError: an evaluation of the candidate or the champion, or the decision of a person, is missing.
        ObjectChangedError: another promotion happened at the same moment.
    """
    metrics = candidate_metrics(version, decoding, store)
    champion = registry.find_champion(store)
    may_promote = config.policy is not Policy.NEVER
    if may_promote and champion is not None and champion.version == version and champion.history[-1].run == run:
        # This run promoted it before, and was interrupted or repeated.
        decision = Decision(promoted=True, reason=champion.history[-1].reason)
    else:
        score = None
        if champion is not None:
            theirs = comparable_metrics(champion.version, metrics, store)
            score = ChampionScore(version=champion.version, cider=None if theirs is None else theirs.cider)
        decision = decide_promotion(version, metrics.cider, score, config, approval)
        if decision.promoted:
            registry.promote(version, store, run=run, reason=decision.reason)
    record = _record(run, store)
    extracted, seconds = runs.extraction_stats(run, store)
    record = record.model_copy(
        update={
            **decision.model_dump(),
            "status": "succeeded",
            "message": "",
            "dataset": metrics.dataset,
            "version": version,
            "scores": metrics.summary,
            "extracted": extracted,
            "seconds": seconds,
            "finished_at": datetime.now(UTC),
        }
    )
    runs.write_record(record, store)
    log.info("%s", describe(record))
    return record


def describe(record: RetrainingRecord) -> str:
    """The decision in one line, with the cause of the retraining if no person started it."""
    decision = f"{record.version} {'is the new champion' if record.promoted else 'was not promoted'}: {record.reason}"
    return f"{decision}; started by {record.cause}" if record.cause else decision


def _record(run: str, store: Bucket) -> RetrainingRecord:
    """The record of this run, or a new one if it was not begun."""
    record = json.find(RetrainingRecord, layout.run_record(runs.RETRAINING, run), store)
    return record or RetrainingRecord(run=run, started_at=datetime.now(UTC))

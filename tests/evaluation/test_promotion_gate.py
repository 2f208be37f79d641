"""The promotion gate: the decision, and the promotion and record that follow from it."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.captioner.registry import find_champion, promote, read_champion
from pipeline.config import GREEDY
from pipeline.errors import PipelineError
from pipeline.evaluation.promotion_gate import (
    Approval,
    ChampionScore,
    GateConfig,
    Policy,
    decide_promotion,
    describe,
    run_gate,
)
from pipeline.storage import layout
from pipeline.work import runs
from pipeline.work.runs import RetrainingRecord
from tests.support.models import BEAM, DATASET, write_evaluation, write_model

OTHER = "other/0123456789abcdef"

AUTO, APPROVE, NEVER = (GateConfig(policy=policy) for policy in Policy)

CHAMPION = ChampionScore(version="v1", cider=0.4)


def candidate(version, store, *, cider=None, dataset=DATASET, decoding=BEAM):
    """Write a model and, if CIDEr is given, its evaluation."""
    write_model(version, store, dataset=dataset)
    if cider is not None:
        write_evaluation(version, store, cider=cider, dataset=dataset, decoding=decoding)


def gate(version, store, *, run="r", decoding=BEAM, config=AUTO, approval=None):
    """Run the gate."""
    return run_gate(version, run=run, decoding=decoding, config=config, store=store, approval=approval)


@pytest.mark.parametrize("champion", [None, CHAMPION, ChampionScore(version="v1", cider=None)])
@pytest.mark.parametrize("approval", [None, Approval(promote=True, by="Ada")])
def test_the_policy_never(champion, approval):
    """However good it is, and whatever a person said, a candidate is not promoted."""
    decision = decide_promotion("v2", 3.0, champion, NEVER, approval)
    assert (decision.promoted, decision.reason) == (False, "the policy is never; CIDEr 3.000")


@pytest.mark.parametrize("champion", [None, CHAMPION, ChampionScore(version="v1", cider=None)])
@pytest.mark.parametrize(("promoted", "verb"), [(True, "approved"), (False, "rejected")])
@pytest.mark.parametrize("cider", [0.01, 3.0])
def test_the_policy_approve(champion, promoted, verb, cider):
    """A person decides, and no score does; the reason names the person."""
    decision = decide_promotion("v2", cider, champion, APPROVE, Approval(promote=promoted, by="Ada"))
    assert (decision.promoted, decision.reason) == (promoted, f"Ada {verb} it; CIDEr {cider:.3f}")


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_nobody_has_decided(champion):
    """With the policy approve and no decision of a person, the error says which options are missing."""
    with pytest.raises(PipelineError, match="needs the decision of a person: --promote or --keep, and --by"):
        decide_promotion("v2", 3.0, champion, APPROVE)


@pytest.mark.parametrize("champion", [None, ChampionScore(version="v1", cider=0.05)])
@pytest.mark.parametrize(("cider", "promoted"), [(0.1, True), (0.0999, False)])
def test_the_floor(champion, cider, promoted):
    """A candidate at the floor passes, one below it does not, even if it is better than the champion."""
    decision = decide_promotion("v2", cider, champion, AUTO)
    assert decision.promoted is promoted
    assert promoted or decision.reason == "CIDEr 0.100 is below the floor of 0.100"


def test_the_first_champion():
    """Where there is no champion yet, a candidate above the floor becomes it."""
    decision = decide_promotion("v1", 0.4, None, AUTO)
    assert (decision.promoted, decision.reason) == (True, "the first champion, CIDEr 0.400")


@pytest.mark.parametrize(("cider", "promoted"), [(0.3751, True), (0.375, True), (0.3749, False), (0.5, True)])
def test_the_tolerance(cider, promoted):
    """A candidate may be below the champion by the tolerance and no more."""
    decision = decide_promotion("v2", cider, CHAMPION, GateConfig(tolerance=0.025))
    assert decision.promoted is promoted
    assert decision.reason == f"CIDEr {cider:.3f} against 0.400 of the champion v1, tolerance 0.025"


def test_the_champion_already():
    """A champion is not promoted again."""
    decision = decide_promotion("v1", 0.4, CHAMPION, AUTO)
    assert (decision.promoted, decision.reason) == (False, "it is the champion already, CIDEr 0.400")


def test_a_champion_without_a_score():
    """Without a score that can be compared there is no decision: the error says which command to run."""
    message = (
        "champion v1 was not evaluated on the test images of v2 with the same decoding: run .*evaluate-champion v2"
    )
    with pytest.raises(PipelineError, match=message):
        decide_promotion("v2", 0.4, ChampionScore(version="v1", cider=None), AUTO)


def test_invalid_rules():
    """Neither floor nor tolerance can be negative."""
    for rule in ({"floor": -0.1}, {"tolerance": -0.1}):
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            GateConfig(**rule)


def test_a_promotion_and_its_record(bucket):
    """The gate promotes a candidate that passes, and writes the record of the retraining."""
    candidate("v1", bucket, cider=0.4)
    record = gate("v1", bucket, run="manual__2026-01-02T03:04:05+00:00")
    assert describe(record) == "v1 is the new champion: the first champion, CIDEr 0.400"
    [entry] = read_champion(bucket).history
    assert (entry.version, entry.run, entry.reason) == ("v1", record.run, record.reason)
    assert bucket.exists("runs/retraining/manual__2026-01-02T03-04-05-00-00.json")
    assert list(runs.list_records(runs.RETRAINING, bucket)) == [record]
    assert timedelta(0) <= datetime.now(UTC) - record.finished_at < timedelta(minutes=5)
    assert record.model_dump(exclude={"started_at", "finished_at"}) == {
        "run": "manual__2026-01-02T03:04:05+00:00",
        "kind": "retraining",
        "status": "succeeded",
        "message": "",
        "cause": "",
        "dataset": DATASET,
        "encoder": "",
        "version": "v1",
        "promoted": True,
        "reason": "the first champion, CIDEr 0.400",
        "scores": {"BLEU-4": 0.2, "CIDEr": 0.4},
        "extracted": 0,
        "seconds": {},
    }


def test_the_record_that_began_is_completed(bucket):
    """The record keeps when the run began and which encoder it was asked for, and is no longer running or failed."""
    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    begun = RetrainingRecord(run="r", started_at=began, dataset="file:///photos", encoder="resnet50")
    runs.write_record(begun, bucket)
    runs.end_run(runs.RETRAINING, "r", "the power failed", bucket)
    candidate("v1", bucket, cider=0.4)
    gate("v1", bucket)
    record = runs.read_record(runs.RETRAINING, "r", bucket)
    assert (record.started_at, record.encoder, record.dataset) == (began, "resnet50", DATASET)
    assert (record.status, record.message) == ("succeeded", "")


def test_a_candidate_that_is_not_promoted(bucket):
    """The champion stays, and the record says why, with the candidate's scores."""
    candidate("v1", bucket, cider=0.4)
    candidate("v2", bucket, cider=0.3)
    gate("v1", bucket)
    before = read_champion(bucket)
    record = gate("v2", bucket, run="r2")
    line = "v2 was not promoted: CIDEr 0.300 against 0.400 of the champion v1, tolerance 0.015"
    assert describe(record) == line
    assert describe(record.model_copy(update={"cause": "12 corrections"})) == f"{line}; started by 12 corrections"
    assert read_champion(bucket) == before
    assert (record.status, record.promoted, record.scores["CIDEr"]) == ("succeeded", False, 0.3)
    assert next(runs.list_records(runs.RETRAINING, bucket)) == record


def test_the_decision_of_a_person(bucket):
    """History and record say who approved a candidate; a rejected one leaves the champion as it was."""
    candidate("v1", bucket, cider=0.4)
    gate("v1", bucket)
    candidate("v2", bucket, cider=0.01)
    rejected = gate("v2", bucket, run="r2", config=APPROVE, approval=Approval(promote=False, by="Ada"))
    assert (rejected.promoted, rejected.reason) == (False, "Ada rejected it; CIDEr 0.010")
    assert read_champion(bucket).version == "v1"
    approved = gate("v2", bucket, run="r3", config=APPROVE, approval=Approval(promote=True, by="Ada"))
    assert (approved.promoted, approved.reason) == (True, "Ada approved it; CIDEr 0.010")
    assert read_champion(bucket).history[-1].reason == approved.reason


def test_without_a_decision_nothing_is_promoted(bucket):
    """An error of the gate leaves the champion as it is, and writes no record."""
    candidate("v1", bucket, cider=0.4)
    with pytest.raises(PipelineError, match="needs the decision of a person"):
        gate("v1", bucket, config=APPROVE)
    assert not bucket.exists(layout.CHAMPION)
    assert list(runs.list_records(runs.RETRAINING, bucket)) == []


@pytest.mark.parametrize("earlier", [None, 0.3])
def test_an_interrupted_gate_gives_the_same_answer_again(bucket, monkeypatch, earlier):
    """If the process dies between the promotion and its record, a retry of the run reports the promotion."""
    if earlier is not None:
        candidate("v0", bucket, cider=earlier)
        gate("v0", bucket, run="r0")
    candidate("v1", bucket, cider=0.4)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_record", die)
        with pytest.raises(KeyboardInterrupt):
            gate("v1", bucket)
    champion = read_champion(bucket)
    assert champion.version == "v1"
    record = gate("v1", bucket)
    assert record.promoted
    assert "CIDEr 0.400" in record.reason
    assert read_champion(bucket) == champion
    assert next(runs.list_records(runs.RETRAINING, bucket)) == record
    assert gate("v1", bucket, run="another").promoted is False
    assert gate("v1", bucket, config=NEVER).promoted is False


def test_the_champion_again(bucket):
    """Another run that trains the champion again leaves it as it is, and its history does not grow."""
    candidate("v1", bucket, cider=0.4)
    gate("v1", bucket)
    before = read_champion(bucket)
    record = gate("v1", bucket, run="another")
    assert (record.promoted, record.reason) == (False, "it is the champion already, CIDEr 0.400")
    assert read_champion(bucket) == before


@pytest.mark.parametrize(
    "theirs",
    [{"cider": 9.0, "dataset": OTHER}, {"cider": 9.0, "decoding": GREEDY}, {"cider": None}],
    ids=["another dataset", "another decoding", "not evaluated"],
)
@pytest.mark.parametrize(("reference", "promoted"), [(0.41, True), (0.42, False)])
def test_the_champion_must_be_evaluated_as_the_candidate(bucket, theirs, reference, promoted):
    """Its other scores do not count: the gate is an error until it is evaluated on the same images in the same way."""
    candidate("v1", bucket, **theirs)
    promote("v1", bucket)
    candidate("v2", bucket, cider=0.4)
    with pytest.raises(PipelineError, match="captioning evaluate-champion v2"):
        gate("v2", bucket)
    assert read_champion(bucket).version == "v1"
    write_evaluation("v1", bucket, cider=reference)
    record = gate("v2", bucket)
    assert record.promoted is promoted
    assert f"against {reference:.3f} of the champion v1" in record.reason


def test_the_gate_reads_the_evaluation_with_its_decoding(bucket):
    """Where a model was evaluated with several decodings, the one that was asked for counts, for both models."""
    for version, beam, greedy in (("v1", 0.4, 0.2), ("v2", 0.3, 0.25)):
        candidate(version, bucket, cider=beam)
        write_evaluation(version, bucket, cider=greedy, decoding=GREEDY)
    promote("v1", bucket)
    assert gate("v2", bucket).reason.startswith("CIDEr 0.300 against 0.400")
    assert read_champion(bucket).version == "v1"
    assert gate("v2", bucket, run="r2", decoding=GREEDY).reason.startswith("CIDEr 0.250 against 0.200")
    assert read_champion(bucket).version == "v2"


@pytest.mark.parametrize(
    "other", [{}, {"decoding": GREEDY}, {"dataset": OTHER}], ids=["no", "another decoding", "another dataset"]
)
def test_a_candidate_without_evaluation(bucket, other):
    """The error says which command evaluates it; nothing is promoted or recorded."""
    candidate("v1", bucket)
    if other:
        write_evaluation("v1", bucket, cider=0.4, **other)
    command = "captioning evaluate v1 --beam-width 3 --mbr-samples 0 --neighbours 20"
    with pytest.raises(PipelineError, match=f"v1 was not evaluated with beam 3, 20 neighbours: run `{command}` first"):
        gate("v1", bucket)
    assert find_champion(bucket) is None
    assert list(runs.list_records(runs.RETRAINING, bucket)) == []


def test_an_unknown_candidate(bucket):
    """The error says where models are listed."""
    with pytest.raises(PipelineError, match=r"no model 'v9'.*`captioning status`"):
        gate("v9", bucket)

"""The champion: the gate, promotion by hand, and the way back."""

from datetime import UTC, datetime, timedelta

import pytest
from toy import RECIPE

from pipeline import registry, runs
from pipeline.captioner import Metadata
from pipeline.errors import PipelineError
from pipeline.evaluation import Metrics
from pipeline.metrics import Agreement, Diversity, Scores
from pipeline.recipe import GREEDY, Search
from pipeline.registry import CHAMPION, Answer, Policy, champion, consider, promote, roll_back
from pipeline.storage import ABSENT, ObjectChangedError, ObjectNotFoundError

DATASET = "file:///data/dataset.parquet"
BEAM = Search(beam_width=3)


def candidate(version, store, *, cider=None, dataset=DATASET, search=BEAM):
    """Write down a model and, where CIDEr is given, its evaluation."""
    now = datetime.now(UTC)
    metadata = Metadata(
        version=version,
        created_at=now,
        encoder_id="encoder-1",
        dataset=dataset,
        max_length=9,
        recipe=RECIPE,
        members=[],
        files={},
    )
    store.put(f"models/{version}/metadata.json", metadata.model_dump_json().encode())
    if cider is not None:
        # Greedy search does better here, so that whoever read its scores would be found out.
        scores = {
            search: Scores(tokenizer="builtin", corpus={"BLEU-4": 0.2, "CIDEr": value}, intervals={}, image_cider={})
            for search, value in (("greedy", cider + 5), ("chosen", cider))
        }
        varied = Diversity(
            captions=4,
            distinct_captions=1,
            novel_captions=1,
            ends_in_function_word=0,
            words=5,
            vocabulary_used=1,
            mean_length=3,
        )
        metrics = Metrics(
            version=version,
            dataset=dataset,
            images=4,
            search=search,
            evaluated_at=now,
            scores=scores,
            agreement=Agreement(images=0, images_left_out=4, people={}, captioner={}),
            by_length=[],
            errors={},
            diversity=dict.fromkeys(scores, varied),
        )
        store.put(f"models/{version}/metrics.json", metrics.model_dump_json().encode())


def decide(version, store, **changes):
    """Let the gate decide with the usual settings."""
    settings = {"run": "r", "policy": Policy.AUTO, "tolerance": 0.015, "floor": 0.1}
    return consider(version, **{**settings, **changes}, store=store, max_failed_fraction=0.05)


def test_the_first_champion(bucket):
    """Where there is no champion yet, a candidate above the floor becomes it, and the run's record says so."""
    candidate("v1", bucket, cider=0.4)
    decision = decide("v1", bucket, run="manual__2026-01-02T03:04:05+00:00")
    assert (decision.version, decision.promoted) == ("v1", True)
    assert decision.reason == "the first champion, CIDEr 0.400"
    assert champion(bucket).version == "v1"
    assert bucket.exists("runs/manual__2026-01-02T03-04-05-00-00.json")
    [record] = runs.finished(registry.KIND, bucket)
    finished_at = datetime.fromisoformat(record.pop("finished_at"))
    assert timedelta(0) <= datetime.now(UTC) - finished_at < timedelta(minutes=5)
    assert record == {
        "run": "manual__2026-01-02T03:04:05+00:00",
        "kind": "retrain_captioner",
        **decision.model_dump(),
        "dataset": DATASET,
        "extracted": 0,
        "seconds": {},
        "scores": {"BLEU-4": 0.2, "CIDEr": 0.4},
    }


@pytest.mark.parametrize(("cider", "promoted"), [(0.1, True), (0.0999, False)])
def test_the_floor(bucket, cider, promoted):
    """A candidate at the floor passes, one below it does not, even where there is nothing else."""
    candidate("v1", bucket, cider=cider)
    decision = decide("v1", bucket)
    assert decision.promoted is promoted
    assert bucket.exists(CHAMPION) is promoted
    assert promoted or decision.reason == "CIDEr 0.100 is below the floor of 0.100"


@pytest.mark.parametrize(("cider", "promoted"), [(0.3751, True), (0.3749, False), (0.5, True)])
def test_the_tolerance(bucket, cider, promoted):
    """A candidate may lie below the champion by the tolerance and no more."""
    candidate("v1", bucket, cider=0.4)
    candidate("v2", bucket, cider=cider)
    decide("v1", bucket)
    decision = decide("v2", bucket, tolerance=0.025)
    assert decision.promoted is promoted
    assert decision.reason == f"CIDEr {cider:.3f} against 0.400 of the champion v1, tolerance 0.025"
    assert champion(bucket).version == ("v2" if promoted else "v1")
    assert next(runs.finished(registry.KIND, bucket))["promoted"] is promoted


@pytest.mark.parametrize("earlier", [None, 0.3])
def test_a_gate_that_was_interrupted_says_the_same_again(bucket, monkeypatch, earlier):
    """Where the process died between the promotion and its record, the same run's retry tells of the promotion."""
    if earlier is not None:
        candidate("v0", bucket, cider=earlier)
        decide("v0", bucket, run="r0")
    candidate("v1", bucket, cider=0.4)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            decide("v1", bucket)
    assert champion(bucket).version == "v1"
    decision = decide("v1", bucket)
    assert decision.promoted
    assert "CIDEr 0.400" in decision.reason
    assert next(runs.finished(registry.KIND, bucket))["reason"] == decision.reason
    assert decide("v1", bucket, run="another").promoted is False


def test_the_policy_never(bucket):
    """However good, a candidate stays one where the policy says so, and the record still tells its scores."""
    candidate("v1", bucket, cider=3.0)
    decision = decide("v1", bucket, policy=Policy.NEVER)
    assert (decision.promoted, decision.reason) == (False, "the policy is never; CIDEr 3.000")
    assert not bucket.exists(CHAMPION)
    assert next(runs.finished(registry.KIND, bucket))["scores"]["CIDEr"] == 3.0


@pytest.mark.parametrize(("said", "promoted"), [(True, True), (False, False)])
def test_a_person_decides(bucket, said, promoted):
    """With the policy approve the answer counts, and no score; history and record say whose it was."""
    candidate("v1", bucket, cider=0.4)
    decide("v1", bucket)
    candidate("v2", bucket, cider=0.01)
    decision = decide("v2", bucket, run="r2", policy=Policy.APPROVE, answer=Answer(promote=said, by="Ada"))
    assert decision.promoted is promoted
    assert decision.reason == f"Ada has {'approved' if said else 'not approved'} it; CIDEr 0.010"
    assert champion(bucket).version == ("v2" if promoted else "v1")
    assert champion(bucket).history[-1].reason == (decision.reason if promoted else "the first champion, CIDEr 0.400")


def test_nobody_has_decided(bucket):
    """With the policy approve and no answer, nothing is promoted, and the error says what is missing."""
    candidate("v1", bucket, cider=0.4)
    with pytest.raises(PipelineError, match="needs the answer of a person"):
        decide("v1", bucket, policy=Policy.APPROVE)
    assert not bucket.exists(CHAMPION)


def test_the_champion_again(bucket):
    """A champion that another run considers again stays, and its history does not grow."""
    candidate("v1", bucket, cider=0.4)
    decide("v1", bucket)
    before = champion(bucket)
    decision = decide("v1", bucket, run="another")
    assert (decision.promoted, decision.reason) == (False, "it is the champion already, CIDEr 0.400")
    assert champion(bucket) == before


@pytest.mark.parametrize(
    "theirs",
    [
        {"cider": 9.0, "dataset": "file:///data/other.parquet"},
        {"cider": 9.0, "search": GREEDY},
        {"cider": None},
    ],
    ids=["another dataset", "another search", "not evaluated"],
)
@pytest.mark.parametrize(("reference", "promoted"), [(0.41, True), (0.42, False)])
def test_a_champion_whose_score_does_not_compare_is_scored_again(bucket, monkeypatch, theirs, reference, promoted):
    """A champion not evaluated as the candidate was is scored on the candidate's dataset, with its search."""
    candidate("v1", bucket, **theirs)
    promote("v1", bucket)
    candidate("v2", bucket, cider=0.4)
    asked = []
    monkeypatch.setattr(registry, "cider_on", lambda *args, **kwargs: asked.append((args, kwargs)) or reference)
    decision = decide("v2", bucket)
    settings = {"search": BEAM, "store": bucket, "max_failed_fraction": 0.05}
    assert asked == [((DATASET, "v1"), settings)]
    assert decision.promoted is promoted
    assert f"against {reference:.3f} of the champion v1" in decision.reason


def test_a_champion_evaluated_alike_is_not_scored_again(bucket, monkeypatch):
    """Scores of the same dataset and search are compared as they are."""
    monkeypatch.setattr(registry, "cider_on", lambda *_, **__: pytest.fail("scored again"))
    candidate("v1", bucket, cider=0.4)
    candidate("v2", bucket, cider=0.4)
    decide("v1", bucket)
    assert decide("v2", bucket).promoted


def test_a_candidate_without_evaluation_is_an_error(bucket):
    """The gate can't decide on a model that was not evaluated."""
    candidate("v1", bucket)
    with pytest.raises(ObjectNotFoundError, match=r"models/v1/metrics\.json"):
        decide("v1", bucket)


def test_promotion_by_hand(bucket):
    """Any model of the store may be made champion, whatever its scores; again, it changes nothing."""
    for version, cider in (("v1", 0.4), ("v2", 0.01)):
        candidate(version, bucket, cider=cider)
        assert promote(version, bucket).version == version
    assert champion(bucket).version == "v2"
    assert [entry.version for entry in champion(bucket).history] == ["v1", "v2"]
    before = champion(bucket)
    assert promote("v2", bucket) == before
    assert champion(bucket) == before


def test_an_unknown_version_is_not_promoted(bucket):
    """Promoting what is no model is an error that tells where models are listed, and changes nothing."""
    with pytest.raises(PipelineError, match=r"no model 'v9'.*python -m pipeline status"):
        promote("v9", bucket)
    assert not bucket.exists(CHAMPION)


def test_no_champion_is_an_error(bucket):
    """Asking for the champion of an empty store says how to get one."""
    with pytest.raises(PipelineError, match=r"trigger retrain_captioner, or .*python -m pipeline promote VERSION"):
        champion(bucket)


def test_rollback(bucket):
    """The place goes back step by step to the champions before, and what was taken back can be promoted again."""
    for version in ("v1", "v2", "v3"):
        candidate(version, bucket)
        promote(version, bucket)
    assert roll_back(bucket).version == "v2"
    assert roll_back(bucket).version == "v1"
    assert champion(bucket).version == "v1"
    promote("v3", bucket)
    assert [entry.version for entry in champion(bucket).history] == ["v1", "v3"]
    assert roll_back(bucket).version == "v1"


def test_nothing_to_roll_back_to(bucket):
    """Without a champion, and with the first one, there is no way back, and nothing changes."""
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(bucket)
    candidate("v1", bucket)
    promote("v1", bucket)
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(bucket)
    assert champion(bucket).version == "v1"


@pytest.mark.parametrize(
    ("earlier", "act"),
    [
        ([], lambda store: promote("v1", store)),
        (["v3", "v0"], lambda store: promote("v1", store)),
        (["v3", "v0"], roll_back),
    ],
    ids=["first promotion", "later promotion", "rollback"],
)
def test_of_two_at_once_one_is_refused(bucket, monkeypatch, earlier, act):
    """Whoever writes second, having read the same champion, gets an error, and the first one's stays."""
    for version in ("v0", "v1", "v2", "v3"):
        candidate(version, bucket)
    for version in earlier:
        promote(version, bucket)
    read = registry._read

    def read_and_lose(store):
        found = read(store)
        assert (found[1] == ABSENT) is not bool(earlier)
        monkeypatch.setattr(registry, "_read", read)
        promote("v2", store)
        return found

    monkeypatch.setattr(registry, "_read", read_and_lose)
    with pytest.raises(ObjectChangedError, match=r"champion\.json was written or removed meanwhile"):
        act(bucket)
    assert champion(bucket).version == "v2"

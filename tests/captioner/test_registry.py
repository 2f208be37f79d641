"""The registry: promotion, the champion, and the way back."""

import subprocess
import sys

import pytest

from pipeline.captioner import registry
from pipeline.captioner.registry import ChampionChangedError, find_champion, promote, read_champion, roll_back
from pipeline.errors import PipelineError
from pipeline.storage import ABSENT, ObjectChangedError
from pipeline.storage.layout import CHAMPION
from tests.support.models import write_model
from tests.support.paths import PROJECT


def test_any_model_can_be_promoted(bucket):
    """A promotion changes the champion and extends the history; repeated, it changes nothing."""
    for version in ("v1", "v2"):
        write_model(version, bucket)
        assert promote(version, bucket).version == version
    champion = read_champion(bucket)
    assert champion.version == "v2"
    assert [(entry.version, entry.run, entry.reason) for entry in champion.history] == [
        ("v1", "", "by hand"),
        ("v2", "", "by hand"),
    ]
    assert promote("v2", bucket) == champion
    assert read_champion(bucket) == champion


def test_run_and_reason_are_in_the_history(bucket):
    """They say which retraining promoted a model, and why."""
    write_model("v1", bucket)
    promote("v1", bucket, run="r1", reason="the first champion")
    [entry] = read_champion(bucket).history
    assert (entry.version, entry.run, entry.reason) == ("v1", "r1", "the first champion")


def test_an_unknown_version_is_not_promoted(bucket):
    """The error says where models are listed, and nothing changes."""
    with pytest.raises(PipelineError, match=r"no model 'v9'.*`captioning status`"):
        promote("v9", bucket)
    assert not bucket.exists(CHAMPION)


def test_no_champion(bucket):
    """In an empty store there is none; the error of those who need one says how to get it."""
    assert find_champion(bucket) is None
    with pytest.raises(PipelineError, match=r"No model has been promoted in .*: trigger a retraining\."):
        read_champion(bucket)


def test_rollback(bucket):
    """A rollback returns to the champion before, step by step, and the one that it replaced can be promoted again."""
    for version in ("v1", "v2", "v3"):
        write_model(version, bucket)
        promote(version, bucket)
    assert roll_back(bucket).version == "v2"
    assert roll_back(bucket).version == "v1"
    assert read_champion(bucket).version == "v1"
    promote("v3", bucket)
    assert [entry.version for entry in read_champion(bucket).history] == ["v1", "v3"]
    assert roll_back(bucket).version == "v1"


def test_rollbacks_are_kept_with_their_reason(bucket):
    """They say which champion was taken back, when and why, also after the next promotion."""
    for version in ("v1", "v2"):
        write_model(version, bucket)
        promote(version, bucket)
    roll_back(bucket, reason="ann rolled it back: it repeats itself")
    promote("v2", bucket, reason="ann promoted it: mended")
    champion = read_champion(bucket)
    [entry] = champion.rollbacks
    assert (entry.version, entry.reason) == ("v2", "ann rolled it back: it repeats itself")
    assert champion.history[0].promoted_at < entry.rolled_back_at < champion.history[1].promoted_at
    assert roll_back(bucket).rollbacks[1].reason == "by hand"


def test_a_change_of_another_champion_is_refused(bucket):
    """Whoever has seen another champion, or none, changes nothing, and learns which one it is."""
    for version in ("v1", "v2", "v3"):
        write_model(version, bucket)
    assert promote("v1", bucket, seen="").version == "v1"
    assert promote("v2", bucket, seen="v1").version == "v2"
    for seen in ("", "v1"):
        for act in (lambda seen=seen: promote("v3", bucket, seen=seen), lambda seen=seen: roll_back(bucket, seen=seen)):
            with pytest.raises(ChampionChangedError, match="Nothing was changed: the champion is now v2"):
                act()
    assert read_champion(bucket).version == "v2"
    assert roll_back(bucket, seen="v2").version == "v1"


def test_nothing_to_roll_back_to(bucket):
    """Without a champion, and with the first one, a rollback is an error, and nothing changes."""
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(bucket)
    write_model("v1", bucket)
    promote("v1", bucket)
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(bucket)
    assert read_champion(bucket).version == "v1"


@pytest.mark.parametrize(
    ("earlier", "act"),
    [
        ([], lambda store: promote("v1", store)),
        (["v3", "v0"], lambda store: promote("v1", store)),
        (["v3", "v0"], roll_back),
    ],
    ids=["first promotion", "later promotion", "rollback"],
)
def test_of_two_concurrent_changes_one_is_refused(bucket, monkeypatch, earlier, act):
    """The second writer that has read the same champion gets an error, and the champion of the first one stays."""
    for version in ("v0", "v1", "v2", "v3"):
        write_model(version, bucket)
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
    with pytest.raises(ObjectChangedError, match=r"champion\.json was written or removed in the meantime"):
        act(bucket)
    assert read_champion(bucket).version == "v2"


def test_reading_the_champion_loads_no_evaluation():
    """The pointer is apart from the gate: its reader imports neither scores nor the report nor Keras."""
    code = "import sys, pipeline.captioner.registry; print(*sorted(sys.modules))"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split()
    heavy = [
        name
        for name in loaded
        if name.startswith(("pipeline.evaluation", "pipeline.metrics", "pipeline.features"))
        or name in ("keras", "tensorflow", "numpy", "pyarrow", "jinja2", "pycocoevalcap")
    ]
    assert heavy == []

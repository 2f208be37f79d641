"""Commands are killed at their writes and at any moment; done again, the store is as if nothing had happened.

An object is written in five steps. `make test-kills` kills a command at every third step, or sixth where it is slow: so
at the objects that it writes, and at each kind of step. `make stress` kills at every step, and on S3, too.
"""

import random
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.captioner import registry
from pipeline.storage import layout, open_bucket
from tests.support import toy
from tests.support.effort import STRESS
from tests.support.kills import (
    World,
    assert_same,
    assert_whole,
    caption_rows,
    contents,
    killed_after,
    killed_at_every_write,
    play,
    run,
)

OFTEN, RARELY = (1, 1) if STRESS else (3, 6)
"""Write points from one kill to the next, the second where a command is slow. An object has five, with a lock six."""

KILLS: Counter[str] = Counter()
"""How many there were, by command; the last test counts them."""

CONFIG = [f"--set={name}={value}" for name, value in (toy.CONFIG.model_dump() | {"epochs": 2}).items()]


@pytest.fixture
def world(new_bucket, tmp_path, trained):
    """An inbox of four photographs, one of them damaged, and a store with a champion; shards are small."""
    world = World(
        new_bucket(), new_bucket(), tmp_path, {"CAPTION_SHARD_SIZE": "2", "CAPTION_MAX_FAILED_FRACTION": "0.5"}
    )
    toy.copy(trained.store, world.store, "models/", "encoders/")
    registry.promote(trained.model.version, world.store)
    for seed, colour in enumerate(("red", "green", "blue")):
        world.inbox.put(f"{colour}.jpg", toy.picture(colour, seed))
    world.inbox.put("broken.jpg", b"")
    return world


@pytest.fixture
def empty(tmp_path, new_bucket):
    """A store with nothing in it."""
    return World(new_bucket(), new_bucket(), tmp_path)


pytestmark = pytest.mark.kills

LOCAL = pytest.mark.parametrize("new_bucket", ["file"], indirect=True)


def night(world, run="n1", date="2026-01-02"):
    """All steps of a night."""
    yield world.command("night", "list", run)
    for shard in (yield world.command("night", "plan-extraction", run)).result():
        (yield world.command("extract", shard)).result()
    for shard in (yield world.command("night", "plan-captions", run, "--date", date)).result():
        (yield world.command("night", "caption", shard)).result()
    return (yield world.command("night", "reconcile", run)).result()


def retraining(world, source, encoder, *, seed=0, run="r1"):
    """All steps of a retraining."""
    resolve = world.command("resolve-inputs", run, "--dataset", source, "--encoder", encoder)
    inputs = (yield resolve).result()
    dataset = (yield world.command("ingest", *inputs["sources"])).result()["dataset"]
    vocabulary = (yield world.command("vocabulary", dataset, "--min-count", "1")).result()["vocabulary"]
    encoder_id = (yield world.command("register-encoder", inputs["encoder"])).result()["encoder_id"]
    for shard in (yield world.command("plan-extraction", dataset, encoder_id, "--run", run)).result():
        (yield world.command("extract", shard)).result()
    command = world.command("train", dataset, vocabulary, encoder_id, *CONFIG, f"--set=seed={seed}")
    version = (yield command).result()["version"]
    (yield world.command("evaluate", version, "--beam-width", "2")).result()
    (yield world.command("evaluate-champion", version, "--beam-width", "2", "--floor", "0")).result()
    limits = ("--floor", "0", "--tolerance", "9")
    return (yield world.command("gate", version, "--beam-width", "2", "--run", run, *limits)).result()


def only(script, *names, other, tally, world, every=OFTEN):
    """A script of which only some commands are killed at their writes: those of these names, or all others."""

    def one(command):
        return (yield command)

    done = None
    while True:
        try:
            command = script.send(done)
        except StopIteration as end:
            return end.value
        name = command.arguments[1] if command.arguments[0] == "night" else command.arguments[0]
        if (name in names) != other:
            done = yield from killed_at_every_write(world, one(command), tally, every=every)
        else:
            done = yield command


def counts(record):
    """The numbers of a night's record."""
    return tuple(record[name] for name in ("listed", "captioned", "failed", "already_done"))


def test_a_night_killed_at_its_writes(world):
    """Listing, planning, extraction, captioning, sidecars and the count, killed at their writes in turn."""
    world.settings["CAPTION_SIDECARS"] = "store"
    [record] = play(only(night(world), other=True, tally=KILLS, world=world))
    assert counts(record) == (4, 3, 1, 0)
    assert len(caption_rows(world.store)) == 4


def test_a_retraining_killed_at_its_writes(empty, tmp_path, toy_encoder):
    """All steps are killed at their writes in turn."""
    source = toy.draw(open_bucket(str(tmp_path / "source")))
    script = retraining(empty, source, str(toy_encoder))
    slow = ("register-encoder", "extract", "train", "evaluate")
    quick = only(script, *slow, other=True, tally=KILLS, world=empty)
    [decision] = play(only(quick, *slow, other=False, tally=KILLS, world=empty, every=RARELY))
    assert decision["promoted"]
    assert registry.read_champion(empty.store).version == decision["version"]


@LOCAL
def test_promotion_and_rollback_killed_at_every_write(world, trained):
    """The champion is the old one or the new one, whole, and the history is that of an undisturbed promotion."""
    old, new = trained.model.version, "v2"
    metadata = trained.model.model_copy(update={"version": new})
    world.store.put(layout.model_metadata(new), metadata.model_dump_json().encode())

    def script():
        yield world.command("promote", new)
        assert registry.read_champion(world.store).version == new
        yield world.command("rollback")
        yield world.command("promote", new)

    # The rollback is not killed: one that was done and is done again goes one further back.
    play(only(script(), "promote", other=False, tally=KILLS, world=world, every=1))
    assert [promotion.version for promotion in registry.read_champion(world.store).history] == [old, new]


@pytest.mark.parametrize("seed", range(40 if STRESS else 3))
def test_a_night_killed_at_random(world, seed):
    """Killed at any moment, again and again, and begun anew under the same name or another, a night ends whole."""
    rng = random.Random(seed)
    before = world.snapshot()
    undisturbed = played(world, night(world))
    expected = rows_and_features(contents(world.store))
    world.restore(before)
    kills = 0
    for attempt in range(15):
        name = "n1" if rng.random() < 0.5 else f"n{attempt}"
        [killed] = play(killed_after(night(world, name, f"2026-01-0{1 + attempt % 9}"), rng.uniform(0, undisturbed)))
        kills += killed
        assert_whole(world)
    KILLS["random"] += kills
    [record] = play(night(world, "last"))
    assert record["listed"] == record["captioned"] + record["failed"] + record["already_done"] == 4
    assert rows_and_features(contents(world.store)) == expected


def played(world, script):
    """The seconds that a script's commands take together."""
    total, done = 0.0, None
    while True:
        try:
            done = run(script.send(done))
        except StopIteration:
            return total
        total += done.seconds


def rows_and_features(found):
    """The results of nights, whichever night made them: rows of captions, and features."""
    return found["captions"], found["features"]


@LOCAL
def test_two_nights_at_the_same_time(world):
    """Side by side on an inbox that grows, two nights caption each photograph once, and each counts to the end."""

    def late():
        world.inbox.put("yellow.jpg", toy.picture("yellow", 5))
        return (yield from night(world, "n2", "2026-01-03"))

    records = play(night(world, "n1"), late())
    assert_whole(world)
    assert sorted(row["image_key"] for row in caption_rows(world.store)) == [
        "blue.jpg",
        "broken.jpg",
        "green.jpg",
        "red.jpg",
        "yellow.jpg",
    ]
    for record in records:
        assert record["listed"] == record["captioned"] + record["failed"] + record["already_done"]


@LOCAL
def test_a_night_during_a_retraining_and_a_promotion(world, tmp_path, toy_encoder):
    """A night that runs beside a retraining stays with the champion that it began with; the next one takes the new."""
    source = toy.draw(open_bucket(str(tmp_path / "source")))
    old = registry.read_champion(world.store).version
    decision, record = play(retraining(world, source, str(toy_encoder), seed=3), night(world))
    assert decision["promoted"]
    assert (record["version"], counts(record)) == (old, (4, 3, 1, 0))
    assert_whole(world)
    [record] = play(night(world, "n2", "2026-01-03"))
    assert (record["version"], counts(record), record["extracted"]) == (decision["version"], (4, 3, 1, 0), 0)
    assert len(caption_rows(world.store)) == 8
    assert_whole(world)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def room_made(world, script, fill, make_room):
    """A script of which each command first meets a full disk, and is repeated when there is room."""
    done = None
    while True:
        try:
            command = script.send(done)
        except StopIteration as end:
            return end.value
        fill()
        full = yield command
        assert full.status == 1, full.log
        assert "No space left on device" in full.log
        assert "while accessing file:///" in full.log
        assert_whole(world)
        make_room()
        done = yield command
        done.result()


@LOCAL
def test_a_full_disk(world, small_disk):
    """Each step fails with the name of the object, none leaves half of one, and with room made the night ends whole."""
    snapshot = world.store
    world.store = open_bucket(str(small_disk / "store"))
    toy.copy(snapshot, world.store, "")
    filler = small_disk / "filler"

    def fill():
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))

    [record] = play(room_made(world, night(world), fill, filler.unlink))
    assert counts(record) == (4, 3, 1, 0)
    assert list(small_disk.rglob(".tmp-*")) == []


@LOCAL
def test_a_quota(world):
    """Where a file may not grow beyond some bytes, the step fails with the object's name, and leaves none of it."""
    command = world.command("night", "list", "n1")
    refused = run(replace(command, room=100))
    assert refused.status == 1
    assert "File too large" in refused.log
    assert "while accessing file:///" in refused.log
    assert list(world.store.list("runs/")) == []
    assert list(Path(world.store.root).rglob(".tmp-*")) == []
    [record] = play(night(world))
    assert counts(record) == (4, 3, 1, 0)


@LOCAL
def test_the_harness_tells_stores_apart(world):
    """The content is compared after each kill: another caption, or a missing one, is a difference."""
    play(night(world))
    before = contents(world.store)
    assert_same(before, contents(world.store))
    changed = contents(world.store)
    changed["captions"][0]["caption"] = "something else"
    with pytest.raises(AssertionError):
        assert_same(before, changed)


def test_there_were_kills_enough(request):
    """Over this file so many commands died."""
    if not {"test_a_night_killed_at_its_writes", "test_a_retraining_killed_at_its_writes"} <= {
        item.originalname for item in request.session.items
    }:
        pytest.skip("only some of the kills were asked for")
    assert KILLS.total() >= (200 if STRESS else 80), KILLS

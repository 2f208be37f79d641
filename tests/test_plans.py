"""Plans: images cut into shards, and claimed by one shard only, however many plan at once."""

import json

import pyarrow as pa
import pytest
from memory import CrashError, MemoryBucket

from pipeline import plans, tables
from pipeline.storage import ObjectNotFoundError

ABOUT = {"folder": "results/today", "source": "here"}


@pytest.fixture
def store():
    """An empty bucket."""
    return MemoryBucket("store")


def images(names):
    """A listing."""
    return pa.table([list(names), [f"e-{name}" for name in names]], names=plans.IDENTITY)


def claim(names, store, *, about=ABOUT, shard_size=2, find_pending=None):
    """Claim these images."""
    return plans.claim(
        find_pending or (lambda: images(names)),
        about,
        product="results",
        order=["key"],
        store=store,
        shard_size=shard_size,
    )


def keys(shards, store):
    """The images of each shard."""
    return ["".join(plans.read(shard, store).images["key"].to_pylist()) for shard in shards]


def finish(shard, store):
    """Write a shard's result."""
    plan = plans.read(shard, store)
    tables.write(plan.images, plan.result, store)


def test_images_are_cut_into_shards(store):
    """Sorted, so many in each, every one in one shard, whose plan says what they have in common."""
    shards = claim("ecabd", store)
    assert keys(shards, store) == ["ab", "cd", "e"]
    plan = plans.read(shards[0], store)
    assert (plan.about, plan.result) == (ABOUT, f"results/today/{shards[0]}.parquet")
    assert plans.open_shards(store) == set(shards)


def test_nothing_pending(store):
    """Of nothing there are no shards, and nothing is written."""
    assert claim("", store) == []
    assert store.objects == {}


def test_shards_grow_when_there_would_be_too_many(store, monkeypatch):
    """However many images, Airflow never gets more shards than it can map; those taken over count too."""
    monkeypatch.setattr(plans, "MAX_SHARDS", 4)
    assert [len(part) for part in keys(claim("abcdefghijklmnopqrst", store), store)] == [5, 5, 5, 5]
    store.objects.clear()
    claim("ab", store, shard_size=1)
    assert keys(claim("abcdefgh", store, shard_size=1), store) == ["a", "b", "cde", "fgh"]


def test_who_comes_second_takes_over_what_is_claimed(store):
    """A claimed image is not claimed again: its shard, whole, is the second one's too, beside the rest."""
    first = claim("abcd", store)
    second = claim("bdxy", store)
    assert second[:2] == first
    assert keys(second, store) == ["ab", "cd", "xy"]
    assert keys(claim("x", store), store) == ["xy"]
    # On another day the result would lie in another folder, but it is the same work.
    assert claim("a", store, about={**ABOUT, "folder": "results/tomorrow"}) == first[:1]


def test_other_work_is_not_taken_over(store):
    """Shards that are to be read from elsewhere are left to those who planned them."""
    claim("ab", store, about={**ABOUT, "source": "elsewhere"})
    [shard] = claim("ab", store)
    assert plans.read(shard, store).about["source"] == "here"


def test_what_is_done_leaves_the_ledger(store):
    """A shard with a result is nobody's to take over, and the next claim forgets it."""
    [done, _] = claim("abcd", store)
    finish(done, store)
    assert keys(claim("cdx", store), store) == ["cd", "x"]
    assert done not in json.loads(store.get("plans/open/results.json"))


def test_two_who_claim_at_the_same_moment(store):
    """Where another claims between the reading of the ledger and its writing, the claim begins anew."""
    other = []

    def find_pending():
        if not other:
            other.extend(claim("ab", store))
        return images("abc")

    mine = claim("", store, find_pending=find_pending)
    assert mine[0] == other[0]
    assert keys(mine, store) == ["ab", "c"]


def test_what_is_done_meanwhile_is_not_claimed(store):
    """Results are looked for after the ledger was read: what is done in between is neither open nor pending."""
    [shard] = claim("ab", store)

    def find_pending():
        finish(shard, store)
        claim("xy", store)  # by which the ledger forgets the first
        done = {key for item in store.list("results/") for key in tables.read(item.key, store)["key"].to_pylist()}
        return images(sorted({"a", "b", "c"} - done))

    assert keys(claim("", store, find_pending=find_pending), store) == ["c"]


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_claim_that_is_broken_off_is_made_again(store, write, after):
    """Wherever it broke off, whoever claims next has every image once."""
    store.crash_in, store.crash_after_write = write, after
    with pytest.raises(CrashError):
        claim("abcd", store)
    assert keys(claim("abcd", store), store) == ["ab", "cd"]


def test_notes(store):
    """A note lies beside its shard's plan; a shard without one is passed over."""
    plans.write_note("s1", {"seconds": {"read": 1.5}}, store)
    assert plans.read_notes(["s0", "s1"], store) == [{"seconds": {"read": 1.5}}]


def test_there_is_no_such_plan(store):
    """The error names the plan's object."""
    with pytest.raises(ObjectNotFoundError, match=r"plans/0123\.parquet"):
        plans.read("0123", store)

"""Shards of work: each image is claimed by one shard, however many processes plan at once."""

import re
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import DamagedObjectError, ObjectNotFoundError, json, layout, parquet
from pipeline.work import shards
from pipeline.work.outcomes import IDENTITY
from tests.support.memory import CrashError, MemoryBucket

SPEC = {"folder": "results/today", "source": "here"}


@pytest.fixture
def store():
    """An empty bucket."""
    return MemoryBucket("store")


def images(names):
    """A listing."""
    return pa.table([list(names), [f"e-{name}" for name in names]], names=IDENTITY)


def claim(names, store, *, spec=SPEC, shard_size=2, find_pending=None):
    """Claim these images."""
    return shards.claim(
        find_pending or (lambda: images(names)),
        spec,
        product="results",
        order=["image_key"],
        store=store,
        shard_size=shard_size,
    )


def keys(names, store):
    """The images of each shard."""
    return ["".join(shards.read(name, store).images["image_key"].to_pylist()) for name in names]


def finish(name, store):
    """Write the result of a shard."""
    shard = shards.read(name, store)
    parquet.write(shard.images, shard.result_key, store)


def test_images_are_cut_into_shards(store):
    """They are sorted, and each is in one shard, which has the parameters that all its images share."""
    names = claim("ecabd", store)
    assert keys(names, store) == ["ab", "cd", "e"]
    shard = shards.read(names[0], store)
    assert (shard.name, shard.spec, shard.result_key) == (names[0], SPEC, f"results/today/{names[0]}.parquet")
    assert shard.images.to_pylist() == [{"image_key": name, "image_etag": f"e-{name}"} for name in "ab"]
    assert shards.open_shards(store) == set(names)


def test_nothing_pending(store):
    """No images give no shards, and nothing is written."""
    assert claim("", store) == []
    assert store.objects == {}


def test_shards_grow_when_there_would_be_too_many(store, monkeypatch):
    """A claim never has more shards than the maximum, those taken over among them."""
    monkeypatch.setattr(shards, "MAX_SHARDS", 4)
    assert [len(part) for part in keys(claim("abcdefghijklmnopqrst", store), store)] == [5, 5, 5, 5]
    store.objects.clear()
    claim("ab", store, shard_size=1)
    assert keys(claim("abcdefgh", store, shard_size=1), store) == ["a", "b", "cde", "fgh"]


def test_open_shards_are_taken_over(store):
    """A claimed image is not claimed again: the second claim has its whole shard, beside new ones for the rest."""
    first = claim("abcd", store)
    second = claim("bdxy", store)
    assert second[:2] == first
    assert keys(second, store) == ["ab", "cd", "xy"]
    assert keys(claim("x", store), store) == ["xy"]
    # On another day the result would be in another folder, but it is the same work.
    assert claim("a", store, spec={**SPEC, "folder": "results/tomorrow"}) == first[:1]


def test_shards_of_other_work_are_not_taken_over(store):
    """Such as those whose images are read from another bucket."""
    claim("ab", store, spec={**SPEC, "source": "elsewhere"})
    [name] = claim("ab", store)
    assert shards.read(name, store).spec["source"] == "here"


def test_what_an_open_shard_says_may_be_out_of_date(store):
    """An image whose features have been extracted since is in a new shard, which says so; the others are taken over."""

    def claim_with(error):
        column = pa.array([error, None], pa.string())
        return claim("ab", store, find_pending=lambda: images("ab").append_column("error", column))

    first = claim_with("removed or replaced")
    assert claim_with("removed or replaced") == first
    [again, second] = claim_with(None)
    assert [again] == first
    assert shards.read(second, store).images.select(["image_key", "error"]).to_pylist() == [
        {"image_key": "a", "error": None}
    ]
    assert shards.open_shards(store) == {*first, second}
    assert claim_with(None) == [*first, second]


def test_one_open_shard_does_for_two_requests(store):
    """Whenever an image was requested again, or if it was not; a request after it was done gets another shard."""

    def request(hour):
        time = pa.scalar(None if hour is None else datetime(2026, 1, 1, hour), pa.timestamp("us"))
        column = pa.repeat(time, 2)
        return claim("ab", store, find_pending=lambda: images("ab").append_column(shards.REQUESTED_AT, column))

    first = request(1)
    assert request(2) == request(None) == first
    for name in first:
        finish(name, store)
    assert not {*request(2)} & {*first}


def test_a_finished_shard_is_no_longer_open(store):
    """It is not taken over, and the next claim removes it from the list."""
    [done, rest] = claim("abcd", store)
    finish(done, store)
    assert shards.open_shards(store) == {rest}
    assert keys(claim("cdx", store), store) == ["cd", "x"]
    assert done not in json.read(dict[str, str], layout.open_shards("results"), store)


def test_two_claims_at_the_same_moment(store):
    """If another process claims between the read and the write of the list, the claim starts again."""
    other = []

    def find_pending():
        if not other:
            other.extend(claim("ab", store))
        return images("abc")

    mine = claim("", store, find_pending=find_pending)
    assert mine[0] == other[0]
    assert keys(mine, store) == ["ab", "c"]


def test_a_shard_that_is_finished_meanwhile_is_not_claimed(store):
    """Results are looked up after the list was read: one written in between is neither open nor pending."""
    [name] = claim("ab", store)

    def find_pending():
        finish(name, store)
        claim("xy", store)  # which removes the first from the list
        results = (parquet.read(item.key, store) for item in store.list("results/"))
        done = {key for result in results for key in result["image_key"].to_pylist()}
        return images(sorted({"a", "b", "c"} - done))

    assert keys(claim("", store, find_pending=find_pending), store) == ["c"]


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("write", [1, 2, 3])
def test_an_interrupted_claim_is_repeated(store, write, after):
    """Wherever it was interrupted, the next claim has every image once."""
    store.crash_in, store.crash_after_write = write, after
    with pytest.raises(CrashError):
        claim("abcd", store)
    assert keys(claim("abcd", store), store) == ["ab", "cd"]


def test_statistics(store):
    """They are stored beside the shard; a shard without them is skipped."""
    stats = shards.ShardStats(seconds={"read": 1.5})
    shards.write_stats("s1", stats, store)
    assert shards.read_stats(["s0", "s1"], store, kind=shards.ShardStats) == [stats]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff"])
def test_damaged_statistics_are_left_out(store, data, caplog):
    """The log names their object."""
    store.put(layout.shard_stats("s1"), data)
    assert shards.read_stats(["s1"], store, kind=shards.ShardStats) == []
    assert "shards/s1.stats.json is damaged" in caplog.text


OTHER = pa.BufferOutputStream()
pq.write_table(pa.table({"image": ["a.jpg"]}), OTHER)

DAMAGE = [b"", b"PAR1", b"nothing of ours", OTHER.getvalue().to_pybytes(), None]
"""What may be left of an object, or what another program may write there; ``None`` where it was deleted."""


def damage(key, data, store):
    """Put this in place of an object."""
    if data is None:
        store.delete(key)
    else:
        store.put(key, data)


@pytest.mark.parametrize("data", DAMAGE)
def test_an_open_shard_that_is_lost_is_dropped(store, data):
    """Its images are pending again, and other open shards stay."""
    first = claim("abcd", store)
    damage(layout.shard(first[0]), data, store)
    again = claim("abcd", store)
    assert sorted(keys(again, store)) == ["ab", "cd"]
    assert shards.open_shards(store) == set(again)
    assert again[0] == first[1]


def test_a_shard_of_other_work_is_refused(store):
    """The error says what it lacks, and which commands print shards."""
    [name] = claim("ab", store)
    missing = f"{name}.parquet is not a shard of this kind: it has no attempt, version. `captioning plan-extraction` "
    with pytest.raises(DamagedObjectError, match=re.escape(missing)):
        shards.read(name, store, parameters=["version"], columns=["image_key", "attempt"])


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_list_of_open_shards_is_an_empty_one(store, data, caplog):
    """It is written again, unless another process has done so in the meantime."""
    claim("abcd", store)
    store.put(layout.open_shards("results"), data)
    names = claim("abcd", store)
    assert keys(names, store) == ["ab", "cd"]
    assert "results.json is damaged" in caplog.text
    assert shards.open_shards(store) == set(names)

    store.put(layout.open_shards("results"), data)
    other = []

    def find_pending():
        if not other:
            other.extend(claim("ab", store))
        return images("abc")

    assert claim("", store, find_pending=find_pending)[0] == other[0]


def test_a_list_that_other_programs_have_left(store):
    """A file beside the lists of open shards is no list."""
    [name] = claim("ab", store)
    store.put(f"{layout.OPEN_SHARDS}_SUCCESS", b"")
    assert shards.open_shards(store) == {name}


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_result_is_not_done(store, data):
    """It is to be written again, as if it did not exist."""
    [name] = claim("ab", store)
    finish(name, store)
    shard = shards.read(name, store)
    assert shards.is_done(shard, store, columns=images("ab").schema)
    damage(shard.result_key, data, store)
    assert not shards.is_done(shard, store, columns=images("ab").schema)


def test_results_are_told_from_other_objects(store):
    """Such as the markers of other programs and the files of editors."""
    key = layout.shard_result(layout.features_folder("e"), "0123456789abcdef")
    for each in (key, "features/e/_SUCCESS", "features/e/part-0.parquet", f"{key}.crc"):
        store.put(each, b"")
    assert shards.results("features/e/", store) == [key]


def test_a_missing_shard_is_an_error(store):
    """The error names its object."""
    with pytest.raises(ObjectNotFoundError, match=r"There is no shard '0123' in "):
        shards.read("0123", store)


@pytest.mark.parametrize(
    ("images_in_all", "failed", "text"),
    [(0, 0, "done before"), (1, 0, "1 image"), (1200, 0, "1,200 images"), (1200, 3, "1,200 images, 3 failed")],
)
def test_a_finished_shard_in_one_line(images_in_all, failed, text):
    """Its images, and how many of them failed."""
    assert shards.summary(images_in_all, failed) == text

"""Keys of the store, and the names in them that are made of an image's key: every bucket takes these, no two agree."""

import itertools
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import DecodingConfig
from pipeline.storage import layout, open_bucket
from pipeline.storage.layout import NAME_BYTES, PART_BYTES, safe_name
from tests.support.effort import random_inputs
from tests.support.keys import DOTTED_KEYS, NASTY_KEYS

KEYS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text("/.%20aF\0\n", min_size=1, max_size=20),
    st.text(min_size=1).map(lambda text: (text * 1020)[:1020]),
    st.sampled_from(["a", "b", "x.json", ".json", "..", ".", "", "%2F", "é"]).flatmap(
        lambda part: st.lists(st.just(part) | st.text(min_size=1, max_size=4), min_size=1, max_size=5).map("/".join)
    ),
).filter(bool)


DATASET = "flickr8k/0123456789abcdef"
RUN = "manual__2026-01-02T03:04:05.678+00:00"


def test_places_of_the_store() -> None:
    """Keys are those that docs/store.md promises to readers."""
    assert layout.dataset_table(DATASET) == "datasets/flickr8k/0123456789abcdef/dataset.parquet"
    assert layout.captions_folder("m1", "2026-01-02") == "captions/model=m1/date=2026-01-02"
    assert layout.model_metadata("m1") == "models/m1/metadata.json"
    assert layout.run_record("night", RUN) == "runs/night/manual__2026-01-02T03-04-05.678-00-00.json"


def test_an_evaluation_has_a_place_of_its_own() -> None:
    """Another dataset or another decoding is another place, so that no evaluation overwrites another."""
    decodings = [
        DecodingConfig(beam_width=1),
        DecodingConfig(),
        DecodingConfig(neighbours=0),
        DecodingConfig(mbr_samples=100),
        DecodingConfig(mbr_samples=100, forbidden_words=("fat", "ugly")),
        DecodingConfig(forbidden_words=("fat",)),
        DecodingConfig(neutral_wording=True),
    ]
    keys = [layout.evaluation("m1", DATASET, decoding) for decoding in decodings]
    keys.append(layout.evaluation("m1", "other/0123456789abcdef", decodings[0]))
    assert [each.folder.removeprefix(layout.evaluations("m1")) for each in keys] == [
        "flickr8k-0123456789abcdef-greedy",
        "flickr8k-0123456789abcdef-beam5-near20",
        "flickr8k-0123456789abcdef-beam5",
        "flickr8k-0123456789abcdef-beam5-mbr100-near20",
        "flickr8k-0123456789abcdef-beam5-mbr100-near20-not-8a2ae371",
        "flickr8k-0123456789abcdef-beam5-near20-not-be07f513",
        "flickr8k-0123456789abcdef-beam5-near20-neutral",
        "other-0123456789abcdef-greedy",
    ]
    assert len({key for each in keys for key in (each.captions, each.report, each.profile, each.metrics)}) == 32
    assert layout.evaluation_of_metrics(keys[0].metrics) == keys[0]
    assert layout.evaluation_of_metrics(keys[0].report) is None


def test_names_are_found_in_keys() -> None:
    """A listing tells datasets, models, shards and runs from what is beside them."""
    assert layout.dataset_of_table(layout.dataset_table(DATASET)) == DATASET
    assert layout.dataset_of_table(layout.ingest_report(DATASET)) is None
    assert layout.model_of_metadata(layout.model_metadata("m1")) == "m1"
    assert layout.model_of_metadata(layout.CHAMPION) is None
    shard = "0123456789abcdef"
    for key in (layout.shard(shard), layout.shard_stats(shard), layout.shard_slow_images(shard)):
        assert layout.shard_of_key(key) == shard
    assert layout.shard_of_key(layout.open_shards("features-e1")) is None
    of_captions = layout.shard_result(layout.captions_folder("m1", "2026-01-02"), shard)
    assert layout.shard_of_result(layout.shard_result(layout.features_folder("e1"), shard)) == shard
    assert layout.shard_of_result(of_captions) == shard
    assert layout.parse_caption_shard(of_captions) == ("m1", "2026-01-02")


@pytest.mark.parametrize(
    "key",
    [
        "captions/notes.txt",
        "captions/model=m1/date=2026-01-02/_SUCCESS",
        "captions/model=m1/date=2026-01-02/part-00000.parquet",
        "captions/model=m1/0123456789abcdef.parquet",
        "features/e1/_SUCCESS",
        "features/e1/0123456789abcdef.parquet.crc",
        "shards/_SUCCESS",
    ],
)
def test_what_other_programs_write_is_no_shard(key: str) -> None:
    """Such as the markers of Spark."""
    assert layout.shard_of_result(key) is None
    assert layout.parse_caption_shard(key) is None
    assert layout.shard_of_key(key) is None


def test_objects_of_a_run() -> None:
    """The records of each kind are in a folder of their own; what is needed until the end of a run is in another."""
    assert layout.run_record("night", RUN).startswith(layout.run_records("night"))
    for key in (layout.run_listing(RUN), layout.run_shards(RUN, "captions")):
        assert key.startswith(layout.STEPS)
    for key in (layout.run_record("retraining", RUN), layout.run_profile(RUN)):
        assert not key.startswith(layout.STEPS)


def test_what_makes_others_complete() -> None:
    """Models and encoders have an object that is written last; pointers are those that change."""
    assert layout.is_completion_marker(layout.model_metadata("m1"))
    assert layout.is_completion_marker(layout.encoder_files("e1"))
    assert layout.is_completion_marker(layout.evaluation("m1", DATASET, DecodingConfig()).metrics)
    assert layout.is_completion_marker(layout.dataset_table(DATASET))
    assert not layout.is_completion_marker(layout.evaluation("m1", DATASET, DecodingConfig()).captions)
    assert not layout.is_completion_marker("runs/metrics.json")
    mutable = [
        *(layout.CHAMPION, layout.open_shards("features-e1")),
        *(layout.encoder_files("e1"), layout.model_card("m1")),
    ]
    assert all(map(layout.is_mutable, mutable))
    assert all(key.startswith(layout.MUTABLE_PREFIXES) for key in mutable)
    immutable = (layout.model_metadata("m1"), layout.shard("s"), layout.run_record("night", RUN))
    assert not any(map(layout.is_mutable, immutable))


@pytest.mark.parametrize("key", ["red.jpg", "2026/01/IMG 1.jpg", "déjà vu/100% blue + #1?.jpg", "e\u0301 – 猫🐈.jpg"])
def test_a_key_that_every_bucket_takes_is_its_own_name(key: str) -> None:
    """Only what some bucket would not take is changed."""
    assert safe_name(key) == key


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("../x.jpg", "%2E./x.jpg"),
        ("a/./.b", "a/%2E/%2Eb"),
        ("/x.jpg", "%2Fx.jpg"),
        ("a//b", "a/%2Fb"),
        ("a/", "a%2F"),
        ("///", "%2F%2F%2F"),
        ("a\0\n", "a%00%0A"),
        ("%2Fx.jpg", "%252Fx.jpg"),
        ("%2fx.jpg", "%252fx.jpg"),
        ("x.xmp/y.jpg", "x%2Exmp/y.jpg"),
    ],
)
def test_what_some_bucket_would_not_take_is_escaped(key: str, name: str) -> None:
    """Dots that hide or lead out, parts without a name, control characters, and what looks like an escape."""
    assert safe_name(key) == name
    assert unquote(name) == key


def test_all_short_keys_have_names_of_their_own() -> None:
    """Of the characters that names escape, or that escapes are made of: each key can be read from its name."""
    keys = {"".join(key) for length in range(1, 6) for key in itertools.product("%4A1./\n", repeat=length)}
    assert {unquote(safe_name(key)) for key in keys} == keys
    assert all(unquote(safe_name(key)) == key for key in keys)


@given(KEYS, st.booleans())
@example("." * PART_BYTES, True)
def test_the_key_can_be_read_from_the_name(key: str, dotless: bool) -> None:
    """Decoding gives the key back, so that no two keys share a name; one too long gives a hash, which no key gives."""
    name = safe_name(key, dotless=dotless)
    assert not (dotless and "." in name)
    assert len(name.encode()) <= NAME_BYTES
    assert max(len(part.encode()) for part in name.split("/")) <= PART_BYTES
    if name.startswith("%23"):
        assert len(key.encode()) > PART_BYTES / 3
        assert len(name) == 3 + 64
    else:
        assert unquote(name) == key


@given(KEYS, KEYS)
@example("%23" + "0" * 64, "a")
@example("a" * 241, "a" * 242)
def test_two_keys_have_two_names(one: str, other: str) -> None:
    """And neither name, with a suffix, is that of a folder that contains the other."""
    if one != other:
        assert safe_name(one) != safe_name(other)
    assert not f"{safe_name(other)}.xmp".startswith(f"{safe_name(one)}.xmp/")


@settings(max_examples=random_inputs(100))
@given(keys=st.lists(KEYS, max_size=5, unique=True))
@example([*NASTY_KEYS, *DOTTED_KEYS])
@example(["x.jpg", "x.jpg.xmp/y.jpg", "k" * 1020, "猫" * 340, "/".join("abc" * 200)])
def test_every_bucket_takes_the_names(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    """A file system, the more particular of the two, keeps a file for each key and lists them all."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("bucket")))
    for key in keys:
        bucket.put(layout.sidecar(key), key.encode())
    assert {bucket.get(item.key).decode() for item in bucket.list(layout.SIDECARS)} == set(keys)


def test_s3_takes_the_names(s3_bucket_name: str) -> None:
    """So does S3."""
    bucket = open_bucket(f"s3://{s3_bucket_name}/names")
    keys = [*NASTY_KEYS, *DOTTED_KEYS, "a\nb", "k" * 1020, "猫" * 340, "a\0"]
    for key in keys:
        bucket.put(layout.sidecar(key), key.encode())
    assert {bucket.get(item.key).decode() for item in bucket.list()} == set(keys)

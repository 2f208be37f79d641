"""The kinds of names that become part of a key."""

from pathlib import Path

import pytest

from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.storage import layout, names, open_bucket
from pipeline.storage.names import NameKind

HASH = "0123456789abcdef"

WIDE = DecodingConfig(beam_width=50, mbr_samples=1000, forbidden_words=("a",), neutral_wording=True)
"""The decoding with the longest slug."""

KEYS = {
    "VERSION": lambda name: layout.evaluation(name, f"d/{HASH}", DecodingConfig()).metrics,
    "DATASET_NAME": lambda name: layout.evaluation("v", f"{name}/{HASH}", WIDE).metrics,
    "DATASET_ID": layout.dataset_table,
    "VOCABULARY": str,
    "ENCODER_ID": lambda name: layout.open_shards(f"features-{name}"),
    "SHARD": layout.shard_stats,
    "RUN": lambda name: layout.run_record("night", name),
}
"""For each kind, a key that has such a name in it."""

KINDS = {name: kind for name, kind in vars(names).items() if isinstance(kind, NameKind)}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("VERSION", ["20260102T030405-0123abcd", "v1", "v" * 150], ["", ".", "a/b", "-v", "é", "v\n", "v" * 151]),
        ("DATASET_NAME", ["Flickr8k", "a.b-c_d", "d" * 150], ["", "..", "a b", "a/b"]),
        ("DATASET_ID", [f"flickr8k/{HASH}"], ["flickr8k", HASH, f"/{HASH}", f"../{HASH}", f"a/{HASH}/", f"a/{HASH}0"]),
        (
            "VOCABULARY",
            [f"datasets/a/{HASH}/vocabulary-10.json", f"datasets/a/{HASH}/vocabulary-10-neutral.json"],
            [
                "",
                f"a/{HASH}/vocabulary-10.json",
                f"datasets/a/{HASH}/vocabulary-.json",
                f"datasets/a/{HASH}/vocabulary-10-other.json",
                f"datasets/a/{HASH}/ingest.json",
            ],
        ),
        (
            "ENCODER_ID",
            [f"resnet50-imagenet-{HASH[:12]}", f"{'e' * 200}-{HASH[:12]}-int8"],
            ["", "e", f"../{HASH[:12]}"],
        ),
        ("SHARD", [HASH], ["", HASH[:-1], HASH.upper(), f"open/{HASH}"]),
        (
            "RUN",
            ["manual__2026-01-02T03:04:05.678+00:00", "my run", "猫", "r" * 250],
            ["", ".", "..", ".r", " r", "a\nb", "a\0", "\udcff", "r" * 251],
        ),
    ],
)
def test_what_is_a_name(tmp_path: Path, kind: str, good: list[str], bad: list[str]) -> None:
    """A folder takes the keys with it, even with the longest; the error of another says what was expected."""
    checked, bucket = KINDS[kind], open_bucket(str(tmp_path))
    for name in good:
        bucket.put(KEYS[kind](checked.check(name)), b"1")
    assert len(list(bucket.list())) == len(good)
    for name in bad:
        with pytest.raises(PipelineError) as error:
            checked.check(name)
        assert str(error.value) == (
            f"Not {checked.title}: expected {checked.rule}. Received: {name!r}. {checked.advice}"
        )

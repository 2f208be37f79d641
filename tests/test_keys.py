"""Names made of any image's key: every bucket takes them, and no two keys share one."""

from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_storage import DOTTED_KEYS, NASTY_KEYS

from pipeline.keys import NAME_BYTES, PART_BYTES, safe_name
from pipeline.storage import open_bucket

KEYS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text("/.%20aF\0\n", min_size=1, max_size=20),
    st.text(min_size=1).map(lambda text: (text * 1020)[:1020]),
    st.sampled_from(["a", "b", "x.json", ".json", "..", ".", "", "%2F", "é"]).flatmap(
        lambda part: st.lists(st.just(part) | st.text(min_size=1, max_size=4), min_size=1, max_size=5).map("/".join)
    ),
).filter(bool)


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
        ("x.json/y.jpg", "x%2Ejson/y.jpg"),
    ],
)
def test_what_some_bucket_would_not_take_is_escaped(key: str, name: str) -> None:
    """Dots that hide or lead out, parts without a name, control characters, and what looks like an escape."""
    assert safe_name(key) == name
    assert unquote(name) == key


@given(KEYS)
def test_the_key_can_be_read_from_the_name(key: str) -> None:
    """Decoding gives the key back, so that no two keys share a name; one too long gives a hash, which no key gives."""
    name = safe_name(key)
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
    """And neither name, with a suffix, is that of a folder in which the other lies."""
    if one != other:
        assert safe_name(one) != safe_name(other)
    assert not f"{safe_name(other)}.json".startswith(f"{safe_name(one)}.json/")


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(KEYS, max_size=5, unique=True))
@example([*NASTY_KEYS, *DOTTED_KEYS])
@example(["x.jpg", "x.jpg.json/y.jpg", "k" * 1020, "猫" * 340, "/".join("abc" * 200)])
def test_every_bucket_takes_the_names(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    """A file system, the more particular of the two, keeps a file for each key and lists them all."""
    bucket = open_bucket(str(tmp_path_factory.mktemp("bucket")))
    for key in keys:
        bucket.put(f"sidecars/{safe_name(key)}.json", key.encode())
    assert {bucket.get(item.key).decode() for item in bucket.list("sidecars/")} == set(keys)


def test_s3_takes_the_names(s3_bucket_name: str) -> None:
    """So does S3."""
    bucket = open_bucket(f"s3://{s3_bucket_name}/names")
    keys = [*NASTY_KEYS, *DOTTED_KEYS, "a\nb", "k" * 1020, "猫" * 340, "a\0"]
    for key in keys:
        bucket.put(f"sidecars/{safe_name(key)}.json", key.encode())
    assert {bucket.get(item.key).decode() for item in bucket.list()} == set(keys)

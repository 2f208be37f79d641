"""Where SeaweedFS differs from other buckets, which docs/operations.md names. All else is in the contract."""

import uuid
from operator import methodcaller

import pytest

from pipeline.storage import ABSENT, ObjectChangedError, ObjectDeniedError, S3Bucket
from tests.support.keys import DOTTED_KEYS
from tests.support.services import SeaweedFS

pytestmark = pytest.mark.services


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> S3Bucket:
    """An empty bucket."""
    return S3Bucket(f"s3://captioning/{uuid.uuid4().hex}", seaweedfs.environment())


def test_a_listing_is_ordered_by_path_segment(bucket: S3Bucket) -> None:
    """What is in a folder comes before what begins with the folder's name; S3 has the folder's slash after a hyphen."""
    keys = ["B", "a/b/c", "a/z", "a-b", "a0", "z", "é"]
    for key in reversed(keys):
        bucket.put(key, b"")
    assert [item.key for item in bucket.list()] == keys
    assert sorted(keys, key=str.encode) != keys


@pytest.mark.parametrize(("key", "listed"), [("a\\b", "a/b"), ("a//b", "a/b"), ("/a", "a"), ("//a", "a")])
def test_a_key_is_listed_as_another(bucket: S3Bucket, key: str, listed: str) -> None:
    """A backslash is a slash, and several slashes are one. The object has both names."""
    etag = bucket.put(key, b"bytes", if_match=ABSENT)
    assert [item.key for item in bucket.list()] == [listed]
    for name in (key, listed):
        assert bucket.get(name, etag=etag) == b"bytes"
    with pytest.raises(ObjectChangedError):
        bucket.put(listed, b"other", if_match=ABSENT)
    bucket.delete(key)
    assert not bucket.exists(listed)


@pytest.mark.parametrize("key", [key for key in DOTTED_KEYS if "//" not in key and not key.startswith("/")])
def test_a_segment_of_dots_is_refused(bucket: S3Bucket, key: str) -> None:
    """It is that key's error, whatever is done, and nothing is written."""
    for use in (methodcaller("put", key, b""), methodcaller("get", key), methodcaller("delete", key)):
        with pytest.raises(ObjectDeniedError, match="InvalidRequest"):
            use(bucket)
    assert list(bucket.list()) == []


def test_the_name_of_a_folder_is_not_absent(bucket: S3Bucket) -> None:
    """An object that has the name of a folder can't be created on the condition that there is none."""
    bucket.put("a/b", b"below")
    assert bucket.etag("a") == ABSENT
    with pytest.raises(ObjectChangedError):
        bucket.put("a", b"", if_match=ABSENT)
    bucket.put("a", b"above")
    assert [bucket.get(key) for key in ("a", "a/b")] == [b"above", b"below"]

"""One contract for both kinds of bucket, and what is particular to each."""

import errno
import os
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pipeline.errors import PipelineError
from pipeline.storage import (
    ABSENT,
    BadKeyError,
    Bucket,
    LocalBucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    S3Bucket,
    open_bucket,
    open_object,
    open_source,
    source_name,
)
from pipeline.storage.s3 import TAIL
from tests.support.effort import random_inputs
from tests.support.keys import NASTY_KEYS
from tests.support.wide_table import put_wide_table

# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", bytes(range(256)), b"\r\n\n\x00\xff" * 600_000], ids=["empty", "all bytes", "3 MB"]
)
def test_bytes_come_back_as_they_went(bucket: Bucket, data: bytes) -> None:
    """Get, open and the listed size give exactly the bytes that were put."""
    bucket.put("folder/object", data)
    assert bucket.get("folder/object") == data
    with bucket.open("folder/object") as file:
        assert file.read() == data
    assert [item.size for item in bucket.list()] == [len(data)]


def test_a_listing_is_ordered_by_the_keys_bytes(bucket: Bucket) -> None:
    """Keys come in the order of their UTF-8 bytes, in which a folder is no unit."""
    keys = ["a/z", "a-b", "a/b/c", "a", "B", "é", "z", "a0"]
    keys.remove("a")  # on a file system "a" cannot be both an object and a folder
    for key in keys:
        bucket.put(key, b"")
    assert [item.key for item in bucket.list()] == sorted(keys, key=str.encode)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["one/a", "one/b/c", "one-more", "two"]),
        ("one", ["one/a", "one/b/c", "one-more"]),
        ("one/", ["one/a", "one/b/c"]),
        ("one/b", ["one/b/c"]),
        ("one/b/c", ["one/b/c"]),
        ("two/", []),
        ("three/four", []),
    ],
)
def test_a_prefix_selects_keys(bucket: Bucket, prefix: str, expected: list[str]) -> None:
    """A prefix selects the keys that begin with it, whether or not it ends at a folder."""
    for key in ("one/a", "one/b/c", "one-more", "two"):
        bucket.put(key, b"")
    assert [item.key for item in bucket.list(prefix)] == sorted(expected)


def test_an_empty_bucket_lists_nothing(bucket: Bucket) -> None:
    """Nothing was ever written: the listing is empty and no object is there."""
    assert list(bucket.list()) == []
    assert not bucket.exists("object")


def test_a_listing_has_no_page_limit(bucket: Bucket) -> None:
    """More objects than S3 lists in one answer (1,000) are all listed, once each."""
    keys = [f"shards/{number:04}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, b""), keys))
    assert [item.key for item in bucket.list("shards/")] == keys


@pytest.mark.parametrize("key", NASTY_KEYS, ids=repr)
def test_odd_keys_work_everywhere(bucket: Bucket, key: str) -> None:
    """A key with characters that URLs and shells treat specially is listed, read and addressed as itself."""
    etag = bucket.put(key, b"bytes", if_match=ABSENT)
    (item,) = bucket.list()
    assert (item.key, item.etag) == (key, etag)
    assert list(bucket.list(key)) == [item]
    assert bucket.get(key, etag=etag) == b"bytes"
    with bucket.open(key) as file:
        assert file.read() == b"bytes"
    assert bucket.etag(key) == etag
    folder, name = open_object(bucket.url(key))
    assert folder.get(name) == b"bytes"
    bucket.delete(key)
    assert list(bucket.list()) == []


def test_keys_that_look_alike_are_two(bucket: Bucket) -> None:
    """An accented letter in its two spellings, an escape and its character, and upper and lower case differ."""
    keys = ["é", "e\u0301", "%2F", "%2f", "%252F", "a+b", "a b", "a%20b", "A b"]
    for key in keys:
        bucket.put(key, key.encode())
    assert [item.key for item in bucket.list()] == sorted(keys, key=str.encode)
    assert [bucket.get(key) for key in keys] == [key.encode() for key in keys]


@pytest.mark.parametrize("key", ["", "/", "a/", "a/b/", "\udcff", "a" * 1025, "/".join(["猫" * 80] * 20)], ids=repr)
def test_what_can_be_no_key_is_an_error_of_that_key(bucket: Bucket, key: str) -> None:
    """A folder's name, one that is not UTF-8 and one too long are refused, and the error says so and shows the key."""
    with pytest.raises(BadKeyError, match="is not a valid key") as error:
        bucket.put(key, b"")
    assert repr(key) in str(error.value)
    assert bucket.uri in str(error.value)
    assert list(bucket.list()) == []


def test_the_longest_keys(bucket: Bucket) -> None:
    """A key of 1,024 bytes, counted as S3 counts them, is an object's as any other."""
    size = 1024 - len(getattr(bucket, "prefix", "").encode())
    key = ("k" * 99 + "/") * (size // 100) + "é" * (size % 100 // 2) + "k" * (size % 2)
    key = key.removesuffix("/")
    etag = bucket.put(key, b"bytes", if_match=ABSENT)
    assert bucket.get(key, etag=etag) == b"bytes"
    assert [item.key for item in bucket.list()] == [key]
    bucket.delete(key)
    assert not bucket.exists(key)


def test_the_time_of_the_last_write_is_listed(bucket: Bucket) -> None:
    """The listing, and the answer about an object, say when it was written, in UTC, to the second at least."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    bucket.put("object", b"bytes")
    [item] = bucket.list()
    assert before <= item.modified <= datetime.now(UTC) + timedelta(seconds=1)
    # The answer about a single object may be to the second.
    assert abs(bucket.modified("object") - item.modified) < timedelta(seconds=1)
    assert item.modified.tzinfo is bucket.modified("object").tzinfo is UTC


def test_an_object_larger_than_the_limit_is_refused(bucket: Bucket) -> None:
    """The limit is what is still read; the error names the object and both sizes."""
    etag = bucket.put("object", bytes(1000))
    assert len(bucket.get("object", etag=etag, limit=1000)) == 1000
    with pytest.raises(ObjectTooLargeError, match="1000 bytes, more than the limit of 999") as error:
        bucket.get("object", etag=etag, limit=999)
    assert bucket.url("object") in str(error.value)


def test_a_deleted_object_is_gone(bucket: Bucket) -> None:
    """Delete removes the object alone, and is content where there is none."""
    for key in ("folder/a", "folder/b"):
        bucket.put(key, b"bytes")
    etag = bucket.etag("folder/a")
    for _ in range(2):
        bucket.delete("folder/a")
        assert not bucket.exists("folder/a")
        with pytest.raises(ObjectNotFoundError):
            bucket.get("folder/a")
        with pytest.raises(ObjectChangedError):
            bucket.get("folder/a", etag=etag)
    assert [item.key for item in bucket.list()] == ["folder/b"]
    for key in ("folder", "nowhere/a", "folder/b/c"):
        bucket.delete(key)
    assert [item.key for item in bucket.list()] == ["folder/b"]
    bucket.put("folder/a", b"again", if_match=ABSENT)
    assert bucket.get("folder/a") == b"again"


PARTS = ["a", "b", "é", "e\u0301", "+", " ", "%2F", "%", "?#", "x.jpg", "猫", "-", "A", ".hidden", "..", ".", ""]

KEYS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)


class Contract(RuleBasedStateMachine):
    """A bucket beside a dictionary of what must be in it, and what a file system makes impossible."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket = bucket
        self.is_local = isinstance(bucket, LocalBucket)
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.folders: set[str] = set()
        self.written: dict[tuple[str, str], bytes] = {}

    def is_no_key(self, key: str) -> bool:
        """Whether it is nobody's key here, whatever it is used for."""
        if self.is_local:
            return not {"", ".", ".."}.isdisjoint(key.split("/"))
        return not key or key.endswith("/")

    def is_never_written(self, key: str) -> bool:
        """Whether nothing is written or deleted under it."""
        return self.is_no_key(key) or ".hidden" in key

    def is_in_the_way(self, key: str) -> bool:
        """Whether a folder has this name, or a file that of its folder: they are there for good once they were."""
        return self.is_local and (key in self.folders or any(folder in self.objects for folder in folders_of(key)))

    def put(self, key: str, data: bytes, **condition: str) -> None:
        """Put, expecting what the dictionary says."""
        expected = condition.get("if_match")
        current = self.objects.get(key, (b"", ABSENT))[1]
        if self.is_never_written(key) or any(folder in self.objects for folder in folders_of(key) if self.is_local):
            with pytest.raises(BadKeyError):
                self.bucket.put(key, data, **condition)
            return
        self.folders.update(folders_of(key))
        if expected not in (None, current):
            with pytest.raises(ObjectChangedError):
                self.bucket.put(key, data, **condition)
        elif self.is_in_the_way(key):
            with pytest.raises(BadKeyError):
                self.bucket.put(key, data, **condition)
        else:
            etag = self.bucket.put(key, data, **condition)
            assert self.written.setdefault((key, etag), data) == data
            self.objects[key] = (data, etag)

    @rule(key=KEYS, data=st.binary(max_size=9))
    def put_always(self, key: str, data: bytes) -> None:
        self.put(key, data)

    @rule(key=KEYS, data=st.binary(max_size=9))
    def put_if_absent(self, key: str, data: bytes) -> None:
        self.put(key, data, if_match=ABSENT)

    @precondition(lambda self: self.written)
    @rule(choice=st.data(), data=st.binary(max_size=9))
    def put_if_it_has_an_etag(self, choice: st.DataObject, data: bytes) -> None:
        key, etag = choice.draw(st.sampled_from(sorted(self.written)))
        self.put(key, data, if_match=etag)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        for read in (self.bucket.get, lambda key: self.bucket.open(key).read()):
            if self.is_no_key(key) or key not in self.objects:
                with pytest.raises(BadKeyError if self.is_no_key(key) else ObjectNotFoundError):
                    read(key)
            else:
                assert read(key) == self.objects[key][0]

    @precondition(lambda self: self.written)
    @rule(choice=st.data())
    def get_what_has_an_etag(self, choice: st.DataObject) -> None:
        key, etag = choice.draw(st.sampled_from(sorted(self.written)))
        if self.objects.get(key, (b"", ABSENT))[1] == etag:
            assert self.bucket.get(key, etag=etag) == self.written[key, etag]
        else:
            with pytest.raises(ObjectChangedError):
                self.bucket.get(key, etag=etag)

    @rule(key=KEYS)
    def etag(self, key: str) -> None:
        if self.is_no_key(key):
            with pytest.raises(BadKeyError):
                self.bucket.etag(key)
        else:
            assert self.bucket.etag(key) == self.objects.get(key, (b"", ABSENT))[1]
            assert self.bucket.exists(key) == (key in self.objects)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        if self.is_never_written(key):
            with pytest.raises(BadKeyError):
                self.bucket.delete(key)
        else:
            self.bucket.delete(key)
            self.objects.pop(key, None)

    @precondition(lambda self: self.objects)
    @rule(choice=st.data())
    def delete_an_object(self, choice: st.DataObject) -> None:
        self.delete(choice.draw(st.sampled_from(sorted(self.objects))))

    @rule(key=KEYS, length=st.integers(0, 12))
    def list(self, key: str, length: int) -> None:
        prefix = key[:length]
        folder = prefix.rpartition("/")[0]
        if self.is_local and folder and self.is_no_key(folder):
            with pytest.raises(BadKeyError):
                list(self.bucket.list(prefix))
        else:
            assert [(item.key, item.etag, item.size) for item in self.bucket.list(prefix)] == [
                (key, etag, len(data))
                for key, (data, etag) in sorted(self.objects.items(), key=lambda item: item[0].encode())
                if key.startswith(prefix)
            ]

    @invariant()
    def all_is_listed(self) -> None:
        self.list("", 0)


def folders_of(key: str) -> list[str]:
    """The folders that contain it, as keys."""
    return ["/".join(key.split("/")[:depth]) for depth in range(1, key.count("/") + 1)]


def test_any_sequence_of_uses(new_bucket: Callable[[], Bucket]) -> None:
    """A bucket is as good as a dictionary, in whichever order objects are put, replaced, deleted, read and listed."""
    run_state_machine_as_test(
        lambda: Contract(new_bucket()), settings=settings(max_examples=random_inputs(25), stateful_step_count=25)
    )


def test_etags_agree(bucket: Bucket) -> None:
    """Put, etag and the listing name one and the same etag."""
    etag = bucket.put("object", b"bytes")
    assert etag == bucket.etag("object")
    assert [item.etag for item in bucket.list()] == [etag]


def test_the_etag_changes_with_the_bytes(bucket: Bucket) -> None:
    """Objects written quickly one after another, of one size, have different etags."""
    etags = [bucket.put("object", b"%03d" % number) for number in range(100)]
    assert len(set(etags)) == 100


def test_get_refuses_a_stale_etag(bucket: Bucket) -> None:
    """Bytes other than the listed ones are never returned under the listed etag."""
    before = bucket.put("object", b"one")
    after = bucket.put("object", b"two")
    assert bucket.get("object", etag=after) == b"two"
    with pytest.raises(ObjectChangedError, match="object"):
        bucket.get("object", etag=before)


@pytest.mark.parametrize("read", [Bucket.get, Bucket.open, Bucket.modified])
@pytest.mark.parametrize("key", ["missing.txt", "folder", "object/below"])
def test_a_missing_object_is_named(bucket: Bucket, read: Callable[..., object], key: str) -> None:
    """Reading what is not there raises an error with the whole URI; a folder is no object."""
    bucket.put("folder/object", b"")
    bucket.put("object", b"")
    with pytest.raises(ObjectNotFoundError) as error:
        getattr(bucket, read.__name__)(key)
    assert bucket.url(key) in str(error.value)
    assert bucket.etag(key) == ABSENT
    assert not bucket.exists(key)


def test_a_missing_object_has_changed_for_whoever_knows_its_etag(bucket: Bucket) -> None:
    """An object that has gone since it was listed is reported as changed."""
    with pytest.raises(ObjectChangedError):
        bucket.get("object", etag="0123456789abcdef")


def test_put_absent_writes_once(bucket: Bucket) -> None:
    """With ABSENT, the first put succeeds and others leave the object alone and raise, one of the same bytes too."""
    etag = bucket.put("object", b"first", if_match=ABSENT)
    for data in (b"first", b"second"):
        with pytest.raises(ObjectChangedError, match="object"):
            bucket.put("object", data, if_match=ABSENT)
    assert bucket.get("object", etag=etag) == b"first"


def test_put_replaces_only_what_was_expected(bucket: Bucket) -> None:
    """With an etag, put succeeds while it is current and leaves the object alone afterwards."""
    first = bucket.put("object", b"first")
    second = bucket.put("object", b"second", if_match=first)
    with pytest.raises(ObjectChangedError):
        bucket.put("object", b"third", if_match=first)
    assert bucket.get("object", etag=second) == b"second"


def test_put_expecting_an_object_that_is_not_there_fails(bucket: Bucket) -> None:
    """With an etag, put does not bring back an object that was removed."""
    with pytest.raises(ObjectChangedError):
        bucket.put("object", b"bytes", if_match="0123456789abcdef")
    assert not bucket.exists("object")


@pytest.mark.parametrize("existing", [False, True])
def test_exactly_one_of_many_conditional_writers_wins(bucket: Bucket, existing: bool) -> None:
    """Of writers that expect the same state, one succeeds, the others raise, and the object has its bytes."""
    expected = bucket.put("object", b"before") if existing else ABSENT

    def write(number: int) -> bytes | None:
        data = b"%02d" % number
        try:
            bucket.put("object", data, if_match=expected)
        except ObjectChangedError:
            return None
        return data

    with ThreadPoolExecutor(12) as pool:
        written = [data for data in pool.map(write, range(24)) if data is not None]
    assert written == [bucket.get("object")]


def test_unconditional_puts_replace(bucket: Bucket) -> None:
    """Without a condition the last put wins."""
    bucket.put("object", b"a longer first version")
    bucket.put("object", b"second")
    assert bucket.get("object") == b"second"


@pytest.mark.parametrize("data", [b"", b"ab", b"abc", bytes(300_000)])
def test_first_bytes(bucket: Bucket, data: bytes) -> None:
    """The beginning of an object, however long it is, and the errors of ``get``."""
    bucket.put("folder/object", data)
    assert bucket.first_bytes("folder/object", 3) == data[:3]
    with pytest.raises(ObjectNotFoundError):
        bucket.first_bytes("folder/other", 3)


def test_open_is_seekable(bucket: Bucket) -> None:
    """An opened object is read from any position, relative to its start, to the position and to its end."""
    data = os.urandom(200_000)
    bucket.put("object", data)
    with bucket.open("object") as file:
        assert file.seekable()
        assert file.seek(150_000) == 150_000
        assert file.read(10) == data[150_000:150_010]
        assert file.seek(-20, os.SEEK_CUR) == 149_990
        assert file.read(5) == data[149_990:149_995]
        assert file.seek(-3, os.SEEK_END) == 199_997
        assert file.read(10) == data[-3:]
        assert file.read(10) == b""
        file.seek(100)
        assert file.read() == data[100:]


def test_one_parquet_column_is_read_through_open(bucket: Bucket) -> None:
    """A Parquet reader gets one column out of several."""
    put_wide_table(bucket, "table.parquet")
    with bucket.open("table.parquet") as file:
        table = pq.read_table(file, columns=["small"])
    assert table.to_pydict() == {"small": list(range(1000))}


def test_buckets_do_not_see_each_other(new_bucket: Callable[[], Bucket]) -> None:
    """An object of one bucket is not in another, and one bucket inside another is seen under its path only."""
    one, two = new_bucket(), new_bucket()
    one.put("object", b"")
    assert list(two.list()) == []
    assert not two.exists("object")
    inner, longer = open_bucket(f"{two.uri}/inner"), open_bucket(f"{two.uri}/inner-too")
    longer.put("object", b"")
    assert list(inner.list()) == []
    inner.put("a/b", b"bytes")
    assert [item.key for item in inner.list()] == ["a/b"]
    assert two.get("inner/a/b") == b"bytes"


def test_a_trailing_slash_means_nothing(bucket: Bucket) -> None:
    """A bucket's URI may end in a slash."""
    bucket.put("a/b", b"bytes")
    same = open_bucket(f"{bucket.uri}/")
    assert same.uri == bucket.uri
    assert same.get("a/b") == b"bytes"


# --- URIs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///key",
        "s3:/bucket",
        "file:/folder",
        "file://host/folder",
        "file://",
        "http://host/a",
    ],
)
def test_what_is_no_bucket_is_refused(uri: str) -> None:
    """A URI of another kind, or a mistyped one, is refused with the forms that are understood."""
    with pytest.raises(PipelineError, match=r"expected file:///folder, s3://bucket/prefix or a path") as error:
        open_bucket(uri)
    assert repr(uri) in str(error.value)


@pytest.mark.parametrize("uri", ["gs://bucket/a", "abfs://container@account.dfs.core.windows.net/a", "az://b"])
def test_a_bucket_of_another_cloud_needs_a_gateway(uri: str) -> None:
    """The error says what to put in front of it, and what to write instead."""
    with pytest.raises(PipelineError, match=rf"S3Proxy: set AWS_ENDPOINT_URL .*s3:// instead of {uri[:2]}") as error:
        open_bucket(uri)
    assert repr(uri) in str(error.value)


@pytest.mark.parametrize("uri", ["", "s3://bucket", "s3://bucket/folder/", "file:///folder/", "folder/"])
def test_what_is_no_object_is_refused(uri: str) -> None:
    """A URI without an object's name is refused with what was received."""
    with pytest.raises(PipelineError, match="Not a") as error:
        open_object(uri)
    assert uri[:5] in str(error.value)


@pytest.mark.parametrize("folder", ["corrections", "more/photos", "a folder"])
def test_a_source_inside_the_store_is_found_in_a_copy_of_it(new_bucket: Callable[[], Bucket], folder: str) -> None:
    """Its name does not hold the store's address, so that it leads into whichever store it is read from."""
    store, copy = new_bucket(), new_bucket()
    inside = open_source(f"store:{folder}", store)
    inside.put("a.jpg", b"bytes")
    assert [item.key for item in store.list()] == [f"{folder}/a.jpg"]
    name = source_name(inside, store)
    assert name == f"store:{folder}"
    copy.put(f"{folder}/a.jpg", b"copied")
    assert open_source(name, copy).get("a.jpg") == b"copied"


def test_a_source_outside_the_store_has_its_uri(new_bucket: Callable[[], Bucket]) -> None:
    """Also one whose name begins as the store's does."""
    store, other = new_bucket(), new_bucket()
    beside = open_bucket(f"{store.uri}-2")
    for bucket in (other, beside):
        assert source_name(bucket, store) == bucket.uri
        assert open_source(bucket.uri, store).uri == bucket.uri


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
def test_a_folder_has_several_names(tmp_path: Path, form: str) -> None:
    """A plain path and both forms of a file URI name the same folder, and the same object in it."""
    (tmp_path / "object").write_bytes(b"bytes")
    uri = form.format(path=tmp_path)
    assert open_bucket(uri).uri == tmp_path.as_uri()
    bucket, key = open_object(f"{uri}/object")
    assert bucket.get(key) == b"bytes"


def test_a_file_uri_is_percent_decoded(tmp_path: Path) -> None:
    """The URI that Python gives a folder with odd characters names that folder."""
    folder = tmp_path / "50% of #1 é"
    open_bucket(folder.as_uri()).put("object", b"bytes")
    assert (folder / "object").read_bytes() == b"bytes"


def test_a_relative_path_names_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without a folder is relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    bucket, key = open_object("object")
    assert (bucket.uri, key) == (tmp_path.as_uri(), "object")


def test_importing_storage_does_not_load_boto3() -> None:
    """Work on a local store does not wait for boto3."""
    script = "import sys, pipeline.storage; pipeline.storage.open_bucket('.'); print('boto3' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert child.stdout == "False\n"


# --- local folders --------------------------------------------------------------------------------------------------


def test_no_half_written_file_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a write is complete the old object is there, also when the write fails, and nothing is left behind."""
    bucket = LocalBucket(tmp_path)
    bucket.put("object", b"old")
    seen = []

    def fail(descriptor: int) -> None:
        seen.append((bucket.get("object"), [item.key for item in bucket.list()]))
        raise OSError("no space left on device")

    monkeypatch.setattr("pipeline.storage.local.os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        bucket.put("object", b"new")
    assert seen == [(b"old", ["object"])]
    assert bucket.get("object") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_conditional_writers_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a writer's look at the object and its write, no other conditional writer gets in."""
    replace = os.replace

    def replace_late(*paths: Path) -> None:
        time.sleep(0.02)
        replace(*paths)

    monkeypatch.setattr("pipeline.storage.local.os.replace", replace_late)

    def write(number: int) -> bool:
        try:
            LocalBucket(tmp_path).put("object", b"%d" % number, if_match=ABSENT)
        except ObjectChangedError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(8))) == 1


def test_a_conditional_writer_does_not_bring_back_what_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes an object between a writer's look at it and its write waits for the write."""
    bucket = LocalBucket(tmp_path)
    etag = bucket.put("object", b"before")
    with ThreadPoolExecutor(1) as pool:
        replace, deleting = os.replace, []

        def replace_late(*paths: Path) -> None:
            deleting.append(pool.submit(bucket.delete, "object"))
            time.sleep(0.1)
            replace(*paths)

        monkeypatch.setattr("pipeline.storage.local.os.replace", replace_late)
        bucket.put("object", b"after", if_match=etag)
        deleting[0].result()
    assert not bucket.exists("object")


def test_the_etag_does_not_rely_on_the_file_systems_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes of one size within a tick of the file system's clock have different etags."""
    utime, times = os.utime, []
    monkeypatch.setattr(
        "pipeline.storage.local.os.utime", lambda file, *, ns: times.append(ns) or utime(file, ns=(10**18, 10**18))
    )
    bucket = LocalBucket(tmp_path)
    assert bucket.put("object", b"one") == bucket.put("object", b"two")  # as on a clock that has stopped
    monkeypatch.undo()
    assert bucket.put("object", b"one") != bucket.put("object", b"two")
    assert len(set(times)) == 2


LITTER = [
    "._shown.jpg",
    ".thumbnails/a.jpg",
    ".thumbnails/b.jpg",
    "folder/.DS_Store",
    "folder/@eaDir/a.jpg/SYNO.jpg",
    "folder/Thumbs.db",
    "lost+found/a.jpg",
    "$RECYCLE.BIN/S-1/a.jpg",
    "System Volume Information/a.jpg",
    ".Trash-1000/files/a.jpg",
]
"""What operating systems and storage appliances leave beside photographs: nine files and folders."""


def put_anything(bucket: Bucket, key: str) -> None:
    """Create an empty object as another program does, which no rule of ours keeps from it."""
    if isinstance(bucket, S3Bucket):
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=b"")
    else:
        path = bucket.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_litter_is_passed_over_and_counted(bucket: Bucket) -> None:
    """Hidden files and folders are not listed, on S3 neither, and each is counted once, whatever is in it."""
    for key in [*LITTER, "shown.jpg", "folder/shown.jpg"]:
        put_anything(bucket, key)
    passed_over: Counter[str] = Counter()
    assert [item.key for item in bucket.list(passed_over=passed_over)] == ["folder/shown.jpg", "shown.jpg"]
    assert passed_over == {"hidden": 9}


def test_the_own_remains_are_not_counted(tmp_path: Path) -> None:
    """Locks and unfinished writes of the pipeline are nobody's files."""
    bucket = LocalBucket(tmp_path)
    bucket.put("shown.jpg", b"", if_match=ABSENT)
    for name in (f".tmp-{'0' * 32}", f".lock-{'0' * 32}"):
        (tmp_path / name).touch()
    passed_over: Counter[str] = Counter()
    assert [item.key for item in bucket.list(passed_over=passed_over)] == ["shown.jpg"]
    assert not passed_over.total()


def test_a_bucket_that_is_missing_is_an_error_where_it_is_required(bucket: Bucket) -> None:
    """A folder, or a bucket of S3, that exists may be empty."""
    put_anything(bucket, "shown.jpg")
    bucket.require()
    missing = (
        S3Bucket(f"s3://missing-{uuid.uuid4().hex}")
        if isinstance(bucket, S3Bucket)
        else LocalBucket(bucket.root / "missing")
    )
    with pytest.raises(PipelineError, match=r"missing.*Check"):
        missing.require()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """The error says that the address is that of a file."""
    (tmp_path / "inbox").touch()
    with pytest.raises(PipelineError, match="inbox is a file, not a folder"):
        LocalBucket(tmp_path / "inbox").require()


def test_links_are_followed(tmp_path: Path) -> None:
    """Files and folders elsewhere are listed where a link leads to them; a broken link is not."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"bytes")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "root" / "broken.jpg").symlink_to(tmp_path / "gone")
    bucket = LocalBucket(tmp_path / "root")
    assert [item.key for item in bucket.list()] == ["a.jpg", "images/b.jpg"]
    assert bucket.get("images/b.jpg") == b"bytes"


def test_a_link_to_a_name_that_is_too_long(tmp_path: Path) -> None:
    """It leads nowhere, and is counted as a broken link."""
    (tmp_path / "long.jpg").symlink_to("n" * 256)
    passed_over: Counter[str] = Counter()
    assert list(LocalBucket(tmp_path).list(passed_over=passed_over)) == []
    assert passed_over == {"broken links and special files": 1}


def test_only_regular_files_are_listed(tmp_path: Path) -> None:
    """A named pipe, which would block its reader, is no object; it is counted, and so is a broken link."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone")
    passed_over: Counter[str] = Counter()
    assert list(LocalBucket(tmp_path).list(passed_over=passed_over)) == []
    assert passed_over == {"broken links and special files": 2}


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """A named pipe would block its reader, and a device may have no end: neither is opened, also through a link."""
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    bucket = LocalBucket(tmp_path)
    for read in (bucket.get, bucket.open, partial(bucket.first_bytes, count=9), partial(bucket.get, limit=9)):
        with pytest.raises(ObjectDeniedError, match=r"a\.jpg is a named pipe, .* put a regular file in its place"):
            read("a.jpg")
    assert bucket.etag("a.jpg") == ABSENT


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for what is read, not for what the size was before."""
    bucket = LocalBucket(tmp_path)
    bucket.put("a.jpg", bytes(9))
    status = (tmp_path / "a.jpg").stat()
    (tmp_path / "a.jpg").write_bytes(bytes(99))
    monkeypatch.setattr(os, "fstat", lambda _: status)
    with pytest.raises(ObjectTooLargeError, match="more than the limit of 10"):
        bucket.get("a.jpg", limit=10)


def test_a_name_that_is_not_utf8_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such a name can't be written into any table. It is counted, the log names it, and all others are listed."""
    (tmp_path / os.fsdecode(b"\xe9")).mkdir()
    for name in (b"caf\xe9.jpg", b"\xe9/a.jpg", b"a.jpg"):
        (tmp_path / os.fsdecode(name)).touch()
    passed_over: Counter[str] = Counter()
    assert [item.key for item in LocalBucket(tmp_path).list(passed_over=passed_over)] == ["a.jpg"]
    assert passed_over == {"names not in UTF-8": 2}
    assert r"caf\udce9.jpg" in caplog.text
    assert "rename it" in caplog.text


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a listing may not read is an error, not an empty folder."""
    scandir = os.scandir

    def refuse(path: Path | str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PipelineError, match=r"locked may not be read.*Give the user"):
        list(LocalBucket(tmp_path).list())


def test_a_folder_that_cannot_be_entered_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose names may be read, but not its files, is such an error, too."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.jpg").touch()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.storage.local._status", refuse)
    with pytest.raises(PipelineError, match=r"locked may not be read.*enter this folder"):
        list(LocalBucket(tmp_path).list())
    (tmp_path / "locked" / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    with pytest.raises(PipelineError, match=r"a\.jpg may not be read.*the folder that this link leads to"):
        list(LocalBucket(tmp_path).list())


def test_a_bucket_in_a_folder_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, and not that there is no such folder."""
    bucket = LocalBucket(tmp_path / "locked" / "inbox")

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PipelineError, match=r"locked/inbox may not be read.*Give the user"):
        bucket.require()


@pytest.mark.parametrize("path", ["~no-such-user/inbox", "inbox\0"])
def test_what_can_be_no_folder(path: str) -> None:
    """The error is a person's to correct."""
    with pytest.raises(PipelineError, match=r"is not the path of a folder: .*Correct the address"):
        open_bucket(path)


def test_a_bucket_that_is_a_link_to_itself(tmp_path: Path) -> None:
    """It is an error that names it when the bucket is opened or, from Python 3.13, when it is required."""
    (tmp_path / "inbox").symlink_to("inbox")
    with pytest.raises((PipelineError, OSError), match="inbox"):
        open_bucket(str(tmp_path / "inbox")).require()


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../outside", "folder/../../outside", "nul\0", "a//b", "./a", "a/.", "n" * 256],
    ids=repr,
)
def test_keys_stay_inside_the_folder(tmp_path: Path, key: str) -> None:
    """A key that would lead out of the bucket, or is no file's name, is refused, whatever is done with it."""
    bucket = LocalBucket(tmp_path / "root")
    bucket.put("object", b"")
    for use in (bucket.get, bucket.open, bucket.etag, bucket.delete, lambda key: bucket.put(key, b"")):
        with pytest.raises(BadKeyError, match="is not a valid key") as error:
            use(key)
        assert repr(key) in str(error.value)
    assert not (tmp_path / "outside").exists()


@given(st.text())
@settings(max_examples=random_inputs(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    """With any key, a write ends below the folder or in an error of that key, and is found again under it."""
    bucket = LocalBucket(tmp_path / "outer" / "root")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(bucket.root)}
    try:
        bucket.put(key, b"bytes")
    except BadKeyError:
        pass
    else:
        assert bucket.get(key) == b"bytes"
        assert key in [item.key for item in bucket.list(key)]
        bucket.delete(key)
        assert not bucket.exists(key)
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(bucket.root)}
    assert after - before <= {tmp_path / "outer"}


@pytest.mark.parametrize("key", [".hidden", "folder/.hidden", ".folder/file", ".tmp-0", ".lock-0", "lost+found/a"])
def test_what_is_not_listed_is_not_written(bucket: Bucket, key: str) -> None:
    """An object under a hidden name would be lost at once, and one under a lock's would let two writers in."""
    for use in (bucket.delete, lambda key: bucket.put(key, b"")):
        with pytest.raises(BadKeyError, match="hidden name"):
            use(key)
    assert not bucket.exists(key)


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    """Links lead readers out of the folder, but no writer; a link to a file is itself replaced or removed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"theirs")
    (tmp_path / "root" / "inside").mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "in").symlink_to(tmp_path / "root" / "inside")
    for name in ("replaced", "removed"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere" / "a")
    bucket = LocalBucket(tmp_path / "root")
    for key in ("out/a", "out/new", "out/new/b"):
        for use in (bucket.delete, lambda key: bucket.put(key, b"ours"), lambda key: bucket.put(key, b"", if_match="")):
            with pytest.raises(BadKeyError, match="link that leads out of the folder"):
                use(key)
    assert bucket.get("out/a") == b"theirs"
    bucket.put("in/b", b"ours")
    bucket.put("replaced", b"ours")
    bucket.delete("removed")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["a"]
    assert (tmp_path / "elsewhere" / "a").read_bytes() == b"theirs"
    assert {item.key: bucket.get(item.key) for item in bucket.list()} == {
        "in/b": b"ours",
        "inside/b": b"ours",
        "out/a": b"theirs",
        "replaced": b"ours",
    }


def test_links_in_circles(tmp_path: Path) -> None:
    """A link to a folder above it is not followed down again, and one to itself is no object."""
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "folder" / "object").touch()
    (tmp_path / "root" / "folder" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "further").symlink_to(tmp_path)
    (tmp_path / "root" / "itself").symlink_to(tmp_path / "root" / "itself")
    bucket = LocalBucket(tmp_path / "root")
    assert [item.key for item in bucket.list()] == ["folder/object"]
    assert not bucket.exists("itself")
    for use in (bucket.get, bucket.open, lambda key: bucket.put(f"{key}/a", b"")):
        with pytest.raises(BadKeyError, match="'itself"):
            use("itself")


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    """Each is listed in the other once."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "object").touch()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    keys = [item.key for item in LocalBucket(tmp_path).list()]
    assert keys == ["a/b/object", "a/object", "b/a/object", "b/object"]


def test_a_name_of_a_folder_is_no_objects(tmp_path: Path) -> None:
    """On a file system an object can't lie under a folder's name, nor below another object: the error shows the key."""
    bucket = LocalBucket(tmp_path)
    bucket.put("folder/object", b"bytes")
    for key in ("folder", "folder/object/below", "folder/object/far/below"):
        for condition in (None, ABSENT):
            with pytest.raises(BadKeyError, match=f"'{key}'"):
                bucket.put(key, b"", if_match=condition)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "object"]


def test_a_file_that_may_not_be_accessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of that object, and names it."""
    bucket = LocalBucket(tmp_path)
    bucket.put("denied", b"")
    bucket.put("other", b"bytes")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        patch.setattr(Path, "stat", refuse)
        patch.setattr(os, "open", refuse)
        for use in (bucket.get, bucket.open, bucket.etag, bucket.delete, lambda key: bucket.put(key, b"")):
            with pytest.raises(ObjectDeniedError, match="Permission denied") as error:
                use("denied")
            assert bucket.url("denied") in str(error.value)
    assert bucket.get("other") == b"bytes"


def test_a_file_system_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person must mount it otherwise; no retry helps."""
    bucket = LocalBucket(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    for condition in (None, ABSENT):
        with pytest.raises(ObjectDeniedError, match=r"object: Read-only file system\. Mount") as error:
            bucket.put("object", b"", if_match=condition)
        assert bucket.url("object") in str(error.value)


def test_other_errors_of_a_file_system_keep_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not bad input, and the error says which object it met."""
    bucket = LocalBucket(tmp_path)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.storage.local.os.fsync", fail)
    with pytest.raises(OSError, match="No space left") as error:
        bucket.put("folder/object", b"")
    assert error.value.__notes__ == [f"while accessing {bucket.url('folder/object')}"]


def test_a_file_written_where_it_lies_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's program does not replace a file as we do: what it writes meanwhile is not read under the etag."""
    bucket = LocalBucket(tmp_path)
    etag = bucket.put("object", b"before")
    fstat, looked = os.fstat, []

    def fstat_then_write(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if not looked:
            looked.append(status)
            (tmp_path / "object").write_bytes(b"after!")
        return status

    monkeypatch.setattr("pipeline.storage.local.os.fstat", fstat_then_write)
    with pytest.raises(ObjectChangedError):
        bucket.get("object", etag=etag)


def test_leftovers_of_interrupted_writes_are_removed(tmp_path: Path) -> None:
    """Cleaning removes unfinished writes older than the time given, and neither objects nor other people's files."""
    bucket = LocalBucket(tmp_path)
    bucket.put("folder/object", b"bytes", if_match=ABSENT)
    old, new = (f".tmp-{digit * 32}" for digit in "01")
    hours_ago = time.time() - 2 * 3600
    for name in (old, new, ".tmp-theirs", "tmp-0"):
        path = tmp_path / "folder" / name
        path.write_bytes(b"half")
        if name != new:
            os.utime(path, (hours_ago, hours_ago))
    assert bucket.clean(datetime.now(UTC) - timedelta(hours=1)) == [f"folder/{old}"]
    assert bucket.clean(datetime.now(UTC) - timedelta(hours=1)) == []
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"object", new, ".tmp-theirs", "tmp-0"}


def test_a_killed_writer_leaves_what_cleaning_removes(tmp_path: Path) -> None:
    """The old object is whole; the unfinished one goes with the cleaning, and the lock with whoever takes it next."""
    bucket = LocalBucket(tmp_path)
    etag = bucket.put("object", b"old")
    script = (
        "import os, sys; from pathlib import Path; from pipeline.storage import local;"
        "local.os.replace = lambda *_: os.kill(os.getpid(), 9);"
        "local.LocalBucket(Path(sys.argv[1])).put('object', b'new', if_match=sys.argv[2])"
    )
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path), etag], check=False, capture_output=True)
    assert child.returncode == -9, child.stderr
    assert bucket.get("object", etag=etag) == b"old"
    assert [name[:5] for name in bucket.clean(datetime.now(UTC) + timedelta(seconds=1))] == [".tmp-"]
    bucket.put("object", b"newer", if_match=etag)
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_locks_are_removed_and_still_let_one_in_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who waited for a lock that its holder removed do not take it for theirs, and nothing is left of it."""
    inside, most, replace = [], [], os.replace

    def replace_watched(*paths: Path) -> None:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.005)
        replace(*paths)
        inside.pop()

    monkeypatch.setattr("pipeline.storage.local.os.replace", replace_watched)

    def write(number: int) -> None:
        bucket = LocalBucket(tmp_path)
        for _ in range(10):
            try:
                bucket.put("object", b"%d" % number, if_match=bucket.etag("object"))
            except ObjectChangedError:
                continue

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert max(most) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_a_prefix_stays_inside_the_folder(tmp_path: Path) -> None:
    """A listing does not lead out of the bucket either."""
    (tmp_path / "outside").touch()
    with pytest.raises(PipelineError, match="is not a valid key"):
        list(LocalBucket(tmp_path / "root").list("../"))


def test_files_get_the_usual_mode(tmp_path: Path) -> None:
    """A stored file may be read by whom the umask allows, as any other new file."""
    LocalBucket(tmp_path).put("object", b"")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("object", "other")}
    assert len(modes) == 1


# --- S3 -------------------------------------------------------------------------------------------------------------


def test_a_whole_s3_bucket_is_a_bucket(s3_server: str, s3_bucket_name: str) -> None:
    """Without a prefix, keys are those of the S3 bucket."""
    whole = open_bucket(f"s3://{s3_bucket_name}")
    open_bucket(f"s3://{s3_bucket_name}/whole").put("a/b", b"bytes")
    assert [item.key for item in whole.list("whole/")] == ["whole/a/b"]
    assert whole.get("whole/a/b") == b"bytes"
    assert whole.url("whole/a/b") == f"s3://{s3_bucket_name}/whole/a/b"


def test_nothing_but_the_bytes_is_sent(s3_bucket_name: str) -> None:
    """The body of a put is the object: no checksum trailer that a store could keep as part of it."""
    bucket = S3Bucket(f"s3://{s3_bucket_name}/sent")
    sent = []
    bucket.client.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request))
    bucket.put("object", b"bytes")
    (request,) = sent
    body = request.body if isinstance(request.body, bytes) else request.body.getvalue()
    headers = {name.lower(): str(value) for name, value in request.headers.items()}
    assert body == b"bytes"
    assert not [name for name in headers if name.startswith(("x-amz-checksum", "x-amz-trailer", "x-amz-sdk-checksum"))]
    assert "aws-chunked" not in headers.get("content-encoding", "")


@pytest.fixture
def fetched(s3_bucket_name: str) -> tuple[S3Bucket, list[str]]:
    """An empty bucket, and the range of each request that it sends from then on; of others the name."""
    bucket, ranges = S3Bucket(f"s3://{s3_bucket_name}/{uuid.uuid4().hex}"), []
    bucket.client.meta.events.register(
        "before-send.s3.*",
        lambda request, event_name, **_: ranges.append(request.headers.get("Range", event_name.encode()).decode()),
    )
    return bucket, ranges


def test_a_column_is_read_without_fetching_the_others(fetched: tuple[S3Bucket, list[str]]) -> None:
    """Reading a small column of a large Parquet object is two requests: for its end and for the column."""
    bucket, ranges = fetched
    put_wide_table(bucket, "table.parquet")
    ranges.clear()
    with bucket.open("table.parquet") as file:
        assert pq.read_table(file, columns=["small"])["small"].to_pylist() == list(range(1000))
    end, column = ranges
    assert end == f"bytes=-{TAIL}"
    start, stop = map(int, column.removeprefix("bytes=").split("-"))
    assert stop - start < 10_000


@pytest.mark.parametrize("size", [0, 1, TAIL - 1, TAIL])
def test_a_small_object_is_opened_and_read_in_one_request(fetched: tuple[S3Bucket, list[str]], size: int) -> None:
    """It comes with its opening, wherever it is read."""
    bucket, ranges = fetched
    data = os.urandom(size)
    bucket.put("object", data)
    ranges.clear()
    with bucket.open("object") as file:
        assert file.seek(0, os.SEEK_END) == size
        file.seek(size // 2)
        assert file.read(10) == data[size // 2 :][:10]
        file.seek(0)
        assert file.read() == data
    assert ranges == [f"bytes=-{TAIL}"]


def test_a_large_object_is_read_in_two_requests(fetched: tuple[S3Bucket, list[str]]) -> None:
    """Its end comes with its opening; the rest does not come in crumbs."""
    bucket, ranges = fetched
    data = os.urandom(1_000_000)
    bucket.put("object", data)
    ranges.clear()
    with bucket.open("object") as file:
        assert file.read() == data
    assert ranges == [f"bytes=-{TAIL}", f"bytes=0-{1_000_000 - TAIL - 1}"]


@given(st.integers(0, 200_000), st.integers(0, 200_000))
@settings(max_examples=random_inputs(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_an_object_is_read(fetched: tuple[S3Bucket, list[str]], start: int, size: int) -> None:
    """Before the end that came with the opening, in it, or across its beginning."""
    bucket, _ = fetched
    data = bytes(range(200)) * 1000
    if not bucket.exists("object"):
        bucket.put("object", data)
    with bucket.open("object") as file:
        file.seek(start)
        assert file.read(size) == data[start : start + size]
        assert file.tell() == min(start + size, max(start, len(data)))


def test_an_opened_object_stays_one_version(s3_bucket_name: str) -> None:
    """A reader never mixes two versions: after a rewrite it raises."""
    bucket = S3Bucket(f"s3://{s3_bucket_name}/versions")
    bucket.put("object", b"1" * 200_000)
    with bucket.open("object") as file:
        assert file.read(10) == b"1" * 10
        bucket.put("object", b"2" * 200_000)
        file.seek(50_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


def test_folder_markers_are_not_objects(s3_bucket_name: str) -> None:
    """The empty objects with which consoles make folders are not listed."""
    bucket = S3Bucket(f"s3://{s3_bucket_name}/markers")
    bucket.client.put_object(Bucket=s3_bucket_name, Key="markers/folder/", Body=b"")
    bucket.put("folder/object", b"")
    assert [item.key for item in bucket.list()] == ["folder/object"]


@pytest.mark.parametrize(
    "use",
    [
        lambda bucket: list(bucket.list()),
        lambda bucket: bucket.get("object"),
        lambda bucket: bucket.put("object", b""),
        lambda bucket: bucket.put("object", b"", if_match=ABSENT),
    ],
    ids=["list", "get", "put", "conditional put"],
)
@pytest.mark.parametrize("name", ["no-such-bucket", "Not A Bucket"])
def test_a_wrong_bucket_name_is_a_persons_to_mend(s3_server: str, name: str, use: Callable[[Bucket], object]) -> None:
    """A bucket that is not there, or cannot be, is bad configuration: the error names it and says what to check."""
    with pytest.raises(PipelineError, match=rf"(?s)s3://{name}/.*Check the bucket's name"):
        use(open_bucket(f"s3://{name}/prefix"))


def test_missing_credentials_are_a_persons_to_mend(s3_bucket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error says where they are looked for."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(PipelineError, match="credentials"):
        open_bucket(f"s3://{s3_bucket_name}").get("object")


def test_other_s3_errors_keep_their_kind(s3_bucket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that may pass is not turned into bad configuration, and says which object it met."""
    from botocore.exceptions import ClientError

    bucket = S3Bucket(f"s3://{s3_bucket_name}")

    def fail(**_: object) -> None:
        raise ClientError({"Error": {"Code": "InternalError", "Message": "try again"}}, "GetObject")

    monkeypatch.setattr(bucket.client, "get_object", fail)
    with pytest.raises(ClientError) as error:
        bucket.get("folder/object")
    assert error.value.__notes__ == [f"while accessing {bucket.url('folder/object')}"]

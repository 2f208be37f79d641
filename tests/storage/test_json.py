"""Typed JSON documents: what is written is read again, and a bad document is an error that says where and what."""

import json as plain_json
from datetime import UTC, datetime

import pytest
from pydantic import BaseModel

from pipeline.errors import PipelineError
from pipeline.storage import ABSENT, Bucket, ObjectChangedError, ObjectNotFoundError, json, open_bucket


class Record(BaseModel):
    """A document with a time and a list in it."""

    name: str
    at: datetime
    numbers: list[int] = []


RECORD = Record(name="déjà vu", at=datetime(2026, 1, 2, tzinfo=UTC), numbers=[1, 2])


@pytest.mark.parametrize(
    ("document", "kind"),
    [(RECORD, Record), ({"a": 1, "b": [None, "x"]}, dict), (["a", "b"], list[str])],
    ids=["model", "dictionary", "list"],
)
def test_a_document_is_read_as_it_was_written(bucket: Bucket, document: object, kind: type) -> None:
    """Models and plain values, as JSON that people can read."""
    json.write(document, "folder/a.json", bucket)
    assert json.read(kind, "folder/a.json", bucket) == document
    assert b"\n  " in bucket.get("folder/a.json")
    plain_json.loads(bucket.get("folder/a.json"))


def test_a_document_that_somebody_else_has_written(bucket: Bucket) -> None:
    """A conditional write and a read of a certain version raise, and leave the other's document alone."""
    json.write(RECORD, "a.json", bucket, if_match=ABSENT)
    etag = bucket.etag("a.json")
    json.write({"name": "other"}, "a.json", bucket)
    with pytest.raises(ObjectChangedError):
        json.write(RECORD, "a.json", bucket, if_match=etag)
    with pytest.raises(ObjectChangedError):
        json.read(Record, "a.json", bucket, etag=etag)
    assert json.read(dict, "a.json", bucket) == {"name": "other"}
    with pytest.raises(ObjectNotFoundError):
        json.read(dict, "b.json", bucket)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"name": "x", "at": "2026-01-02T00:00:00Z", "numbers": [1, "y"]}', r"numbers\.1: .*integer"),
        (b"{}", "name: Field required; at: Field required"),
        (b'{"name": ', "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_a_bad_document_is_named(tmp_path, data: bytes, message: str) -> None:
    """The error has the object's address, all that is wrong with it, and the advice of the caller at its end."""
    bucket = open_bucket(str(tmp_path))
    bucket.put("a.json", data)
    with pytest.raises(PipelineError, match=message) as error:
        json.read(Record, "a.json", bucket, advice="Write it again.")
    assert str(error.value).startswith(bucket.url("a.json"))
    assert str(error.value).endswith(" Write it again.")

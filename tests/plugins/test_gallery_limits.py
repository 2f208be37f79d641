"""The threads of the gallery, and the buckets of a request."""

import asyncio
from threading import Event

import pytest
from fastapi import HTTPException

from captioning.gallery.limits import ExpiringBucket, OutOfTimeError, Threads


def statuses(*calls):
    """What calls at the same time are answered with: a value, or the status of the error."""

    async def ask(call):
        try:
            return await call
        except HTTPException as error:
            return error.status_code

    async def ask_all():
        return await asyncio.gather(*map(ask, calls))

    return asyncio.run(ask_all())


def test_a_function_that_does_not_end():
    """Its request is answered in time, and its thread stays taken until it ends; who waits for it may try again."""
    threads, end = Threads(1, waiting=1, seconds=0.2), Event()
    assert statuses(*(threads.call(end.wait) for _ in range(4))) == [504, 503, 503, 503]
    assert statuses(threads.call(int), threads.call(int)) == [503, 503]
    end.set()
    assert statuses(Threads(1, waiting=1, seconds=60).call(int)) == [0]
    threads.seconds = 60
    assert statuses(threads.call(int)) == [0]


def test_errors_are_those_of_the_function():
    """A time limit of the function's own is none of the request's."""
    threads = Threads(1, waiting=1, seconds=60)

    def late():
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(threads.call(late))


def test_a_bucket_of_a_request(bucket):
    """It is the bucket, until the time of the request is over: then nothing more is read."""
    etag = bucket.put("a", b"bytes")
    still = ExpiringBucket(bucket, seconds=600)
    assert (still.get("a", etag=etag), still.first_bytes("a", 2), still.etag("a")) == (b"bytes", b"by", etag)
    assert (still.url("a"), [item.key for item in still.list()]) == (bucket.url("a"), ["a"])
    over = ExpiringBucket(bucket, seconds=-1)
    for access in (over.get, over.open, over.etag, lambda key: list(over.list(key)), lambda key: over.put(key, b"")):
        with pytest.raises(OutOfTimeError, match="storage is slow"):
            access("a")

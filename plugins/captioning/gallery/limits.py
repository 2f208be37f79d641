"""Limits of the gallery's work: it lives in Airflow's API server, to which the heartbeat of every task comes.

FastAPI's functions that are not ``async`` share that server's 40 threads. The gallery's functions have threads of their
own, of which there are few, and only a limited number of requests waits for them. No thread can be stopped, so a
request that takes too long is answered, and what its function does then ends with the next access to a bucket.
"""

import asyncio
import contextvars
import functools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import IO, ParamSpec, TypeVar

from fastapi import HTTPException, status

from pipeline.errors import PipelineError
from pipeline.storage import Bucket, StoredObject

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Threads for one kind of requests.

    Args:
        count: of the threads.
        waiting: requests that may wait for a thread.
        seconds: limit for a request, its waiting included.
    """

    def __init__(self, count: int, *, waiting: int, seconds: float) -> None:
        self.count, self.waiting, self.seconds = count, waiting, seconds
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="gallery")
        self._places = threading.Semaphore(count + waiting)

    def run(self, work: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        """Decorate a function so that it runs in one of these threads; raises the errors of ``call``."""

        @functools.wraps(work)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(work, *args, **kwargs)

        return run

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in one of these threads.

        Raises:
            HTTPException: too many requests wait already, or no thread was free in time (503), or the function did not
                end in time (504).
        """
        if not self._places.acquire(blocking=False):
            raise _busy()
        future = self._pool.submit(contextvars.copy_context().run, functools.partial(work, *args, **kwargs))
        # The place of a function that has not ended in time stays taken until it has.
        future.add_done_callback(lambda _: self._places.release())
        result = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait([result], timeout=self.seconds)
            if done:
                return result.result()
            if future.cancel():
                raise _busy()
            raise HTTPException(status.HTTP_504_GATEWAY_TIMEOUT, _TOO_LONG.format(self.seconds))
        finally:
            result.cancel()


def _busy() -> HTTPException:
    return HTTPException(
        status.HTTP_503_SERVICE_UNAVAILABLE, "The gallery has too many requests at the moment: try again soon."
    )


_TOO_LONG = "This took longer than {:g} seconds: the storage is slow at the moment. Try again later."

PAGE_SECONDS = 20.0
"""Time limit for a page, and for all that is read for a request."""

THUMBNAIL_SECONDS = 10.0
"""Time limit for a thumbnail."""

UPLOAD_SECONDS = 180.0
"""Time limit for captioning or storing an upload: the model may have to be loaded first."""

openers = Threads(1, waiting=150, seconds=THUMBNAIL_SECONDS)
pages = Threads(2, waiting=22, seconds=PAGE_SECONDS)
thumbnails = Threads(4, waiting=120, seconds=THUMBNAIL_SECONDS)
searches = Threads(1, waiting=7, seconds=PAGE_SECONDS)
downloads = Threads(2, waiting=8, seconds=PAGE_SECONDS)
uploads = Threads(8, waiting=0, seconds=UPLOAD_SECONDS)


class OutOfTimeError(PipelineError):
    """The time for a request is over."""


class ExpiringBucket(Bucket):
    """A bucket for one request. After ``seconds`` each access raises ``OutOfTimeError``."""

    def __init__(self, bucket: Bucket, *, seconds: float) -> None:
        super().__init__(bucket.uri)
        self._bucket, self._seconds, self._deadline = bucket, seconds, time.monotonic() + seconds

    def _in_time(self) -> Bucket:
        if time.monotonic() > self._deadline:
            raise OutOfTimeError(_TOO_LONG.format(self._seconds))
        return self._bucket

    def url(self, key: str) -> str:
        return self._bucket.url(key)

    def require(self) -> None:
        self._in_time().require()

    def list(self, prefix: str = "", *, passed_over: Counter[str] | None = None) -> Iterator[StoredObject]:
        for item in self._in_time().list(prefix, passed_over=passed_over):
            self._in_time()
            yield item

    def get(self, key: str, *, etag: str | None = None, limit: int | None = None) -> bytes:
        return self._in_time().get(key, etag=etag, limit=limit)

    def first_bytes(self, key: str, count: int) -> bytes:
        return self._in_time().first_bytes(key, count)

    def open(self, key: str) -> IO[bytes]:
        return self._in_time().open(key)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        return self._in_time().put(key, data, if_match=if_match)

    def delete(self, key: str) -> None:
        self._in_time().delete(key)

    def etag(self, key: str) -> str:
        return self._in_time().etag(key)

    def modified(self, key: str) -> datetime:
        return self._in_time().modified(key)

    def clean(self, older_than: datetime) -> Sequence[str]:
        return self._in_time().clean(older_than)

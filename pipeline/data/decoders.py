"""Decoding of pictures in child processes with limits of time and memory.

Damaged or hostile files can make any image library loop, crash or exhaust the memory, and a thread that hangs can't be
stopped. Here such a file only fails itself: the kernel ends the process at its limits, and another replaces it. The
processes exchange nothing but bytes.

The trouble of a machine must not fail a healthy picture. The time of a picture is CPU time, which other work on the
machine does not use up. A picture whose process dies, as when the machine is out of memory, is tried once more. A
process that can't even start is an error of its own.

A process has the next pictures before it has answered the last one, so that it never waits for its parent. Files and
pixels pass through memory that both share, a seat for each picture: what is sent through pipes is a few bytes, which
wake the other side. On systems without shared files in memory (macOS), the seats are temporary files.
"""

import contextlib
import logging
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from pipeline import pipes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.data.images import Picture

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Limit for decoding a picture, in CPU time; the largest that Pillow allows take two seconds."""

MEMORY = 3 << 29
"""Limit of a process in bytes; the largest picture that Pillow allows, with transparency, needs 1.1 GB."""

SEATS = 3
"""Pictures that a process has at once: one that it decodes, and others that wait in it."""

KEPT = 8 << 20
"""Bytes of shared memory that a seat keeps from one picture to the next; a larger file gives its memory back."""

_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""The highest thresholds that glibc reaches by itself, after larger pictures: up to them, a process keeps freed memory.
Otherwise each file of a few megabytes costs a page fault for every 4 kB of it, a tenth of the time of its decoding."""

LIBRARIES = ("jpg", "zlib", "webp", "libtiff", "avif")
"""What Pillow needs to decode the formats of ``images``, by the names in ``PIL.features``."""

_Buffer = bytes | bytearray | memoryview

_RESULT, _ERROR = b"R", b"E"
"""The kinds of an answer."""

_REQUEST = struct.Struct("<BQd")
"""The number of the seat in which a picture is, the bytes of its file, and its limit of CPU time in seconds."""

_ANSWER = struct.Struct("<cQ")
"""The kind of an answer, and its bytes, which are in the seat of the picture."""

_SIZE = struct.Struct("<II")
"""Width and height of a decoded picture itself; they precede its pixels."""

_WAITING, _BEGUN = b"W", b"B"
"""The first byte of a seat: whether the process has begun with its picture. What is sent follows it."""

_OUT_OF_MEMORY = 3
"""Exit status of a process that has reached its limit; the interpreter's own are 1 and 2."""


class DecoderStartError(RuntimeError):
    """No decoder process can start on this machine; the message says why, and what to do."""


class DecodersBusyError(RuntimeError):
    """No decoder process was free in time."""


class _DecoderDiedError(Exception):
    """A process has died at a picture, but not at the limit of its time."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    @property
    def explanation(self) -> str:
        """What is wrong with a picture at which two processes have died, and what to do."""
        if self.status == _OUT_OF_MEMORY:
            return "needs more memory than a picture may take; scale it down"
        if self.status == -signal.SIGKILL:
            return (
                "its decoder was killed twice, probably because the machine ran out of memory; scale it down, or give "
                "the machine more memory and retry failed images"
            )
        return f"crashes the decoder (status {self.status}); save it again with another program"


class _NotBegunError(Exception):
    """A process has ended at another picture, while this one waited in it."""


class _Pool:
    """Processes that convert pictures, and a context manager that ends them. Can be used from any thread.

    Args:
        conversion: arguments of ``_converter``.
        seconds: limit for each picture, in CPU time.
        memory: limit for each process, in bytes; there is none on systems without such a limit (macOS).
        seats: pictures that a process has at once.
        wait: limit for waiting for a free seat, in seconds; None waits until one is free.
    """

    def __init__(
        self,
        *conversion: str | int,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        seats: int = SEATS,
        wait: float | None = None,
    ) -> None:
        self.conversion = conversion
        self.seconds = seconds
        self.memory = memory
        self.seats = seats
        self.wait = wait
        self._workers = [_Worker() for _ in range(os.cpu_count() or 1)]
        self._is_reserved = False
        # Guards ``_is_reserved``, and ``pictures`` and ``is_ending`` of the workers.
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the next picture starts others."""
        with self._changed:
            for worker in self._workers:
                if not worker.pictures:
                    worker.end()

    def _convert(self, data: bytes, seconds: float, into: Sequence["_Buffer"] = ()) -> bytes:
        """The result for a picture, or nothing if it was put ``into`` buffers."""
        from pipeline.data.images import BadImageError

        try:
            kind, answer = self._try(data, seconds, into)
        except _DecoderDiedError as error:
            log.warning("a decoder ended with status %d: trying its picture once more", error.status)
            try:
                kind, answer = self._try_alone(data, seconds, into)
            except _DecoderDiedError as again:
                raise BadImageError(again.explanation) from again
        if kind == _ERROR:
            raise BadImageError(answer.decode())
        return answer

    def _try(self, data: bytes, seconds: float, into: Sequence["_Buffer"]) -> tuple[bytes, bytes]:
        # This ends: each time, another picture has ended the process.
        while True:
            worker = self._take()
            is_ending = True
            try:
                process = worker.process(lambda: self._start(self.seats))
                answer = process.convert(data, seconds, into)
                is_ending = False
            except _NotBegunError:
                continue
            finally:
                self._leave(worker, is_ending=is_ending)
            return answer

    def _try_alone(self, data: bytes, seconds: float, into: Sequence["_Buffer"]) -> tuple[bytes, bytes]:
        """Convert a picture in a new process while the others wait: together they may have exhausted the memory."""
        with self._changed:
            self._wait_for(lambda: not self._is_reserved)
            self._is_reserved = True
        try:
            with self._changed:
                self._wait_for(lambda: not any(worker.pictures for worker in self._workers))
            with contextlib.closing(self._start(1)) as process:
                return process.convert(data, seconds, into)
        finally:
            with self._changed:
                self._is_reserved = False
                self._changed.notify_all()

    def _start(self, seats: int) -> "_Process":
        return _Process(self.memory, self.conversion, seats)

    def _take(self) -> "_Worker":
        """The worker with the fewest pictures, which has one more now. Raises ``DecodersBusyError``."""

        def free() -> list[_Worker]:
            if self._is_reserved:
                return []
            return [worker for worker in self._workers if worker.pictures < self.seats and not worker.is_ending]

        with self._changed:
            self._wait_for(free)
            # A single picture needs only one process.
            worker = min(free(), key=lambda worker: (worker.pictures, not worker.is_started))
            worker.pictures += 1
            return worker

    def _leave(self, worker: "_Worker", *, is_ending: bool) -> None:
        """A picture leaves its worker, whose process is replaced if it is ending."""
        with self._changed:
            worker.pictures -= 1
            worker.is_ending |= is_ending
            if worker.is_ending and not worker.pictures:
                worker.end()
            if is_ending or self._is_reserved:
                self._changed.notify_all()
            else:
                self._changed.notify()  # one seat is free, and who waits for one is equal

    def _wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. Raises ``DecodersBusyError`` when it takes too long."""
        if not self._changed.wait_for(condition, self.wait):
            raise DecodersBusyError(f"No decoder was free within {self.wait:g} s: try again in a moment.")


class Decoders(_Pool):
    """Processes that decode pictures to one size, (height, width)."""

    def __init__(self, size: tuple[int, int], *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        super().__init__("pixels", *size, seconds=seconds, memory=memory)
        self.size = size

    def decode(
        self, data: bytes, *, seconds: float | None = None, out: "npt.NDArray[np.uint8] | None" = None
    ) -> "Picture":
        """Decode a picture as ``images.decode`` does.

        Args:
            data: the bytes of the picture.
            seconds: limit for this picture, if not that of the pool.
            out: where its pixels are put, (height, width, 3), contiguous; by default a new array.

        Raises:
            SlowImageError: it takes longer.
            BadImageError: as ``images.decode``, or it needs too much memory, or two processes have died at it.
            DecoderStartError: no process can start.
        """
        import numpy as np

        from pipeline.data.images import Picture

        pixels = np.empty((*self.size, 3), np.uint8) if out is None else out
        own_size = bytearray(_SIZE.size)
        self._convert(data, seconds or self.seconds, [own_size, pixels.data])
        return Picture(pixels, *_SIZE.unpack(own_size))


class Thumbnails(_Pool):
    """Processes that make thumbnails whose longer side has at most ``side`` pixels."""

    def __init__(self, side: int, *, seconds: float = SECONDS, memory: int = MEMORY, wait: float | None = None) -> None:
        # One picture at a time: for one that waits within a process, there would be no limit.
        super().__init__("thumbnail", side, seconds=seconds, memory=memory, seats=1, wait=wait)

    def thumbnail(self, data: bytes) -> bytes:
        """A JPEG as ``images.thumbnail`` makes it.

        Raises the errors of ``Decoders.decode``, and ``DecodersBusyError`` if no process is free in time.
        """
        return self._convert(data, self.seconds)


class _Worker:
    """The place of a process in a pool.

    Attributes:
        pictures: those that it has.
        is_ending: whether its process has died, or is not to be used any more; the last picture that leaves ends it.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self.is_ending = False
        self._process: _Process | None = None
        self._starting = threading.Lock()

    @property
    def is_started(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def process(self, start: Callable[[], "_Process"]) -> "_Process":
        """The process, which is started if there is none."""
        with self._starting:
            self._process = self._process or start()
            return self._process

    def end(self) -> None:
        """End the process; the next picture starts another."""
        if self._process is not None:
            self._process.close()
        self._process, self.is_ending = None, False


class _Seat(NamedTuple):
    """A place for a picture in a process.

    Attributes:
        number: of the seat.
        file: a file in memory that both processes share: a byte, ``_WAITING`` or ``_BEGUN``, and what is sent.
        answers: a pipe, which says that there is an answer in the file.
    """

    number: int
    file: IO[bytes]
    answers: IO[bytes]


class _Process:
    """A child process, which converts one picture after the other. Raises ``DecoderStartError``."""

    def __init__(self, memory: int, conversion: Sequence[str | int], seats: int) -> None:
        self._files = contextlib.ExitStack()
        self._free: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        given = []
        try:
            with contextlib.ExitStack() as of_child:
                # A file, because nobody reads a pipe while the process starts.
                errors = of_child.enter_context(tempfile.TemporaryFile())
                for number in range(seats):
                    reading, writing = os.pipe()
                    answers = self._files.enter_context(open(reading, "rb", buffering=0))
                    of_child.enter_context(open(writing, "wb", buffering=0))
                    file = self._files.enter_context(_shared_file())
                    self._free.put(_Seat(number, file, answers))
                    given.append((file.fileno(), writing))
                # In a session of its own it does not receive Ctrl-C; it ends with its standard input, even if its
                # parent dies.
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", __name__, str(memory)),
                        ",".join(f"{file}:{answers}" for file, answers in given),
                        *map(str, conversion),
                    ],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=_ALLOCATION | os.environ,
                    pass_fds=[descriptor for seat in given for descriptor in seat],
                    start_new_session=True,
                )
                assert self._process.stdin is not None  # noqa: S101 - for type checkers
                self._requests = self._files.enter_context(self._process.stdin)
                assert self._process.stdout is not None  # noqa: S101
                with self._process.stdout as ready:
                    is_ready = pipes.receive(ready) is not None
                if not is_ready:
                    status = self.close()
                    errors.seek(0)
                    raise _start_error(errors.read().decode(errors="replace"), status)
        except OSError as error:
            self._files.close()
            raise _start_error(str(error)) from error

    def convert(self, data: bytes, seconds: float, into: Sequence["_Buffer"]) -> tuple[bytes, bytes]:
        """The answer to a picture: its kind, and its bytes, unless it is a result and is put ``into`` buffers.

        Raises:
            SlowImageError: it takes longer; the process has ended.
            _DecoderDiedError: the process has died at it.
            _NotBegunError: the process has died at another.
        """
        try:
            seat = self._free.get_nowait()
        except queue.Empty:  # one was given up
            raise _NotBegunError from None
        try:
            answer = self._ask(seat, data, seconds, into)
        except BaseException:
            # After Ctrl-C nobody waits for the answer, which must not be taken for that to another picture.
            self._process.kill()
            raise
        self._free.put(seat)
        return answer

    def _ask(self, seat: _Seat, data: bytes, seconds: float, into: Sequence["_Buffer"]) -> tuple[bytes, bytes]:
        from pipeline.data.images import SlowImageError

        file = seat.file.fileno()
        os.pwritev(file, [_WAITING, data], 0)
        with contextlib.suppress(BrokenPipeError):
            # So short a message arrives as a whole, from whichever thread.
            os.write(self._requests.fileno(), _REQUEST.pack(seat.number, len(data), seconds))
        if message := os.read(seat.answers.fileno(), _ANSWER.size):
            kind, length = _ANSWER.unpack(message)
            if kind == _RESULT and into:
                answer, _ = b"", os.preadv(file, into, 1)
            else:
                answer = os.pread(file, length, 1)
            if len(data) > KEPT:
                os.ftruncate(file, 0)
            return kind, answer
        status = self._process.wait()
        if os.pread(file, 1, 0) == _WAITING:
            raise _NotBegunError
        if status == -signal.SIGPROF:
            raise SlowImageError(f"takes longer than {seconds:g} s to decode; save it again with another program")
        raise _DecoderDiedError(status)

    def close(self) -> int:
        """End the process, unless it has died, and return its exit status. Nobody may wait for an answer any more."""
        self._files.close()
        return self._process.wait()


def _start_error(output: str, status: int | None = None) -> DecoderStartError:
    """The error of a process that did not start: the log has its whole output, the message the last line."""
    lines = output.split("\n") if (output := output.strip()) else ["no output"]
    if len(lines) > 1:
        log.error("a decoder did not start:\n%s", output)
    ended = "" if status is None else f" (status {status})"
    return DecoderStartError(
        f"Decoders of pictures can't start on this machine{ended}: {lines[-1].rstrip('.')}. Check its free memory, its "
        "limits of processes and open files, and whether Pillow and NumPy can be imported; then run the step again."
    )


def _shared_file() -> IO[bytes]:
    """An empty file that is shared by passing its descriptor: in memory, if the system has such files."""
    # A file of /dev/shm would be limited by its size, which is 64 MB in a container.
    with contextlib.suppress(AttributeError, OSError):
        return open(os.memfd_create("picture"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def serve(convert: Callable[[bytes], Sequence["_Buffer"]], memory: int, seats: Sequence[tuple[int, int]]) -> None:
    """Say that the process is ready, and convert pictures until standard input ends.

    Args:
        convert: from the bytes of a picture to those of the result, in parts.
        memory: limit of the process, in bytes.
        seats: the descriptors of each seat: of its file, and of the pipe for its answers.
    """
    from pipeline.data.images import BadImageError

    # macOS has no such limit. Where the system's own limit is lower, that one holds.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries may write any number of warnings about a picture.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    pipes.send(b"", sys.stdout.buffer)
    while request := os.read(sys.stdin.fileno(), _REQUEST.size):
        number, length, seconds = _REQUEST.unpack(request)
        file, answers = seats[number]
        os.pwrite(file, _BEGUN, 0)
        # The default action of SIGPROF ends the process even while a library hangs.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            kind, answer = _RESULT, convert(os.pread(file, length, 1))
        except BadImageError as error:
            kind, answer = _ERROR, [str(error).encode(errors="replace")]
        except MemoryError:
            # Earlier pictures may have left too little of it: the parent tries this one in another process.
            sys.exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(answers, _ANSWER.pack(kind, os.pwritev(file, answer, 1)))


def _converter(kind: str, *sizes: int) -> Callable[[bytes], Sequence["_Buffer"]]:
    import pillow_heif
    from PIL import AvifImagePlugin, features

    from pipeline.data import images

    # Without one of them, healthy pictures would fail.
    if missing := [name for name in LIBRARIES if not features.check(name)]:
        sys.exit(f"Pillow lacks {', '.join(missing)}")
    if not pillow_heif.libheif_info()["decoders"]:
        sys.exit("pillow-heif lacks a decoder of HEIF")
    # There is a process for each core, and each further thread would take memory of its own.
    pillow_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if kind == "thumbnail":
        os.nice(10)  # they are made beside Airflow's API server
        [side] = sizes
        return lambda data: [images.thumbnail(data, side)]
    height, width = sizes

    def decode(data: bytes) -> Sequence[_Buffer]:
        picture = images.decode(data, (height, width))
        return [_SIZE.pack(picture.width, picture.height), picture.pixels.data]

    return decode


if __name__ == "__main__":
    memory, seats, kind, *sizes = sys.argv[1:]
    descriptors = [tuple(map(int, seat.split(":"))) for seat in seats.split(",")]
    serve(_converter(kind, *map(int, sizes)), int(memory), [(file, answers) for file, answers in descriptors])

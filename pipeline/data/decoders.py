"""Decoding of pictures in child processes with limits of time and memory.

Damaged or hostile files can make any image library loop, crash or exhaust the memory, and a thread that hangs can't be
stopped. Here such a file only fails itself: the kernel ends the process at its limits, and another replaces it. The
processes exchange nothing but bytes.

The trouble of a machine must not fail a healthy picture. The time of a picture is CPU time, which other work on the
machine does not use up. A picture whose process dies, as when the machine is out of memory, is tried once more. A
process that can't even start is an error of its own.
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
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from pipeline import pipes

if TYPE_CHECKING:
    from pipeline.data.images import Picture

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Limit for decoding a picture, in CPU time; the largest that Pillow allows take two seconds."""

MEMORY = 3 << 29
"""Limit of a process in bytes; the largest picture that Pillow allows, with transparency, needs 1.1 GB."""

LIBRARIES = ("jpg", "zlib", "webp", "libtiff", "avif")
"""What Pillow needs to decode the formats of ``images``, by the names in ``PIL.features``."""

_RESULT, _ERROR = b"R", b"E"
"""The first byte of an answer."""

_SIZE = struct.Struct("<II")
"""Width and height of a decoded picture itself; they precede its pixels."""

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


class _Pool:
    """Processes that convert pictures, and a context manager that ends them. Can be used from any thread.

    Args:
        conversion: arguments of ``_converter``.
        seconds: limit for each picture, in CPU time.
        memory: limit for each process, in bytes; there is none on systems without such a limit (macOS).
        wait: limit for waiting for a free process, in seconds; None waits until one is free.
    """

    def __init__(
        self, *conversion: str | int, seconds: float = SECONDS, memory: int = MEMORY, wait: float | None = None
    ) -> None:
        self.conversion = conversion
        self.seconds = seconds
        self.memory = memory
        self.wait = wait
        self._size = os.cpu_count() or 1
        # None is a process not started yet: a single picture needs only one.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(self._size):
            self._idle.put(None)
        self._second_try = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the next picture starts others."""
        ended = 0
        while not self._idle.empty():
            ended += 1
            if (process := self._idle.get()) is not None:
                process.end()
        for _ in range(ended):
            self._idle.put(None)

    def _convert(self, data: bytes, seconds: float) -> memoryview:
        from pipeline.data.images import BadImageError

        try:
            answer = self._try(data, seconds)
        except _DecoderDiedError as error:
            log.warning("a decoder ended with status %d: trying its picture once more", error.status)
            try:
                answer = self._try_alone(data, seconds)
            except _DecoderDiedError as again:
                raise BadImageError(again.explanation) from again
        if answer[:1] == _ERROR:
            raise BadImageError(answer[1:].decode())
        return memoryview(answer)[1:]

    def _try(self, data: bytes, seconds: float) -> bytes:
        process, usable = self._take(), None
        try:
            process = process or _Process(self.memory, *self.conversion)
            answer = process.convert(data, seconds)
            usable = process
        finally:
            self._idle.put(usable)
        return answer

    def _try_alone(self, data: bytes, seconds: float) -> bytes:
        """Convert a picture in a new process while the others wait: together they may have exhausted the memory."""
        if not self._second_try.acquire(timeout=-1 if self.wait is None else self.wait):
            raise self._busy()
        idle: list[_Process | None] = []
        try:
            for _ in range(self._size):
                idle.append(self._take())  # noqa: PERF401 - if one is not free, those taken go back
            process = _Process(self.memory, *self.conversion)
            answer = process.convert(data, seconds)
            process.end()
        finally:
            for each in idle:
                self._idle.put(each)
            self._second_try.release()
        return answer

    def _take(self) -> "_Process | None":
        """A process that is not busy; None if it is not started yet. Raises ``DecodersBusyError``."""
        try:
            return self._idle.get(timeout=self.wait)
        except queue.Empty:
            raise self._busy() from None

    def _busy(self) -> DecodersBusyError:
        return DecodersBusyError(f"No decoder was free within {self.wait:g} s: try again in a moment.")


class Decoders(_Pool):
    """Processes that decode pictures to one size, (height, width)."""

    def __init__(self, size: tuple[int, int], *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        super().__init__("pixels", *size, seconds=seconds, memory=memory)
        self.size = size

    def decode(self, data: bytes, *, seconds: float | None = None) -> "Picture":
        """Decode a picture as ``images.decode`` does.

        Args:
            data: the bytes of the picture.
            seconds: limit for this picture, if not that of the pool.

        Raises:
            SlowImageError: it takes longer.
            BadImageError: as ``images.decode``, or it needs too much memory, or two processes have died at it.
            DecoderStartError: no process can start.
        """
        import numpy as np

        from pipeline.data.images import Picture

        answer = self._convert(data, seconds or self.seconds)
        pixels = np.frombuffer(answer, np.uint8, offset=_SIZE.size).reshape(*self.size, 3)
        return Picture(pixels, *_SIZE.unpack_from(answer))


class Thumbnails(_Pool):
    """Processes that make thumbnails whose longer side has at most ``side`` pixels."""

    def __init__(self, side: int, *, seconds: float = SECONDS, memory: int = MEMORY, wait: float | None = None) -> None:
        super().__init__("thumbnail", side, seconds=seconds, memory=memory, wait=wait)

    def thumbnail(self, data: bytes) -> bytes:
        """A JPEG as ``images.thumbnail`` makes it.

        Raises the errors of ``Decoders.decode``, and ``DecodersBusyError`` if no process is free in time.
        """
        return bytes(self._convert(data, self.seconds))


class _Process:
    """A child process, which converts one picture at a time. Raises ``DecoderStartError``."""

    def __init__(self, *arguments: str | int) -> None:
        try:
            # A file, because nobody reads a pipe while the process starts.
            with tempfile.TemporaryFile() as errors:
                # In a session of its own it does not receive Ctrl-C; it ends with its standard input, even if its
                # parent dies.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
                if pipes.receive(self._process.stdout) is None:
                    status = self.end()
                    errors.seek(0)
                    raise _start_error(errors.read().decode(errors="replace"), status)
        except OSError as error:
            raise _start_error(str(error)) from error

    def convert(self, data: bytes, seconds: float) -> bytes:
        """The answer to a picture.

        Raises:
            SlowImageError: it takes longer; the process has ended.
            _DecoderDiedError: the process has died.
        """
        from pipeline.data.images import SlowImageError

        try:
            pipes.send(str(seconds).encode(), self._process.stdin)
            pipes.send(data, self._process.stdin)
            answer = pipes.receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return answer
        status = self.end()
        if status == -signal.SIGPROF:
            raise SlowImageError(f"takes longer than {seconds:g} s to decode; save it again with another program")
        raise _DecoderDiedError(status)

    def end(self) -> int:
        """End the process, unless it has died, and return its exit status."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
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


def serve(convert: Callable[[bytes], bytes], memory: int) -> None:
    """Say that the process is ready, and convert the pictures on standard input until it ends.

    Each picture is two messages: the limit of its CPU time in seconds, and its bytes.
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
    while (seconds := pipes.receive(sys.stdin.buffer)) and (data := pipes.receive(sys.stdin.buffer)) is not None:
        # The default action of SIGPROF ends the process even while a library hangs.
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        try:
            answer = _RESULT + convert(data)
        except BadImageError as error:
            answer = _ERROR + str(error).encode(errors="replace")
        except MemoryError:
            # Earlier pictures may have left too little of it: the parent tries this one in another process.
            sys.exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipes.send(answer, sys.stdout.buffer)


def _converter(kind: str, *sizes: int) -> Callable[[bytes], bytes]:
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
        return lambda data: images.thumbnail(data, side)
    height, width = sizes

    def decode(data: bytes) -> bytes:
        picture = images.decode(data, (height, width))
        return _SIZE.pack(picture.width, picture.height) + picture.pixels.tobytes()

    return decode


if __name__ == "__main__":
    memory, kind, *sizes = sys.argv[1:]
    serve(_converter(kind, *map(int, sizes)), int(memory))

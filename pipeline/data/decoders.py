"""Decoding of pictures in child processes with limits of time and memory.

Damaged or hostile files can make any image library loop, crash or exhaust the memory, and a thread that hangs can't be
stopped. Here such a file only fails itself: the kernel ends the process at its limits, and another replaces it. The
processes exchange nothing but bytes.
"""

import contextlib
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from pipeline import pipes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SECONDS = 30
"""Limit for decoding a picture; even one of a hundred megapixels takes only a few."""

MEMORY = 3 << 29
"""Limit of a process in bytes; the largest picture that Pillow allows, with transparency, needs 1.1 GB."""

_RESULT, _ERROR = b"R", b"E"
"""The first byte of an answer."""


class _Pool:
    """Processes that convert pictures, and a context manager that ends them. Can be used from any thread.

    Args:
        conversion: arguments of ``_converter``.
        seconds: limit for each picture, in whole seconds.
        memory: limit for each process, in bytes.
    """

    def __init__(self, *conversion: str | int, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self.conversion = conversion
        self.seconds = seconds
        self.memory = memory
        # None is a process not started yet: a single picture needs only one.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(os.cpu_count() or 1):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the next picture starts others."""
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.end()

    def _convert(self, data: bytes) -> memoryview:
        from pipeline.data.images import BadImageError

        process = self._idle.get()
        try:
            if process is None:
                process = _Process(self.seconds, self.memory, *self.conversion)
            answer = process.convert(data)
            if answer is None:
                status, process = process.end(), None
                if status == -signal.SIGALRM:
                    raise BadImageError(
                        f"takes longer than {self.seconds} s to decode; save it again with another program"
                    )
                raise BadImageError(f"crashes the decoder (status {status}); save it again with another program")
        finally:
            self._idle.put(process)
        if answer[:1] == _ERROR:
            raise BadImageError(answer[1:].decode())
        return memoryview(answer)[1:]


class Decoders(_Pool):
    """Processes that decode pictures to one size, (height, width)."""

    def __init__(self, size: tuple[int, int], *, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        super().__init__("pixels", *size, seconds=seconds, memory=memory)
        self.size = size

    def decode(self, data: bytes) -> "npt.NDArray[np.uint8]":
        """Decode a picture as ``images.decode`` does: (height, width, 3), 0..255.

        Raises:
            BadImageError: as ``images.decode``, or decoding took too long, needed too much memory, or crashed.
        """
        import numpy as np

        return np.frombuffer(self._convert(data), np.uint8).reshape(*self.size, 3)


class Thumbnails(_Pool):
    """Processes that make thumbnails whose longer side has at most ``side`` pixels."""

    def __init__(self, side: int, *, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        super().__init__("thumbnail", side, seconds=seconds, memory=memory)

    def thumbnail(self, data: bytes) -> bytes:
        """A JPEG as ``images.thumbnail`` makes it. Raises the errors of ``Decoders.decode``."""
        return bytes(self._convert(data))


class _Process:
    """A child process, which converts one picture at a time."""

    def __init__(self, *arguments: str | int) -> None:
        # In a session of its own it does not receive Ctrl-C; it ends with its standard input, even if its parent dies.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def convert(self, data: bytes) -> bytes | None:
        """The answer to a picture; ``None`` if the process has died."""
        try:
            pipes.send(data, self._process.stdin)
            return pipes.receive(self._process.stdout)
        except BrokenPipeError:
            return None

    def end(self) -> int:
        """End the process, unless it has died, and return its exit status."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        return self._process.wait()


def serve(convert: Callable[[bytes], bytes], seconds: int, memory: int) -> None:
    """Convert the pictures on standard input until it ends."""
    from pipeline.data.images import BadImageError

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (data := pipes.receive(sys.stdin.buffer)) is not None:
        # The default action of SIGALRM ends the process even while a library hangs.
        signal.alarm(seconds)
        try:
            answer = _RESULT + convert(data)
        except BadImageError as error:
            answer = _ERROR + str(error).encode()
        signal.alarm(0)
        pipes.send(answer, sys.stdout.buffer)


def _converter(kind: str, *sizes: int) -> Callable[[bytes], bytes]:
    from pipeline.data import images

    if kind == "thumbnail":
        [side] = sizes
        return lambda data: images.thumbnail(data, side)
    height, width = sizes
    return lambda data: images.decode(data, (height, width)).tobytes()


if __name__ == "__main__":
    seconds, memory, kind, *sizes = sys.argv[1:]
    serve(_converter(kind, *map(int, sizes)), int(seconds), int(memory))

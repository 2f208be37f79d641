"""Pictures are decoded in processes of their own, each of which limits itself, by the kernel, in time and memory.

Damaged or hostile files can make any image library loop, crash or eat memory, and no thread can be stopped in it. Here
only the picture is lost: the process dies, and another takes its place. Nothing but bytes passes between the two sides.
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
"""In which a picture must be decoded; even a hundred megapixels take a few."""

MEMORY = 3 << 29
"""Bytes that a process may take; the largest picture that Pillow allows, with transparency, needs 1.1 GB."""

_MADE, _ERROR = b"M", b"E"


class _Pool:
    """Processes that make something of pictures; a context that ends them. May be asked from any thread.

    Args:
        what: what they make: arguments of ``_maker``.
        seconds: limit of time for a picture, whole seconds.
        memory: limit of memory for a process, bytes.
    """

    def __init__(self, *what: str | int, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self.what = what
        self.seconds = seconds
        self.memory = memory
        # They start when they are first needed: a single picture needs one.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(os.cpu_count() or 1):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a further picture starts others."""
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.end()

    def _make(self, data: bytes) -> memoryview:
        from pipeline.images import BadImageError

        process = self._idle.get()
        try:
            if process is None:
                process = _Process(self.seconds, self.memory, *self.what)
            answer = process.ask(data)
            if answer is None:
                status, process = process.end(), None
                if status == -signal.SIGALRM:
                    raise BadImageError(
                        f"takes longer than {self.seconds} s to decode; save it anew in another program"
                    )
                raise BadImageError(f"crashes the decoder (status {status}); save it anew in another program")
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
        """Decode a picture as ``images.decode`` does, (height, width, 3).

        Raises:
            BadImageError: as there, or it took too long, needed too much memory, or crashed the process.
        """
        import numpy as np

        return np.frombuffer(self._make(data), np.uint8).reshape(*self.size, 3)


class Thumbnails(_Pool):
    """Processes that shrink pictures to a longest side, in pixels."""

    def __init__(self, side: int, *, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        super().__init__("thumbnail", side, seconds=seconds, memory=memory)

    def thumbnail(self, data: bytes) -> bytes:
        """A picture as ``images.thumbnail`` makes it; raises as ``Decoders.decode``."""
        return bytes(self._make(data))


class _Process:
    """One process, asked for one picture at a time."""

    def __init__(self, *arguments: str | int) -> None:
        # In a session of its own, Ctrl-C does not reach it: it ends with its standard input, as when its parent dies.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ask(self, data: bytes) -> bytes | None:
        """The answer to a picture's bytes; ``None`` where the process has died of them."""
        try:
            pipes.send(data, self._process.stdin)
            return pipes.receive(self._process.stdout)
        except BrokenPipeError:
            return None

    def end(self) -> int:
        """Let it end, or wait until it has; the exit status."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        return self._process.wait()


def serve(make: Callable[[bytes], bytes], seconds: int, memory: int) -> None:
    """Make something of what comes on standard input until it ends."""
    from pipeline.images import BadImageError

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (data := pipes.receive(sys.stdin.buffer)) is not None:
        # Left to its default the signal ends the process, in whatever library it may hang.
        signal.alarm(seconds)
        try:
            answer = _MADE + make(data)
        except BadImageError as error:
            answer = _ERROR + str(error).encode()
        signal.alarm(0)
        pipes.send(answer, sys.stdout.buffer)


def _maker(what: str, *sizes: int) -> Callable[[bytes], bytes]:
    from pipeline import images

    if what == "thumbnail":
        [side] = sizes
        return lambda data: images.thumbnail(data, side)
    height, width = sizes
    return lambda data: images.decode(data, (height, width)).tobytes()


if __name__ == "__main__":
    seconds, memory, what, *sizes = sys.argv[1:]
    serve(_maker(what, *map(int, sizes)), int(seconds), int(memory))

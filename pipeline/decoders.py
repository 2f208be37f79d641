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
from typing import TYPE_CHECKING

from pipeline import pipes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SECONDS = 30
"""In which a picture must be decoded; even a hundred megapixels take a few."""

MEMORY = 3 << 29
"""Bytes that a process may take; the largest picture that Pillow allows, with transparency, needs 1.1 GB."""

_PICTURE, _ERROR = b"P", b"E"


class Decoders:
    """Processes that decode pictures to one size; a context that ends them. ``decode`` may be called from any thread.

    Args:
        size: (height, width) of the pictures.
        seconds: limit of time for a picture, whole seconds.
        memory: limit of memory for a process, bytes.
    """

    def __init__(self, size: tuple[int, int], *, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self.size = size
        self.seconds = seconds
        self.memory = memory
        # They start when they are first needed: a single picture needs one.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(os.cpu_count() or 1):
            self._idle.put(None)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a further picture starts others."""
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.end()

    def decode(self, data: bytes) -> "npt.NDArray[np.uint8]":
        """Decode a picture as ``images.decode`` does, (height, width, 3).

        Raises:
            BadImageError: as there, or it took too long, needed too much memory, or crashed the process.
        """
        import numpy as np

        from pipeline.images import BadImageError

        process = self._idle.get()
        try:
            if process is None:
                process = _Process(self.size, self.seconds, self.memory)
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
        return np.frombuffer(answer, np.uint8, offset=1).reshape(*self.size, 3)


class _Process:
    """One process, asked for one picture at a time."""

    def __init__(self, size: tuple[int, int], seconds: int, memory: int) -> None:
        arguments = map(str, (*size, seconds, memory))
        # In a session of its own, Ctrl-C does not reach it: it ends with its standard input, as when its parent dies.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
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


def serve(size: tuple[int, int], seconds: int, memory: int) -> None:
    """Decode what comes on standard input until it ends."""
    from pipeline.images import BadImageError, decode

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (data := pipes.receive(sys.stdin.buffer)) is not None:
        # Left to its default the signal ends the process, in whatever library it may hang.
        signal.alarm(seconds)
        try:
            answer = _PICTURE + decode(data, size).tobytes()
        except BadImageError as error:
            answer = _ERROR + str(error).encode()
        signal.alarm(0)
        pipes.send(answer, sys.stdout.buffer)


if __name__ == "__main__":
    height, width, seconds, memory = map(int, sys.argv[1:])
    serve((height, width), seconds, memory)

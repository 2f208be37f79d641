"""The client of the captioning server: captions for a web page, without Keras in the process that serves the page.

The server is a child process. It is started when it is first needed, limited in time, replaced when it dies, and ended
after some time without pictures. It also ends when its parent dies.
"""

import contextlib
import json
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import pipes
from pipeline.serving.server import Answer, Kind

log = logging.getLogger(__name__)

Child = tuple[Sequence[str], Path, Mapping[str, str]]
"""How a module is run: the command that its name and arguments complete, the folder, and the environment."""

END_SECONDS = 5
"""Time limit for the end of a server that has closed its output."""


class CaptioningError(Exception):
    """There is no caption; the message is for the person who uploaded the picture."""


class BadPictureError(CaptioningError):
    """The uploaded file can't be decoded as a picture."""


class BusyError(CaptioningError):
    """Too many pictures are waiting already."""


class TimeLimitError(CaptioningError):
    """It took too long."""


class UnavailableError(CaptioningError):
    """No picture can be captioned until a person acts or the server has started again."""


class CaptionClient:
    """Captions pictures, one at a time. Can be called from any thread.

    Args:
        child: returns how the server is run, each time that it starts.
        alternatives: further captions of each picture; fewer if the nightly beam is narrower.
        start_seconds: limit for loading the champion.
        seconds: limit for captioning a picture.
        idle_seconds: time without a picture after which the server is ended.
        waiting: maximum number of waiting pictures.
    """

    def __init__(
        self,
        child: Callable[[], Child],
        *,
        alternatives: int = 4,
        start_seconds: float = 120,
        seconds: float = 30,
        idle_seconds: float = 600,
        waiting: int = 8,
    ) -> None:
        self.child = child
        self.alternatives = alternatives
        self.start_seconds = start_seconds
        self.seconds = seconds
        self.idle_seconds = idle_seconds
        self._slots = threading.BoundedSemaphore(1 + waiting)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._idle: threading.Timer | None = None

    def __enter__(self) -> "CaptionClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def caption(self, data: bytes, version: str = "") -> Answer:
        """A model's captions of a picture.

        Args:
            data: the bytes of the picture.
            version: of the model; empty for the champion. The server holds one model at a time, and loads another where
                this one is not the last one's.

        Raises:
            BadPictureError: it can't be decoded.
            BusyError: too many pictures are waiting already.
            TimeLimitError: it took too long.
            UnavailableError: there is no such model or no champion, or the server can't start or has died.
        """
        if not self._slots.acquire(blocking=False):
            raise BusyError("Too many pictures are waiting for captions: try again in a minute.")
        try:
            with self._turn, self._running() as process:
                if not self._ready:
                    self._exchange(process, self.start_seconds)
                    self._ready = True
                kind, text = self._exchange(process, self.seconds, (version.encode(), data))
                if kind is Kind.LOADING:
                    kind, text = self._exchange(process, self.start_seconds)
        finally:
            self._slots.release()
        if kind is Kind.BAD_PICTURE:
            raise BadPictureError(text)
        return Answer.model_validate_json(text)

    def warm(self) -> None:
        """Start the server, so that it loads the champion in the background; returns at once."""
        # If another thread holds the lock, it has started the server.
        if self._turn.acquire(blocking=False):
            try:
                with self._running():
                    pass
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the server; the next picture starts another."""
        with self._turn:
            self._end()

    @contextlib.contextmanager
    def _running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The server, started if there is none; the idle time begins when the context ends."""
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None and self._process.poll() is not None:
            log.warning("the captioning server ended with status %d: starting another", self._end())
        if self._process is None:
            command, folder, environment = self.child()
            # In a session of its own it does not receive Ctrl-C; it ends with its standard input.
            self._process = subprocess.Popen(
                [*command, "pipeline.serving.server", str(self.alternatives)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        try:
            yield self._process
        finally:
            self._idle = threading.Timer(self.idle_seconds, self._end_if_idle)
            self._idle.daemon = True
            self._idle.start()

    def _exchange(
        self, process: "subprocess.Popen[bytes]", seconds: float, request: tuple[bytes, bytes] | None = None
    ) -> tuple[Kind, str]:
        """Send the version of a model and a picture, if there are any, and return the next message of the server."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        message = None
        try:
            # A server that hangs may not even read: killing it ends the sending, too.
            with contextlib.suppress(BrokenPipeError):
                for part in request or ():
                    pipes.send(part, process.stdin)
                message = pipes.receive(process.stdout)
        except BaseException:
            # A pending answer would be taken for that of the next picture.
            self._end()
            raise
        finally:
            timer.cancel()
        if message is not None:
            kind, text = json.loads(message)
            if kind == Kind.UNAVAILABLE:
                if not self._ready:
                    self._end()
                raise UnavailableError(text)
            return Kind(kind), text
        # A process closes its pipes before it has ended: if it were killed now, its own exit status would be lost.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        status = self._end()
        if late.is_set():
            raise TimeLimitError(f"No captions within {seconds:g} s: try again, or another picture.")
        raise UnavailableError(
            f"The captioning server ended with status {status}: the API server's log says why. Try again."
        )

    def _end_if_idle(self) -> None:
        with self._turn:
            # If a picture has arrived in the meantime, another timer is set.
            if threading.current_thread() is self._idle:
                self._end()

    def _end(self) -> int | None:
        """Kill the server, which holds no state that would be lost; return its exit status."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return None
        process.kill()
        # Unsent data is still in the buffer.
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.wait()

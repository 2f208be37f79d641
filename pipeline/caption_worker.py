"""Captions for a web page, from a process of their own: whoever serves the page loads no Keras.

The process is started when it is first needed, limited in time, replaced when it dies, and ended when nobody needs it
for a while. It ends with whoever started it, however that ends.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from pipeline import pipes, serving
from pipeline.serving import Answer, Kind
from pipeline.settings import PROJECT

log = logging.getLogger(__name__)

COMMAND = [sys.executable, "-m", serving.__name__]


class CaptioningError(Exception):
    """There is no caption; the message is fit for the person who uploaded the picture."""


class BadPictureError(CaptioningError):
    """What was uploaded is not a picture that can be decoded."""


class BusyError(CaptioningError):
    """Too many wait already."""


class TimeLimitError(CaptioningError):
    """It took too long, and was given up."""


class UnavailableError(CaptioningError):
    """No picture has a caption, until somebody acts or the process has started again."""


class CaptionWorker:
    """Captions pictures one at a time, in a process of its own. May be called from any thread.

    Args:
        alternatives: captions wanted of each picture beside the best; fewer where the nightly beam does not hold them.
        environment: of the process, asked for each time that it starts.
        start_seconds: in which the process must have loaded the champion.
        seconds: in which it must have captioned a picture.
        idle_seconds: without a picture, after which the process is ended.
        waiting: how many may wait for their turn.
    """

    def __init__(
        self,
        *,
        alternatives: int = 4,
        environment: Callable[[], Mapping[str, str]] = lambda: os.environ,
        start_seconds: float = 120,
        seconds: float = 30,
        idle_seconds: float = 600,
        waiting: int = 8,
    ) -> None:
        self.alternatives = alternatives
        self.environment = environment
        self.start_seconds = start_seconds
        self.seconds = seconds
        self.idle_seconds = idle_seconds
        self._places = threading.BoundedSemaphore(1 + waiting)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._idle: threading.Timer | None = None

    def __enter__(self) -> "CaptionWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def caption(self, data: bytes) -> Answer:
        """The champion's captions of a picture.

        Raises:
            BadPictureError: it can't be decoded.
            BusyError: too many wait already.
            TimeLimitError: it took too long.
            UnavailableError: there is no champion, or the process can't start or has died.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError("Too many pictures are waiting for their captions: try again in a minute.")
        try:
            with self._turn, self._running() as process:
                if not self._ready:
                    self._hear(process, self.start_seconds)
                    self._ready = True
                kind, text = self._hear(process, self.seconds, data)
                if kind is Kind.LOADING:
                    kind, text = self._hear(process, self.start_seconds)
        finally:
            self._places.release()
        if kind is Kind.BAD_PICTURE:
            raise BadPictureError(text)
        return Answer.model_validate_json(text)

    def warm(self) -> None:
        """Let the process load the champion in the meantime; returns at once."""
        # Whoever has the turn has started it.
        if self._turn.acquire(blocking=False):
            try:
                with self._running():
                    pass
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the process; a further picture starts another."""
        with self._turn:
            self._end()

    @contextlib.contextmanager
    def _running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The process, started where there is none, and ended when it has been idle from then on."""
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None and self._process.poll() is not None:
            log.warning("the captioning process has ended with status %d: starting another", self._end())
        if self._process is None:
            # In a session of its own, Ctrl-C does not reach it: it ends with its standard input.
            self._process = subprocess.Popen(
                [*COMMAND, str(self.alternatives)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment(),
                cwd=PROJECT,
                start_new_session=True,
            )
        try:
            yield self._process
        finally:
            self._idle = threading.Timer(self.idle_seconds, self._end_if_idle)
            self._idle.daemon = True
            self._idle.start()

    def _hear(self, process: "subprocess.Popen[bytes]", seconds: float, data: bytes | None = None) -> tuple[Kind, str]:
        """Send a picture, if there is one, and return the next message."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        message = None
        try:
            # A process that hangs may not even read: killed, it ends the sending, too.
            with contextlib.suppress(BrokenPipeError):
                if data is not None:
                    pipes.send(data, process.stdin)
                message = pipes.receive(process.stdout)
        except BaseException:
            # An answer that nobody heard would be taken for the next picture's.
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
        status = self._end()
        if late.is_set():
            raise TimeLimitError(f"No captions within {seconds:g} s: try again, or another picture.")
        raise UnavailableError(f"The captioning process has ended with status {status}; its log says why. Try again.")

    def _end_if_idle(self) -> None:
        with self._turn:
            # Where a picture came meanwhile, another timer is set.
            if threading.current_thread() is self._idle:
                self._end()

    def _end(self) -> int | None:
        """Kill the process, which holds nothing that would be lost; its exit status."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return None
        process.kill()
        # What was to be sent is still in its buffer.
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.wait()

"""The captioning server: a process that captions pictures, one at a time, with the champion or a model of choice.

``client.CaptionClient`` starts it. Requests arrive on standard input, each as two messages: the version of a model,
empty for the champion, and a picture. The answers are messages on standard output, each of a kind and a text; its log
goes to standard error. Only the process itself loads the heavy libraries; other importers of this module get the types
of its answers.
"""

import io
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pipeline import logs, pipes
from pipeline.config import DecodingConfig
from pipeline.data.decoders import Decoders, DecoderStartError
from pipeline.errors import PipelineError, name_missing_extra
from pipeline.settings import read_settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.data.images import Picture
    from pipeline.serving.on_demand import Model
    from pipeline.storage.bucket import Bucket

log = logging.getLogger(__name__)

DECODE_SECONDS = 10
"""Limit of CPU time for decoding a picture: below the client's limit, so that a slow picture only ends its decoder."""


class Kind(StrEnum):
    """The kind of a message."""

    READY = "ready"  # the server has started and waits for pictures
    LOADING = "loading"  # the answer will take longer, because there is a new champion, or another model is asked for
    ANSWER = "answer"  # the captions of the picture
    BAD_PICTURE = "bad picture"  # the picture can't be decoded, and why
    UNAVAILABLE = "unavailable"  # the model can't caption, and why: there is no champion, for example


class ScoredCaption(BaseModel):
    """A caption; the fields are those of ``captioner.Caption``."""

    model_config = ConfigDict(frozen=True)

    caption: str
    log_prob: float
    probability: float
    confidence: float | None = None
    novel: bool | None = None


class Answer(BaseModel):
    """The captions of a picture."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="of the model")
    captions: list[ScoredCaption] = Field(description="the best first")


def serve(alternatives: int, send: Callable[[Kind, str], None]) -> None:
    """Caption the pictures that arrive on standard input; the process ends when standard input does.

    Args:
        alternatives: further captions of each picture; fewer if the nightly beam is narrower.
        send: sends a message.
    """
    from pipeline.storage import open_bucket

    requests = _requests()
    try:
        settings = read_settings()
        store = open_bucket(settings.store)
    except PipelineError as error:
        send(Kind.UNAVAILABLE, str(error))
        return
    alternatives = min(alternatives, settings.beam_width - 1)
    models = _Models(store, decoding=settings.decoding, alternatives=alternatives)
    try:
        models.load("")
    except (PipelineError, DecoderStartError) as error:  # also the answer to each picture, until a person has fixed it
        log.warning("%s", error)
    send(Kind.READY, "")
    for version, picture in requests:
        try:
            models.load(version, lambda: send(Kind.LOADING, ""))
            send(*models.caption(picture))
        except (PipelineError, DecoderStartError) as error:
            log.warning("%s", error)
            send(Kind.UNAVAILABLE, str(error))


class _Models:
    """The models of the store, of which one is loaded at a time."""

    def __init__(self, store: "Bucket", *, decoding: DecodingConfig, alternatives: int) -> None:
        self.store, self.decoding, self.alternatives = store, decoding, alternatives
        self._etag = self._champion = ""
        self._loaded: tuple[Model, Decoders] | None = None

    @name_missing_extra()
    def load(self, version: str, before_loading: Callable[[], None] = lambda: None) -> None:
        """Load a model, or the champion if the version is empty, unless it is loaded.

        Raises:
            PipelineError: there is no such model, or it is damaged.
            DecoderStartError: no picture can be decoded on this machine.
        """
        from pipeline.serving import on_demand

        version = version or self._find_champion()
        if self._loaded is not None and self._loaded[0].version == version:
            return
        before_loading()
        self._unload()
        model = on_demand.load(version, self.store)
        self._loaded = model, Decoders(model.encoder.size, seconds=DECODE_SECONDS)
        # The first picture compiles the decoding and starts the first decoder process.
        self.caption(_blank())

    def _find_champion(self) -> str:
        """The version of the champion, which is read again only when the pointer has changed."""
        from pipeline.captioner.registry import read_champion
        from pipeline.storage import layout

        etag = self.store.etag(layout.CHAMPION)
        if etag != self._etag:
            self._champion = read_champion(self.store).version
            self._etag = etag
        return self._champion

    def caption(self, data: bytes) -> tuple[Kind, str]:
        """The answer to a picture."""
        from pipeline.data.images import BadImageError

        assert self._loaded is not None  # noqa: S101 - for type checkers
        model, decoders = self._loaded

        def read(_: tuple[str, str], out: "npt.NDArray[np.uint8]") -> "Picture | str":
            try:
                return decoders.decode(data, out=out)
            except BadImageError as error:
                return str(error)

        row = ("a picture", "")
        [captioned] = model.caption([row], read, decoding=self.decoding, alternatives=self.alternatives)
        if captioned.error is not None:
            return Kind.BAD_PICTURE, captioned.error
        captions = [
            ScoredCaption(
                caption=caption.text,
                log_prob=caption.log_prob,
                probability=caption.probability,
                confidence=caption.confidence,
                novel=caption.novel,
            )
            for caption in captioned.captions
        ]
        return Kind.ANSWER, Answer(version=model.version, captions=captions).model_dump_json()

    def _unload(self) -> None:
        """Release the memory of the loaded model."""
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None


def _blank() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _requests() -> Iterator[tuple[str, bytes]]:
    """The requests on standard input. When it ends, the process exits at once, even during other work."""
    arrived: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    # An interpreter that ends while a thread reads from sys.stdin aborts, and its exit status is lost.
    messages = os.fdopen(os.dup(sys.stdin.fileno()), "rb")

    def read() -> None:
        while (version := pipes.receive(messages)) is not None and (data := pipes.receive(messages)) is not None:
            arrived.put((version.decode(), data))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(arrived.get, None)


def _main() -> None:
    # The output of libraries must not get between the messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A single picture is quick on a CPU, and the memory of an accelerator is for nights and trainings.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    logs.configure(gpu=False)
    serve(int(sys.argv[1]), lambda kind, text: pipes.send(json.dumps([kind, text]).encode(), messages))


if __name__ == "__main__":
    _main()

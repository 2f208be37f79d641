"""The process that captions the pictures of a web page by the champion, one at a time: ``python -m pipeline.serving``.

A ``caption_worker.CaptionWorker`` starts it. Pictures come as messages on standard input, and what it says of them goes
as messages to standard output, each of a kind and a text; its log goes to standard error. Only the process itself loads
what is heavy: whoever imports this module gets the shape of its answers.
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

from pipeline import pipes
from pipeline.errors import PipelineError
from pipeline.recipe import Search
from pipeline.settings import read_settings

if TYPE_CHECKING:
    from pipeline.bucket import Bucket
    from pipeline.decoders import Decoders
    from pipeline.features import Picture
    from pipeline.on_demand import Model

log = logging.getLogger(__name__)

DECODE_SECONDS = 10
"""In which a picture must be decoded: sooner than a worker gives up, so that a slow one costs the decoder alone."""


class Kind(StrEnum):
    """What a message says."""

    READY = "ready"  # it has started, and awaits pictures
    LOADING = "loading"  # the picture's answer will take longer, as there is another champion
    ANSWER = "answer"  # the picture's captions
    BAD_PICTURE = "bad picture"  # why it has none: it can't be decoded
    UNAVAILABLE = "unavailable"  # why no picture has any: there is no champion, for one


class Scored(BaseModel):
    """A caption, the mean log probability of its words (its end among them), and its probability as a whole."""

    model_config = ConfigDict(frozen=True)

    caption: str
    log_prob: float
    probability: float


class Answer(BaseModel):
    """What a model says of a picture."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="of the model")
    captions: list[Scored] = Field(description="the best first")


def serve(alternatives: int, say: Callable[[Kind, str], None]) -> None:
    """Answer the pictures that come on standard input; the process ends when that does.

    Args:
        alternatives: captions wanted of each picture beside the best; fewer where the nightly beam does not hold them.
        say: sends a message.
    """
    from pipeline.storage import open_bucket

    pictures = _pictures()
    try:
        settings = read_settings()
        store = open_bucket(settings.store)
    except PipelineError as error:
        say(Kind.UNAVAILABLE, str(error))
        return
    alternatives = min(alternatives, settings.beam_width - 1)
    champion = _Champion(store, search=settings.search, alternatives=alternatives)
    try:
        champion.refresh()
    except PipelineError as error:  # each picture is told, until somebody has mended it
        log.warning("%s", error)
    say(Kind.READY, "")
    for picture in pictures:
        try:
            champion.refresh(lambda: say(Kind.LOADING, ""))
            say(*champion.caption(picture))
        except PipelineError as error:
            log.warning("%s", error)
            say(Kind.UNAVAILABLE, str(error))


class _Champion:
    """The champion, loaded."""

    def __init__(self, store: "Bucket", *, search: Search, alternatives: int) -> None:
        self.store, self.search, self.alternatives = store, search, alternatives
        self._etag = ""
        self._loaded: tuple[Model, Decoders] | None = None

    def refresh(self, before_loading: Callable[[], None] = lambda: None) -> None:
        """Load the champion unless it is loaded. Raises ``PipelineError`` where there is none, or it can't be."""
        from pipeline import on_demand, registry
        from pipeline.decoders import Decoders

        etag = self.store.etag(registry.CHAMPION)
        if etag == self._etag:
            return
        version = registry.champion(self.store).version
        if self._loaded is None or self._loaded[0].version != version:
            before_loading()
            self._drop()
            model = on_demand.load(version, self.store)
            self._loaded = model, Decoders(model.encoder.size, seconds=DECODE_SECONDS)
            # The search is compiled by its first picture, and the first decoder is started for it.
            self.caption(_blank())
        self._etag = etag

    def caption(self, data: bytes) -> tuple[Kind, str]:
        """The message that answers a picture."""
        from pipeline.images import BadImageError

        assert self._loaded is not None  # noqa: S101 - for type checkers
        model, decoders = self._loaded

        def read(_: tuple[str, str]) -> "Picture":
            try:
                return decoders.decode(data)
            except BadImageError as error:
                return str(error)

        row = ("a picture", "")
        [captioned] = model.caption([row], read, search=self.search, alternatives=self.alternatives)
        if captioned.error is not None:
            return Kind.BAD_PICTURE, captioned.error
        captions = [
            Scored(caption=caption.text, log_prob=caption.log_prob, probability=caption.probability)
            for caption in captioned.captions
        ]
        return Kind.ANSWER, Answer(version=model.version, captions=captions).model_dump_json()

    def _drop(self) -> None:
        """Let the memory go before another model takes as much."""
        if self._loaded is not None:
            self._loaded[1].close()
        self._loaded = None


def _blank() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def _pictures() -> Iterator[bytes]:
    """What comes on standard input. When that ends so does the process at once, whatever it is busy with."""
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while (data := pipes.receive(sys.stdin.buffer)) is not None:
            arrived.put(data)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(arrived.get, None)


def _main() -> None:
    # What libraries print must not come among the messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A picture at a time is quick on a CPU, and an accelerator's memory is for nights and trainings.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    serve(int(sys.argv[1]), lambda kind, text: pipes.send(json.dumps([kind, text]).encode(), messages))


if __name__ == "__main__":
    _main()

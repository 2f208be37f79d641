"""XMP sidecars: the caption and the alt text of each photograph in a file of its own, where photo tools look for them.

They are in the store, under keys that mirror those of the inbox, or in the inbox beside the photographs, as the setting
says. Photo tools and people write sidecars of the same name, so one is only ever replaced or removed if it is exactly
what this module writes: if what ``parse`` reads from it, ``render`` turns into the very same bytes.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import NamedTuple
from xml.sax.saxutils import escape, unescape

import pyarrow as pa

from pipeline.config import SidecarPlace
from pipeline.errors import PipelineError
from pipeline.progress import track
from pipeline.storage import (
    ABSENT,
    BadKeyError,
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    layout,
)
from pipeline.work.listing import PAGE

log = logging.getLogger(__name__)

WRITERS = 32
"""Sidecars that are written at once."""

MAX_BYTES = 100_000
"""A larger sidecar is not read: photo tools write such ones, this module does not."""

ATTEMPTS = 3
"""How often a sidecar is looked at that another program writes at the same moment."""

_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="image-captioning-pipeline">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{caption}</rdf:li>
     <rdf:li xml:lang="{language}">{caption}</rdf:li>
    </rdf:Alt>
   </dc:description>
   <Iptc4xmpCore:AltTextAccessibility>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{alt_text}</rdf:li>
     <rdf:li xml:lang="{language}">{alt_text}</rdf:li>
    </rdf:Alt>
   </Iptc4xmpCore:AltTextAccessibility>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""The characters that XML 1.0 can't hold, not even escaped."""

_CARRIAGE_RETURN = {"\r": "&#13;"}
"""What a parser of XML would otherwise read as a line feed."""


class Content(NamedTuple):
    """What a sidecar says; ``language`` is the BCP 47 code of both texts."""

    caption: str
    alt_text: str
    language: str


class Outcome(StrEnum):
    """What became of a sidecar; the text is for a log."""

    WRITTEN = "written"
    REMOVED = "removed"
    UP_TO_DATE = "up to date"
    FOREIGN = "left alone, because another program or a person wrote or edited them"
    DENIED = "not permitted"
    NO_NAME = "without a name that the inbox could hold"


def render(caption: str, alt_text: str, language: str) -> bytes:
    """The sidecar of a photograph; the same arguments give the same bytes.

    The caption is the description of Dublin Core (``dc:description``), the alt text is in IPTC's field
    (``Iptc4xmpCore:AltTextAccessibility``). Characters that XML can't hold are left out.
    """
    texts = {"caption": caption, "alt_text": alt_text, "language": language}
    return _XMP.format_map(
        {name: escape(_FORBIDDEN.sub("", text), _CARRIAGE_RETURN) for name, text in texts.items()}
    ).encode()


def parse(data: bytes) -> Content | None:
    """What a sidecar says that ``render`` wrote; ``None`` if it did not write exactly these bytes."""
    try:
        match = _WRITTEN.fullmatch(data.decode())
    except UnicodeDecodeError:
        return None
    if match is None:
        return None
    content = Content(**{name: unescape(text, {"&#13;": "\r"}) for name, text in match.groupdict().items()})
    return content if render(*content) == data else None


def _pattern() -> re.Pattern[str]:
    """The expression that matches what ``render`` writes."""
    pattern = re.escape(_XMP)
    for name, text in (("caption", "[^<]*"), ("alt_text", "[^<]*"), ("language", "[A-Za-z0-9-]+")):
        place = re.escape(f"{{{name}}}")
        pattern = pattern.replace(place, f"(?P<{name}>{text})", 1).replace(place, f"(?P={name})")
    return re.compile(pattern)


_WRITTEN = _pattern()


def update(
    changed: pa.Table, gone: Sequence[str], *, language: str, place: SidecarPlace, inbox: Bucket, store: Bucket
) -> Counter[Outcome]:
    """Write the sidecars of photographs whose caption has changed, and remove those of photographs without one.

    A sidecar of another program, or one that was edited, is left alone. It can be repeated: what is up to date is not
    written again.

    Args:
        changed: rows of the current captions, of which it reads ``image_key``, ``caption`` and ``alt_text``. If the
            caption is null (the photograph was replaced and has none yet), the sidecar of the earlier one is removed.
        gone: keys of photographs that are not in the inbox any more. Their sidecars in the store are removed; those in
            the inbox stay.
        language: of the captions, a BCP 47 code.
        place: where the sidecars are.
        inbox: the bucket of the photographs.
        store: the store.

    Returns:
        How many sidecars had each outcome.

    Raises:
        PipelineError: there is no such inbox, or none of the sidecars could be written, because it is not permitted.
    """
    counts: Counter[Outcome] = Counter()
    if place == "none":
        return counts
    if place == "inbox":
        inbox.require()
        gone = ()
    examples: dict[Outcome, str] = {}

    def settle(photograph: str, caption: str | None, alt_text: str | None) -> tuple[Outcome, str]:
        data = None if caption is None else render(caption, alt_text or "", language)
        if place == "store":
            return _settle(layout.sidecar(photograph), data, store)
        return _settle(layout.beside(photograph), data, inbox, photograph=photograph)

    def outcomes() -> Iterator[tuple[Outcome, str]]:
        with ThreadPoolExecutor(WRITERS) as threads:
            for page in changed.select(["image_key", "caption", "alt_text"]).to_batches(max_chunksize=PAGE):
                yield from threads.map(settle, *(column.to_pylist() for column in page.columns))
            yield from threads.map(lambda key: settle(key, None, None), gone)

    for outcome, reason in track(outcomes(), total=len(changed) + len(gone), unit="sidecars", log=log):
        counts[outcome] += 1
        examples.setdefault(outcome, reason)
    done = {Outcome.WRITTEN, Outcome.REMOVED, Outcome.UP_TO_DATE}
    for outcome, count in counts.items():
        if outcome in done:
            log.info("sidecars %s: %d", outcome, count)
        else:
            log.warning("sidecars %s: %d, such as %s", outcome, count, examples[outcome])
    if counts[Outcome.DENIED] and not done & counts.keys():
        raise PipelineError(
            f"No sidecar could be written: {examples[Outcome.DENIED]} Permit the pipeline to write to "
            f"{(inbox if place == 'inbox' else store).uri}, or set CAPTION_SIDECARS to another place, or to none. "
            "The captions themselves are in the store."
        )
    return counts


def _settle(key: str, data: bytes | None, bucket: Bucket, *, photograph: str | None = None) -> tuple[Outcome, str]:
    """Make a sidecar hold these bytes, or remove it if they are ``None``; the outcome, with the object or the error.

    If there is no such ``photograph`` any more, none is written beside it: its folder may be gone, too.
    """
    try:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ObjectChangedError, ObjectNotFoundError):
                return _try_to_settle(key, data, bucket, photograph), bucket.url(key)
    except ObjectDeniedError as error:
        return Outcome.DENIED, str(error)
    except BadKeyError as error:
        return Outcome.NO_NAME, str(error)
    except ObjectTooLargeError as error:
        return Outcome.FOREIGN, str(error)
    return Outcome.FOREIGN, bucket.url(key)


def _try_to_settle(key: str, data: bytes | None, bucket: Bucket, photograph: str | None) -> Outcome:
    etag = bucket.etag(key)
    old = None if etag == ABSENT else bucket.get(key, etag=etag, limit=MAX_BYTES)
    if old == data or (old is None and photograph is not None and not bucket.exists(photograph)):
        return Outcome.UP_TO_DATE
    if old is not None and parse(old) is None:
        return Outcome.FOREIGN
    if data is None:
        bucket.delete(key)
        return Outcome.REMOVED
    bucket.put(key, data, if_match=etag)
    return Outcome.WRITTEN

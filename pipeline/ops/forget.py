"""Forgetting: photographs are removed from the store and from MLflow, and nights and datasets pass over them then.

First, ``tombstones`` of all facts about a photograph are written: its key, the hash of its bytes, its copies in the
inbox and in datasets. Then every object that may hold it is read, and written again without it, or removed (``sweep``).
This goes by the tombstones alone, so that it can be repeated: after an interruption, when a run that was going on has
ended, and in a backup. Objects are written by compare-and-swap, so that nothing that others write meanwhile is lost.
"""

import contextlib
import logging
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import ENGLISH, SidecarPlace
from pipeline.data import corrections
from pipeline.data import dataset as datasets
from pipeline.data.images import content_hash
from pipeline.errors import PipelineError
from pipeline.nightly import current, sidecars
from pipeline.ops.sweep import sweep
from pipeline.progress import counted
from pipeline.storage import (
    BadKeyError,
    Bucket,
    ObjectDeniedError,
    ObjectNotFoundError,
    has_portable_names,
    layout,
    open_source,
    source_name,
)
from pipeline.storage.bucket import READERS
from pipeline.work import tombstones
from pipeline.work.tombstones import Fact

log = logging.getLogger(__name__)

PASSES = 3
"""How often the store is searched, at most. The last search must find nothing."""

UNFINISHED = timedelta(days=1)
"""Age at which the remains of an interrupted write are removed."""


class Forgotten(BaseModel):
    """What was forgotten, or would be."""

    model_config = ConfigDict(frozen=True)

    removed: bool = Field(description="whether it was removed; by default it is only listed")
    images: list[str] = Field(description="the keys in the inbox, with those of copies")
    datasets: list[str] = Field(description="the images of datasets: the id of the dataset, and that of the image")
    unknown: list[str] = Field(description="keys that are neither in the inbox nor in the current captions")
    objects: dict[str, int] = Field(description="objects of the store that held them, by folder")

    def __str__(self) -> str:
        done = "forgotten" if self.removed else "found, nothing is removed without --remove"
        unknown = f"; neither in the inbox nor in the current captions: {len(self.unknown)}" if self.unknown else ""
        images, objects = counted(len(self.images), "image"), counted(sum(self.objects.values()), "object")
        rows = f" and {counted(len(self.datasets), 'row')} of datasets" if self.datasets else ""
        return f"{images}{rows} in {objects} {done}{unknown}"


def forget(
    keys: Iterable[str],
    pictures: Sequence[bytes] = (),
    *,
    inbox: Bucket,
    store: Bucket,
    remove: bool,
    place: SidecarPlace = "none",
    tracking_uri: str = "",
) -> Forgotten:
    """Remove photographs from the store and from MLflow, with all copies of the same bytes.

    Args:
        keys: of the photographs in the inbox. Without any, what was forgotten earlier is searched for again.
        pictures: the bytes of further photographs, wherever they are.
        inbox: the inbox, in which only the pipeline's own sidecars are removed.
        store: the store.
        remove: whether anything is written; otherwise, it only finds out what would be.
        place: where sidecars are.
        tracking_uri: of MLflow; empty if there is none.

    Raises:
        PipelineError: the inbox can't be listed, an object is damaged and may hold one of them, or others keep writing
            them.
    """
    known = set(keys)
    # Before the rows are removed: a photograph that was deleted from the inbox first is still among them.
    captioned = set(current.find(known, store)["image_key"].to_pylist()) if known else set()
    found = _find(known, pictures, inbox, store)
    facts = found.facts(source_name(inbox, store))
    marked = tombstones.add(facts, store) if remove else tombstones.read(store).adding(facts)
    held = dict.fromkeys(sweep(marked, store, remove=remove, tracking_uri=tracking_uri))
    if remove:
        _remove_sidecars(found.keys, place, inbox, store)
        for _ in range(PASSES):
            left = sweep(marked, store, remove=True, tracking_uri=tracking_uri)
            held |= dict.fromkeys(left)
            if not left:
                break
        else:
            raise PipelineError(
                f"{left[0]} and {len(left) - 1} other objects of {store.uri} still hold a photograph that is to be "
                "forgotten: something writes them again. Wait until all runs have ended, and repeat the command."
            )
        store.clean(datetime.now(UTC) - UNFINISHED)
    return Forgotten(
        removed=remove,
        images=sorted(found.keys),
        datasets=sorted(f"{each.dataset}/{each.image_id}" for each in found.rows),
        unknown=sorted(key for key in known - captioned if not inbox.exists(key)),
        objects=dict(Counter(key.partition("/")[0] for key in held)),
    )


@dataclass(frozen=True)
class _Row:
    """An image of a dataset."""

    dataset: str
    image_id: str
    source: str
    key: str
    etag: str
    content: str | None


@dataclass
class _Photographs:
    """The photographs to be forgotten: all that is known about them.

    Attributes:
        keys: in the inbox.
        hashes: of their bytes.
        sizes: of their bytes.
        places: source and key of copies in the sources of datasets.
        pictures: keys of copies that belong to corrections.
        rows: their rows in datasets.
    """

    keys: set[str]
    hashes: set[str]
    sizes: set[int]
    places: set[tuple[str, str]] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    rows: list[_Row] = field(default_factory=list)

    @property
    def known(self) -> int:
        """How much is known."""
        return len(self.keys) + len(self.hashes) + len(self.sizes) + len(self.places)

    def facts(self, inbox: str) -> Iterator[Fact]:
        """The facts that get tombstones; ``inbox`` is the name of the inbox as the source of a dataset."""
        for key in self.keys:
            yield from (("key", key), ("place", inbox, key), ("sidecar", layout.sidecar(key)))
            yield from (("name", key), ("name", posixpath.basename(key)))
        for row in self.rows:
            yield from tombstones.facts_of_row(
                {"image_id": row.image_id, "source": row.source, "image_key": row.key, "image_etag": row.etag}
            )
        yield from (("content", each) for each in self.hashes)
        yield from (("name", picture) for picture in self.pictures)

    def add(self, data: bytes) -> None:
        """Add the bytes of one."""
        self.hashes.add(content_hash(data))
        self.sizes.add(len(data))


def _find(keys: Iterable[str], pictures: Sequence[bytes], inbox: Bucket, store: Bucket) -> _Photographs:
    """Find the copies of photographs: the same bytes in the inbox, among the corrections, and in datasets."""
    found = _Photographs(set(keys), set(), set())
    for data in pictures:
        found.add(data)
    if not found.known:
        return found
    inbox.require()
    name = source_name(inbox, store)
    said = corrections.read(store).select(["image_key", "picture"]).to_pylist()
    rows = list(_rows(store))
    # Corrections and datasets tie keys of the inbox to hashes.
    ties: list[tuple[str | None, str | None]] = [(row["image_key"], PurePosixPath(row["picture"]).stem) for row in said]
    ties += [(row.key if row.source == name else None, row.content) for row in rows]
    # Where a dataset has hashes, no picture need be read.
    sources = {row.source for row in rows if row.content is None and not has_portable_names(row.source)} - {name}
    buckets = {name: inbox, **{source: open_source(source, store) for source in sources}}
    read: set[str] = set()
    searched: set[int] = set()
    before = 0
    while before < found.known:
        before = found.known
        for key, content in ties:
            if key in found.keys or content in found.hashes:
                found.keys |= {key} if key else set()
                found.hashes |= {content} if content else set()
        for key in sorted(found.keys - read):
            with contextlib.suppress(ObjectNotFoundError, ObjectDeniedError, BadKeyError):
                found.add(inbox.get(key))
        for content in found.hashes:
            copies = store.list(f"{layout.CORRECTIONS}{layout.correction_picture(content, '')}")
            found.sizes |= {item.size for item in copies}
        read |= found.keys
        if sizes := found.sizes - searched:
            for source, bucket in buckets.items():
                copies_of = _copies(bucket, sizes, found.hashes)
                if source == name:
                    found.keys |= copies_of
                else:
                    found.places |= {(source, key) for key in copies_of}
            searched |= sizes
    found.pictures |= {row["picture"] for row in said if PurePosixPath(row["picture"]).stem in found.hashes}
    found.rows += [
        row
        for row in rows
        if row.content in found.hashes
        or (row.source, row.key) in found.places
        or (row.source == name and row.key in found.keys)
    ]
    return found


def _rows(store: Bucket) -> Iterator[_Row]:
    """The rows of all datasets."""
    for item in list(store.list(layout.DATASETS)):
        if dataset_id := layout.dataset_of_table(item.key):
            table = datasets.load(dataset_id, store).table
            columns = ("image_id", "source", "image_key", "image_etag", "content_hash")
            for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
                found = _Row(dataset_id, *row)
                # The etag of a corrected picture is the hash of its content.
                yield replace(found, content=found.etag) if has_portable_names(found.source) else found


def _copies(bucket: Bucket, sizes: set[int], hashes: set[str]) -> set[str]:
    """The keys of the objects that have one of these hashes; only those of one of these sizes are read."""

    def is_copy(key: str) -> bool:
        try:
            return content_hash(bucket.get(key)) in hashes
        except (ObjectNotFoundError, ObjectDeniedError):
            return False

    try:
        candidates = [item.key for item in bucket.list() if item.size in sizes]
    except PipelineError as error:
        log.warning("copies in a source of a dataset are not found, because it can't be listed: %s", error)
        return set()
    with ThreadPoolExecutor(READERS) as pool:
        return {key for key, same in zip(candidates, pool.map(is_copy, candidates), strict=True) if same}


def _remove_sidecars(keys: set[str], place: SidecarPlace, inbox: Bucket, store: Bucket) -> None:
    """Remove the pipeline's own sidecars beside the photographs, if they are there; those in the store are objects."""
    if place == "inbox" and keys:
        texts = pa.nulls(len(keys), pa.string())
        table = pa.table({"image_key": sorted(keys), "caption": texts, "alt_text": texts})
        sidecars.update(table, (), language=ENGLISH, place=place, inbox=inbox, store=store)

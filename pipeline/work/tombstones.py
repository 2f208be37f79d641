"""Tombstones: salted hashes of photographs that were forgotten on request, so that nothing brings them back.

A tombstone is a keyed hash (BLAKE2b, RFC 7693) of a fact about a photograph, such as its key in the inbox or the hash
of its bytes. The facts tell whether a photograph is forgotten, but no key or picture can be read from the tombstones.
The salt, which is the key of the hash, is stored beside them, so anyone who can read the store can still check a guess.

BLAKE2b takes a third of the time of HMAC-SHA-256: a night checks each key that it lists.

Tombstones are written before anything is removed, and the removal needs nothing else. It can therefore be repeated
after an interruption, and in a backup, without the keys of the photographs.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.storage import Bucket, ObjectChangedError, json, layout
from pipeline.storage.bucket import read_version

FORGOTTEN = "forgotten"
"""What listings and reports call forgotten photographs, which they pass over."""

IDENTIFYING = ("image_id", "source", "image_key", "image_etag", "content_hash", "picture")
"""The columns of a table that tell which photograph a row is about. Tables of datasets have an ``image_id``."""

MAX_NAME = 1024
"""Maximum characters of a key that is looked for in a text."""

Kind = Literal["key", "content", "place", "version", "name", "sidecar"]

Fact = tuple[str, ...]
"""What identifies a photograph, after one of these kinds:

* ``key``: its key in the inbox.
* ``content``: the hash of its bytes, see ``content_hash``.
* ``place``: the source of a dataset, and its key there.
* ``version``: its key in a source of a dataset, and its etag.
* ``name``: one of its names, which texts may mention.
* ``sidecar``: the key of its sidecar in the store.
"""

_SEPARATORS = frozenset(" \t\r\n,;:()[]{}<>\"'“”‘’/=#|")
"""Characters before and after a name in a text."""


class Tombstones(BaseModel):
    """What was forgotten."""

    model_config = ConfigDict(frozen=True)

    salt: str = Field(default_factory=lambda: secrets.token_hex(32), description="key of the hash")
    hashes: tuple[str, ...] = Field((), description="keyed hash of each fact, sorted")

    def has(self, kind: Kind, *fact: str | None) -> bool:
        """Whether this fact is one about a forgotten photograph."""
        return bool(self.hashes) and None not in fact and self._hash(kind, *fact) in self._known

    def mentioned_in(self, text: str) -> bool:
        """Whether a text names a forgotten photograph."""
        return bool(self.hashes) and any(map(self._is_mentioned, {text, unquote(text)}))

    def mask(self, table: pa.Table) -> pa.Array:
        """Which rows of a table are about forgotten photographs: Booleans, one for each row.

        Args:
            table: with ``image_key`` and any others of the columns ``IDENTIFYING``.
        """
        if not self.hashes:
            return pa.repeat(pa.scalar(False), len(table))
        missing = [None] * len(table)
        columns = [table[name].to_pylist() if name in table.column_names else missing for name in IDENTIFYING]
        return pa.array([self._is_row(row) for row in zip(*columns, strict=True)], pa.bool_())

    def drop(self, table: pa.Table) -> pa.Table:
        """The table without the rows of forgotten photographs."""
        return table.filter(pc.invert(self.mask(table))) if self.hashes else table

    def adding(self, facts: Iterable[Fact]) -> "Tombstones":
        """These and the tombstones of further facts."""
        added = {self._hash(*fact) for fact in facts}
        return self.model_copy(update={"hashes": tuple(sorted({*self.hashes, *added}))})

    def _is_row(self, row: tuple[str | None, ...]) -> bool:
        image_id, source, key, etag, content, picture = row
        # The name of the copy of a corrected picture is the hash of its content, and as an image, so is its etag.
        copied = etag if key and etag and f"/{etag}." in key else None
        hashes = {content, copied, picture and PurePosixPath(picture).stem} - {None}
        # The keys of a dataset are not those of the inbox.
        by_key = self.has("key", key) if image_id is None else self.has("place", source, key)
        return by_key or self.has("version", key, etag) or any(self.has("content", each) for each in hashes)

    def _is_mentioned(self, text: str) -> bool:
        starts = [0, *(place + 1 for place, character in enumerate(text) if character in _SEPARATORS)]
        ends = [
            place
            for place in range(1, len(text) + 1)
            if place == len(text)
            or text[place] in _SEPARATORS
            or (text[place] == "." and (place + 1 == len(text) or text[place + 1] in _SEPARATORS))
        ]
        return any(
            self.has("name", text[start:end]) for start in starts for end in ends if start < end <= start + MAX_NAME
        )

    def _hash(self, *fact: str | None) -> str:
        text = repr(fact).encode(errors="surrogatepass")
        return hashlib.blake2b(text, key=self._salt, digest_size=32).hexdigest()

    @cached_property
    def _salt(self) -> bytes:
        return bytes.fromhex(self.salt)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.hashes)


def read(store: Bucket) -> Tombstones:
    """The tombstones of a store; none if nothing was ever forgotten.

    Raises:
        DamagedObjectError: they can't be read, so that what was forgotten could come back.
    """
    return _read(store)[0]


def add(facts: Iterable[Fact], store: Bucket) -> Tombstones:
    """Write the tombstones of these facts, and return all that there are now."""
    facts = list(facts)
    while True:
        known, etag = _read(store)
        added = known.adding(facts)
        if added == known:
            return known
        try:
            json.write(added, layout.TOMBSTONES, store, if_match=etag)
        except ObjectChangedError:
            continue  # somebody else has forgotten something
        return added


def facts_of_row(row: Mapping[str, str]) -> list[Fact]:
    """The facts about a row of a dataset, given its ``image_id``, ``source``, ``image_key`` and ``image_etag``."""
    key = row["image_key"]
    return [
        ("place", row["source"], key),
        ("version", key, row["image_etag"]),
        ("name", key),
        ("name", row["image_id"]),
    ]


def _read(store: Bucket) -> tuple[Tombstones, str]:
    advice = "Restore it from a backup: without it, forgotten photographs are captioned again."
    found, etag = read_version(
        lambda etag: json.read(Tombstones, layout.TOMBSTONES, store, etag=etag, advice=advice),
        layout.TOMBSTONES,
        store,
    )
    return found or Tombstones(), etag

"""Published captions with their photographs, as they are read before they become a dataset.

The formats are in ``annotation_formats``. Rows that can't be used are dropped, counted and listed with their line, and
too many of them are an error: a model trained on the rest of a broken export would look like any other.
"""

import codecs
import fnmatch
import functools
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.data.text import has_letters
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, LocalBucket, StoredObject
from pipeline.storage.bucket import is_utf8

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "dev", "test")

SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(["val", "valid", "validation"], "dev"),
    "restval": "train",
}
"""The names of splits that are accepted, in lower case. Karpathy's ``restval`` is meant for training."""

UNREADABLE = "image can't be read"
"""The reason for dropping the captions of an image whose split depends on its bytes."""

_SHOWN = 5
"""Dropped rows, or files, that an error message shows."""


class Dropped(BaseModel):
    """A row that can't be used. ``line`` counts from 1; in Parquet and JSON it is the number of the row or caption."""

    model_config = ConfigDict(frozen=True)

    source: str = ""
    file: str
    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Row:
    """A caption as it was read; ``photograph`` is None if its file is missing, ``number`` orders those of an image."""

    file: str
    line: int
    text: str
    photograph: StoredObject | None
    number: int
    caption: str


@dataclass
class Annotations:
    """The content of a source of captions.

    Attributes:
        files: keys of the files that hold the captions.
        rows: the captions that were parsed.
        splits: the splits of each image, by key.
        undecided: the splits between which the bytes of an image decide, by key.
        hashes: the hashes of the images that were read, by key; None if the image could not be read.
        dropped: the rows that could not be parsed, and errors in the splits.
    """

    files: list[str]
    rows: list[Row] = field(default_factory=list)
    splits: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    undecided: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hashes: dict[str, str | None] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, file: str, line: int, reason: str, text: str) -> None:
        """Record a dropped row."""
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)  # what is not UTF-8 can't be in a record
        shown = text if len(text) <= 100 else f"{text[:99]}…"
        self.dropped.append(Dropped(file=file, line=line, reason=reason, text=shown))

    def decide_splits(self, hashes: dict[str, str | None]) -> None:
        """Choose the splits of the undecided images by the hashes of their bytes, so that copies share a split."""
        self.hashes = hashes
        for key, splits in self.undecided.items():
            if (value := hashes.get(key)) is not None:
                self.splits[key].add(split_by_hash(value, splits))


class Photographs:
    """The image files of a bucket, and the one that a name in a file of captions means."""

    def __init__(self, files: Iterable[StoredObject], bucket: Bucket) -> None:
        from pipeline.data.recognition import recognize

        self.by_key = {item.key: item for page in recognize(files, bucket) for item, is_image in page if is_image}
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for key in self.by_key:
            self._by_name[_folded(posixpath.basename(key))].append(key)
        self._root = str(bucket.root) if isinstance(bucket, LocalBucket) else bucket.uri

    def find(self, name: str, folder: str = "") -> StoredObject | None:
        """The image that a name means: a path relative to ``folder`` or to the bucket, or the end of the path of a key.

        A path may have ``\\`` for ``/``, ``.`` and ``..``, and may be absolute (on S3, a URI) below the bucket. It
        may differ from the key in Unicode form, or in case.

        Raises:
            PipelineError: several images match equally well.
        """
        keys = self.matches(name, folder)
        if len(keys) > 1:
            raise ambiguous(name, keys)
        return self.by_key[keys[0]] if keys else None

    def matches(self, name: str, folder: str = "") -> list[str]:
        """The keys of the images that a name may mean, see ``find``: those that match best."""
        path = self._relative(name)
        whole = posixpath.normpath(posixpath.join(folder, path))
        for exact in (posixpath.join(folder, name), whole):  # the first may have a backslash that is no separator
            if exact in self.by_key:
                return [exact]
        keys = self._by_name.get(_folded(posixpath.basename(path)), [])
        same_forms: tuple[Callable[[str], str], ...] = (str, _composed, _folded)
        for form in same_forms:
            forms = {key: form(key) for key in keys}
            for wanted in (form(whole), form(path)):
                if found := [key for key in keys if forms[key] == wanted]:
                    return found
            if found := [key for key in keys if forms[key].endswith(f"/{form(path)}")]:
                return found
        return []

    def _relative(self, name: str) -> str:
        """The name as a path relative to the bucket, if it is below it."""
        path = name.replace("\\", "/")
        for absolute in (path, _without_links(path)):
            if absolute.startswith(f"{self._root}/"):
                return posixpath.normpath(absolute.removeprefix(f"{self._root}/"))
        return posixpath.normpath(path)


def _composed(path: str) -> str:
    """The path in one Unicode form: macOS decomposes the letters of file names."""
    return unicodedata.normalize("NFC", path)


def _folded(path: str) -> str:
    return _composed(_composed(path).casefold())


def _without_links(path: str) -> str:
    """An absolute path, with the links among its folders resolved, as those of a local bucket are."""
    folder, name = posixpath.split(path)
    can_exist = folder.startswith("/") and "\0" not in folder and is_utf8(folder)
    return posixpath.join(_real_folder(folder), name) if can_exist else path


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@dataclass(frozen=True)
class Source:
    """A folder with photographs and their captions.

    Attributes:
        bucket: the folder.
        keys: the keys of all its files.
        photographs: those of them that are photographs.
    """

    bucket: Bucket
    keys: list[str]
    photographs: Photographs

    @classmethod
    def of(cls, bucket: Bucket) -> "Source":
        """List the files of a folder."""
        files = list(bucket.list())
        return cls(bucket, [item.key for item in files], Photographs(files, bucket))

    def named(self, *patterns: str) -> list[str]:
        """The keys of the files whose names match one of the patterns, such as ``*.csv``, in upper or lower case."""
        matchers = [re.compile(fnmatch.translate(pattern), re.IGNORECASE) for pattern in patterns]
        return [key for key in self.keys if any(matcher.match(posixpath.basename(key)) for matcher in matchers)]

    def single(self, keys: list[str]) -> str:
        """The only one of these keys. Raises ``PipelineError`` if there are more."""
        if len(keys) == 1:
            return keys[0]
        if len({posixpath.basename(key) for key in keys}) == 1:
            raise ambiguous(posixpath.basename(keys[0]), keys)
        raise PipelineError(
            f"{self.bucket.uri} holds {len(keys)} files of captions: {', '.join(keys[:_SHOWN])}"
            f"{', …' if len(keys) > _SHOWN else ''}. Pass the one that is meant."
        )

    def text(self, key: str) -> str:
        """A text in UTF-8, or in UTF-16 as Windows writes it; bytes that can't be decoded become lone surrogates."""
        data = self.bucket.get(key)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16", errors="replace")
        return data.decode("utf-8-sig", errors="surrogateescape")

    def lines(self, key: str, annotations: Annotations) -> Iterator[tuple[int, str]]:
        """The non-blank lines of a text, numbered from 1; lines that are not UTF-8 are dropped."""
        # Not splitlines(), which also splits at characters that can occur within a caption.
        for number, line in enumerate(self.text(key).split("\n"), 1):
            if not is_utf8(line):
                annotations.drop(key, number, "not UTF-8", line)
            elif line.strip():
                yield number, line.removesuffix("\r")


def dataset_schema() -> "pa.Schema":
    """The schema of a dataset's table."""
    import pyarrow as pa

    from pipeline.storage.parquet import column

    return pa.schema(
        [
            column(
                "image_id",
                pa.string(),
                "id of the image in the dataset: the name of its file; its key if names repeat; source and key if "
                "keys repeat",
            ),
            column("source", pa.string(), "bucket of the image: a URI, or `store:` and a folder of the store"),
            column("image_key", pa.string(), "key of the image in this bucket"),
            column("image_etag", pa.string(), "etag of the image; for a corrected picture, the hash of its content"),
            column(
                "content_hash",
                pa.string(),
                "hash of the content; null if the image could not be read, and in train also where it was not needed",
            ),
            column("split", pa.string(), "train, dev or test"),
            column("captions", pa.list_(pa.string()), "the human captions of the image as they were read, in order"),
        ]
    )


def split_by_hash(content_hash: str, splits: tuple[str, ...] = SPLITS) -> str:
    """A split chosen by the hash of an image's bytes; it never changes.

    Of all three splits, train gets 80 %, dev and test get 10 % each; of dev and test alone, each gets half.
    """
    share = int(content_hash[:16], 16) / 2**64
    if splits == SPLITS:
        return "train" if share < 0.8 else "dev" if share < 0.9 else "test"
    return splits[int(share * len(splits))]


def assemble(annotations: Annotations, source: str) -> "tuple[pa.Table, list[Dropped]]":
    """The dataset rows of a source, one per image, without hashes, and the rows that can't be used, by file and line.

    Args:
        annotations: the captions.
        source: name of the bucket that holds the photographs, as ``source_name`` gives it.
    """
    import pyarrow as pa

    captions: defaultdict[StoredObject, dict[int, str]] = defaultdict(dict)
    for row in annotations.rows:
        splits = annotations.splits.get(row.photograph.key, set()) if row.photograph else set()
        if not is_utf8(row.caption):
            reason = "not UTF-8"
        elif not row.caption:
            reason = "empty caption"
        elif not has_letters(row.caption):
            reason = "no letters"
        elif row.photograph is None:
            reason = "image missing"
        elif annotations.hashes.get(row.photograph.key, "") is None:
            reason = UNREADABLE
        elif row.number in captions[row.photograph]:
            reason = "duplicate"
        elif len(splits) != 1:
            reason = "image in two splits" if splits else "image in no split"
        else:
            captions[row.photograph][row.number] = row.caption
            continue
        annotations.drop(row.file, row.line, reason, row.text)

    photographs = [photograph for photograph, texts in captions.items() if texts]
    ids = image_ids([(source, photograph.key) for photograph in photographs])
    rows = []
    for image_id, photograph in zip(ids, photographs, strict=True):
        key = photograph.key
        (split,) = annotations.splits[key]
        texts = [text for _, text in sorted(captions[photograph].items())]
        rows.append((image_id, source, key, photograph.etag, annotations.hashes.get(key), split, texts))
    schema = dataset_schema()
    columns = zip(*sorted(rows, key=lambda row: row[0]), strict=True) if rows else [[]] * len(schema)
    dropped = sorted(annotations.dropped, key=lambda row: (row.file, row.line))
    return pa.table(list(map(list, columns)), schema=schema), dropped


def image_ids(images: Sequence[tuple[str, str]]) -> list[str]:
    """The ids of images, given by source and key: the name, or the key if names repeat, or both if keys repeat."""
    names = Counter(posixpath.basename(key) for _, key in images)
    keys = Counter(key for _, key in images)

    def image_id(source: str, key: str) -> str:
        name = posixpath.basename(key)
        return name if names[name] == 1 else key if keys[key] == 1 else f"{source}/{key}"

    return [image_id(source, key) for source, key in images]


def ambiguous(name: str, keys: list[str]) -> PipelineError:
    """The error for several files of the same name."""
    return PipelineError(
        f"{len(keys)} files are named {name}: {', '.join(keys)}. Rename or remove all but one, or name the one that is "
        "meant by its path."
    )


def check_dropped(rows: list[Dropped], kept: int, *, place: str, folder: str, allowed: float) -> None:
    """Check how many captions of a source were dropped.

    Args:
        rows: the dropped captions.
        kept: number of captions that were not dropped.
        place: where the captions are, for the error.
        folder: where the image files belong, for the error.
        allowed: share of the captions that may be dropped.

    Raises:
        PipelineError: more were dropped, or there are no captions.
    """
    total = kept + len(rows)
    if not total:
        raise PipelineError(f"{place} holds no captions.")
    if len(rows) / total <= allowed:
        return
    reasons = Counter(row.reason for row in rows).most_common()
    shown = "; ".join(f"{row.file}, line {row.line}, {row.reason}: {row.text}" for row in rows[:_SHOWN])
    raise PipelineError(
        f"{len(rows)} of the {total} captions in {place} can't be used ({len(rows) / total:.1%}, allowed "
        f"{allowed:.1%}): {', '.join(f'{reason} {count}' for reason, count in reasons)}. Fix these rows, put "
        f"the missing image files into {folder}, or raise --max-dropped-fraction. The first rows: {shown}"
    )

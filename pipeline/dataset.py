"""Datasets: captioned photographs in one validated table, a row an image, with its split and its captions.

They are made of captions as they are published (see ``annotations``) or of a dataset that is there already. To either
can be added what people have written where they found a caption wrong (see ``marks``).
"""

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.annotations import (
    SPLIT_FILES,
    SPLITS,
    Annotations,
    Dropped,
    Photographs,
    Row,
    assemble,
    check_dropped,
    read,
)
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectDeniedError, ObjectNotFoundError, open_bucket, open_object

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

_ABOUT = {"name", "fingerprint"}
"""What the metadata of a dataset's table says."""

_SHOWN = 5
"""Rows that an error message shows."""


class IngestReport(BaseModel):
    """What an ingest kept and dropped.

    Attributes:
        dataset: URI of the ``dataset.parquet``.
        fingerprint: hash of the table's content; it names the dataset's version.
        sources: images by the URI of the bucket in which they lie.
        images: images by split.
        captions: captions kept.
        dropped: dropped rows by reason.
        dropped_rows: each of them.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    fingerprint: str
    sources: dict[str, int]
    images: dict[str, int]
    captions: int
    dropped: dict[str, int]
    dropped_rows: tuple[Dropped, ...]

    def __str__(self) -> str:
        splits = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        dropped = f", {len(self.dropped_rows):,} dropped" if self.dropped_rows else ""
        return f"{sum(self.images.values()):,} images ({splits}), {self.captions:,} captions{dropped}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Captioned photographs.

    Attributes:
        name: as given to ``ingest``.
        fingerprint: hash of the table's content.
        table: one row an image, by ``image_id``: ``image_id`` (the file's name, unique), ``source`` (URI of the bucket
            in which it lies), ``image_key`` (in that), ``etag``, ``split`` (one of ``SPLITS``), all string, and
            ``captions``, list of string, raw, in their order.
    """

    name: str
    fingerprint: str
    table: "pa.Table"

    def split(self, name: str) -> "pa.Table":
        """The rows of one of ``SPLITS``."""
        import pyarrow.compute as pc

        if name not in SPLITS:
            raise ValueError(f"Expected one of {', '.join(SPLITS)}. Received: {name!r}")
        return self.table.filter(pc.equal(self.table["split"], name))


def images(table: "pa.Table") -> "pa.Table":
    """The photographs of a dataset's rows as a listing: ``key`` and ``etag``, string."""
    return table.select(["image_key", "etag"]).rename_columns(["key", "etag"])


def images_by_source(table: "pa.Table") -> "dict[str, pa.Table]":
    """The photographs of a dataset's rows as a listing of each bucket, by its URI."""
    import pyarrow.compute as pc

    return {uri: images(table.filter(pc.field("source") == uri)) for uri in table["source"].unique().to_pylist()}


def sources(table: "pa.Table") -> dict[str, Bucket]:
    """The buckets in which the photographs of a dataset's rows lie, by their URIs."""
    return {uri: open_bucket(uri) for uri in table["source"].unique().to_pylist()}


def ingest(
    source: str,
    store: Bucket,
    *,
    name: str | None = None,
    max_dropped_fraction: float = 0.05,
    marks: bool = False,
) -> IngestReport:
    """Read captioned photographs into ``datasets/<name>/<fingerprint>/dataset.parquet``.

    The same data gives the same URI, and what is there already is not written again. ``ingest.json`` beside the table
    is the report. Captions are kept raw, but for white space around them.

    Args:
        source: a folder in the Flickr8k layout, a ``.csv`` or ``.parquet`` table, or a ``dataset.parquet`` that was
            written here; a path, ``file://`` or ``s3://``. In a table, ``image`` is a path relative to the table's
            folder or the name of a file anywhere below it, and ``split`` is train, dev (or val, valid, validation) or
            test. Without that column, four fifths of the images are train and a tenth each dev and test, by a hash of
            the image's name.
        store: the store.
        name: of the dataset: letters, digits, ``.``, ``_`` and ``-``; by default that of the source.
        max_dropped_fraction: share of the source's captions that may be dropped.
        marks: add the store's marked pictures, with their better captions, to the split train. One whose bytes are
            those of a picture in dev or test is dropped.

    Raises:
        PipelineError: the layout or the columns are unknown, two image files share a name, too much was dropped, or a
            split is empty.
    """
    if _is_dataset(source):
        known, table, dropped = _read_dataset(source)
    else:
        known = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source).name.removesuffix(".csv").removesuffix(".parquet"))
        table, dropped = _read(source, max_dropped_fraction)
    name = known if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise PipelineError(f"A dataset's name is made of letters, digits, '.', '_' and '-'. Received: {name!r}")
    if marks:
        table, dropped = _add_marks(table, dropped, store)
    _check_table(table, source)

    images = _count_splits(table)
    captions = sum(map(len, table["captions"].to_pylist()))
    fingerprint = hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest()[:16]
    folder = f"datasets/{name}/{fingerprint}"
    report = IngestReport(
        dataset=store.url(f"{folder}/dataset.parquet"),
        fingerprint=fingerprint,
        sources=dict(Counter(table["source"].to_pylist())),
        images=images,
        captions=captions,
        dropped=dict(Counter(row.reason for row in dropped).most_common()),
        dropped_rows=tuple(dropped),
    )
    if store.exists(f"{folder}/dataset.parquet"):
        log.info("%s exists: nothing to do", report.dataset)
        return report
    from pipeline import tables

    # The table goes last: whoever sees it sees the report too.
    store.put(f"{folder}/ingest.json", report.model_dump_json(indent=2).encode())
    about = {"name": name, "fingerprint": fingerprint}
    tables.write(table, f"{folder}/dataset.parquet", store, about=about)
    log.info("%s: images %s, %d captions, dropped %s", report.dataset, images, captions, report.dropped or "nothing")
    return report


def load(uri: str) -> Dataset:
    """The dataset at the URI of a ``dataset.parquet``.

    Raises:
        ObjectNotFoundError: there is no such object.
        PipelineError: it is not a dataset that ``ingest`` wrote.
    """
    from pipeline import tables

    bucket, key = open_object(uri)
    table = tables.read(key, bucket)
    about = tables.about(table)
    if missing := _ABOUT - about.keys():
        raise PipelineError(
            f"{uri} is not a dataset: its metadata lacks {', '.join(sorted(missing))}. "
            "Give the URI of a dataset.parquet that `python -m pipeline ingest` has written."
        )
    _check_table(table, uri)
    return Dataset(about["name"], about["fingerprint"], table)


def newest(store: Bucket, *, limit: int) -> list[str]:
    """URIs of the datasets that ``ingest`` has written, the newest first."""
    tables = [item for item in store.list("datasets/") if item.key.endswith("/dataset.parquet")]
    tables.sort(key=lambda item: item.modified, reverse=True)
    return [store.url(item.key) for item in tables[:limit]]


def _is_dataset(source: str) -> bool:
    """Whether it is a table that ``ingest`` has written."""
    from pipeline import tables

    if not source.lower().endswith(".parquet"):
        return False
    bucket, key = open_object(source)
    return tables.about(tables.read(key, bucket, columns=[])).keys() >= _ABOUT


def _read_dataset(uri: str) -> "tuple[str, pa.Table, list[Dropped]]":
    """Name, rows and dropped rows of a dataset, as they were written."""
    data = load(uri)
    folder, _ = open_object(uri)
    report = IngestReport.model_validate_json(folder.get("ingest.json"))
    return data.name, data.table, list(report.dropped_rows)


def _read(source: str, max_dropped_fraction: float) -> "tuple[pa.Table, list[Dropped]]":
    """Rows and dropped rows of captions as they are published."""
    bucket, annotations = read(source)
    table, dropped = assemble(annotations, bucket.uri)
    captions = sum(map(len, table["captions"].to_pylist()))
    check_dropped(annotations.file, dropped, captions, bucket, max_dropped_fraction)
    images = _count_splits(table)
    if empty := [split for split, count in images.items() if not count]:
        raise PipelineError(
            f"{bucket.uri}: no image with captions is in the split {' or '.join(empty)} (images: {images}). Give each "
            f"split some, in {', '.join(SPLIT_FILES.values())} or in the table's column split."
        )
    return table, dropped


def _count_splits(table: "pa.Table") -> dict[str, int]:
    return {split: table["split"].to_pylist().count(split) for split in SPLITS}


def _add_marks(table: "pa.Table", dropped: list[Dropped], store: Bucket) -> "tuple[pa.Table, list[Dropped]]":
    """Rows and dropped rows of a dataset, with those of all marks; those that it has of earlier marks are replaced."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline import marks

    bucket = marks.pictures(store)
    table = table.filter(pc.field("source") != bucket.uri)
    marked, unusable = assemble(_read_marks(table, store, bucket), bucket.uri)
    others = [row for row in dropped if row.file != bucket.uri]
    return pa.concat_tables([table, marked]).sort_by("image_id"), [*others, *unusable]


def _read_marks(table: "pa.Table", store: Bucket, bucket: Bucket) -> Annotations:
    """All marks as captions of the split train; a picture that the table has in dev or test is in that split too."""
    import pyarrow.compute as pc

    from pipeline import marks

    marked = marks.read(store).to_pylist()
    photographs = Photographs(bucket.list(marks.PICTURES))
    annotations = Annotations(bucket.uri)
    first: dict[tuple[str, str], int] = {}
    for line, mark in enumerate(marked, 1):
        image, caption = mark["image"], mark["caption"]
        # The same caption twice has the same number, and is a duplicate.
        number = first.setdefault((image, caption), line)
        annotations.splits[image].add("train")
        annotations.rows.append(Row(line, f"{image}, {caption}", photographs.find(image), number, caption))
    sizes = {item.size for item in photographs.by_key.values()}
    if not sizes:
        return annotations
    by_digest = {PurePosixPath(key).stem: key for key in photographs.by_key}
    held_out = table.filter(pc.field("split") != "train")
    splits = {(row["source"], row["image_key"]): row["split"] for row in held_out.to_pylist()}
    for uri, source in sources(held_out).items():
        # Only pictures of the same size can have the same bytes: few have to be read.
        for item in source.list():
            if (uri, item.key) in splits and item.size in sizes:
                # One that can't be read is no longer there to be held out.
                with contextlib.suppress(ObjectNotFoundError, ObjectDeniedError):
                    key = by_digest.get(marks.digest(source.get(item.key)))
                    if key is not None:
                        annotations.splits[key].add(splits[uri, item.key])
    return annotations


def _check_table(table: "pa.Table", origin: str) -> None:
    """Check what every reader of a dataset relies on."""
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    filled = pandera.Check.str_length(min_value=1)
    schema = pandera.DataFrameSchema(
        {
            "image_id": pandera.Column(str, filled, unique=True),
            "source": pandera.Column(str, filled),
            "image_key": pandera.Column(str, filled),
            "etag": pandera.Column(str, filled),
            "split": pandera.Column(str, pandera.Check.isin(SPLITS)),
            "captions": pandera.Column(
                object, pandera.Check(lambda texts: len(texts) > 0 and all(texts), element_wise=True)
            ),
        },
        strict=True,
        unique=["source", "image_key"],
    )
    try:
        schema.validate(table.to_pandas(), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases[["column", "check", "failure_case"]].head(_SHOWN).to_string(index=False)
        raise PipelineError(
            f"{origin} is not a valid dataset table. Ingest it again. What is wrong:\n{cases}"
        ) from None

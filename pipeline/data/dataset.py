"""Datasets: captioned photographs in one validated table, one row per image, with its split and its captions.

A dataset is made from published captions (see ``annotation_formats``) or from an earlier dataset. Corrections that
people made can be added to either.
"""

import hashlib
import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.config import ENGLISH
from pipeline.data.annotation_formats import SUFFIXES, read_annotations
from pipeline.data.annotation_formats.flickr8k import SPLIT_FILES
from pipeline.data.annotations import SPLITS, Annotations, Dropped, Photographs, Row, assemble, check_dropped
from pipeline.errors import PipelineError
from pipeline.progress import track
from pipeline.storage import (
    Bucket,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    json,
    layout,
    names,
    open_source,
    source_name,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.data.vocabulary import Vocabulary

log = logging.getLogger(__name__)

HELD_OUT = "image in dev or test"
"""The reason for dropping the correction of an image that dev or test holds, so that no model trains on it."""

READERS = 16
"""Threads that read the images of dev and test to hash them."""

_SHOWN = 5
"""Rows that an error message shows, and files that a log does."""


class IngestReport(BaseModel):
    """The rows that an ingest kept and dropped.

    Attributes:
        dataset: id of the dataset.
        language: of the captions, as a BCP 47 code such as ``en`` or ``pt-BR``.
        sources: number of images by the bucket that holds them.
        images: number of images by split.
        captions: number of captions.
        split_by_hash: number of images that a hash of their bytes assigned to a split, because the source assigns none.
        dropped: number of dropped rows by reason.
        dropped_rows: the dropped rows.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    language: str = ENGLISH
    sources: dict[str, int]
    images: dict[str, int]
    captions: int
    split_by_hash: int
    dropped: dict[str, int]
    dropped_rows: tuple[Dropped, ...]

    def __str__(self) -> str:
        splits = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items())
        dropped = f", {len(self.dropped_rows):,} dropped ({reasons})" if self.dropped_rows else ""
        hashed = f"; a hash of the bytes chose the split of {self.split_by_hash:,}" if self.split_by_hash else ""
        return f"{sum(self.images.values()):,} images ({splits}{hashed}), {self.captions:,} captions{dropped}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Captioned photographs.

    Attributes:
        id: its name and the fingerprint of its content, ``name/fingerprint``.
        table: one row per image, by ``image_id``, of the schema that ``dataset_schema`` gives.
        language: of the captions, as a BCP 47 code.
    """

    id: str
    table: "pa.Table"
    language: str

    @property
    def name(self) -> str:
        """The name without the fingerprint."""
        return self.id.partition("/")[0]

    def split(self, name: str) -> "pa.Table":
        """The rows of one of ``SPLITS``."""
        import pyarrow.compute as pc

        if name not in SPLITS:
            raise ValueError(f"Expected one of {', '.join(SPLITS)}. Received: {name!r}")
        return self.table.filter(pc.equal(self.table["split"], name))


def listing(table: "pa.Table") -> "pa.Table":
    """The images of a dataset's rows as a listing: ``image_key`` and ``image_etag``, string."""
    return table.select(["image_key", "image_etag"])


def listings_by_source(table: "pa.Table") -> "dict[str, pa.Table]":
    """The images of a dataset's rows as one listing per source."""
    import pyarrow.compute as pc

    names = table["source"].unique().to_pylist()
    return {name: listing(table.filter(pc.field("source") == name)) for name in names}


def sources(table: "pa.Table", store: Bucket) -> dict[str, Bucket]:
    """The buckets that hold the images of a dataset's rows, by the name of the source."""
    return {name: open_source(name, store) for name in table["source"].unique().to_pylist()}


def ingest(
    source: str,
    store: Bucket,
    *,
    name: str | None = None,
    language: str = "",
    max_dropped_fraction: float = 0.05,
    corrections: bool = False,
) -> IngestReport:
    """Read captioned photographs into a dataset of the store.

    The same data gives the same dataset, and an existing one is not written again. Captions are stored raw, without
    the white space around them.

    Args:
        source: captioned photographs in one of the ``annotation_formats``, by path or URI; or the id of a dataset in
            the store.
        store: the store.
        name: name of the dataset, of letters, digits, ``.``, ``_`` and ``-``; by default that of the source.
        language: of the captions, as a BCP 47 code; by default that of the dataset in the store, or English.
        max_dropped_fraction: share of the source's captions that may be dropped.
        corrections: add the corrections in the store, as captions of the split train. A correction of an image whose
            bytes are those of an image in dev or test is dropped.

    Raises:
        PipelineError: the format or the columns are unknown, a name means several image files, too many captions were
            dropped, or a split is empty.
    """
    # A folder may look like an id; what is neither a dataset nor a folder is a mistyped id, which ``load`` refuses.
    is_id = names.DATASET_ID.matches(source)
    if is_id and (store.exists(layout.dataset_table(source)) or not Path(source).exists()):
        data = load(source, store)
        report = json.read(IngestReport, layout.ingest_report(source), store)
        default_name, table, dropped = data.name, data.table, list(report.dropped_rows)
        hashed, default_language = report.split_by_hash, data.language
        if data.id != f"{data.name}/{_fingerprint(table, data.language)}":
            _check_table(table, source)  # ingest did not write this table, and so did not check it
    else:
        default_name, default_language = _name_of(source), ENGLISH
        table, dropped, hashed = _read(source, max_dropped_fraction, store)
    name = names.DATASET_NAME.check(default_name if name is None else name)
    language = names.LANGUAGE.check(language or default_language)
    table = _fill_content_hashes(table, store)
    if corrections:
        table, dropped = _add_corrections(table, dropped, store)

    report = IngestReport(
        dataset=f"{name}/{_fingerprint(table, language)}",
        language=language,
        sources=dict(Counter(table["source"].to_pylist())),
        images=_count_splits(table),
        captions=sum(map(len, table["captions"].to_pylist())),
        split_by_hash=hashed,
        dropped=dict(Counter(row.reason for row in dropped).most_common()),
        dropped_rows=tuple(dropped),
    )
    key = layout.dataset_table(report.dataset)
    if store.exists(key):
        log.info("dataset %s exists: nothing to do", report.dataset)
        return report
    _check_table(table, source)
    from pipeline.storage import parquet

    # The table goes last: a reader that sees it sees the report, too.
    json.write(report, layout.ingest_report(report.dataset), store)
    parquet.write(table, key, store, metadata={"language": language})
    log.info("dataset %s: %s", report.dataset, report)
    return report


def load(dataset_id: str, store: Bucket) -> Dataset:
    """Load a dataset of the store.

    Raises:
        PipelineError: there is no dataset of this id.
    """
    from pipeline.storage import parquet

    key = layout.dataset_table(names.DATASET_ID.check(dataset_id))
    try:
        table = parquet.read(key, store)
    except ObjectNotFoundError:
        raise PipelineError(f"There is no dataset {dataset_id} in {store.uri}: {names.DATASET_ID.advice}") from None
    return Dataset(dataset_id, table, parquet.metadata(table).get("language", ENGLISH))


def held_out_pictures(dataset_id: str, store: Bucket) -> set[str]:
    """The content hashes of the images in dev and test, from which no model learns. Raises the errors of ``load``."""
    return _held_out(load(dataset_id, store).table)


def _held_out(table: "pa.Table") -> set[str]:
    import pyarrow.compute as pc

    return set(table.filter(pc.field("split") != "train")["content_hash"].drop_null().to_pylist())


def list_datasets(store: Bucket, *, limit: int) -> list[str]:
    """The ids of the datasets in the store, the newest first."""
    found = [
        (item.modified, dataset_id)
        for item in store.list(layout.DATASETS)
        if (dataset_id := layout.dataset_of_table(item.key))
    ]
    return [dataset_id for _, dataset_id in sorted(found, reverse=True)[:limit]]


def build_vocabulary(dataset_id: str, store: Bucket, *, min_count: int) -> "tuple[str, Vocabulary]":
    """Number the words that occur at least ``min_count`` times in the training captions, and store the vocabulary.

    Returns:
        The key of the vocabulary, and the vocabulary.

    Raises:
        PipelineError: there is no such dataset, or no word occurs that often.
    """
    from pipeline.data.vocabulary import Vocabulary

    training = load(dataset_id, store).split("train")
    captions = (caption for captions in training["captions"].to_pylist() for caption in captions)
    vocabulary = Vocabulary.build(captions, min_count=min_count)
    key = layout.vocabulary(dataset_id, min_count)
    store.put(key, vocabulary.to_json().encode())
    return key, vocabulary


def _name_of(source: str) -> str:
    """A name for the dataset of a source, from that of its file or folder."""
    name = PurePosixPath(source).name
    if name in ("", ".."):
        name = Path(source).resolve().name
    stem = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:200] or "photographs"


def _read(source: str, max_dropped_fraction: float, store: Bucket) -> "tuple[pa.Table, list[Dropped], int]":
    """The rows and the dropped rows of published captions, and the number of images that were split by a hash."""
    bucket, annotations = read_annotations(source)
    files = annotations.files
    more = f" and {len(files) - _SHOWN:,} more files" if len(files) > _SHOWN else ""
    log.info("the captions are those of %s%s", ", ".join(map(bucket.url, files[:_SHOWN])), more)
    etags = {row.photograph.key: row.photograph.etag for row in annotations.rows if row.photograph}
    undecided = sorted(annotations.undecided.keys() & etags)
    pictures = [(bucket, key, etags[key]) for key in undecided]
    hashes = _content_hashes(pictures, "so its captions are dropped: its split depends on its bytes")
    annotations.decide_splits(dict(zip(undecided, hashes, strict=True)))
    table, dropped = assemble(annotations, source_name(bucket, store))
    captions = sum(map(len, table["captions"].to_pylist()))
    check_dropped(annotations.files, dropped, captions, bucket, max_dropped_fraction)
    images = _count_splits(table)
    if empty := [split for split, count in images.items() if not count]:
        raise PipelineError(
            f"{bucket.uri}: the split {' or '.join(empty)} has no image with captions (images: {images}). Assign "
            f"images to each split: in {', '.join(SPLIT_FILES.values())}, in the column split of a table, or in "
            "Karpathy's JSON. Without any splits, a hash assigns them, for which there must be a few dozen images."
        )
    return table, dropped, len(set(undecided) & set(table["image_key"].to_pylist()))


def _count_splits(table: "pa.Table") -> dict[str, int]:
    return {split: table["split"].to_pylist().count(split) for split in SPLITS}


def _fingerprint(table: "pa.Table", language: str) -> str:
    """A hash of the content, but for ``content_hash``, which depends on whether an image can be read at the moment."""
    content = {name: table[name].to_pylist() for name in table.column_names if name != "content_hash"}
    return hashlib.sha256(repr((language, content)).encode()).hexdigest()[:16]


def _fill_content_hashes(table: "pa.Table", store: Bucket) -> "pa.Table":
    """Fill the column ``content_hash`` of the images of dev and test, which are read if they have no hash yet."""
    import pyarrow as pa

    buckets = sources(table, store)
    hashes = table["content_hash"].to_pylist()
    rows = table.select(["source", "image_key", "image_etag", "split"]).to_pylist()
    missing = [number for number, row in enumerate(rows) if row["split"] != "train" and hashes[number] is None]
    pictures = [
        (buckets[row["source"]], row["image_key"], row["image_etag"]) for row in (rows[number] for number in missing)
    ]
    found = _content_hashes(pictures, "so corrections of it can't be recognized")
    for number, value in zip(missing, found, strict=True):
        hashes[number] = value
    column = table.schema.get_field_index("content_hash")
    return table.set_column(column, table.schema.field(column), pa.array(hashes, pa.string()))


def _content_hashes(pictures: list[tuple[Bucket, str, str]], consequence: str) -> list[str | None]:
    """The hashes of pictures, given by bucket, key and etag; None, with a warning, for those that can't be read."""
    from pipeline.data.images import content_hash

    def hash_of(picture: tuple[Bucket, str, str]) -> str | None:
        bucket, key, etag = picture
        try:
            return content_hash(bucket.get(key, etag=etag))
        except (ObjectNotFoundError, ObjectChangedError, ObjectDeniedError) as error:
            log.warning("%s can't be read, %s: %s", key, consequence, error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return list(track(pool.map(hash_of, pictures), total=len(pictures), unit="images", log=log))


def _add_corrections(table: "pa.Table", dropped: list[Dropped], store: Bucket) -> "tuple[pa.Table, list[Dropped]]":
    """The rows and dropped rows of a dataset, with those of all corrections in place of those of earlier ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.data import corrections

    bucket = corrections.pictures(store)
    source = source_name(bucket, store)
    table = table.filter(pc.field("source") != source)
    annotations = _read_corrections(store, bucket, source, _held_out(table))
    corrected, unusable = assemble(annotations, source)
    others = [row for row in dropped if row.file != source]
    return pa.concat_tables([table, corrected]).sort_by("image_id"), [*others, *unusable]


def _read_corrections(store: Bucket, bucket: Bucket, source: str, held_out: set[str]) -> Annotations:
    """The corrections that count as captions of the split train, without those of images that are held out."""
    from pipeline.data import corrections

    photographs = Photographs(bucket.list(layout.CORRECTION_PICTURES), bucket)
    annotations = Annotations([source])
    first: dict[tuple[str, str], int] = {}
    for line, row in enumerate(corrections.latest(corrections.read(store)).to_pylist(), 1):
        picture, caption = row["picture"], row["caption"]
        text = f"{picture}, {caption}"
        if PurePosixPath(picture).stem in held_out:
            annotations.drop(source, line, HELD_OUT, text)
            continue
        # The same caption again gets the same number, and is dropped as a duplicate.
        number = first.setdefault((picture, caption), line)
        photograph = photographs.find(picture)
        if photograph is not None:
            # The hash of the content, because the etag of the copied picture differs in a copy of the store.
            photograph = replace(photograph, etag=PurePosixPath(picture).stem)
        annotations.splits[picture].add("train")
        annotations.rows.append(Row(source, line, text, photograph, number, caption))
    return annotations


def _check_table(table: "pa.Table", origin: str) -> None:
    """Check the properties that all readers of a dataset rely on."""
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    filled = pandera.Check.str_length(min_value=1)
    schema = pandera.DataFrameSchema(
        {
            "image_id": pandera.Column(str, filled, unique=True),
            "source": pandera.Column(str, filled),
            "image_key": pandera.Column(str, filled),
            "image_etag": pandera.Column(str, filled),
            "content_hash": pandera.Column(str, filled, nullable=True),
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
        cases = errors.failure_cases[["column", "check", "failure_case"]].head(_SHOWN)
        shown = "; ".join(f"{column}: {check}: {case!r}" for column, check, case in cases.itertuples(index=False))
        raise PipelineError(
            f"{origin} does not give a valid dataset; correct the source. The first errors: {shown}"
        ) from None

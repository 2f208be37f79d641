"""Ingest: captioned photographs become a dataset of the store.

A dataset is made from published captions (see ``annotation_formats``), from an earlier dataset, or from several of
these, which are merged. Corrections that people made can be added.
"""

import hashlib
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.config import ENGLISH
from pipeline.data.annotation_formats.flickr8k import SPLIT_FILES
from pipeline.data.annotations import (
    SPLITS,
    UNREADABLE,
    Annotations,
    Dropped,
    Photographs,
    Row,
    assemble,
    check_dropped,
)
from pipeline.data.dataset import Dataset, held_out, load
from pipeline.data.dataset import sources as buckets_of
from pipeline.data.merging import merge
from pipeline.data.sources import Part, PublishedCaptions, SourceCounts, content_hashes, count_captions
from pipeline.errors import PipelineError
from pipeline.progress import counted
from pipeline.storage import ABSENT, Bucket, has_portable_names, json, layout, names, source_name
from pipeline.work import tombstones

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

IN_DEV_OR_TEST = "image in dev or test"
"""The reason for dropping the correction of an image that dev or test holds, so that no model trains on it."""

HELD_OUT = ("dev", "test")
"""The splits that no model trains on."""

_SHOWN = 5
"""Rows that an error message shows."""


class IngestReport(BaseModel):
    """The rows that an ingest kept and dropped.

    Attributes:
        dataset: id of the dataset.
        language: of the captions, as a BCP 47 code such as ``en`` or ``pt-BR``.
        licence: of the captions and photographs; empty if it was not stated.
        sources: what each source gave: captions by the address of their file or folder, datasets by their id.
        merged: number of images that were merged with a copy from another place.
        images: number of images by split.
        captions: number of captions.
        split_by_hash: number of images that a hash of their bytes assigned to a split, because the source assigns none.
        dropped: number of dropped rows by reason.
        dropped_rows: the dropped rows.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    language: str = ENGLISH
    licence: str = ""
    sources: dict[str, SourceCounts]
    merged: int
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
        merged = f"; copies of an image merged: {self.merged:,}" if self.merged else ""
        images, captions = counted(sum(self.images.values()), "image"), counted(self.captions, "caption")
        text = f"{images} ({splits}{hashed}{merged}), {captions}{dropped}"
        return "; ".join([text, *self.by_source])

    @property
    def by_source(self) -> list[str]:
        """The counts of each source in words, if there are several."""
        return (
            []
            if len(self.sources) == 1
            else [
                f"{name}: {counted(counts.images, 'image')}, {counted(counts.captions, 'caption')}, "
                f"{counts.dropped:,} dropped"
                for name, counts in self.sources.items()
            ]
        )


def ingest(
    sources: list[str],
    store: Bucket,
    *,
    name: str | None = None,
    language: str = "",
    licence: str = "",
    max_dropped_fraction: float = 0.05,
    corrections: bool = False,
) -> IngestReport:
    """Read captioned photographs into a dataset of the store.

    The same data gives the same dataset, and an existing one is not written again, but for its licence. Captions are
    stored raw, without the white space around them. Several sources are merged, see ``merge``; the corrections in
    datasets among them are left out. So are forgotten photographs.

    Args:
        sources: captioned photographs in one of the ``annotation_formats``, by path or URI; or the ids of datasets in
            the store.
        store: the store.
        name: name of the dataset, of letters, digits, ``.``, ``_`` and ``-``; by default those of the sources.
        language: of the captions, as a BCP 47 code; by default that of the datasets in the store, or English.
        licence: of the captions and photographs; by default that of the datasets in the store, if all sources are such
            datasets and have the same one.
        max_dropped_fraction: share of the captions of each source that may be dropped.
        corrections: add the corrections in the store, as captions of the split train. A correction of an image whose
            bytes are those of an image in dev or test is dropped.

    Raises:
        PipelineError: a source is given twice, the sources have different languages, the format or the columns of one
            are unknown, a name means several image files, too many captions were dropped, or a split is empty.
    """
    # In an order of their own; captions first, because the etags of a dataset may be old.
    opened = [_open(source, store) for source in sources]
    opened.sort(key=lambda each: (isinstance(each, Dataset), _name(each)))
    language = _common_language(opened, language)
    part = _read(opened, max_dropped_fraction, store)
    name = names.DATASET_NAME.check(part.title if name is None else name)
    table = _fill_content_hashes(part.table, store, HELD_OUT, "so corrections of it can't be recognized")
    part = replace(part, table=table)
    if corrections:
        part = _add_corrections(part, store)
    part = _drop_forgotten(part, store)

    table = part.table
    report = IngestReport(
        dataset=f"{name}/{_fingerprint(table, language)}",
        language=language,
        licence=" ".join(licence.split()) or part.licence,
        sources=part.sources,
        merged=part.merged,
        images=_count_splits(table),
        captions=count_captions(table),
        split_by_hash=part.split_by_hash,
        dropped=dict(Counter(row.reason for row in part.dropped).most_common()),
        dropped_rows=tuple(part.dropped),
    )
    key = layout.dataset_table(report.dataset)
    if store.exists(key):
        log.info("dataset %s exists: nothing to do", report.dataset)
        return _state_licence(report, store)
    _check_table(table, ", ".join(sources))
    from pipeline.storage import parquet

    # The table goes last: a reader that sees it sees the report, too.
    json.write(report, layout.ingest_report(report.dataset), store)
    parquet.write(table, key, store, metadata={"language": language})
    log.info("dataset %s: %s", report.dataset, report)
    return report


def _state_licence(report: IngestReport, store: Bucket) -> IngestReport:
    """Put the licence of a dataset that exists into its stored report, and return the report with what is stated."""
    key = layout.ingest_report(report.dataset)
    etag = store.etag(key)
    if etag == ABSENT:
        return report
    known = json.read(IngestReport, key, store, etag=etag)
    if report.licence in ("", known.licence):
        return report.model_copy(update={"licence": known.licence})
    json.write(known.model_copy(update={"licence": report.licence}), key, store, if_match=etag)
    log.info("its licence is now: %s", report.licence)
    return report


def _open(source: str, store: Bucket) -> "Dataset | PublishedCaptions":
    """The dataset of the store, or the captions, that a source names."""
    # A folder may look like an id; what is neither a dataset nor a folder is a mistyped id, which ``load`` refuses.
    is_id = names.DATASET_ID.matches(source)
    if is_id and (store.exists(layout.dataset_table(source)) or not Path(source).exists()):
        return load(source, store)
    return PublishedCaptions.read(source, store)


def _name(opened: "Dataset | PublishedCaptions") -> str:
    """The name of a source in reports."""
    return opened.id if isinstance(opened, Dataset) else opened.name


def _common_language(opened: "list[Dataset | PublishedCaptions]", language: str) -> str:
    """The language of all sources. A dataset that is the only source may be given another one, to correct it.

    Raises:
        PipelineError: the datasets among several sources have another language, or not all the same.
    """
    known = {each.id: each.language for each in opened if isinstance(each, Dataset)}
    if not language:
        language = next(iter(known.values()), ENGLISH)
    others = [f"{dataset_id} is in {other}" for dataset_id, other in known.items() if other != language]
    if others and len(opened) > 1:
        raise PipelineError(
            f"A dataset has one language, and this one would be in {language}, but {', '.join(others)}. Ingest sources "
            "of one language together. To correct the language of a dataset, ingest it alone with --language."
        )
    return names.LANGUAGE.check(language)


def _read(opened: "list[Dataset | PublishedCaptions]", max_dropped_fraction: float, store: Bucket) -> Part:
    """The rows of all sources."""
    counts = Counter(map(_name, opened))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise PipelineError(f"The source {twice[0]} is given twice. Name each source once.")
    match opened:
        case []:
            raise PipelineError("No source is given. Pass the path or URI of captioned photographs, or a dataset's id.")
        case [Dataset() as data]:
            return _part_of(data, store)
        case [PublishedCaptions() as captions]:
            part = captions.part(max_dropped_fraction=max_dropped_fraction, hash_all=False)
        case _:
            part = merge(
                [
                    each.part(max_dropped_fraction=max_dropped_fraction, hash_all=True)
                    if isinstance(each, PublishedCaptions)
                    else _hashed_part_of(each, max_dropped_fraction, store)
                    for each in opened
                ]
            )
    images = _count_splits(part.table)
    if empty := [split for split, count in images.items() if not count]:
        raise PipelineError(
            f"{', '.join(counts)}: the split {' or '.join(empty)} has no image with captions (images: {images}). "
            f"Assign images to each split: in {', '.join(SPLIT_FILES.values())}, in the column split of a table, or in "
            "Karpathy's JSON. Without any splits, a hash assigns them, for which there must be a few dozen images."
        )
    return part


def _part_of(data: Dataset, store: Bucket) -> Part:
    """The rows of a dataset of the store, with what its own report says of them."""
    report = json.read(IngestReport, layout.ingest_report(data.id), store)
    if data.id != f"{data.name}/{_fingerprint(data.table, data.language)}":
        _check_table(data.table, data.id)  # ingest did not write this table, and so did not check it
    return Part(
        title=data.name,
        table=data.table,
        sources=report.sources,
        dropped=list(report.dropped_rows),
        licence=report.licence,
        split_by_hash=report.split_by_hash,
        merged=report.merged,
    )


def _hashed_part_of(data: Dataset, max_dropped_fraction: float, store: Bucket) -> Part:
    """The rows of a dataset of the store as one source of several: all have a hash, and none is a correction."""
    import pyarrow.compute as pc

    part = _part_of(data, store)
    table = _fill_content_hashes(_without_corrections(part.table), store, SPLITS, "so its captions are dropped")
    unreadable = [
        Dropped(source=data.id, file=data.id, line=number, reason=UNREADABLE, text=f"{row['image_id']}, {caption}")
        for number, row in enumerate(table.to_pylist(), 1)
        if row["content_hash"] is None
        for caption in row["captions"]
    ]
    place, folder = f"the dataset {data.id}", ", ".join(table["source"].unique().to_pylist())
    table = table.filter(pc.is_valid(table["content_hash"]))
    check_dropped(unreadable, count_captions(table), place=place, folder=folder, allowed=max_dropped_fraction)
    dropped = [
        *(row.model_copy(update={"source": data.id}) for row in part.dropped if not has_portable_names(row.source)),
        *unreadable,
    ]
    return Part(part.title, table, {data.id: SourceCounts.of(table, dropped)}, dropped, part.licence)


def _count_splits(table: "pa.Table") -> dict[str, int]:
    return {split: table["split"].to_pylist().count(split) for split in SPLITS}


def _fingerprint(table: "pa.Table", language: str) -> str:
    """A hash of the content, but for ``content_hash``, which depends on whether an image can be read at the moment."""
    content = {name: table[name].to_pylist() for name in table.column_names if name != "content_hash"}
    return hashlib.sha256(repr((language, content)).encode()).hexdigest()[:16]


def _fill_content_hashes(table: "pa.Table", store: Bucket, splits: tuple[str, ...], consequence: str) -> "pa.Table":
    """Fill the column ``content_hash`` of the images of these splits, which are read if they have no hash yet.

    The log names those that can't be read, with the consequence.
    """
    import pyarrow as pa

    buckets = buckets_of(table, store)
    hashes = table["content_hash"].to_pylist()
    rows = table.select(["source", "image_key", "image_etag", "split"]).to_pylist()
    missing = [number for number, row in enumerate(rows) if row["split"] in splits and hashes[number] is None]
    pictures = [
        (buckets[row["source"]], row["image_key"], row["image_etag"]) for row in (rows[number] for number in missing)
    ]
    found = content_hashes(pictures, consequence)
    for number, value in zip(missing, found, strict=True):
        hashes[number] = value
    column = table.schema.get_field_index("content_hash")
    return table.set_column(column, table.schema.field(column), pa.array(hashes, pa.string()))


def _without_corrections(table: "pa.Table") -> "pa.Table":
    return table.filter([not has_portable_names(source) for source in table["source"].to_pylist()])


def _add_corrections(part: Part, store: Bucket) -> Part:
    """The rows of a dataset, with those of all corrections in place of those of earlier ones."""
    import pyarrow as pa

    from pipeline.data import corrections

    bucket = corrections.pictures(store)
    source = source_name(bucket, store)
    table = _without_corrections(part.table)
    corrected, dropped = assemble(_read_corrections(store, bucket, source, held_out(table)), source)
    dropped = [row.model_copy(update={"source": source}) for row in dropped]
    counts = {name: each for name, each in part.sources.items() if name != source}
    if corrected or dropped:
        counts[source] = SourceCounts.of(corrected, dropped)
    return replace(
        part,
        table=pa.concat_tables([table, corrected]).sort_by("image_id"),
        sources=counts,
        dropped=[*(row for row in part.dropped if row.source != source), *dropped],
    )


def _drop_forgotten(part: Part, store: Bucket) -> Part:
    """The rows without those of forgotten photographs, which are dropped; no dropped row says what they were."""
    import pyarrow.compute as pc

    forgotten = tombstones.read(store)
    mask = forgotten.mask(part.table)
    gone = [
        Dropped(file=source, line=number, reason=tombstones.FORGOTTEN, text="")
        for number, source in enumerate(part.table.filter(mask)["source"].to_pylist(), 1)
    ]
    others = [row.model_copy(update={"text": ""}) if forgotten.mentioned_in(row.text) else row for row in part.dropped]
    return replace(part, table=part.table.filter(pc.invert(mask)), dropped=[*others, *gone])


def _read_corrections(store: Bucket, bucket: Bucket, source: str, excluded: set[str]) -> Annotations:
    """The corrections that count as captions of the split train, without those of images that are held out."""
    from pipeline.data import corrections

    photographs = Photographs(bucket.list(layout.CORRECTION_PICTURES), bucket)
    annotations = Annotations([source])
    first: dict[tuple[str, str], int] = {}
    for line, row in enumerate(corrections.latest(corrections.read(store)).to_pylist(), 1):
        picture, caption = row["picture"], row["caption"]
        text = f"{picture}, {caption}"
        if PurePosixPath(picture).stem in excluded:
            annotations.drop(source, line, IN_DEV_OR_TEST, text)
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

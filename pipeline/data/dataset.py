"""Datasets: captioned photographs in one validated table, one row per image, with its split and its captions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import ENGLISH
from pipeline.data import wording
from pipeline.data.annotations import SPLITS
from pipeline.data.text import is_english
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError, layout, names, open_source

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.data.vocabulary import Vocabulary


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
    return held_out(load(dataset_id, store).table)


def held_out(table: "pa.Table") -> set[str]:
    """The content hashes of the images in dev and test, of a dataset's rows."""
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


def captions_to_learn(table: "pa.Table", *, neutral_wording: bool) -> list[list[str]]:
    """The captions of a dataset's rows as a captioner learns them: raw, or ``wording.neutral``."""
    captions = table["captions"].to_pylist()
    return [wording.neutral(of_image) for of_image in captions] if neutral_wording else captions


def build_vocabulary(
    dataset_id: str, store: Bucket, *, min_count: int, neutral_wording: bool = False
) -> "tuple[str, Vocabulary]":
    """Number the words that occur at least ``min_count`` times in the training captions, and store the vocabulary.

    Args:
        dataset_id: of the dataset.
        store: the store.
        min_count: minimum count of a word.
        neutral_wording: whether to replace words that name a gender in the captions of a picture that disagree about
            it. A captioner with this vocabulary learns the same captions.

    Returns:
        The key of the vocabulary, and the vocabulary.

    Raises:
        PipelineError: there is no such dataset, no word occurs that often, or the captions to be made neutral are not
            English.
    """
    from pipeline.data.vocabulary import Vocabulary

    data = load(dataset_id, store)
    if neutral_wording and not is_english(data.language):
        raise PipelineError(
            f"Neutral wording is for captions in English, but the language of {dataset_id} is {data.language}: train "
            "without neutral wording."
        )
    captions = captions_to_learn(data.split("train"), neutral_wording=neutral_wording)
    vocabulary = Vocabulary.build(
        (caption for of_image in captions for caption in of_image),
        min_count=min_count,
        language=data.language,
        neutral_wording=neutral_wording,
    )
    key = layout.vocabulary(dataset_id, min_count, neutral_wording=neutral_wording)
    store.put(key, vocabulary.to_json().encode())
    return key, vocabulary

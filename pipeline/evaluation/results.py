"""The results of evaluations: scores, and the captions that got them."""

from typing import Any

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.captioner.metadata import ModelMetadata, load_metadata
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation.calibration import Calibration
from pipeline.evaluation.error_analysis import ErrorCount, ErrorKind, LengthGroup
from pipeline.metrics.coco import Agreement, Diversity, Scores
from pipeline.storage import Bucket, json, layout, parquet
from pipeline.storage.parquet import column

CAPTIONS = pa.schema(
    [
        column("image_id", pa.string(), "id of the image in the dataset"),
        column("image_key", pa.string(), "key of the image in its bucket, which the dataset names"),
        column("image_etag", pa.string(), "etag of the image; for a corrected picture, the hash of its content"),
        column("caption", pa.string(), "the caption, by the decoding of the evaluation"),
        column("references", pa.list_(pa.string()), "the human captions of the image"),
        column(
            "attention",
            pa.list_(pa.list_(pa.list_(pa.float32()))),
            "weights of the regions, in rows and columns, for each word of the caption; null for images of which the "
            "report does not show them",
        ),
    ]
)
"""The captions of the test split by the chosen decoding, beside the references."""


class Metrics(BaseModel):
    """The scores of a model on the test split of a dataset."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="of the model")
    dataset: str = Field(description="id of the dataset whose test split was captioned")
    images: int = Field(description="test images that were captioned")
    decoding: DecodingConfig = Field(description="the chosen decoding, beside greedy search")
    evaluated_at: AwareDatetime = Field(description="time in UTC")
    scores: dict[str, Scores] = Field(description="against all references, by decoding: greedy and chosen")
    agreement: Agreement = Field(description="the chosen decoding beside humans, each against all references but one")
    diversity: dict[str, Diversity] = Field(description="by decoding, and of humans: one reference of each image")
    by_length: list[LengthGroup] = Field(description="the chosen decoding by the length of the images' references")
    errors: dict[ErrorKind, ErrorCount] = Field(
        description="of the chosen decoding, counted from words; only for English"
    )
    calibration: Calibration | None = Field(
        None,
        description="how well the confidence of the chosen decoding's captions foretells acceptance; null if the model "
        "has none, or no image has two references",
    )

    @property
    def cider(self) -> float:
        """CIDEr of the chosen decoding, by which models are compared."""
        return self.summary["CIDEr"]

    @property
    def summary(self) -> dict[str, float]:
        """The scores of the chosen decoding, by their usual names."""
        return self.scores["chosen"].corpus


def find_metrics(version: str, dataset_id: str, decoding: DecodingConfig, store: Bucket) -> Metrics | None:
    """The scores of a model on a dataset with a decoding, or None if there is no such evaluation."""
    return json.find(Metrics, layout.evaluation(version, dataset_id, decoding).metrics, store)


def list_metrics(prefix: str, store: Bucket) -> list[Metrics]:
    """The scores of the evaluations whose keys begin with ``prefix``; damaged ones are logged, and left out."""
    keys = (layout.evaluation_of_metrics(item.key) for item in store.list(prefix))
    found = (json.find(Metrics, evaluation.metrics, store) for evaluation in keys if evaluation is not None)
    return [metrics for metrics in found if metrics is not None]


def candidate_metrics(version: str, decoding: DecodingConfig, store: Bucket) -> Metrics:
    """The scores of a model on its own dataset. Raises ``PipelineError`` if there is no such evaluation."""
    found = find_metrics(version, load_metadata(version, store).dataset, decoding, store)
    if found is None:
        raise PipelineError(
            f"Model {version} was not evaluated with {decoding}: run `captioning evaluate {version} "
            f"{decoding.options}` first."
        )
    return found


def comparable_metrics(version: str, candidate: Metrics, store: Bucket) -> Metrics | None:
    """The scores of a model that can be compared with a candidate's, or None if there are none.

    They are by the same decoding, and on the same dataset or on another one with the same test split: a dataset that
    has got corrections differs from the one before in the split train alone.
    """
    same = find_metrics(version, candidate.dataset, candidate.decoding, store)
    if same is not None:
        return same
    split = _test_split(candidate, store)
    for other in list_metrics(layout.evaluations(version), store):
        if other.decoding == candidate.decoding and _test_split(other, store) == split:
            return other
    return None


def _test_split(metrics: Metrics, store: Bucket) -> list[tuple[object, ...]]:
    """The images of an evaluation and their references."""
    names = ("image_id", "image_key", "image_etag", "references")
    return sorted(tuple(row[name] for name in names) for row in read_captions(metrics, store))


def latest_metrics(model: ModelMetadata, store: Bucket) -> Metrics | None:
    """The newest scores of a model on its own dataset, or None if it was not evaluated."""
    found = list_metrics(layout.evaluations_on(model.version, model.dataset), store)
    return max(found, key=lambda metrics: metrics.evaluated_at, default=None)


def read_captions(metrics: Metrics, store: Bucket) -> list[dict[str, Any]]:
    """The captions that got the scores: rows of schema ``CAPTIONS``."""
    key = layout.evaluation(metrics.version, metrics.dataset, metrics.decoding).captions
    advice = f"Delete the metrics.json beside it, and run `captioning evaluate {metrics.version}` again."
    rows: list[dict[str, Any]] = parquet.read(key, store, columns=CAPTIONS, advice=advice).to_pylist()
    return rows


def format_scores(scores: dict[str, float]) -> str:
    """Scores in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())

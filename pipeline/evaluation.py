"""Evaluation of a model: captions of its dataset's test split, their scores, and the report that shows both."""

import io
import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from PIL import Image
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import dataset as datasets
from pipeline import features
from pipeline.captioner import Captioner, load
from pipeline.examples import Split, split_features
from pipeline.images import BadImageError, decode
from pipeline.metrics import Diversity, Scores, diversity, score
from pipeline.report import Example, render
from pipeline.storage import Bucket, ObjectChangedError, open_bucket
from pipeline.vocabulary import SPECIAL_WORDS

T = TypeVar("T")

log = logging.getLogger(__name__)

EXAMPLES = 12
"""Pictures in each of the report's grids: best, worst, and any."""

THUMBNAIL = (224, 224)


class Metrics(BaseModel):
    """The content of ``models/<version>/metrics.json``."""

    model_config = ConfigDict(frozen=True)

    version: str
    dataset: str = Field(description="URI of the dataset whose test split was captioned")
    images: int
    beam_width: int
    evaluated_at: AwareDatetime
    scores: dict[str, Scores] = Field(description="by search: greedy and beam")
    diversity: dict[str, Diversity] = Field(description="by search: greedy and beam")

    @property
    def cider(self) -> float:
        """CIDEr of beam search, by which models are compared."""
        return self.scores["beam"].corpus["CIDEr"]

    @property
    def summary(self) -> dict[str, float]:
        """The scores of beam search, by their usual names."""
        return self.scores["beam"].corpus


def evaluate(version: str, *, store: Bucket, beam_width: int, max_failed_fraction: float) -> Metrics:
    """Caption the test split of a model's dataset greedily and by beam search; write ``metrics.json`` and the report.

    Raises:
        PipelineError: there is no such model, or too many test images could not be read.
    """
    captioner, metadata = load(version, store)
    dataset = datasets.load(metadata.dataset)
    test = split_features(
        dataset, "test", encoder_id=metadata.encoder_id, store=store, max_failed_fraction=max_failed_fraction
    )
    written = {
        "greedy": _write(captioner, test, beam_width=1),
        "beam": _write(captioner, test, beam_width=beam_width),
    }
    words = len(captioner.vocabulary) - len(SPECIAL_WORDS)
    metrics = Metrics(
        version=version,
        dataset=metadata.dataset,
        images=len(test.table),
        beam_width=beam_width,
        evaluated_at=datetime.now(UTC),
        scores={search: score(captions, test.references) for search, captions in written.items()},
        diversity={search: diversity(captions, words) for search, captions in written.items()},
    )
    for search, scores in metrics.scores.items():
        log.info("%s: %s", search, ", ".join(f"{name} {value:.3f}" for name, value in scores.corpus.items()))
    page = render(
        title=f"Captioner {version}",
        metadata={
            "dataset": dataset.name,
            "test images": len(test.table),
            "encoder": metadata.encoder_id,
            "trained": f"{metadata.created_at:%Y-%m-%d %H:%M} UTC",
        },
        scores=_labelled(metrics.scores, beam_width),
        diversity=_labelled(metrics.diversity, beam_width),
        curves=metadata.curves,
        best_epoch=metadata.best_epoch,
        examples=_examples(test, written["beam"], metrics.scores["beam"], open_bucket(dataset.source)),
        configuration={"dataset": metadata.dataset, "max_length": metadata.max_length, **metadata.recipe.model_dump()},
    )
    store.put(f"models/{version}/metrics.json", metrics.model_dump_json(indent=2).encode())
    store.put(report_key(version), page.encode())
    log.info("report: %s", store.url(report_key(version)))
    return metrics


def report_key(version: str) -> str:
    """Where a model's report lies in the store."""
    return f"models/{version}/report.html"


def load_metrics(version: str, store: Bucket) -> Metrics:
    """What ``evaluate`` wrote of a model. Raises ``ObjectNotFoundError`` where it was not evaluated."""
    return Metrics.model_validate_json(store.get(f"models/{version}/metrics.json"))


def cider_on(
    dataset_uri: str,
    version: str,
    *,
    beam_width: int,
    store: Bucket,
    batch_size: int,
    max_failed_fraction: float,
) -> float:
    """CIDEr of a model on the test split of any dataset; extracts what features its encoder lacks."""
    captioner, metadata = load(version, store)
    dataset = datasets.load(dataset_uri)
    shards = features.plan(
        datasets.images(dataset.split("test")),
        run=f"{version}-on-{dataset.fingerprint}",
        source=dataset.source,
        encoder_id=metadata.encoder_id,
        store=store,
        shard_size=len(dataset.table),
    )
    for shard in shards:
        features.extract(shard, store=store, batch_size=batch_size)
    test = split_features(
        dataset, "test", encoder_id=metadata.encoder_id, store=store, max_failed_fraction=max_failed_fraction
    )
    return score(_write(captioner, test, beam_width=beam_width), test.references).corpus["CIDEr"]


def _write(captioner: Captioner, split: Split, *, beam_width: int) -> dict[str, str]:
    captions = captioner.caption(split.vectors, beam_width=beam_width)
    return {str(row): caption.text for row, caption in enumerate(captions)}


def _labelled(by_search: Mapping[str, T], beam_width: int) -> dict[str, T]:
    return {f"beam {beam_width}" if search == "beam" else search: value for search, value in by_search.items()}


def _examples(split: Split, written: Mapping[str, str], scores: Scores, source: Bucket) -> dict[str, list[Example]]:
    cider = scores.image_cider
    ranked = sorted(written, key=lambda row: cider[row], reverse=True)
    chosen = {
        "Best by CIDEr": ranked[:EXAMPLES],
        "Worst by CIDEr": ranked[: -EXAMPLES - 1 : -1],
        "Any": random.Random(0).sample(ranked, min(EXAMPLES, len(ranked))),
    }
    rows, references = split.table.to_pylist(), split.references
    return {
        title: [
            Example(
                image_id=rows[int(row)]["image_id"],
                thumbnail=_thumbnail(source, rows[int(row)]["image_key"], rows[int(row)]["etag"]),
                caption=written[row],
                references=references[row],
                cider=cider[row],
            )
            for row in group
        ]
        for title, group in chosen.items()
    }


def _thumbnail(source: Bucket, key: str, etag: str) -> bytes:
    """A JPEG of what the encoder saw; grey where the photograph has gone since."""
    try:
        pixels = decode(source.get(key, etag=etag), THUMBNAIL)
    except (ObjectChangedError, BadImageError):
        pixels = np.full((*THUMBNAIL, 3), 128, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

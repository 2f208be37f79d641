"""Evaluation of a model: caption a test split, score the captions, analyze their errors, and write a report."""

import hashlib
import io
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.captioner import bundle
from pipeline.captioner.captioner import Caption, Captioner
from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import DecodingConfig
from pipeline.data import dataset as datasets
from pipeline.data.dataset import Dataset
from pipeline.data.images import BadImageError, decode
from pipeline.data.ingest import IngestReport
from pipeline.data.text import clean, is_english
from pipeline.data.vocabulary import SPECIAL_WORDS
from pipeline.errors import PipelineError
from pipeline.evaluation import acceptance, calibration, card
from pipeline.evaluation.drift import Profile
from pipeline.evaluation.error_analysis import ErrorCount, ErrorKind, by_length, count_errors
from pipeline.evaluation.report import Attention, Example, Report, render
from pipeline.evaluation.results import CAPTIONS, Metrics, format_scores
from pipeline.features import encoder as encoders
from pipeline.features import extraction
from pipeline.features.splits import SplitFeatures, read_split
from pipeline.metrics.coco import FUNCTION_WORDS, HumanBaseline, Scorer, diversity
from pipeline.storage import Bucket, json, layout, parquet

T = TypeVar("T")

log = logging.getLogger(__name__)

EXAMPLES = 12
"""Pictures in each of the report's grids: best, worst, and random."""

ATTENTION_EXAMPLES = 8
"""Pictures on which the report shows where the captioner looks."""

THUMBNAIL = (224, 224)


def evaluate_model(
    version: str,
    *,
    store: Bucket,
    decoding: DecodingConfig,
    max_failed_fraction: float,
    dataset_id: str | None = None,
) -> Metrics:
    """Evaluate a model on the test split of a dataset, with greedy search and with ``decoding``.

    Features that are missing are extracted first. The captions, the report and, last, the scores are stored as an
    evaluation of their own for each dataset and decoding. Then the model card is written again.

    Args:
        version: of the model.
        store: the store.
        decoding: the chosen decoding.
        max_failed_fraction: share of the test images that may have no features because their extraction failed.
        dataset_id: the dataset; by default the one that the model was trained on.

    Raises:
        PipelineError: there is no such model or dataset, or too many test images failed.
    """
    captioner, metadata = bundle.load(version, store)
    dataset = datasets.load(dataset_id or metadata.dataset, store)
    for source, images in datasets.listings_by_source(dataset.split("test")).items():
        extraction.extract_missing(
            images, run=f"evaluation-of-{version}", source=source, encoder_id=metadata.encoder_id, store=store
        )
    test = read_split(
        dataset,
        "test",
        encoder_id=metadata.encoder_id,
        regions=captioner.attends,
        store=store,
        max_failed_fraction=max_failed_fraction,
    )
    references = test.references
    with Scorer(references, language=dataset.language) as scorer:
        log.info("captioning %d test images: %s", len(test.table), decoding)
        captions = captioner.caption(test.features, decoding)
        log.info("captioning them again: %s", decoding.greedy)
        written = {
            "greedy": _by_image(test, captioner.caption(test.features, decoding.greedy)),
            "chosen": _by_image(test, captions),
        }
        log.info("scoring the captions")
        scores = {name: scorer.score(captions) for name, captions in written.items()}
        agreement = scorer.agreement(written["chosen"], _human_baseline(scorer, dataset, store))
    judged = acceptance.judge(written["chosen"], references, language=dataset.language)
    failed = len(dataset.split("test")) - len(captions)
    profile = Profile.of(captioner.standardized(test.features), captions, failed=failed, decoding=decoding)
    vocabulary = captioner.vocabulary.words[len(SPECIAL_WORDS) :]
    learned = datasets.captions_to_learn(dataset.split("train"), neutral_wording=captioner.vocabulary.neutral_wording)
    training = [caption for captions in learned for caption in captions]
    # As many captions of humans as of the captioner: the first reference of an image, the second of the next, …
    human = [captions[row % len(captions)] for row, captions in enumerate(references.values())]
    texts = {name: list(captions.values()) for name, captions in written.items()} | {"human": human}
    metrics = Metrics(
        version=version,
        dataset=dataset.id,
        images=len(test.table),
        decoding=decoding,
        evaluated_at=datetime.now(UTC),
        scores=scores,
        agreement=agreement,
        diversity={
            name: diversity(captions, vocabulary=vocabulary, training=training, language=dataset.language)
            for name, captions in texts.items()
        },
        by_length=by_length(written["chosen"], references, scores["chosen"].image_cider),
        errors=count_errors(written["chosen"], references) if is_english(dataset.language) else {},
        calibration=judged and calibration.measure(captions, judged),
    )
    for name, found in _labelled(metrics.scores, decoding).items():
        log.info("%s: %s", name, format_scores(found.corpus))
    log.info("writing the report")
    attention = _attention(captioner, test, written["chosen"], metadata.encoder_id, store) if captioner.attends else {}
    table = pa.table(
        [
            *(test.table[name] for name in ("image_id", "image_key", "image_etag")),
            list(written["chosen"].values()),
            test.table["captions"],
            [attention.get(image) for image in test.image_ids],
        ],
        schema=CAPTIONS,
    )
    page = render_report(metrics, table, metadata, dataset, store)
    keys = layout.evaluation(version, dataset.id, decoding)
    json.write(profile, keys.profile, store)
    parquet.write(table, keys.captions, store)
    store.put(keys.report, page.encode())
    json.write(metrics, keys.metrics, store)
    card.write(metadata, store)
    log.info("report: %s", store.url(keys.report))
    return metrics


def render_report(
    metrics: Metrics, captions: pa.Table, metadata: ModelMetadata, dataset: Dataset, store: Bucket
) -> str:
    """The report of an evaluation as HTML.

    Args:
        metrics: the scores.
        captions: those of the chosen decoding, a table of schema ``CAPTIONS``.
        metadata: of the model.
        dataset: the dataset whose test split was captioned; its photographs are read for the thumbnails.
        store: the store.
    """
    table = dataset.split("test")
    rows = captions.to_pylist()
    album = _Album(
        {row["image_id"]: row for row in table.to_pylist()},
        {row["image_id"]: row["caption"] for row in rows},
        {row["image_id"]: row["attention"] for row in rows if row["attention"] is not None},
        datasets.sources(table, store),
        metadata.language,
    )
    ingested = json.find(IngestReport, layout.ingest_report(dataset.id), store)
    return render(_report(metrics, metadata, dataset, ingested, album))


def _human_baseline(scorer: Scorer, dataset: Dataset, store: Bucket) -> HumanBaseline:
    """The scores of humans on these test images: computed once, then read from the store."""
    key = layout.human_baseline(dataset.id, scorer.tokenizer)
    stored = json.find(HumanBaseline, key, store)
    if stored is not None and scorer.can_use(stored):
        return stored
    log.info("scoring the human captions against each other, once for this dataset")
    human = scorer.human_baseline()
    json.write(human, key, store)
    return human


def _by_image(split: SplitFeatures, captions: Sequence[Caption]) -> dict[str, str]:
    return {image: caption.text for image, caption in zip(split.image_ids, captions, strict=True)}


def _attention(
    captioner: Captioner, test: SplitFeatures, captions: Mapping[str, str], encoder_id: str, store: Bucket
) -> dict[str, list[list[list[float]]]]:
    """By image, the weights (rows, columns) of the regions for each word of its caption.

    The images depend on nothing but their ids, so that models evaluated on one test split show the same.
    """
    try:
        grid = encoders.load_grid(encoder_id, store)
    except PipelineError as error:
        log.warning("The report does not show where the captioner looks: %s", error)
        return {}
    if grid is None:
        log.warning("The report does not show where the captioner looks: the regions are no places of a map")
        return {}
    ids = np.array(test.image_ids)
    chosen = np.argsort([hashlib.sha256(image.encode()).hexdigest() for image in ids])[:ATTENTION_EXAMPLES]
    weights = captioner.attention(test.features[chosen], [captions[image] for image in ids[chosen]])
    return {image: each.reshape(-1, *grid).tolist() for image, each in zip(ids[chosen], weights, strict=True)}


@dataclass(frozen=True)
class _Album:
    """The captioned photographs, some of which the report shows."""

    rows: Mapping[str, Mapping[str, Any]]
    captions: Mapping[str, str]
    attention: Mapping[str, Sequence[Sequence[Sequence[float]]]]
    sources: Mapping[str, Bucket]
    language: str

    def example(self, image: str, label: str) -> Example:
        row = self.rows[image]
        return Example(
            image_id=image,
            thumbnail=_thumbnail(self.sources[row["source"]], row["image_key"], row["image_etag"]),
            caption=self.captions[image],
            references=row["captions"],
            label=label,
        )

    def ranked(self, cider: Mapping[str, float]) -> dict[str, list[Example]]:
        """The best, the worst, and random ones."""
        images = sorted(self.captions, key=lambda image: cider[image], reverse=True)
        chosen = {
            "Best by CIDEr": images[:EXAMPLES],
            "Worst by CIDEr": images[: -EXAMPLES - 1 : -1],
            "Random": random.Random(0).sample(images, min(EXAMPLES, len(images))),
        }
        return {
            title: [self.example(image, f"CIDEr {cider[image]:.2f}") for image in group]
            for title, group in chosen.items()
        }

    def with_errors(self, errors: Mapping[ErrorKind, ErrorCount]) -> dict[ErrorKind, list[Example]]:
        """The cases of each kind of error."""
        return {
            kind: [self.example(case.image, f"“{case.word}”") for case in count.cases] for kind, count in errors.items()
        }

    def with_attention(self, cider: Mapping[str, float]) -> list[Attention]:
        """Those that the table of captions has weights of, without the function words of English."""
        omitted = FUNCTION_WORDS if is_english(self.language) else frozenset()
        return [
            Attention(
                self.example(image, f"CIDEr {cider[image]:.2f}"),
                [
                    (word, np.array(of_word))
                    for word, of_word in zip(clean(self.captions[image], self.language), weights, strict=True)
                    if word not in omitted
                ],
            )
            for image, weights in self.attention.items()
        ]


def _report(
    metrics: Metrics, metadata: ModelMetadata, dataset: Dataset, ingested: IngestReport | None, album: _Album
) -> Report:
    sources = ingested.by_source if ingested else []
    return Report(
        title=f"Captioner {metrics.version}",
        metadata={
            "dataset": dataset.name,
            "language": dataset.language,
            **({"sources": "; ".join(sources)} if sources else {}),
            "test images": metrics.images,
            "encoder": metadata.encoder_id,
            "trained": f"{metadata.created_at:%Y-%m-%d %H:%M} UTC",
        },
        decoding=str(metrics.decoding),
        scores=_labelled(metrics.scores, metrics.decoding),
        agreement=metrics.agreement,
        diversity=_labelled(metrics.diversity, metrics.decoding),
        by_length=metrics.by_length,
        errors=metrics.errors,
        calibration=metrics.calibration,
        error_examples=album.with_errors(metrics.errors),
        ensemble=metadata.ensemble,
        attention=album.with_attention(metrics.scores["chosen"].image_cider),
        examples=album.ranked(metrics.scores["chosen"].image_cider),
        configuration={"dataset": metadata.dataset, "max_length": metadata.max_length, **metadata.config.model_dump()},
    )


def _labelled(by_decoding: Mapping[str, T], chosen: DecodingConfig) -> dict[str, T]:
    return {str(chosen) if name == "chosen" else name: value for name, value in by_decoding.items()}


def _thumbnail(source: Bucket, key: str, etag: str) -> bytes:
    """A JPEG of the picture as the encoder saw it; grey if the photograph is gone, or can't be read any more."""
    try:
        pixels = decode(source.get(key, etag=etag), THUMBNAIL).pixels
    except (PipelineError, BadImageError) as error:
        log.warning("%s is grey in the report: %s", key, error)
        pixels = np.full((*THUMBNAIL, 3), 128, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

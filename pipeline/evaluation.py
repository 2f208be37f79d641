"""Evaluation of a model: captions of the test split, their scores and errors, and the report that shows them."""

import io
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline import dataset as datasets
from pipeline import drift, features, tables, tracking
from pipeline.analysis import ErrorCount, ErrorKind, LengthGroup, by_length, count_errors
from pipeline.captioner import Caption, Metadata, load
from pipeline.drift import Profile
from pipeline.examples import Split, split_features
from pipeline.images import BadImageError, decode
from pipeline.metrics import Agreement, Diversity, Scores, agreement, diversity, score
from pipeline.recipe import GREEDY, Search
from pipeline.report import Example, Report, render
from pipeline.storage import Bucket, ObjectChangedError
from pipeline.vocabulary import SPECIAL_WORDS

T = TypeVar("T")

log = logging.getLogger(__name__)

EXAMPLES = 12
"""Pictures in each of the report's grids: best, worst, and any."""

THUMBNAIL = (224, 224)


CAPTIONS = pa.schema([("image_id", pa.string()), ("caption", pa.string()), ("references", pa.list_(pa.string()))])
"""Captions of the test split by the chosen search, beside what people wrote."""


class Metrics(BaseModel):
    """The content of ``models/<version>/metrics.json``."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="of the model")
    dataset: str = Field(description="URI of the dataset whose test split was captioned")
    images: int = Field(description="test images that were captioned")
    search: Search = Field(description="how captions were looked for, beside greedy search")
    evaluated_at: AwareDatetime = Field(description="when, UTC")
    scores: dict[str, Scores] = Field(description="against all references, by search: greedy and chosen")
    agreement: Agreement = Field(description="the chosen search beside people, both against all references but one")
    diversity: dict[str, Diversity] = Field(description="by search, and of people: one reference of each image")
    by_length: list[LengthGroup] = Field(description="the chosen search by the length of the images' references")
    errors: dict[ErrorKind, ErrorCount] = Field(description="of the chosen search, counted from words")

    @property
    def cider(self) -> float:
        """CIDEr of the chosen search, by which models are compared."""
        return self.scores["chosen"].corpus["CIDEr"]

    @property
    def summary(self) -> dict[str, float]:
        """The scores of the chosen search, by their usual names."""
        return self.scores["chosen"].corpus


def evaluate(
    version: str, *, store: Bucket, search: Search, max_failed_fraction: float, tracking_uri: str = ""
) -> Metrics:
    """Caption the test split of a model's dataset greedily and by ``search``; write ``metrics.json`` and the report.

    The MLflow at ``tracking_uri`` is told, and gets what it missed of the training; empty tells none.

    Raises:
        PipelineError: there is no such model, or too many test images could not be read.
    """
    captioner, metadata = load(version, store)
    dataset = datasets.load(metadata.dataset)
    test = split_features(
        dataset, "test", encoder_id=metadata.encoder_id, store=store, max_failed_fraction=max_failed_fraction
    )
    captions = captioner.caption(test.vectors, search)
    written = {
        "greedy": _by_image(test, captioner.caption(test.vectors, GREEDY)),
        "chosen": _by_image(test, captions),
    }
    unreadable = len(dataset.split("test")) - len(captions)
    profile = Profile.of(captioner.standardised(test.vectors), captions, failed=unreadable, search=search)
    references = _references(test)
    vocabulary = captioner.vocabulary.words[len(SPECIAL_WORDS) :]
    training = [caption for captions in dataset.split("train")["captions"].to_pylist() for caption in captions]
    scores = {name: score(captions, references) for name, captions in written.items()}
    # Of people as many captions as of the captioner: the first reference of an image, the second of the next, …
    people = [captions[row % len(captions)] for row, captions in enumerate(references.values())]
    said = {name: list(captions.values()) for name, captions in written.items()} | {"people": people}
    metrics = Metrics(
        version=version,
        dataset=metadata.dataset,
        images=len(test.table),
        search=search,
        evaluated_at=datetime.now(UTC),
        scores=scores,
        agreement=agreement(written["chosen"], references),
        diversity={
            name: diversity(captions, vocabulary=vocabulary, training=training) for name, captions in said.items()
        },
        by_length=by_length(written["chosen"], references, scores["chosen"].image_cider),
        errors=count_errors(written["chosen"], references),
    )
    for name, found in metrics.scores.items():
        log.info("%s: %s", name, in_words(found.corpus))
    album = _Album(test, written["chosen"], datasets.sources(test.table))
    page = render(_report(metrics, metadata, dataset.name, album))
    drift.save(drift.test_key(version), profile, store)
    table = pa.table([list(references), list(written["chosen"].values()), list(references.values())], schema=CAPTIONS)
    tables.write(table, _captions_key(version), store)
    store.put(f"models/{version}/metrics.json", metrics.model_dump_json(indent=2).encode())
    store.put(report_key(version), page.encode())
    log.info("report: %s", store.url(report_key(version)))
    with tracking.Run(tracking_uri, version) as run:
        run.parameters(tracking.inputs(metadata.dataset, metadata.encoder_id, metadata.recipe))
        for member in metadata.members:
            run.curves(tracking.points(metadata.recipe, member.seed, member.epochs))
        run.scores({name: found.corpus for name, found in metrics.scores.items()})
        run.page("report.html", page)
    return metrics


def in_words(scores: Mapping[str, float]) -> str:
    """Scores in a line for people."""
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def report_key(version: str) -> str:
    """Where a model's report lies in the store."""
    return f"models/{version}/report.html"


def load_metrics(version: str, store: Bucket) -> Metrics:
    """What ``evaluate`` wrote of a model. Raises ``ObjectNotFoundError`` where it was not evaluated."""
    return Metrics.model_validate_json(store.get(f"models/{version}/metrics.json"))


def load_captions(version: str, store: Bucket) -> list[dict[str, Any]]:
    """What a model said of its test photographs: ``image_id``, ``caption`` and ``references``, by image.

    Raises ``ObjectNotFoundError`` where it was not evaluated.
    """
    rows: list[dict[str, Any]] = tables.read(_captions_key(version), store).to_pylist()
    return rows


def cider_on(
    dataset_uri: str,
    version: str,
    *,
    search: Search,
    store: Bucket,
    max_failed_fraction: float,
) -> float:
    """CIDEr of a model on the test split of any dataset; extracts what features its encoder lacks."""
    captioner, metadata = load(version, store)
    dataset = datasets.load(dataset_uri)
    for source, images in datasets.images_by_source(dataset.split("test")).items():
        features.complete(
            images,
            run=f"{version}-on-{dataset.fingerprint}",
            source=source,
            encoder_id=metadata.encoder_id,
            store=store,
        )
    test = split_features(
        dataset, "test", encoder_id=metadata.encoder_id, store=store, max_failed_fraction=max_failed_fraction
    )
    written = _by_image(test, captioner.caption(test.vectors, search))
    return score(written, _references(test)).corpus["CIDEr"]


def _captions_key(version: str) -> str:
    return f"models/{version}/test-captions.parquet"


def _by_image(split: Split, captions: Sequence[Caption]) -> dict[str, str]:
    return {image: caption.text for image, caption in zip(_images(split), captions, strict=True)}


def _references(split: Split) -> dict[str, list[str]]:
    return dict(zip(_images(split), split.table["captions"].to_pylist(), strict=True))


def _images(split: Split) -> list[str]:
    images: list[str] = split.table["image_id"].to_pylist()
    return images


@dataclass(frozen=True)
class _Album:
    """The captioned photographs, for the page to show some of."""

    split: Split
    written: Mapping[str, str]
    sources: Mapping[str, Bucket]

    def example(self, image: str, label: str) -> Example:
        row = self._rows[image]
        return Example(
            image_id=image,
            thumbnail=_thumbnail(self.sources[row["source"]], row["image_key"], row["etag"]),
            caption=self.written[image],
            references=row["captions"],
            label=label,
        )

    def ranked(self, cider: Mapping[str, float]) -> dict[str, list[Example]]:
        """The best, the worst, and any."""
        images = sorted(self.written, key=lambda image: cider[image], reverse=True)
        chosen = {
            "Best by CIDEr": images[:EXAMPLES],
            "Worst by CIDEr": images[: -EXAMPLES - 1 : -1],
            "Any": random.Random(0).sample(images, min(EXAMPLES, len(images))),
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

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return dict(zip(_images(self.split), self.split.table.to_pylist(), strict=True))


def _report(metrics: Metrics, metadata: Metadata, dataset: str, album: _Album) -> Report:
    return Report(
        title=f"Captioner {metrics.version}",
        metadata={
            "dataset": dataset,
            "test images": metrics.images,
            "encoder": metadata.encoder_id,
            "trained": f"{metadata.created_at:%Y-%m-%d %H:%M} UTC",
        },
        search=str(metrics.search),
        scores=_labelled(metrics.scores, metrics.search),
        agreement=metrics.agreement,
        diversity=_labelled(metrics.diversity, metrics.search),
        by_length=metrics.by_length,
        errors=metrics.errors,
        error_examples=album.with_errors(metrics.errors),
        members=metadata.members,
        examples=album.ranked(metrics.scores["chosen"].image_cider),
        configuration={"dataset": metadata.dataset, "max_length": metadata.max_length, **metadata.recipe.model_dump()},
    )


def _labelled(by_search: Mapping[str, T], chosen: Search) -> dict[str, T]:
    return {str(chosen) if search == "chosen" else search: value for search, value in by_search.items()}


def _thumbnail(source: Bucket, key: str, etag: str) -> bytes:
    """A JPEG of what the encoder saw; grey where the photograph has gone since."""
    try:
        pixels = decode(source.get(key, etag=etag), THUMBNAIL)
    except (ObjectChangedError, BadImageError):
        pixels = np.full((*THUMBNAIL, 3), 128, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

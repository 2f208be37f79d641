"""Models and evaluations that nobody has trained or run: their documents alone, for tests of what reads them."""

from datetime import UTC, datetime

import pyarrow as pa

from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import DecodingConfig
from pipeline.evaluation.drift import Moments, Profile
from pipeline.evaluation.error_analysis import ErrorCount, Rate
from pipeline.evaluation.results import CAPTIONS, Metrics
from pipeline.metrics.coco import Agreement, Diversity, Scores
from pipeline.storage import Bucket, json, layout, parquet
from tests.support import toy

DATASET = "toy/0123456789abcdef"

BEAM = DecodingConfig(beam_width=3)


def write_model(version: str, store: Bucket, *, dataset: str = DATASET, encoder_id: str = "encoder-1") -> ModelMetadata:
    """Write the metadata of a model."""
    metadata = ModelMetadata(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset=dataset,
        max_length=9,
        config=toy.CONFIG,
        ensemble=[],
    )
    json.write(metadata, layout.model_metadata(version), store)
    return metadata


def write_evaluation(
    version: str,
    store: Bucket,
    *,
    cider: float,
    dataset: str = DATASET,
    decoding: DecodingConfig = BEAM,
    captions: dict[str, str] | None = None,
    words: float = 3,
    image_cider: dict[str, float] | None = None,
    distinct: float = 1,
    wrong: int | None = None,
) -> Metrics:
    """Write an evaluation: the captions and a profile, then the scores.

    Args:
        version: of the model.
        store: the store.
        cider: CIDEr of the chosen decoding.
        dataset: id of the dataset.
        decoding: the chosen decoding.
        captions: captions by image, by default of one that no other dataset has; every reference is "a human caption".
        words: words per caption in the profile.
        image_cider: CIDEr by image; by default none is known.
        distinct: share of different captions.
        wrong: captions of a thousand that name a wrong colour; None if no errors were counted.
    """
    captions = captions or {f"{dataset}.jpg": "a dog"}
    # Greedy search has the better scores, so that a reader of those would be found out.
    scores = {
        name: Scores(
            tokenizer="builtin", corpus={"BLEU-4": 0.2, "CIDEr": value}, intervals={}, image_cider=image_cider or {}
        )
        for name, value in (("greedy", cider + 5), ("chosen", cider))
    }
    diversity = Diversity(
        captions=4,
        distinct_captions=distinct,
        novel_captions=1,
        ends_in_function_word=0,
        words=5,
        vocabulary_used=1,
        mean_length=3,
    )
    rate = Rate(checked=1000, wrong=wrong or 0)
    error = ErrorCount(captioner=rate, human=Rate(checked=1000, wrong=50), words={}, cases=[])
    metrics = Metrics(
        version=version,
        dataset=dataset,
        images=4,
        decoding=decoding,
        evaluated_at=datetime.now(UTC),
        scores=scores,
        agreement=Agreement(images=0, images_left_out=4, human={}, captioner={}),
        by_length=[],
        errors={} if wrong is None else {"colour": error},
        diversity=dict.fromkeys(scores, diversity),
    )
    moments = Moments(mean=words, variance=1)
    profile = Profile(decoding=decoding, captioned=4, failed=0, features=[0.0], words=moments, log_prob=moments)
    keys = layout.evaluation(version, dataset, decoding)
    references = [["a human caption"]] * len(captions)
    etags = [f"etag of {image}" for image in captions]
    table = pa.table(
        [[*captions], [*captions], etags, [*captions.values()], references, [None] * len(captions)], schema=CAPTIONS
    )
    parquet.write(table, keys.captions, store)
    json.write(profile, keys.profile, store)
    json.write(metrics, keys.metrics, store)
    return metrics

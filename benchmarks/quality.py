"""The scores of a training configuration: for each decoding, the mean and the standard deviation over seeds.

    python -m benchmarks.quality DATA ENCODER [NAME=VALUE ...] [--crops] [--regions] [--int8] [--seeds 0 1 2]
        [--beam-width 1 5] [--mbr-samples 0 40] [--neighbours 0 20]

DATA is a folder in the Flickr8k layout, ENCODER an encoder as for `captioning register-encoder`, NAME=VALUE a field of
the training configuration. All results are kept in CAPTION_STORE, so that nothing is extracted or trained twice. Choose
by the columns of dev; those of test are for the end.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from pipeline.captioner.bundle import load
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import DecodingConfig, TrainingConfig
from pipeline.data import dataset as datasets
from pipeline.data.ingest import ingest
from pipeline.errors import exit_on_error
from pipeline.features import encoder as encoders
from pipeline.features import extraction, quantization
from pipeline.features.regions import add_regions
from pipeline.features.splits import read_split
from pipeline.metrics.coco import score
from pipeline.settings import read_settings
from pipeline.storage import Bucket, open_bucket
from pipeline.training.train import train_captioner

MIN_COUNT = 10
MAX_FAILED_FRACTION = 0.05
COLUMNS = {
    "dev": ("BLEU-4", "CIDEr"),
    "test": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "distinct", "length"),
}


def main() -> None:
    """Prepare, train from each seed, and print the means and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("encoder")
    parser.add_argument("--crops", action="store_true", help="encode six crops of each picture")
    parser.add_argument("--regions", action="store_true", help="also encode the regions of each picture")
    parser.add_argument("--int8", action="store_true", help="encode in 8-bit integers")
    parser.add_argument(
        "config",
        nargs="*",
        metavar="NAME=VALUE",
        help=f"a field of the training configuration: {', '.join(TrainingConfig.model_fields)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--beam-width", nargs="+", type=int, default=[5], help="beam widths; 1 is greedy search")
    parser.add_argument(
        "--mbr-samples", nargs="+", type=int, default=[0], help="samples for minimum Bayes risk decoding; 0 for none"
    )
    parser.add_argument(
        "--neighbours", nargs="+", type=int, default=[20], help="similar training photographs that vote; 0 for none"
    )
    options = parser.parse_args()
    config = TrainingConfig.parse(options.config)
    store = open_bucket(read_settings().store)
    dataset_id, vocabulary_key, encoder_id = prepare(
        options.data, options.encoder, crops=options.crops, regions=options.regions, int8=options.int8, store=store
    )
    rows: dict[DecodingConfig, list[dict[str, float]]] = {
        DecodingConfig(beam_width=width, mbr_samples=samples, neighbours=neighbours): []
        for width in options.beam_width
        for samples in options.mbr_samples
        for neighbours in options.neighbours
    }
    for seed in options.seeds:
        model = train_captioner(
            dataset_id,
            vocabulary_key,
            encoder_id=encoder_id,
            config=config.model_copy(update={"seed": seed}),
            store=store,
            max_failed_fraction=MAX_FAILED_FRACTION,
        )
        captioner, _ = load(model.version, store)
        for decoding, measured in rows.items():
            measured.append(measure(captioner, model, decoding, store))
            report(decoding, f"seed {seed}", measured[-1:])
    for decoding, measured in rows.items():
        report(decoding, f"mean of {len(measured)}", measured)


def prepare(data: str, encoder: str, *, crops: bool, regions: bool, int8: bool, store: Bucket) -> tuple[str, str, str]:
    """Ingest, count the words, and extract the missing features.

    Returns:
        The id of the dataset, the key of the vocabulary, and the id of the encoder.
    """
    dataset_id = ingest([data], store, name=Path(data).name).dataset
    vocabulary_key, _ = datasets.build_vocabulary(dataset_id, store, min_count=MIN_COUNT)
    encoder_id = encoders.register(encoder, store, crops=crops)
    if regions:
        encoder_id = add_regions(encoder_id, dataset_id, store)
    if int8:
        encoder_id = quantization.quantize(encoder_id, dataset_id, store)
    for source, images in datasets.listings_by_source(datasets.load(dataset_id, store).table).items():
        extraction.extract_missing(images, run="quality", source=source, encoder_id=encoder_id, store=store)
    return dataset_id, vocabulary_key, encoder_id


def measure(captioner: Captioner, model: ModelMetadata, decoding: DecodingConfig, store: Bucket) -> dict[str, float]:
    """Scores on dev and test, by split and name, and the minutes of training."""
    row = {"minutes": sum(epoch.seconds for member in model.ensemble for epoch in member.epochs) / 60}
    dataset = datasets.load(model.dataset, store)
    for name, columns in COLUMNS.items():
        split = read_split(
            dataset,
            name,
            encoder_id=model.encoder_id,
            regions=captioner.attends,
            store=store,
            max_failed_fraction=MAX_FAILED_FRACTION,
        )
        texts = [caption.text for caption in captioner.caption(split.features, decoding)]
        captions = dict(zip(split.image_ids, texts, strict=True))
        # Java's METEOR takes its time: only where it is shown.
        scores = score(captions, split.references, java=None if "METEOR" in columns else False)
        found: Mapping[str, float] = {
            **scores.corpus,
            "distinct": len(set(texts)) / len(texts),
            "length": statistics.mean(len(text.split()) for text in texts),
        }
        row |= {f"{name} {column}": found[column] for column in columns if column in found}
    return row


def report(decoding: DecodingConfig, title: str, rows: list[dict[str, float]]) -> None:
    """Print the means of the rows; where there are several, with their standard deviations."""
    cells = [
        f"{name} {statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    ]
    print(f"{decoding}, {title}: " + ", ".join(cells), flush=True)  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    with exit_on_error():
        main()

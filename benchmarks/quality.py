"""The scores of a recipe, as means over seeds: a row of the tables in README and docs/experiments.md.

    python -m benchmarks.quality DATA ENCODER [NAME=VALUE ...] [--views] [--int8] [--seeds 0 1 2]
        [--beam 1 5] [--samples 0 40]

DATA is a folder in the Flickr8k layout, ENCODER what `python -m pipeline encoder` takes, NAME=VALUE a field of the
recipe. All is kept in CAPTION_STORE, so that what was extracted or trained before is not done again. Choose by the
columns of dev; those of test are for the end.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from pipeline import calibration, features, training
from pipeline import dataset as datasets
from pipeline import encoder as encoders
from pipeline.captioner import Captioner, Metadata, load
from pipeline.examples import count_words, split_features
from pipeline.metrics import score
from pipeline.recipe import Recipe, Search
from pipeline.settings import Settings
from pipeline.storage import Bucket, open_bucket

MIN_COUNT = 10
COLUMNS = {
    "dev": ("BLEU-4", "CIDEr"),
    "test": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "distinct", "length"),
}


def main() -> None:
    """Prepare, train from each seed, and print the means and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("encoder")
    parser.add_argument("--views", action="store_true", help="six views of each picture")
    parser.add_argument("--int8", action="store_true", help="encode in 8-bit integers")
    parser.add_argument("recipe", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--beam", nargs="+", type=int, default=[5], help="beam widths; 1 is greedy search")
    parser.add_argument("--samples", nargs="+", type=int, default=[0], help="samples to choose by; 0 is none")
    options = parser.parse_args()
    store = open_bucket(Settings().store)
    dataset_uri, vocabulary_uri, encoder_id = prepare(
        options.data, options.encoder, views=options.views, int8=options.int8, store=store
    )
    recipe = Recipe.parse(options.recipe)
    searches = [Search(beam_width=width, samples=samples) for width in options.beam for samples in options.samples]
    rows: dict[Search, list[dict[str, float]]] = {search: [] for search in searches}
    for seed in options.seeds:
        model = training.train(
            dataset_uri,
            vocabulary_uri,
            encoder_id=encoder_id,
            recipe=recipe.model_copy(update={"seed": seed}),
            store=store,
            max_failed_fraction=0.05,
        )
        captioner, _ = load(model.version, store)
        for search, measured in rows.items():
            measured.append(measure(captioner, model, search, store))
            say(search, f"seed {seed}", measured[-1:])
    for search, measured in rows.items():
        say(search, f"mean of {len(measured)}", measured)


def prepare(data: str, encoder: str, *, views: bool, int8: bool, store: Bucket) -> tuple[str, str, str]:
    """Ingest, count the words, and extract what features are missing."""
    dataset_uri = datasets.ingest(data, store, name=Path(data).name).dataset
    dataset = datasets.load(dataset_uri)
    vocabulary_uri, _ = count_words(dataset_uri, min_count=MIN_COUNT)
    encoder_id = encoders.publish(encoder, store, views=views)
    if int8:
        encoder_id = calibration.quantise(encoder_id, dataset_uri, store)
    for source, images in datasets.images_by_source(dataset.table).items():
        features.complete(images, run="quality", source=source, encoder_id=encoder_id, store=store)
    return dataset_uri, vocabulary_uri, encoder_id


def measure(captioner: Captioner, model: Metadata, search: Search, store: Bucket) -> dict[str, float]:
    """Scores on dev and test, by split and name, and the minutes of training."""
    row = {"minutes": sum(epoch.seconds for member in model.members for epoch in member.epochs) / 60}
    for split, columns in COLUMNS.items():
        examples = split_features(
            datasets.load(model.dataset), split, encoder_id=model.encoder_id, store=store, max_failed_fraction=0.05
        )
        texts = [caption.text for caption in captioner.caption(examples.vectors, search)]
        captions = {str(row): text for row, text in enumerate(texts)}
        # Java's METEOR takes its time: only where it is shown.
        scores = score(captions, examples.references, java=None if "METEOR" in columns else False)
        found: Mapping[str, float] = {
            **scores.corpus,
            "distinct": len(set(texts)) / len(texts),
            "length": statistics.mean(len(text.split()) for text in texts),
        }
        row |= {f"{split} {name}": found[name] for name in columns if name in found}
    return row


def say(search: Search, what: str, rows: list[dict[str, float]]) -> None:
    """Print the means of the rows; where there are several, with their standard deviations."""
    cells = [
        f"{name} {statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    ]
    print(f"{search}, {what}: " + ", ".join(cells), flush=True)  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    main()

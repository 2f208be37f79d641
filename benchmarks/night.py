"""A whole night in Airflow: its cost beside the extraction of its pictures, and the cost of a night with nothing new.

    python -m benchmarks.night [PICTURES]

Airflow runs as `make up` starts it, scheduler, workers and database, in a folder of its own: nights are run by a
scheduler, and `airflow dags test`, which has no queue and no worker, would leave out most of what is measured here. It
has run one night before, as one that is always up has. A night lasts from when it is queued until it ends, by
Airflow's own clock.

The pictures are of a photograph's size and weight. They are encoded by an untrained ResNet50, which takes as long as a
trained one, and captioned by a model that has learnt from their features to write captions of people's length: an
untrained one would never end a caption.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.extraction import photographs
from pipeline.captioner.registry import promote
from pipeline.features import extraction
from pipeline.features import store as feature_store
from pipeline.features.store import Features
from pipeline.settings import PROJECT
from pipeline.storage import Bucket, layout, open_bucket
from pipeline.training.batches import EncodedCaptions
from pipeline.work import listing
from tests.support.airflow_server import start_airflow

PICTURES = 5000
DISTINCT = 250
"""Pictures drawn; beyond that they come again under other keys, which is as good as new for the pipeline."""

EMPTY_NIGHTS = 5
LEARNT_PICTURES = 600
"""Pictures that the captioner learns from, with five captions each."""


def main() -> None:
    """Measure a night of as many pictures as asked for, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="?", type=int, default=PICTURES)
    print(json.dumps(night(parser.parse_args().pictures), indent=2))  # noqa: T201 - it is a program for a terminal


def night(pictures: int = PICTURES) -> dict[str, float]:
    """Pictures a second of a night, over those of extraction alone; and the seconds of a night without new pictures.

    Extraction alone is one `captioning extract` over all pictures, from the start of its process to the end,
    once before and once after the night: a machine whose speed drifts drifts for both.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, inbox, arriving = (open_bucket(f"{folder}/{name}") for name in ("store", "inbox", "arriving"))
        environment = {**os.environ, "CAPTION_STORE": store.uri, "CAPTION_INBOX": inbox.uri}
        encoder_id = register_encoder(environment)
        fill(arriving, pictures)
        images = listing.tabulate(arriving.list())
        before, features = extract_alone(images, arriving, encoder_id, copy_encoder(store, f"{folder}/before"))
        save_champion(encoder_id, features, store)
        with start_airflow(Path(folder, "airflow"), environment) as server:
            server.first_night()
            Path(folder, "arriving").rename(Path(folder, "inbox"))
            whole = server.night()
            after, _ = extract_alone(images, inbox, encoder_id, copy_encoder(store, f"{folder}/after"))
            empty = [server.night() for _ in range(EMPTY_NIGHTS)]
    alone = statistics.mean([before, after])
    return {
        "night_over_extraction": alone / whole,
        "empty_night_seconds": statistics.median(empty),
        "night_pictures_per_second": pictures / whole,
        "extraction_alone_pictures_per_second": pictures / alone,
        "extraction_alone_spread": abs(before - after) / alone,
    }


def register_encoder(environment: dict[str, str]) -> str:
    """Put an untrained ResNet50 in the store, and return its id."""
    command = [sys.executable, "-m", "pipeline", "register-encoder", "random"]
    done = subprocess.run(command, env=environment, cwd=PROJECT, check=True, stdout=subprocess.PIPE)
    return str(json.loads(done.stdout)["encoder_id"])


def save_champion(encoder_id: str, features: Features, store: Bucket) -> None:
    """Teach a captioner captions as long as Flickr8k's, of pictures with these features, and promote it."""
    from benchmarks.learning import CONFIG, LONGEST, briefly_trained, captions_like_flickr8k
    from pipeline.captioner.bundle import save
    from pipeline.captioner.metadata import EnsembleMember, ModelMetadata

    drawn = captions_like_flickr8k(LEARNT_PICTURES)
    features = features[np.arange(LEARNT_PICTURES) % len(features)]
    model, vocabulary = briefly_trained(EncodedCaptions(features, drawn.image, drawn.ids))
    metadata = ModelMetadata(
        version="champion",
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset="none",
        max_length=LONGEST,
        config=CONFIG,
        ensemble=[EnsembleMember(seed=0, best_epoch=1, epochs=[])],
    )
    promote(save([model], vocabulary, metadata, store).version, store)


def fill(inbox: Bucket, pictures: int) -> None:
    """Put so many pictures into the inbox."""
    drawn = list(photographs(min(pictures, DISTINCT)))
    for number in range(pictures):
        inbox.put(f"{number // 1000:04}/IMG_{number:07}.jpg", drawn[number % len(drawn)])


def copy_encoder(store: Bucket, folder: str) -> Bucket:
    """A store that holds nothing but the other's encoder."""
    copy = open_bucket(folder)
    for item in store.list(layout.ENCODERS):
        copy.put(item.key, store.get(item.key))
    return copy


def extract_alone(images: pa.Table, inbox: Bucket, encoder_id: str, store: Bucket) -> tuple[float, Features]:
    """Extract all pictures' features in one process: the seconds from its start to its end, and the features."""
    [shard] = extraction.plan_extraction(
        images, run="alone", source=inbox.uri, encoder_id=encoder_id, store=store, shard_size=len(images)
    )
    command = [sys.executable, "-m", "pipeline", "extract", shard]
    environment = {**os.environ, "CAPTION_STORE": store.uri}
    start = time.monotonic()
    subprocess.run(command, env=environment, cwd=PROJECT, check=True, capture_output=True)
    seconds = time.monotonic() - start
    rows = feature_store.look_up(images, encoder_id=encoder_id, store=store)
    return seconds, feature_store.read_features(rows, encoder_id=encoder_id, store=store)


if __name__ == "__main__":
    main()

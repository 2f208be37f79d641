"""A whole night in Airflow: its cost beside the extraction of its pictures, and the cost of a night with nothing new.

    python -m benchmarks.night [KIND [PICTURES]]

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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
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
from pipeline.work import listing, runs
from tests.support.airflow_server import start_airflow


@dataclass(frozen=True)
class Kind:
    """Pictures of an inbox: how many, how large, how many in a folder, and how many different ones are drawn.

    Beyond those they come again under other keys, which is as good as new for the pipeline.
    """

    pictures: int
    width: int
    height: int
    folder: int = 1000
    distinct: int = 250


KINDS = {
    "night": Kind(5000, 500, 375),
    "small_pictures": Kind(20_000, 160, 120, folder=20_000),
    "large_pictures": Kind(200, 4000, 3000, distinct=20),
}

EMPTY_NIGHTS = 5
LIMIT = 3600.0
"""Seconds after which a night counts as hanging."""

LEARNT_PICTURES = 600
"""Pictures that the captioner learns from, with five captions each."""


def main() -> None:
    """Measure a night of one kind, with as many pictures as asked for, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS, default="night")
    parser.add_argument("pictures", nargs="?", type=int)
    arguments = parser.parse_args()
    kind = KINDS[arguments.kind]
    measured = measure(replace(kind, pictures=arguments.pictures or kind.pictures), empty_nights=EMPTY_NIGHTS)
    print(json.dumps(asdict(measured) | {"over_extraction": measured.over_extraction}, indent=2))  # noqa: T201


@dataclass(frozen=True)
class Measured:
    """A night, and what it is compared with.

    Attributes:
        pictures: new ones.
        seconds: of the night, by the clock.
        alone: seconds of one `captioning extract` over all pictures, from the start of its process to the end, before
            and after the night: a machine whose speed drifts drifts for both.
        empty: seconds of nights without new pictures.
        sections: seconds of the night's sections, over all threads, as its record has them.
    """

    pictures: int
    seconds: float
    alone: list[float]
    empty: list[float]
    sections: dict[str, float]

    @property
    def over_extraction(self) -> float:
        """Pictures a second of the night, over those of extraction alone."""
        return statistics.mean(self.alone) / self.seconds


def night() -> dict[str, float]:
    """A night of many photographs, and nights without any new one."""
    found = measure(KINDS["night"], empty_nights=EMPTY_NIGHTS)
    alone = statistics.mean(found.alone)
    return {
        "night_over_extraction": found.over_extraction,
        "empty_night_seconds": statistics.median(found.empty),
        "night_pictures_per_second": found.pictures / found.seconds,
        "extraction_alone_pictures_per_second": found.pictures / alone,
        "extraction_alone_spread": abs(found.alone[0] - found.alone[1]) / alone,
    }


def first_nights() -> dict[str, float]:
    """Nights of many small pictures in one folder, and of a few large ones: where their time goes."""
    results: dict[str, float] = {}
    for name in ("small_pictures", "large_pictures"):
        found = measure(KINDS[name])
        results |= {
            f"{name}_seconds": found.seconds,
            f"{name}_over_extraction": found.over_extraction,
            **{f"{name}_{section}_seconds": seconds for section, seconds in found.sections.items()},
        }
    return results


def measure(kind: Kind, *, empty_nights: int = 0) -> Measured:
    """Run a night in Airflow, then some without new pictures; the extraction alone before and after the first."""
    with tempfile.TemporaryDirectory() as folder:
        store, inbox, arriving = (open_bucket(f"{folder}/{name}") for name in ("store", "inbox", "arriving"))
        environment = {**os.environ, "CAPTION_STORE": store.uri, "CAPTION_INBOX": inbox.uri}
        encoder_id = register_encoder(environment)
        fill(inbox, replace(kind, pictures=1))
        fill(arriving, kind)
        images = listing.tabulate(arriving.list())
        before, features = extract_alone(images, arriving, encoder_id, copy_encoder(store, f"{folder}/before"))
        save_champion(encoder_id, features, store)
        with start_airflow(Path(folder, "airflow"), environment) as server:
            server.first_night()
            Path(folder, "arriving").rename(Path(folder, "inbox", "new"))
            seconds = server.night(LIMIT)
            [record] = islice(runs.list_records(runs.NIGHT, store), 1)
            images = listing.tabulate(inbox.list("new/"))
            after, _ = extract_alone(images, inbox, encoder_id, copy_encoder(store, f"{folder}/after"))
            empty = [server.night() for _ in range(empty_nights)]
    return Measured(kind.pictures, seconds, [before, after], empty, record.seconds)


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
    from pipeline.captioner.neighbours import Neighbours

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
    neighbours = Neighbours.build(features.vectors, drawn.ids, drawn.image)
    promote(save([model], vocabulary, neighbours, metadata, store).version, store)


def fill(inbox: Bucket, kind: Kind) -> None:
    """Put the pictures into the inbox."""
    count = min(kind.pictures, kind.distinct)
    drawn = list(photographs(count, width=kind.width, height=kind.height))
    for number in range(kind.pictures):
        inbox.put(f"{number // kind.folder:04}/IMG_{number:07}.jpg", drawn[number % len(drawn)])


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

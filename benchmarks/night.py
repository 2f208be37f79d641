"""A whole night in Airflow: what it adds to the extraction of its pictures, and what it costs where nothing is new.

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
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.extraction import photographs
from pipeline import features
from pipeline.examples import Captions
from pipeline.registry import promote
from pipeline.settings import PROJECT
from pipeline.storage import Bucket, open_bucket

PICTURES = 5000
DISTINCT = 250
"""Pictures drawn; beyond that they come again under other keys, which is as good as new for the pipeline."""

EMPTY_NIGHTS = 5
LEARNT_PICTURES = 600
"""What the captioner learns from, five captions each."""

DAG = "caption_new_images"


def main() -> None:
    """Measure a night of as many pictures as asked for, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="?", type=int, default=PICTURES)
    print(json.dumps(night(parser.parse_args().pictures), indent=2))  # noqa: T201 - it is a program for a terminal


def night(pictures: int = PICTURES) -> dict[str, float]:
    """Pictures a second of a night, over those of extraction alone; and the seconds of a night without new pictures.

    Extraction alone is one `python -m pipeline extract` over all pictures, from the start of its process to the end,
    once before and once after the night: a machine whose speed drifts drifts for both.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, inbox, arriving = (open_bucket(f"{folder}/{name}") for name in ("store", "inbox", "arriving"))
        environment = {**os.environ, "CAPTION_STORE": store.uri, "CAPTION_INBOX": inbox.uri}
        encoder_id = publish_encoder(environment)
        fill(arriving, pictures)
        images = features.as_table(arriving.list())
        before, vectors = extract_alone(images, arriving, encoder_id, copy_encoder(store, f"{folder}/before"))
        save_champion(encoder_id, vectors, store)
        with airflow(Path(folder, "airflow"), environment) as server:
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


def publish_encoder(environment: dict[str, str]) -> str:
    """Put an untrained ResNet50 in the store, and return its id."""
    command = [sys.executable, "-m", "pipeline", "encoder", "random"]
    done = subprocess.run(command, env=environment, cwd=PROJECT, check=True, stdout=subprocess.PIPE)
    return str(json.loads(done.stdout)["encoder_id"])


def save_champion(encoder_id: str, vectors: npt.NDArray[np.float32], store: Bucket) -> None:
    """Teach a captioner captions as long as Flickr8k's, of pictures with these vectors (N, D), and promote it."""
    from benchmarks.learning import LONGEST, RECIPE, briefly_trained, captions_like_flickr8k
    from pipeline.captioner import Description, Member, save

    drawn = captions_like_flickr8k(LEARNT_PICTURES)
    vectors = np.resize(vectors, (LEARNT_PICTURES, vectors.shape[1]))
    captioner = briefly_trained(Captions(vectors, drawn.image, drawn.ids))
    description = Description(
        version="champion",
        created_at=datetime.now(UTC),
        encoder_id=encoder_id,
        dataset="none",
        max_length=LONGEST,
        recipe=RECIPE,
        members=[Member(seed=0, best_epoch=1, epochs=[])],
    )
    promote(save(captioner, description, store).version, store)


def fill(inbox: Bucket, pictures: int) -> None:
    """Put so many pictures into the inbox."""
    drawn = list(photographs(min(pictures, DISTINCT)))
    for number in range(pictures):
        inbox.put(f"{number // 1000:04}/IMG_{number:07}.jpg", drawn[number % len(drawn)])


def copy_encoder(store: Bucket, folder: str) -> Bucket:
    """A store that holds nothing but the other's encoder."""
    copy = open_bucket(folder)
    for item in store.list("encoders/"):
        copy.put(item.key, store.get(item.key))
    return copy


def extract_alone(
    images: pa.Table, inbox: Bucket, encoder_id: str, store: Bucket
) -> tuple[float, npt.NDArray[np.float32]]:
    """Extract all pictures' features in one process: the seconds from its start to its end, and the vectors (N, D)."""
    [shard] = features.plan(
        images, run="alone", source=inbox.uri, encoder_id=encoder_id, store=store, shard_size=len(images)
    )
    command = [sys.executable, "-m", "pipeline", "extract", shard]
    environment = {**os.environ, "CAPTION_STORE": store.uri}
    start = time.monotonic()
    subprocess.run(command, env=environment, cwd=PROJECT, check=True, capture_output=True)
    seconds = time.monotonic() - start
    rows = features.look_up(images, encoder_id=encoder_id, store=store)
    return seconds, features.read_vectors(rows, encoder_id=encoder_id, store=store)


@contextlib.contextmanager
def airflow(home: Path, environment: dict[str, str]) -> Iterator["Airflow"]:
    """Airflow as `make up` runs it, in ``home`` and on free ports; it is stopped at the end.

    Raises:
        RuntimeError: it did not start.
    """
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    # Nothing is installed while it is measured: what runs this is what Airflow runs in.
    command = ["make", "--silent", "--assume-old=.venv/installed", "up"]
    # What `make` exports names the port of another Airflow.
    others = ("AIRFLOW__API__BASE_URL", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL")
    environment = {name: value for name, value in environment.items() if name not in others}
    environment |= {**ports, "AIRFLOW_HOME": str(home)}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for type checkers
            for line in process.stdout:
                if found := re.match(r"Airflow is at (\S+), user (\S+), password (\S+)", line):
                    yield Airflow(*found.groups())
                    return
            raise RuntimeError("Airflow did not start: `make up` says why.")
        finally:
            process.terminate()
            process.wait()


PORTS = ("AIRFLOW__API__PORT", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")
"""What Airflow listens on: another one may run on this machine."""


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [held.getsockname()[1] for held in sockets]


class Airflow:
    """A running Airflow, by its REST API."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self.token = ""
        self.token = self._call("POST", "/auth/token", {"username": user, "password": password})["access_token"]

    def first_night(self) -> None:
        """Switch the DAG on, which makes it run for the last time that it was due, and wait until it has run."""
        # A DAG is known from when it was first read.
        while not self._call("GET", "/api/v2/dags")["total_entries"]:
            time.sleep(0.5)
        self._call("PATCH", f"/api/v2/dags/{DAG}", {"is_paused": False})
        while not (runs := self._call("GET", f"/api/v2/dags/{DAG}/dagRuns")["dag_runs"]):
            time.sleep(0.5)
        self._seconds(runs[0]["dag_run_id"])

    def night(self) -> float:
        """Run a night, and return its seconds."""
        run = self._call("POST", f"/api/v2/dags/{DAG}/dagRuns", {"logical_date": None})
        return self._seconds(run["dag_run_id"])

    def _seconds(self, run_id: str) -> float:
        """Wait for the end of a run; the seconds since it was queued. Raises ``RuntimeError`` where it failed."""
        path = f"/api/v2/dags/{DAG}/dagRuns/{urllib.parse.quote(run_id)}"
        while (run := self._call("GET", path))["state"] not in ("success", "failed"):
            time.sleep(1)
        if run["state"] == "failed":
            raise RuntimeError(f"The night {run_id} failed.")
        queued, ended = (datetime.fromisoformat(run[name]) for name in ("queued_at", "end_date"))
        return (ended - queued).total_seconds()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request."""
        request = urllib.request.Request(  # noqa: S310 - always http
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return dict(json.load(answer))


if __name__ == "__main__":
    main()

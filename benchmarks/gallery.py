"""The gallery over an archive that has grown large: its pages by the clock, against reading everything into pandas.

    python -m benchmarks.gallery [CAPTIONS ...]

The archive is as 300 nights leave it: a shard a night, and at the half of them a new champion, which captions all that
there is anew in shards of at most 10,000 rows. Pages are asked of Airflow's API server, in a process of its own: with a
login, with Airflow's checks of it, rendered to HTML. Only the network and the thumbnails are left out.

The usual way is that of a notebook or a small web app: all captions into a data frame, then what pandas has.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measure import alternate, peak, spread, wall
from pipeline.nightly import captions, current
from pipeline.ops import browse, browse_current, review
from pipeline.storage import Bucket, layout, open_bucket, parquet, source_name
from pipeline.work import shards
from pipeline.work.outcomes import IDENTITY

CAPTIONS = (10_000, 100_000, 1_000_000)
NIGHTS = 300
FIRST_NIGHT = date(2026, 1, 1)
SHARD_SIZE = 10_000
FAILED = 100
"""One picture in so many could not be read."""

NOVEL, UNSURE = 0.05, 0.5
"""The share of novel pictures, and the confidence below which a caption is marked for review."""

OLD, NEW = "20260101T020000-aaaaaaaa", "20260531T020000-bbbbbbbb"
"""The champion of the first half of the nights, and that of the second."""

SUBJECTS = ("a man", "two dogs", "a little girl", "a group of people", "a brown dog", "a boy in a red shirt", "a woman")
DOES = ("is standing", "runs", "jumps", "is sitting", "plays", "is climbing", "walks", "looks at the camera")
PLACES = ("on the grass", "in the snow", "on a bench", "at the beach", "in front of a building", "over a fence")
COMMON, RARE, NOWHERE = "snow", "zebra", "xylophone"
"""In a caption of six, in the oldest only, and in none."""


def main() -> None:
    """Measure each size in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", nargs="*", type=int, default=CAPTIONS)
    for size in parser.parse_args().captions:
        print(json.dumps(measure(size)), flush=True)  # noqa: T201 - it is a program for a terminal


def measure(size: int, rounds: int = 5) -> dict[str, float]:
    """Seconds of each page and of the usual way, and the memory that they add to the server's, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(open_bucket(f"{folder}/store"), size)
        environment = {
            **os.environ,
            "AIRFLOW_HOME": f"{folder}/airflow",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(Path(__file__).resolve().parents[1] / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "CAPTION_STORE": f"{folder}/store",
            "CAPTION_INBOX": f"{folder}/inbox",
        }
        migrate = [Path(sys.executable).with_name("airflow"), "db", "migrate"]
        subprocess.run(migrate, env=environment, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-c", f"from benchmarks.gallery import work; work({rounds})"]
        printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        return {"captions": size, **json.loads(printed.splitlines()[-1])}


def prepare(store: Bucket, size: int) -> None:
    """Write the shards of ``size`` captions, and the current captions."""
    pictures = size * 2 // 3
    nightly = np.array_split(np.arange(pictures), NIGHTS)
    rng = np.random.default_rng(0)
    for number, pictures_of_night in enumerate(nightly):
        old = number < NIGHTS // 2
        write(store, pictures_of_night, number, OLD if old else NEW, rng)
        if number == NIGHTS // 2:
            archive = np.concatenate(nightly[:number])
            for part in np.array_split(archive, -(-len(archive) // SHARD_SIZE)):
                write(store, part, number, NEW, rng)
    results = shards.results(layout.captions_of_model(NEW), store)
    attempts = captions.read(results, store, columns=current.ATTEMPT)
    listing = attempts.select(IDENTITY).append_column("bytes", pa.nulls(len(attempts), pa.int64()))
    facts = {"inbox": source_name(store, store), "language": "en", "listed_at": datetime.now(UTC).isoformat()}
    current.refresh(listing, attempts, night=facts, store=store, place="none", damaged=[], review_below=UNSURE)


def write(store: Bucket, pictures: npt.NDArray[np.int64], number: int, version: str, rng: np.random.Generator) -> None:
    """Write a shard: what a model says of these pictures in a night."""
    night = FIRST_NIGHT + timedelta(number)
    failed = pictures % FAILED == FAILED - 1
    confidence, novel = rng.random(len(pictures)), rng.random(len(pictures)) < NOVEL
    words = zip(*(rng.choice(part, len(pictures)) for part in (SUBJECTS, DOES, PLACES)), strict=True)
    said = [
        f"{' '.join(each)}{f' by a {RARE}' if picture == 0 and version == OLD else ''}"
        for picture, each in zip(pictures, words, strict=True)
    ]
    table = pa.table(
        [
            [key(picture) for picture in pictures.tolist()],
            [hashlib.md5(b"%d" % picture, usedforsecurity=False).hexdigest() for picture in pictures.tolist()],
            pa.array(said, pa.string(), mask=failed),
            pa.array(rng.normal(-0.9, 0.3, len(pictures)).clip(max=0), pa.float32(), mask=failed),
            pa.array(confidence, pa.float32(), mask=failed),
            pa.array(novel, mask=failed),
            pa.array(novel | (confidence < UNSURE), mask=failed),
            np.where(failed, "failed", "ok"),
            pa.array(["the image is truncated"] * len(pictures), pa.string(), mask=~failed),
            pa.array([640] * len(pictures), pa.int32(), mask=failed),
            pa.array([480] * len(pictures), pa.int32(), mask=failed),
            [version] * len(pictures),
            ["resnet50-0123456789abcdef"] * len(pictures),
            [datetime(night.year, night.month, night.day, 2, tzinfo=UTC)] * len(pictures),
        ],
        schema=captions.SCHEMA,
    )
    name = hashlib.sha256(b"%d" % pictures[0]).hexdigest()[:16]
    parquet.write(table, layout.shard_result(layout.captions_folder(version, str(night)), name), store)


def key(picture: int) -> str:
    """The key of a picture, such as a camera's folders have."""
    return f"2026/{picture // 1000:04}/IMG_{picture:07}.jpg"


def work(rounds: int) -> None:
    """Ask for each page, and read everything into pandas, in turn; print the medians as JSON."""
    store = open_bucket(os.environ["CAPTION_STORE"])
    found = browse.shards(store)
    of_new_model = FIRST_NIGHT + timedelta(NIGHTS // 2)
    pages = {
        "first_page": "/",
        "last_page": f"/?page={10**6}",
        "least_sure": "/?order=unsure",
        "failed": "/?status=failed",
        "search_common": f"/?words={COMMON}",
        "search": f"/?words={NOWHERE}",
        "history_first_page": "/by-model",
        "history_deep_page": f"/by-model?{urlencode({'after': f'{found[len(found) * 9 // 10].key}:5'})}",
        "history_night": f"/by-model?night={of_new_model}",
        "history_model": f"/by-model?version={OLD}",
        "history_search_rare": f"/by-model?words={RARE}",
        "history_search": f"/by-model?words={NOWHERE}",
        "picture": f"/image?{urlencode({'key': key(0), 'night': of_new_model})}",
        "review": "/review",
    }
    with visitor() as visit:
        visit("/static/gallery.css")
        before = peak()
        answers = {name: visit(path) for name, path in pages.items()}
        added = peak() - before
        check(answers)
        functions: dict[str, Callable[[], object]] = {
            **{name: lambda path=path: visit(path) for name, path in pages.items()},
            "first_page_after_a_night": lambda: first_page(store),
            "export": lambda: visit("/captions.csv"),
            "review_after_a_night": lambda: review.Queue().take("someone", store, damaged=[]),
            "usual_first_page": usual,
            "usual_search": lambda: usual(NOWHERE),
        }
        costs = dict(zip(functions, alternate(*functions.values(), rounds=rounds), strict=True))
    seconds = {f"{name}_seconds": wall(each) for name, each in costs.items()}
    # The memory of pandas comes on top of the memory that the pages have left.
    memory = {"added_mb": added, "usual_added_mb": peak() - before}
    print(json.dumps(seconds | memory | {"spread": spread(costs["search"])}))  # noqa: T201


def check(answers: Mapping[str, str]) -> None:
    """Stop where a page does not show what it should: an error or a search that gave up is quick."""
    pictures = {name: answer.count('<li class="card') for name, answer in answers.items()}
    last = (int(re.search(r"([\d,]+) photographs", answers["first_page"])[1].replace(",", "")) - 1) % 24 + 1
    nothing = dict.fromkeys(("search", "history_search", "picture", "review"), 0)
    expected = dict.fromkeys(answers, 24) | nothing | {"last_page": last, "history_search_rare": 1}
    # The caption that counts, and that of the night in the link. Earlier nights are not searched, and the page says so.
    said = answers["picture"].count('<p class="caption">')
    waits = 'value="confirmed"' in answers["review"]
    gave_up = [name for name, answer in answers.items() if name != "picture" and "Searched back" in answer]
    if pictures != expected or said != 2 or not waits or gave_up:
        raise RuntimeError(
            f"The pages show other captions than were asked for: {pictures}, {said} of a picture; one to review: "
            f"{waits}; gave up: {gave_up}."
        )


def first_page(store: Bucket) -> object:
    """The first page of the current captions, of which nothing is known yet."""
    captions = browse_current.CurrentCaptions()
    return captions.page(browse_current.Filters(), store=store, order="newest", number=1, size=24, damaged=[])


@contextmanager
def visitor() -> Iterator[Callable[[str], str]]:
    """A function that gets one of the gallery's pages from Airflow's API server, as somebody who is logged in."""
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    with TestClient(create_app("core"), base_url="http://127.0.0.1:8080") as client:
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="someone", role="op"))

        def visit(path: str) -> str:
            answer = client.get(f"/captions{path}", headers={"Authorization": f"Bearer {token}"})
            return answer.raise_for_status().text

        yield visit


def usual(word: str = "") -> object:
    """A page of the newest captions that have the word, by way of all captions."""
    import pandas as pd

    everything = pd.read_parquet(f"{os.environ['CAPTION_STORE']}/captions", columns=browse.COLUMNS)
    if word:
        found = [
            everything[name].str.contains(word, case=False, regex=False, na=False)
            for name in ("caption", "image_key", "error")
        ]
        everything = everything[found[0] | found[1] | found[2]]
    return everything.sort_values("captioned_at", ascending=False).head(24).to_dict("records")


if __name__ == "__main__":
    main()

"""What a run did, as small JSON documents: ``runs/<run>/<stage>.json`` on the way, ``runs/<run>.json`` at its end."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import timing
from pipeline.storage import Bucket, ObjectNotFoundError


def folder(run: str) -> str:
    """The run's folder. Airflow's run ids hold colons and pluses, which not every tool takes in a name."""
    return f"runs/{re.sub(r'[^A-Za-z0-9_.-]', '-', run)}"


def write(run: str, stage: str, document: Mapping[str, Any], store: Bucket) -> None:
    """Note what a stage of the run did."""
    store.put(f"{folder(run)}/{stage}.json", _encode(document))


def read(run: str, stage: str, store: Bucket) -> dict[str, Any]:
    """What a stage noted. Raises ``ObjectNotFoundError`` where it has not run."""
    return _decode(store.get(f"{folder(run)}/{stage}.json"))


def extracted(run: str, store: Bucket) -> dict[str, Any]:
    """What the run extracted.

    Returns:
        How many ``images`` the run asked the features of, how many of them had to be ``extracted``, and by stage the
        ``seconds`` that it took.
    """
    try:
        plan = read(run, "extraction", store)
    except ObjectNotFoundError:  # a step by hand, of a run that planned nothing
        return {"images": 0, "extracted": 0, "seconds": {}}
    seconds = timing.total(plan["shards"], store)
    return {"images": plan["images"], "extracted": plan["pending"], "seconds": seconds}


def finish(run: str, record: Mapping[str, Any], store: Bucket) -> None:
    """Write the run's record, by which readers know that it has ended."""
    store.put(f"{folder(run)}.json", _encode({"run": run, **record}))


def finished(kind: str, store: Bucket) -> Iterator[dict[str, Any]]:
    """The records of the runs of one kind, the newest first."""
    keys = (item.key for item in store.list("runs/") if item.key.count("/") == 1 and item.key.endswith(".json"))
    records = [record for record in map(_decode, map(store.get, keys)) if record["kind"] == kind]
    yield from sorted(records, key=lambda record: record["finished_at"], reverse=True)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, default=str).encode()


def _decode(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    return document

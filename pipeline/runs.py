"""What a run did, as small JSON documents: ``runs/<run>/<stage>.json`` on the way, ``runs/<run>.json`` at its end."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline import plans
from pipeline.storage import Bucket, ObjectNotFoundError

EXTRACTION, CAPTIONS = "extraction", "captions"
"""Stages of a run that work in shards."""


def folder(run: str) -> str:
    """The run's folder. Airflow's run ids hold colons and pluses, which not every tool takes in a name."""
    return f"runs/{re.sub(r'[^A-Za-z0-9_.-]', '-', run)}"


def note_shards(run: str, stage: str, shards: Sequence[str], store: Bucket) -> None:
    """Note which shards a stage of the run works on, beside those that it noted before."""
    known = planned_shards(run, stage, store)
    store.put(_note_key(run, stage), _encode({"shards": list(dict.fromkeys([*known, *shards]))}))


def planned_shards(run: str, stage: str, store: Bucket) -> list[str]:
    """The shards that a stage of the run has noted; none where it was done by hand, or not yet."""
    try:
        shards: list[str] = _decode(store.get(_note_key(run, stage)))["shards"]
    except ObjectNotFoundError:
        return []
    return shards


def forget_shards(run: str, stage: str, store: Bucket) -> None:
    """Begin a stage of the run anew."""
    store.delete(_note_key(run, stage))


def extracted(run: str, store: Bucket) -> dict[str, Any]:
    """How many images the run has ``extracted`` features of, and the ``seconds`` by stage that it took."""
    shards = planned_shards(run, EXTRACTION, store)
    images = sum(len(plans.read(shard, store).images) for shard in shards)
    return {"extracted": images, "seconds": seconds(plans.read_notes(shards, store))}


def seconds(notes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by stage, added up over the notes of shards."""
    total: Counter[str] = Counter()
    for note in notes:
        total.update(note["seconds"])
    return dict(total)


def finish(run: str, record: Mapping[str, Any], store: Bucket) -> None:
    """Write the run's record, by which readers know that it has ended."""
    store.put(f"{folder(run)}.json", _encode({"run": run, **record}))


def finished(kind: str, store: Bucket) -> Iterator[dict[str, Any]]:
    """The records of the runs of one kind, the newest first."""
    keys = (item.key for item in store.list("runs/") if item.key.count("/") == 1 and item.key.endswith(".json"))
    records = [record for record in map(_decode, map(store.get, keys)) if record["kind"] == kind]
    yield from sorted(records, key=lambda record: record["finished_at"], reverse=True)


def _note_key(run: str, stage: str) -> str:
    return f"{folder(run)}/{stage}.json"


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, default=str).encode()


def _decode(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    return document

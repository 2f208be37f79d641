"""Photographs for a first night: copies of photographs that no model has learned from, in the inbox.

They are those beside a dataset that are in no split of it, such as photographs without a caption. If there are too few,
test photographs follow, although nothing can be learned from their corrections: a test must stay unknown.
"""

import logging
from collections.abc import Iterator
from itertools import islice

import pyarrow.compute as pc

from pipeline.captioner.metadata import list_models
from pipeline.data import corrections
from pipeline.data import dataset as datasets
from pipeline.data.dataset import Dataset
from pipeline.data.images import is_image
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, open_bucket, source_name

log = logging.getLogger(__name__)


def fill(store: Bucket, inbox_uri: str, *, count: int) -> dict[str, str | int]:
    """Copy ``count`` photographs of the newest model's dataset into the inbox, unless they are there already.

    Returns:
        Their prefix in the inbox (``under``), the number of ``photographs``, the number of ``new`` ones, and how many
        are of the ``test`` split.

    Raises:
        PipelineError: there is no model yet.
    """
    models = list_models(store)
    if not models:
        raise PipelineError(f"There is no model in {store.uri} yet: run a retraining first.")
    dataset = datasets.load(models[0].dataset, store)
    photographs = list(islice(_in_no_split(dataset, store), count))
    test = list(islice(_in_test(dataset, store), count - len(photographs)))
    inbox, new = open_bucket(inbox_uri), 0
    for name, source, key in [*photographs, *test]:
        target = f"{dataset.name}/{name}"
        if not inbox.exists(target):
            inbox.put(target, source.get(key))
            new += 1
    total = len(photographs) + len(test)
    log.info("%d photographs under %s, %d of them new", total, inbox.url(dataset.name), new)
    return {"under": f"{dataset.name}/", "photographs": total, "new": new, "test": len(test)}


def _in_no_split(dataset: Dataset, store: Bucket) -> Iterator[tuple[str, Bucket, str]]:
    """Name, bucket and key of the photographs that are beside those of a dataset, but not in it."""
    copies = source_name(corrections.pictures(store), store)
    for source, bucket in datasets.sources(dataset.table, store).items():
        if source == copies:
            continue
        known = set(dataset.table.filter(pc.field("source") == source)["image_key"].to_pylist())
        for item in bucket.list():
            if is_image(item.key) and item.key not in known:
                yield item.key, bucket, item.key


def _in_test(dataset: Dataset, store: Bucket) -> Iterator[tuple[str, Bucket, str]]:
    """The same of the photographs of the test split."""
    sources = datasets.sources(dataset.table, store)
    for row in dataset.split("test").to_pylist():
        yield row["image_id"], sources[row["source"]], row["image_key"]

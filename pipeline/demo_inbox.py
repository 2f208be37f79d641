"""Photographs for a first night: some of a dataset's test split, laid into the inbox as if they had just arrived."""

import logging

from pipeline import dataset as datasets
from pipeline.captioner import list_models
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, open_bucket

log = logging.getLogger(__name__)


def fill(store: Bucket, inbox_uri: str, *, count: int) -> dict[str, str | int]:
    """Copy ``count`` test photographs of the newest model's dataset; those that lie in the inbox are left alone.

    Returns:
        Where they lie in the inbox (``under``), how many there are, and how many of them are ``new``.

    Raises:
        PipelineError: there is no model yet.
    """
    models = list_models(store)
    if not models:
        raise PipelineError(f"There is no model in {store.uri} yet: run a retraining first.")
    dataset = datasets.load(models[0].dataset)
    photographs = dataset.split("test").slice(0, count)
    sources, inbox, new = datasets.sources(photographs), open_bucket(inbox_uri), 0
    for row in photographs.to_pylist():
        target = f"{dataset.name}/{row['image_id']}"
        if not inbox.exists(target):
            inbox.put(target, sources[row["source"]].get(row["image_key"]))
            new += 1
    log.info("%d photographs under %s, %d of them new", len(photographs), inbox.url(dataset.name), new)
    return {"under": f"{dataset.name}/", "photographs": len(photographs), "new": new}

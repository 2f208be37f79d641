"""Photographs for a first night: copies of some test photographs of a dataset, in the inbox."""

import logging

from pipeline.captioner.metadata import list_models
from pipeline.data import dataset as datasets
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, open_bucket

log = logging.getLogger(__name__)


def fill(store: Bucket, inbox_uri: str, *, count: int) -> dict[str, str | int]:
    """Copy ``count`` test photographs of the newest model's dataset into the inbox, unless they are there already.

    Returns:
        Their prefix in the inbox (``under``), the number of ``photographs``, and the number of ``new`` ones.

    Raises:
        PipelineError: there is no model yet.
    """
    models = list_models(store)
    if not models:
        raise PipelineError(f"There is no model in {store.uri} yet: run a retraining first.")
    dataset = datasets.load(models[0].dataset, store)
    photographs = dataset.split("test").slice(0, count)
    sources, inbox, new = datasets.sources(photographs, store), open_bucket(inbox_uri), 0
    for row in photographs.to_pylist():
        target = f"{dataset.name}/{row['image_id']}"
        if not inbox.exists(target):
            inbox.put(target, sources[row["source"]].get(row["image_key"]))
            new += 1
    log.info("%d photographs under %s, %d of them new", len(photographs), inbox.url(dataset.name), new)
    return {"under": f"{dataset.name}/", "photographs": len(photographs), "new": new}

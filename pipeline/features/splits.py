"""A split of a dataset with its features."""

import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import Dataset, listing
from pipeline.features import store as feature_store
from pipeline.features.store import Features
from pipeline.storage import Bucket
from pipeline.work.outcomes import check_failures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFeatures:
    """The images of a split that have features.

    Attributes:
        table: their rows of the dataset.
        features: of N images, in the order of the table.
    """

    table: pa.Table
    features: Features

    @property
    def references(self) -> dict[str, list[str]]:
        """The raw captions by image id."""
        return dict(zip(self.image_ids, self.table["captions"].to_pylist(), strict=True))

    @property
    def image_ids(self) -> list[str]:
        """The ids of the images, in the order of the table."""
        ids: list[str] = self.table["image_id"].to_pylist()
        return ids


def read_split(
    dataset: Dataset, split: str, *, encoder_id: str, store: Bucket, max_failed_fraction: float, regions: bool = False
) -> SplitFeatures:
    """Read a split with its features, the regions among them if these are needed.

    Images whose extraction failed are left out.

    Raises:
        PipelineError: more than ``max_failed_fraction`` of the images failed, or some have no features yet.
    """
    table = dataset.split(split)
    rows = feature_store.look_up(listing(table), encoder_id=encoder_id, store=store)
    ok = pc.equal(rows["status"], "ok")
    failed = rows.filter(pc.invert(ok))
    names = list(zip(failed["image_key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    check_failures(names, len(rows), allowed_fraction=max_failed_fraction)
    if names:
        log.warning("%d of the %d images of %s failed and are left out", len(names), len(rows), split)
    features = feature_store.read_features(rows.filter(ok), encoder_id=encoder_id, store=store, regions=regions)
    return SplitFeatures(table.filter(ok), features)

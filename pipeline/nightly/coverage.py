"""Coverage: how many images of the inbox the champion has captioned, and how many are pending."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline.nightly import captions
from pipeline.nightly.night import list_photographs
from pipeline.storage import Bucket
from pipeline.work.outcomes import IDENTITY, latest_outcome, settled_images


@dataclass(frozen=True)
class Coverage:
    """The state of the inbox.

    Attributes:
        listed: images in the inbox.
        captioned: images that have a caption.
        errors: failed images by error.
        pending: images that the next night will caption.
    """

    listed: int
    captioned: int
    errors: Mapping[str, int]
    pending: int


def coverage(version: str, *, inbox: str, store: Bucket) -> Coverage:
    """Compare the inbox with the captions of a model."""
    images = list_photographs(inbox)
    attempts = captions.read(captions.keys_of_model(version, store), store)
    outcomes = latest_outcome(attempts.join(images, keys=IDENTITY, join_type="inner"), by="captioned_at")
    done = outcomes.join(settled_images(outcomes, retry_failed=False), keys=IDENTITY, join_type="inner")
    errors = Counter(done.filter(pc.field("status") == "failed")["error"].to_pylist())
    return Coverage(len(images), len(done) - errors.total(), dict(errors.most_common()), len(images) - len(done))

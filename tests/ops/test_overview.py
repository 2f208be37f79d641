"""The list of models."""

from pipeline.captioner.registry import find_champion, promote
from pipeline.ops import overview
from pipeline.storage import layout
from tests.support.models import write_model


def test_models_and_their_promotions(trained):
    """A model that was neither evaluated nor promoted is listed all the same."""
    [model] = overview.models(trained.store, None, limit=9, damaged=[])
    assert (model.metadata.version, model.is_champion) == (trained.model.version, False)
    assert (model.metrics, model.promoted, model.rolled_back) == (None, None, None)


def test_the_newest_models(trained, bucket):
    """The champion is among them, however old it is; a damaged model is left out and named."""
    for version in ("v1", "v2", "v3", "v4"):
        write_model(version, bucket)
    promote("v1", bucket)
    bucket.put(layout.model_metadata("v3"), b"{")
    damaged = []
    found = overview.models(bucket, find_champion(bucket), limit=2, damaged=damaged)
    assert [model.metadata.version for model in found] == ["v4", "v1"]
    [message] = damaged
    assert "models/v3/metadata.json is damaged" in message

"""The metadata of models: written last, so that a model without it is none."""

import pytest

from pipeline.captioner.metadata import list_models, load_metadata
from pipeline.errors import PipelineError
from pipeline.storage import layout
from tests.support.models import write_model


def test_a_folder_without_metadata_is_no_model(bucket):
    """A folder that a crash left without its metadata is not listed, and the error says where models are listed."""
    bucket.put("models/v2/model-0.keras", b"half")
    assert list_models(bucket) == []
    with pytest.raises(PipelineError, match=r"no model 'v2'.*`captioning status`"):
        load_metadata("v2", bucket)


def test_models_are_listed_newest_first(bucket):
    """The order is that of their creation; other objects in the folders do not count."""
    for version in ("v1", "v3", "v2"):
        write_model(version, bucket)
    bucket.put("models/champion.json", b"{}")
    bucket.put("models/v1/evaluations/toy-0123456789abcdef-beam5/metrics.json", b"{}")
    assert [model.version for model in list_models(bucket)] == ["v2", "v3", "v1"]


@pytest.mark.parametrize("document", [b"", b"{}", b'{"version": "v1", "unknown": 1}', b"\xff"])
def test_invalid_metadata(bucket, document):
    """The error names the object and says what to do."""
    bucket.put(layout.model_metadata("v1"), document)
    with pytest.raises(PipelineError, match=r"models/v1/metadata\.json is damaged.*train it again"):
        load_metadata("v1", bucket)

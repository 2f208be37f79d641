"""Bundles: a saved captioner is loaded as it was, or not at all."""

import json
from datetime import UTC, datetime

import pytest

from pipeline.captioner.bundle import load, save
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.metadata import EnsembleMember, Epoch, ModelMetadata, list_models
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.storage import artifacts, layout
from tests.support.small_captioner import CONFIG, FEATURES, VOCABULARY

MEMBER = EnsembleMember(
    seed=0,
    best_epoch=1,
    epochs=[Epoch(epoch=1, phase="cross_entropy", loss=2.5, dev_loss=2.75, dev_cider=0.5, seconds=1)],
)


def metadata_of(version, ensemble_size=1):
    """The metadata of an invented training."""
    return ModelMetadata(
        version=version,
        created_at=datetime.now(UTC),
        encoder_id="encoder-1",
        dataset="toy/0123456789abcdef",
        max_length=6,
        config=CONFIG,
        ensemble=[MEMBER] * ensemble_size,
    )


@pytest.fixture
def bundle(bucket, model):
    """A store with a model, and its metadata."""
    return bucket, save(Captioner([model], VOCABULARY, max_length=6), metadata_of("v1"), bucket)


def test_a_loaded_captioner_captions_as_before(bucket, model, other_model):
    """Saved models, loaded by nothing but their version, write the same captions in the same order."""
    captioner = Captioner([model, other_model], VOCABULARY, max_length=6)
    saved = save(captioner, metadata_of("v1", ensemble_size=2), bucket)
    loaded, metadata = load("v1", bucket)
    assert metadata == saved
    beam = DecodingConfig(beam_width=3)
    assert loaded.alternatives(FEATURES, beam) == captioner.alternatives(FEATURES, beam)
    assert [found.version for found in list_models(bucket)] == ["v1"]
    assert set(saved.files) == {"model-0.keras", "model-1.keras", "vocabulary.json"}
    assert len(list(bucket.list("models/v1/"))) == 4


def test_the_metadata_must_describe_all_models(bucket, model):
    """A bundle whose metadata lists another number of models is not written."""
    with pytest.raises(ValueError, match="zip"):
        save(Captioner([model], VOCABULARY, max_length=6), metadata_of("v1", ensemble_size=2), bucket)
    assert list_models(bucket) == []


@pytest.mark.parametrize("name", ["model-0.keras", "vocabulary.json"])
def test_a_file_that_was_not_saved_is_not_loaded(bundle, name, monkeypatch):
    """A changed file, a missing one and one without a checksum are named in the error, before any file is parsed."""
    store, metadata = bundle
    for parser in ("pipeline.storage.keras_files.from_bytes", "pipeline.data.vocabulary.Vocabulary.from_json"):
        monkeypatch.setattr(parser, lambda *_, **__: pytest.fail("parsed"))
    key = artifacts.artifact_key("models/v1", name, metadata.files)
    advice = "promote another model, or delete .*models/v1 and train again"
    store.put(key, store.get(key) + b" ")
    with pytest.raises(PipelineError, match=rf"{key} is not the file that was saved.*{advice}"):
        load("v1", store)
    store.delete(key)
    with pytest.raises(PipelineError, match=rf"{key} is missing.*{advice}"):
        load("v1", store)
    files = {other: found for other, found in metadata.files.items() if other != name}
    changed = metadata.model_copy(update={"files": files})
    store.put(layout.model_metadata("v1"), changed.model_dump_json().encode())
    with pytest.raises(PipelineError, match=rf"models/v1 has no checksum of its {name}.*{advice}"):
        load("v1", store)


def test_a_checksum_must_be_a_sha_256(bundle):
    """Metadata with something else in the place of a checksum is invalid, and the error says what to do."""
    store, metadata = bundle
    document = metadata.model_dump(mode="json") | {"files": {"vocabulary.json": "../../secret"}}
    store.put(layout.model_metadata("v1"), json.dumps(document).encode())
    with pytest.raises(PipelineError, match=r"metadata\.json is damaged, .*: files.*train it again"):
        load("v1", store)


def test_metadata_without_checksums_loads_no_file(bundle):
    """Metadata that lists no files names the file that has no checksum."""
    store, metadata = bundle
    document = metadata.model_dump_json(exclude={"files"}).encode()
    store.put(layout.model_metadata("v1"), document)
    with pytest.raises(PipelineError, match=r"no checksum of its vocabulary\.json.*train again"):
        load("v1", store)


def test_a_bundle_saved_by_two_processes_is_whole(bucket, model, other_model, monkeypatch):
    """Of two that save the same version, a model loads as soon as the first has ended, whatever the other writes."""
    one, other = (Captioner([each], VOCABULARY, max_length=6) for each in (model, other_model))
    first = save(one, metadata_of("v1"), bucket)
    put, found = bucket.put, []

    def put_and_load(key, data, **options):
        put(key, data, **options)
        found.append(load("v1", bucket)[1].files)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "put", put_and_load)
        second = save(other, metadata_of("v1"), bucket)
    assert first.files["model-0.keras"] != second.files["model-0.keras"]
    assert found == [first.files, first.files, second.files]
    # The last write of the first may arrive late.
    put(layout.model_metadata("v1"), first.model_dump_json().encode())
    assert load("v1", bucket)[1] == first

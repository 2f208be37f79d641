"""Bundles: a saved captioner is loaded as it was, or not at all."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.captioner.bundle import load, save
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.confidence import Confidence
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.metadata import EnsembleMember, Epoch, ModelMetadata, list_models
from pipeline.config import GREEDY, DecodingConfig
from pipeline.errors import PipelineError
from pipeline.features import accelerator
from pipeline.storage import artifacts, layout
from tests.support.small_captioner import CONFIG, FEATURES, NEIGHBOURS, VOCABULARY

NETWORKS = ("image.xml", "image.bin", "step.xml", "step.bin")
"""The files of a model's networks, without its number."""

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
    return bucket, save([model], VOCABULARY, NEIGHBOURS, metadata_of("v1"), bucket)


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """The kind of machine that this seems to be."""
    monkeypatch.setattr(accelerator, "present", lambda: request.param == "gpu")
    return request.param


def test_a_loaded_captioner_captions_as_before(bucket, model, other_model, device):
    """Saved models, loaded by nothing but their version, write the same captions in the same order."""
    saved = save([model, other_model], VOCABULARY, NEIGHBOURS, metadata_of("v1", ensemble_size=2), bucket)
    loaded, metadata = load("v1", bucket)
    assert metadata == saved
    beam = DecodingConfig(beam_width=3)
    before = Captioner(KerasDecoder([model, other_model]), VOCABULARY, NEIGHBOURS, max_length=6).alternatives(
        FEATURES, beam
    )
    after = loaded.alternatives(FEATURES, beam)
    assert [[caption.text for caption in found] for found in after] == [[c.text for c in found] for found in before]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_allclose([c.log_prob for c in ours], [c.log_prob for c in theirs], atol=1e-4)
    assert [found.version for found in list_models(bucket)] == ["v1"]
    names = ["vocabulary.json", "neighbours.npz"]
    for number in (0, 1):
        names += [name.replace(".", f"-{number}.") for name in ("model.keras", *NETWORKS)]
    assert sorted(saved.files) == sorted(names)
    assert len(list(bucket.list("models/v1/"))) == len(names) + 1


def test_each_machine_reads_only_its_own_form(bundle, device):
    """On a CPU the Keras model may be missing, on a GPU the networks may be."""
    store, metadata = bundle
    for name in ["model-0.keras"] if device == "cpu" else [name.replace(".", "-0.") for name in NETWORKS]:
        store.delete(artifacts.artifact_key("models/v1", name, metadata.files))
    captioner, _ = load("v1", store)
    assert len(captioner.caption(FEATURES, DecodingConfig(beam_width=2))) == 3


def test_a_bundle_with_a_confidence(bucket, model, device):
    """It is fitted to the networks that are saved, and loaded on every machine; a damaged one is an error."""
    fitted = []

    def fit(captioner):
        fitted.extend(captioner.caption(FEATURES, GREEDY))
        return Confidence.fit([captioner.evidence(FEATURES, fitted)], [np.array([True, False, True])])

    metadata = save([model], VOCABULARY, NEIGHBOURS, metadata_of("v1"), bucket, fit=fit)
    captioner, _ = load("v1", bucket)
    found = captioner.alternatives(FEATURES, DecodingConfig(beam_width=2))
    assert len(fitted) == 3
    assert all(0 < best.confidence < 1 and best.novel is not None for best, _ in found)
    assert all(other.confidence is None for _, other in found)
    checksums = artifacts.put("models/v1", {"confidence.json": b"{}"}, bucket)
    changed = metadata.model_copy(update={"files": metadata.files | checksums})
    bucket.put(layout.model_metadata("v1"), changed.model_dump_json().encode())
    with pytest.raises(PipelineError, match=r"confidence-\w+\.json is damaged.* train again"):
        load("v1", bucket)


@pytest.mark.parametrize("structure", [b"<?xml", b"ONNX"])
def test_a_network_that_cannot_be_read(bundle, structure):
    """The error says what to do."""
    store, metadata = bundle
    checksums = artifacts.put("models/v1", {"step-0.xml": structure}, store)
    changed = metadata.model_copy(update={"files": metadata.files | checksums})
    store.put(layout.model_metadata("v1"), changed.model_dump_json().encode())
    with pytest.raises(PipelineError, match=r"(?s)A stored network .*delete .*models/v1 and train again"):
        load("v1", store)


def test_a_model_without_networks(bundle):
    """One that was trained before there were any is to be trained again."""
    store, metadata = bundle
    files = {name: found for name, found in metadata.files.items() if not name.endswith((".xml", ".bin"))}
    store.put(layout.model_metadata("v1"), metadata.model_copy(update={"files": files}).model_dump_json().encode())
    with pytest.raises(PipelineError, match=r"models/v1 has no checksum of its image-0\.xml.*train again"):
        load("v1", store)


def test_the_metadata_must_describe_all_models(bucket, model):
    """A bundle whose metadata lists another number of models is not written."""
    with pytest.raises(ValueError, match="zip"):
        save([model], VOCABULARY, NEIGHBOURS, metadata_of("v1", ensemble_size=2), bucket)
    assert list_models(bucket) == []


@pytest.mark.parametrize(
    ("device", "name"),
    [("gpu", "model-0.keras"), ("cpu", "vocabulary.json"), ("cpu", "image-0.xml"), ("cpu", "step-0.bin")],
    indirect=["device"],
)
def test_a_file_that_was_not_saved_is_not_loaded(bundle, device, name, monkeypatch):
    """A changed file, a missing one and one without a checksum are named in the error, before any file is parsed."""
    store, metadata = bundle
    parsers = ("storage.keras_files.from_bytes", "features.openvino.read", "data.vocabulary.Vocabulary.from_json")
    for parser in parsers:
        monkeypatch.setattr(f"pipeline.{parser}", lambda *_, **__: pytest.fail("parsed"))
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
    first = save([model], VOCABULARY, NEIGHBOURS, metadata_of("v1"), bucket)
    put, found = bucket.put, []

    def put_and_load(key, data, **options):
        put(key, data, **options)
        found.append(load("v1", bucket)[1].files)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "put", put_and_load)
        second = save([other_model], VOCABULARY, NEIGHBOURS, metadata_of("v1"), bucket)
    assert first.files["model-0.keras"] != second.files["model-0.keras"]
    assert found == [first.files] * len(second.files) + [second.files]
    # The last write of the first may arrive late.
    put(layout.model_metadata("v1"), first.model_dump_json().encode())
    assert load("v1", bucket)[1] == first

"""The bundle of a captioner in the store: its models, vocabulary, index of training photographs, and metadata.

Each model of the ensemble is stored in two forms: a Keras model, for GPUs, and OpenVINO networks, for CPUs.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pipeline.captioner.captioner import Captioner, Decoder
from pipeline.captioner.confidence import Confidence
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.captioner.metadata import ModelMetadata, load_metadata
from pipeline.captioner.neighbours import Neighbours
from pipeline.data.vocabulary import Vocabulary
from pipeline.features import accelerator
from pipeline.storage import Bucket, artifacts, json, keras_files, layout, signatures

if TYPE_CHECKING:
    import keras

    from pipeline.captioner.networks import ModelNetworks

log = logging.getLogger(__name__)

VOCABULARY = "vocabulary.json"
"""The file of a bundle that holds the vocabulary."""

NEIGHBOURS = "neighbours.npz"
"""The file of a bundle that holds the training photographs."""

CONFIDENCE = "confidence.json"
"""The file of a bundle from which the confidence of its captions is computed."""


def save(
    models: Sequence["keras.Model"],
    vocabulary: Vocabulary,
    neighbours: Neighbours,
    metadata: ModelMetadata,
    store: Bucket,
    *,
    fit: Callable[[Captioner], Confidence | None] = lambda _: None,
) -> ModelMetadata:
    """Write the files of a model, then its metadata with their checksums, which it returns.

    Args:
        models: the Keras models of the ensemble.
        vocabulary: the words of the captioner.
        neighbours: its training photographs.
        metadata: without checksums.
        store: where the model goes.
        fit: finds the confidence of the captioner, whose networks caption as they will in a night; None if it has none.

    Raises:
        PipelineError: a model can't be converted to OpenVINO, or the model can't be signed.
    """
    from pipeline.captioner.networks import NetworkDecoder, export

    networks = []
    files = {VOCABULARY: vocabulary.to_json().encode(), NEIGHBOURS: neighbours.to_bytes()}
    for number, model in zip(range(len(metadata.ensemble)), models, strict=True):
        files[model_name(number)] = keras_files.to_bytes(model)
        networks.append(export(model))
        image, step = networks[-1]
        files |= dict(zip(network_names(number), (*image, *step), strict=True))
    decoder = NetworkDecoder(networks, advice=_advice(metadata.version, store))
    confidence = fit(
        Captioner(decoder, vocabulary, neighbours, max_length=metadata.max_length, language=metadata.language)
    )
    if confidence is not None:
        files[CONFIDENCE] = confidence.model_dump_json(indent=1).encode()
    checksums = artifacts.put(layout.model_folder(metadata.version), files, store)
    metadata = metadata.model_copy(update={"files": checksums})
    signatures.put(layout.model_metadata(metadata.version), json.dump(metadata), store)
    return metadata


def load(version: str, store: Bucket) -> tuple[Captioner, ModelMetadata]:
    """Load a model, ready to caption, and its metadata: in Keras if there is an accelerator, else as networks.

    Raises:
        PipelineError: there is no such model, or a file is missing or not the one that was saved; then none is parsed.
    """
    metadata = load_metadata(version, store)
    words, photographs = _get([VOCABULARY, NEIGHBOURS], metadata, store)
    decoder: Decoder
    if accelerator.present():
        decoder = KerasDecoder(load_models(metadata, store))
    else:
        from pipeline.captioner.networks import NetworkDecoder

        decoder = NetworkDecoder(_load_networks(metadata, store), advice=_advice(version, store))
    vocabulary = _parse_vocabulary(words, metadata, store)
    confidence = None
    if CONFIDENCE in metadata.files:
        [data] = _get([CONFIDENCE], metadata, store)
        origin = _origin(CONFIDENCE, metadata, store)
        confidence = json.parse(Confidence, data, origin, advice=_advice(version, store))
    log.info("model %s, %d words, encoder %s", version, len(vocabulary), metadata.encoder_id)
    captioner = Captioner(
        decoder,
        vocabulary,
        Neighbours.from_bytes(photographs),
        max_length=metadata.max_length,
        language=metadata.language,
        confidence=confidence,
    )
    return captioner, metadata


def load_vocabulary(metadata: ModelMetadata, store: Bucket) -> Vocabulary:
    """The vocabulary of a model. Raises ``PipelineError`` if its file is missing or not the one that was saved."""
    [words] = _get([VOCABULARY], metadata, store)
    return _parse_vocabulary(words, metadata, store)


def load_models(metadata: ModelMetadata, store: Bucket) -> list["keras.Model"]:
    """The Keras models of the ensemble.

    Raises:
        PipelineError: a file is missing or not the one that was saved; then none is parsed.
    """
    names = [model_name(number) for number in range(len(metadata.ensemble))]
    return [
        keras_files.from_bytes(data, origin=_origin(name, metadata, store))
        for name, data in zip(names, _get(names, metadata, store), strict=True)
    ]


def _load_networks(metadata: ModelMetadata, store: Bucket) -> list["ModelNetworks"]:
    from pipeline.captioner.networks import ModelNetworks
    from pipeline.features.openvino import Network

    names = [name for number in range(len(metadata.ensemble)) for name in network_names(number)]
    files = iter(_get(names, metadata, store))
    networks = (Network(structure, weights) for structure, weights in zip(files, files, strict=True))
    return [ModelNetworks(image, step) for image, step in zip(networks, networks, strict=True)]


def check(metadata: ModelMetadata, store: Bucket) -> None:
    """Check all files of a model. Raises ``PipelineError`` if one is missing, or is not the one that was saved."""
    _get(metadata.files, metadata, store)


def copy_files(metadata: ModelMetadata, source: Bucket, target: Bucket) -> int:
    """Copy the files of a model to another store, where its metadata are still to be written; return their number.

    Raises:
        PipelineError: a file of the source is missing, or is not the one that was saved.
    """
    advice = _advice(metadata.version, source)
    return artifacts.copy_files(layout.model_folder(metadata.version), metadata.files, source, target, advice=advice)


def model_name(number: int) -> str:
    """The file of a bundle that holds a Keras model of the ensemble, counted from 0."""
    return f"model-{number}.keras"


def network_names(number: int) -> tuple[str, str, str, str]:
    """The files of a bundle that hold the networks of this model: structure and weights of its image and its step."""
    return f"image-{number}.xml", f"image-{number}.bin", f"step-{number}.xml", f"step-{number}.bin"


def _parse_vocabulary(words: bytes, metadata: ModelMetadata, store: Bucket) -> Vocabulary:
    return Vocabulary.from_json(words, origin=_origin(VOCABULARY, metadata, store))


def _get(names: Iterable[str], metadata: ModelMetadata, store: Bucket) -> list[bytes]:
    folder = layout.model_folder(metadata.version)
    return artifacts.get(folder, names, metadata.files, store, advice=_advice(metadata.version, store))


def _origin(name: str, metadata: ModelMetadata, store: Bucket) -> str:
    return store.url(artifacts.artifact_key(layout.model_folder(metadata.version), name, metadata.files))


def _advice(version: str, store: Bucket) -> str:
    folder = store.url(layout.model_folder(version))
    return f"Restore the file from a backup, promote another model, or delete {folder} and train again."

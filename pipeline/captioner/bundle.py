"""The bundle of a captioner in the store: saving and loading of its models, vocabulary and metadata."""

import logging

from pipeline.captioner.captioner import Captioner
from pipeline.captioner.metadata import ModelMetadata, load_metadata
from pipeline.data.vocabulary import Vocabulary
from pipeline.storage import Bucket, artifacts, json, keras_files, layout

log = logging.getLogger(__name__)

VOCABULARY = "vocabulary.json"
"""The file of a bundle that holds the vocabulary."""


def save(captioner: Captioner, metadata: ModelMetadata, store: Bucket) -> ModelMetadata:
    """Write the files of a model, then its metadata with their checksums, which it returns."""
    files = {
        model_name(number): keras_files.to_bytes(model)
        for number, model in zip(range(len(metadata.ensemble)), captioner.models, strict=True)
    }
    files[VOCABULARY] = captioner.vocabulary.to_json().encode()
    checksums = artifacts.put(layout.model_folder(metadata.version), files, store)
    metadata = metadata.model_copy(update={"files": checksums})
    json.write(metadata, layout.model_metadata(metadata.version), store)
    return metadata


def load(version: str, store: Bucket) -> tuple[Captioner, ModelMetadata]:
    """Load a model, ready to caption, and its metadata.

    Raises:
        PipelineError: there is no such model, or a file is missing or not the one that was saved; then none is parsed.
    """
    metadata = load_metadata(version, store)
    folder = layout.model_folder(version)
    names = [VOCABULARY, *(model_name(number) for number in range(len(metadata.ensemble)))]
    words, *files = artifacts.get(folder, names, metadata.files, store, advice=_advice(version, store))
    origins = [store.url(artifacts.artifact_key(folder, name, metadata.files)) for name in names]
    vocabulary = Vocabulary.from_json(words, origin=origins[0])
    models = [keras_files.from_bytes(data, origin=origin) for data, origin in zip(files, origins[1:], strict=True)]
    log.info("model %s, %d words, encoder %s", version, len(vocabulary), metadata.encoder_id)
    return Captioner(models, vocabulary, max_length=metadata.max_length, language=metadata.language), metadata


def copy_files(metadata: ModelMetadata, source: Bucket, target: Bucket) -> int:
    """Copy the files of a model to another store, where its metadata are still to be written; return their number.

    Raises:
        PipelineError: a file of the source is missing, or is not the one that was saved.
    """
    advice = _advice(metadata.version, source)
    return artifacts.copy_files(layout.model_folder(metadata.version), metadata.files, source, target, advice=advice)


def model_name(number: int) -> str:
    """The file of a bundle that holds one of the models of the ensemble, counted from 0."""
    return f"model-{number}.keras"


def _advice(version: str, store: Bucket) -> str:
    folder = store.url(layout.model_folder(version))
    return f"Restore the file from a backup, promote another model, or delete {folder} and train again."

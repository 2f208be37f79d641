"""The image encoder: a Keras model that maps RGB pictures to pooled feature vectors, and its identity.

An encoder is stored once, so that every later run, on any machine, extracts features with the same weights
that the captioner was trained on. Its id contains a hash of those weights, so features of different weights can't be
mixed. It is stored in two forms: a Keras model, for GPUs, and an OpenVINO network, for CPUs. The checksums of these
files are written last, which registers the encoder.
"""

import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.features import accelerator, applications
from pipeline.features.crops import multi_crop
from pipeline.features.folding import fold_batch_norms
from pipeline.features.store import Features
from pipeline.storage import (
    Bucket,
    ObjectNotFoundError,
    artifacts,
    json,
    keras_files,
    layout,
    names,
    open_object,
    signatures,
)
from pipeline.storage.artifacts import Checksums

if TYPE_CHECKING:
    import keras

    from pipeline.features.openvino import Network

log = logging.getLogger(__name__)

DEFAULT_SIZE = 224
"""Height and width in pixels of the pictures for a model whose input size is not fixed."""

CPU_BATCH = 8
"""Pictures per batch on a CPU: larger batches are no faster, and leave cores idle at the end of a shard."""

MODEL = "model.keras"
"""The file for GPUs; encoders in 8-bit integers, which are only for CPUs, have none."""

NETWORK = ("network.xml", "network.bin")
"""The files for CPUs: structure and weights."""

LAST_STAGE = "last-stage.keras"
"""The file of the part of the model that reads the regions, if they are what its last stage reads."""

GRID = "grid.json"
"""The file that says where the regions are: the rows and columns of the map whose places they are."""

_CROPS = "-crops"
"""Ends the name of a multi-crop encoder."""

ADVICE = "Register the encoder again from its source, for example with `captioning register-encoder resnet50`."


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        encoder_id: its name and the hash of its weights.
        size: (height, width) of its pictures.
        shape: of a picture's vector: (D,), or (C, D) for a multi-crop encoder.
        regions: (R, K), the shape of a picture's regions; None if it has none.
        batch_size: the best number of pictures per batch.
        threads: the best number of threads to call it from.
        run: encodes a batch: the vectors and, if it has them, the regions.
    """

    encoder_id: str
    size: tuple[int, int]
    shape: tuple[int, ...]
    regions: tuple[int, int] | None
    batch_size: int
    threads: int
    run: Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[np.floating]]]

    def encode(self, pictures: npt.NDArray[np.uint8]) -> Features:
        """Features of a batch of (N, height, width, 3) RGB 0..255, float32."""
        return Features(*(np.asarray(output, np.float32) for output in self.run(pictures)))


def register(spec: str, store: Bucket, *, crops: bool = False) -> str:
    """Build the encoder that ``spec`` names, put it in the store unless it is there, and return its id.

    Args:
        spec: the name of a network of keras.applications, with the ImageNet weights that Keras downloads;
            ``NAME:FILE``, with the weights in a ``.h5`` file, without its top; ``random`` (an untrained ResNet50, to
            try the pipeline without a download); a ``.keras`` model; or the id of a registered encoder. Files are
            named by path or URI.
        store: the store.
        crops: encode six crops of each picture instead of one, which takes six times as long.

    Raises:
        PipelineError: there is no such encoder, its weights can't be downloaded, the model does not map (N, H, W, 3) to
            (N, D), or it is to encode crops and does so already, has regions, or is quantized.
    """
    registered = names.ENCODER_ID.pattern.fullmatch(spec)
    if registered and store.exists(layout.encoder_files(spec)):
        check(spec, store)
        if not crops or registered["name"].endswith(_CROPS):
            return spec
        if registered["int8"]:
            exact = registered["exact"]
            raise PipelineError(f"{spec} is quantized and can't encode crops: use --crops with {exact}, then quantize.")
        if registered["regions"]:
            raise PipelineError(f"{spec} has regions, which are an alternative to crops: leave out --crops.")
        model, name = load_model(spec, store), registered["name"]
    else:
        model, name = _build(spec)
    size, shape, regions = dimensions(model, name)
    if regions:
        raise PipelineError(f"{name} has two outputs: save it with its vector (N, D) alone, and use --regions.")
    if crops:
        if len(shape) > 1:
            raise PipelineError(f"{spec} encodes {shape[0]} crops of a picture already: leave out --crops.")
        model, name = multi_crop(model, size), f"{name}{_CROPS}"
    return save_model(model, name, store)


def save_model(
    model: "keras.Model",
    name: str,
    store: Bucket,
    *,
    grid: tuple[int, int] | None = None,
    last_stage: "keras.Model | None" = None,
) -> str:
    """Register an encoder under this name and the hash of its weights, unless it is there, and return its id.

    If its regions are the places of a map, the ``grid`` of this map is stored beside it; and if they are what its last
    stage reads, this stage.
    """
    encoder_id = f"{name}-{_weights_hash(model)}"
    if not exists(encoder_id, store):
        from pipeline.features import openvino

        files = dict(zip(NETWORK, openvino.convert(model), strict=True)) | {MODEL: keras_files.to_bytes(model)}
        _save(encoder_id, files, grid, last_stage, store)
    size, *shapes = dimensions(model, name)
    pixels, *features = ("×".join(map(str, numbers)) for numbers in (size, *filter(None, shapes)))
    log.info("encoder %s: %s pixels to %s features", encoder_id, pixels, " and ".join(features))
    return encoder_id


def load(encoder_id: str, store: Bucket) -> Encoder:
    """Load a registered encoder, for the GPU if there is one.

    Raises:
        ObjectNotFoundError: it is not registered.
        PipelineError: one of its files is missing, or is not the one that was saved.
    """
    # An encoder in 8-bit integers is only for CPUs.
    if accelerator.present() and MODEL in _checksums(encoder_id, store):
        return on_gpu(load_model(encoder_id, store), encoder_id)
    return on_cpu(load_network(encoder_id, store), encoder_id)


def on_cpu(network: "Network", encoder_id: str) -> Encoder:
    """An encoder that runs on the CPU with OpenVINO."""
    from pipeline.features import openvino

    compiled = openvino.EncoderNetwork(network)
    height, width = compiled.size
    size = height or DEFAULT_SIZE, width or DEFAULT_SIZE
    shape, *regions = compiled.shapes
    return Encoder(
        encoder_id,
        size,
        shape,
        regions=(regions[0][0], regions[0][1]) if regions else None,
        batch_size=CPU_BATCH,
        threads=compiled.threads,
        run=compiled,
    )


def on_gpu(model: "keras.Model", encoder_id: str) -> Encoder:
    """An encoder that runs on the GPU with the backend of Keras. Raises ``PipelineError`` if it can't be used."""
    size, shape, regions = dimensions(model, encoder_id)
    model = fold_batch_norms(model)
    accelerator.prepare(model)
    run = accelerator.compiled(model)
    batch_size = accelerator.largest_batch(run, size)
    log.info("encoding %d pictures per batch on the GPU", batch_size)
    return Encoder(
        encoder_id,
        size,
        shape,
        regions=regions,
        batch_size=batch_size,
        threads=accelerator.IN_FLIGHT,
        run=accelerator.in_full_batches(run, batch_size),
    )


def exists(encoder_id: str, store: Bucket) -> bool:
    """Whether the encoder is registered, and all its files are those that were saved."""
    try:
        check(encoder_id, store)
    except ObjectNotFoundError:
        return False
    except PipelineError as error:
        log.warning("encoder %s is incomplete: %s", encoder_id, error)
        return False
    return True


def has_regions(encoder_id: str) -> bool:
    """Whether an encoder yields regions, which its id says."""
    parts = names.ENCODER_ID.pattern.fullmatch(encoder_id)
    return parts is not None and parts["regions"] is not None


def check(encoder_id: str, store: Bucket) -> None:
    """Check all files of a registered encoder.

    Raises:
        ObjectNotFoundError: it is not registered.
        PipelineError: one of its files is missing, or is not the one that was saved.
    """
    checksums = _checksums(encoder_id, store)
    _get(encoder_id, checksums, checksums, store)


def load_model(encoder_id: str, store: Bucket) -> "keras.Model":
    """The Keras model of an encoder. Raises ``PipelineError`` if it is missing, or is not the one that was saved."""
    return _load_keras(encoder_id, MODEL, _checksums(encoder_id, store), store)


def has_last_stage(encoder_id: str, store: Bucket) -> bool:
    """Whether the regions of a registered encoder are what its last stage reads."""
    return LAST_STAGE in _checksums(encoder_id, store)


def load_last_stage(encoder_id: str, store: Bucket) -> "keras.Model | None":
    """The last stage of an encoder: from its regions as a map, (N, H, W, C), to the map that it pools, (N, H, W, D).

    Returns:
        None if the regions of the encoder are not what its last stage reads.

    Raises:
        PipelineError: the file is missing, or is not the one that was saved.
    """
    checksums = _checksums(encoder_id, store)
    return _load_keras(encoder_id, LAST_STAGE, checksums, store) if LAST_STAGE in checksums else None


def load_grid(encoder_id: str, store: Bucket) -> tuple[int, int] | None:
    """The rows and columns of the map whose places are the regions of a picture, row by row from its top left.

    Returns:
        None if the regions of the encoder are no places of a map.

    Raises:
        PipelineError: the encoder, or the file, is missing or damaged.
    """
    checksums = _checksums(encoder_id, store)
    if GRID not in checksums:
        return None
    [data] = _get(encoder_id, [GRID], checksums, store)
    return json.parse(tuple[int, int], data, f"{GRID} of {encoder_id}", advice=ADVICE)


def load_network(encoder_id: str, store: Bucket) -> "Network":
    """The network of an encoder. Raises ``PipelineError`` if it is missing, or is not the one that was saved."""
    from pipeline.features.openvino import Network

    return Network(*_get(encoder_id, NETWORK, _checksums(encoder_id, store), store))


def save_network(
    encoder_id: str,
    network: "Network",
    store: Bucket,
    *,
    grid: tuple[int, int] | None = None,
    last_stage: "keras.Model | None" = None,
) -> None:
    """Register an encoder that is only for CPUs; the rest as for ``save_model``."""
    _save(encoder_id, dict(zip(NETWORK, network, strict=True)), grid, last_stage, store)


def copy_encoder(encoder_id: str, source: Bucket, target: Bucket) -> int:
    """Register an encoder in another store, unless it is there, and return the number of objects written.

    Raises:
        PipelineError: it is not registered in the source, or one of its files is missing or damaged there; or the
            target has another one of the same id, which only encoders in 8-bit integers can have.
    """
    checksums = _checksums(encoder_id, source)
    known = json.find(Checksums, layout.encoder_files(encoder_id), target)
    # The id of an exact encoder is a hash of its weights, but not that of the pictures on which one was calibrated.
    if known and MODEL not in checksums and any(known.get(name) != checksums.get(name) for name in NETWORK):
        raise PipelineError(
            f"{target.uri} has another encoder {encoder_id} than {source.uri}: they were calibrated on different "
            "pictures, so a model of the one can't read the features of the other. Train the model with an encoder "
            "that is not quantized, or import it into a new store."
        )
    if exists(encoder_id, target):
        return 0
    copied = artifacts.copy_files(layout.encoder_folder(encoder_id), checksums, source, target, advice=ADVICE)
    key = layout.encoder_files(encoder_id)
    data = source.get(key)
    copied += signatures.copy_signature(key, data, source, target)
    target.put(key, data)
    return copied + 1


def _save(
    encoder_id: str,
    files: dict[str, bytes],
    grid: tuple[int, int] | None,
    last_stage: "keras.Model | None",
    store: Bucket,
) -> None:
    if grid is not None:
        files[GRID] = str(list(grid)).encode()
    if last_stage is not None:
        files[LAST_STAGE] = keras_files.to_bytes(last_stage)
    checksums = artifacts.put(layout.encoder_folder(encoder_id), files, store)
    signatures.put(layout.encoder_files(encoder_id), json.dump(checksums), store)


def _load_keras(encoder_id: str, name: str, checksums: Checksums, store: Bucket) -> "keras.Model":
    [data] = _get(encoder_id, [name], checksums, store)
    key = artifacts.artifact_key(layout.encoder_folder(encoder_id), name, checksums)
    return keras_files.from_bytes(data, origin=store.url(key))


def _get(encoder_id: str, names: Iterable[str], checksums: Checksums, store: Bucket) -> list[bytes]:
    return artifacts.get(layout.encoder_folder(encoder_id), names, checksums, store, advice=ADVICE)


def _checksums(encoder_id: str, store: Bucket) -> Checksums:
    key = layout.encoder_files(encoder_id)
    return json.parse(Checksums, signatures.get(key, store), store.url(key), advice=ADVICE)


def _build(spec: str) -> tuple["keras.Model", str]:
    if spec == "random":
        return applications.build("resnet50", None), "resnet50-random"
    if Path(spec).suffix == ".keras":
        data, name = _file(spec)
        return keras_files.from_bytes(data, origin=spec), name
    network, colon, path = spec.partition(":")
    known = applications.networks()
    if network not in known or (colon and Path(path).suffix != ".h5"):
        similar = difflib.get_close_matches(network.lower(), known)
        raise PipelineError(
            "No such encoder: expected the name of a network of keras.applications (docs/encoders.md lists them), "
            "NAME:FILE.h5 with weights for it, random, a .keras file, or the id of a registered encoder. "
            f"Received: {spec!r}" + (f"; similar names are {', '.join(similar)}" if similar else "")
        )
    if not colon:
        return applications.build(network, "imagenet"), f"{network}-imagenet"
    data, name = _file(path)
    # Keras distinguishes its two formats of weights, the old one of its downloads and the new one, by the file name.
    with keras_files.as_file(data, ".weights.h5" if path.endswith(".weights.h5") else ".h5") as weights:
        return applications.build(network, weights), f"{network}-{name.removeprefix(f'{network}-')}"


def _file(path: str) -> tuple[bytes, str]:
    """The content of a file, and its name without its suffix, in the characters of an id."""
    bucket, key = open_object(path)
    try:
        data = bucket.get(key)
    except ObjectNotFoundError:
        raise PipelineError(f"There is no file {path}: check the path or the URI.") from None
    return data, re.sub(r"[^a-z0-9]+", "-", Path(key).stem.lower()).strip("-")[:100] or "model"


def dimensions(model: "keras.Model", name: str) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, int] | None]:
    """The size of the model's pictures, the shape of their vectors, and that of their regions if it has them.

    Raises:
        PipelineError: it is no encoder.
    """
    inputs, outputs = model.inputs, model.outputs
    shape, *regions = (tuple(output.shape[1:]) for output in outputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] != 3 or len(regions) > 1:
        shapes = f"{[tuple(i.shape) for i in inputs]} to {[tuple(o.shape) for o in outputs]}"
        raise PipelineError(f"An encoder maps (N, H, W, 3) to (N, D); {name} maps {shapes}.")
    if len(shape) not in (1, 2) or None in shape:
        raise PipelineError(
            f"The output of an encoder is (N, D), or (N, C, D) for C crops; that of {name} is "
            f"{tuple(outputs[0].shape)}: end the model in GlobalAveragePooling2D."
        )
    _, height, width, _ = inputs[0].shape
    return (height or DEFAULT_SIZE, width or DEFAULT_SIZE), shape, regions[0] if regions else None


def _weights_hash(model: "keras.Model") -> str:
    import keras

    digest = hashlib.sha256()
    for variable in model.variables:
        array = keras.ops.convert_to_numpy(variable)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]

"""The image encoder: a Keras model that maps RGB pictures to pooled feature vectors, and its identity.

An encoder is stored once under ``encoders/``, so that every later run, on any machine, extracts with the very weights
that the captioner was trained on. Its id holds a hash of those weights: features of different weights can't be mixed.
It is stored in two forms: ``model.keras``, for GPUs, and ``network.xml`` with ``network.bin``, for CPUs. With
``files.json``, which is written last and holds their checksums, it is an encoder.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from pipeline import checksums, gpu, keras_files
from pipeline.checksums import Checksums
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError, open_object
from pipeline.views import several

if TYPE_CHECKING:
    import keras

    from pipeline.networks import Network

log = logging.getLogger(__name__)

DEFAULT_SIZE = 224
"""Height and width in pixels of a ResNet50's pictures, and of those of a model that leaves its input size open."""

RANDOM_SEED = 0
"""Of the weights of the encoder ``random``, which serves to try the pipeline without a download."""

CPU_BATCH = 8
"""Pictures in one pass on a CPU: more are no faster, and let cores wait for each other at the end of a shard."""

MODEL = "model.keras"
"""The file of the form for GPUs; encoders in 8-bit integers, which are for CPUs alone, have none."""

NETWORK = ("network.xml", "network.bin")
"""The files of the form for CPUs: its structure and its weights."""

ADVICE = "Publish the encoder again: `python -m pipeline encoder`, or a retraining, writes anew what is not whole."

_SUMS = TypeAdapter(Checksums)


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        encoder_id: its name and the hash of its weights.
        size: (height, width) of its pictures.
        shape: of a picture's features: (D,), or (V, D) where it encodes several views.
        batch_size: pictures that are best encoded at once.
        threads: from how many threads it is best called.
        run: encodes a batch.
    """

    encoder_id: str
    size: tuple[int, int]
    shape: tuple[int, ...]
    batch_size: int
    threads: int
    run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.floating]]

    def encode(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of a batch: (N, height, width, 3) RGB 0..255 to (N, D) or (N, V, D) float32."""
        return np.asarray(self.run(pictures), np.float32)


def publish(spec: str, store: Bucket, *, views: bool = False) -> str:
    """Build the encoder that ``spec`` names, put it in the store unless it is there, and return its id.

    Args:
        spec: ``imagenet`` (ResNet50 with the weights that Keras downloads), ``random`` (ResNet50, seeded, untrained),
            a ``.h5`` file of ResNet50 weights without its top, or a ``.keras`` model; files by path or URI.
        store: where encoders lie.
        views: encode six views of each picture in place of one; that takes six times as long.

    Raises:
        PipelineError: the spec names no such thing, the model does not map (N, H, W, 3) to (N, D), or views are wanted
            of a model that has some already.
    """
    model, name = _build(spec)
    size, shape = _dimensions(model, name)
    if views:
        if len(shape) > 1:
            raise PipelineError(f"{spec} encodes {shape[0]} views of a picture already: leave out --views.")
        model, name = several(model, size), f"{name}-views"
        size, shape = _dimensions(model, name)
    encoder_id = f"{name}-{_weights_hash(model)}"
    if not exists(encoder_id, store):
        from pipeline import networks

        files = dict(zip(NETWORK, networks.convert(model), strict=True)) | {MODEL: keras_files.to_bytes(model)}
        _save(encoder_id, files, store)
    pixels, features = ("×".join(map(str, numbers)) for numbers in (size, shape))
    log.info("encoder %s: %s pixels to %s features", encoder_id, pixels, features)
    return encoder_id


def load(encoder_id: str, store: Bucket) -> Encoder:
    """The encoder of this id, for the GPU where there is one.

    Raises:
        ObjectNotFoundError: it isn't stored.
        PipelineError: one of its files isn't the one that was saved.
    """
    # In 8-bit integers it is for CPUs alone.
    if gpu.present() and MODEL in _sums(encoder_id, store):
        return on_gpu(load_model(encoder_id, store), encoder_id)
    return on_cpu(load_network(encoder_id, store), encoder_id)


def on_cpu(network: "Network", encoder_id: str) -> Encoder:
    """The encoder that a network is, computed by OpenVINO."""
    from pipeline import networks

    compiled = networks.Compiled(network)
    height, width = compiled.size
    size = height or DEFAULT_SIZE, width or DEFAULT_SIZE
    return Encoder(encoder_id, size, compiled.shape, CPU_BATCH, compiled.threads, compiled)


def on_gpu(model: "keras.Model", encoder_id: str) -> Encoder:
    """The encoder that a Keras model is, computed by Keras's backend."""
    size, shape = _dimensions(model, encoder_id)
    gpu.prepare(model)
    batch_size = gpu.largest_batch(model.predict_on_batch, size)
    log.info("encoding %d pictures at once on the GPU", batch_size)
    return Encoder(encoder_id, size, shape, batch_size, 1, gpu.in_full_batches(model.predict_on_batch, batch_size))


def exists(encoder_id: str, store: Bucket) -> bool:
    """Whether the encoder is in the store, and each of its files is the one that was saved."""
    try:
        sums = _sums(encoder_id, store)
        _get(encoder_id, sums, sums, store)
    except ObjectNotFoundError:
        return False
    except PipelineError as error:
        log.warning("encoder %s is not whole: %s", encoder_id, error)
        return False
    return True


def load_model(encoder_id: str, store: Bucket) -> "keras.Model":
    """The encoder's form for GPUs. Raises ``PipelineError`` where it isn't stored, or isn't what was saved."""
    [data] = _get(encoder_id, [MODEL], _sums(encoder_id, store), store)
    return keras_files.from_bytes(data, origin=store.url(f"{_folder(encoder_id)}/{MODEL}"))


def load_network(encoder_id: str, store: Bucket) -> "Network":
    """The encoder's form for CPUs. Raises ``PipelineError`` where it isn't stored, or isn't what was saved."""
    from pipeline.networks import Network

    return Network(*_get(encoder_id, NETWORK, _sums(encoder_id, store), store))


def save_network(encoder_id: str, network: "Network", store: Bucket) -> None:
    """Store an encoder that has a form for CPUs alone."""
    _save(encoder_id, dict(zip(NETWORK, network, strict=True)), store)


def _save(encoder_id: str, files: Mapping[str, bytes], store: Bucket) -> None:
    sums = checksums.put(_folder(encoder_id), files, store)
    store.put(_sums_key(encoder_id), _SUMS.dump_json(sums, indent=2))


def _get(encoder_id: str, names: Iterable[str], sums: Checksums, store: Bucket) -> list[bytes]:
    return checksums.get(_folder(encoder_id), names, sums, store, advice=ADVICE)


def _sums(encoder_id: str, store: Bucket) -> Checksums:
    key = _sums_key(encoder_id)
    try:
        return _SUMS.validate_json(store.get(key))
    except ValidationError as error:
        raise PipelineError(f"{store.url(key)} holds no checksums: {error}. {ADVICE}") from error


def _folder(encoder_id: str) -> str:
    return f"encoders/{encoder_id}"


def _sums_key(encoder_id: str) -> str:
    return f"{_folder(encoder_id)}/files.json"


def _build(spec: str) -> tuple["keras.Model", str]:
    if spec == "imagenet":
        return resnet50("imagenet"), "resnet50-imagenet"
    if spec == "random":
        return resnet50(None), "resnet50-random"
    suffix = Path(spec).suffix
    if suffix not in (".keras", ".h5"):
        raise PipelineError(f"No such encoder: expected imagenet, random, or a .keras or .h5 file. Received: {spec!r}")
    bucket, key = open_object(spec)
    data = bucket.get(key)
    name = re.sub(r"[^a-z0-9]+", "-", Path(key).stem.lower()).strip("-")
    if suffix == ".keras":
        return keras_files.from_bytes(data, origin=spec), name
    # Keras tells its two formats of weights, the old of its downloads and the present one, by the file's name.
    with keras_files.as_file(data, ".weights.h5" if key.endswith(".weights.h5") else ".h5") as path:
        try:
            return resnet50(path), f"resnet50-{name.removeprefix('resnet50-')}"
        except (ValueError, OSError, KeyError) as error:
            raise PipelineError(
                f"{spec} does not hold the weights of a ResNet50 without its top (`include_top=False`): {error}"
            ) from error


def resnet50(weights: str | None) -> "keras.Model":
    """ResNet50 (He et al. 2015, https://arxiv.org/abs/1512.03385), pooled to 2048-d, its preprocessing inside."""
    import keras

    if weights is None:
        keras.utils.set_random_seed(RANDOM_SEED)
    backbone = keras.applications.ResNet50(
        include_top=False, weights=weights, pooling="avg", input_shape=(DEFAULT_SIZE, DEFAULT_SIZE, 3)
    )
    pictures = keras.Input((DEFAULT_SIZE, DEFAULT_SIZE, 3), name="pictures")
    # What keras.applications.resnet50.preprocess_input does, as layers, so that the saved model needs no code of ours:
    # RGB to BGR, less the ImageNet means.
    bgr = keras.ops.flip(pictures, axis=-1)
    centred = keras.layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68])(bgr)
    return keras.Model(pictures, backbone(centred), name="resnet50")


def _dimensions(model: "keras.Model", name: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The size of the model's pictures and the shape of their features. Raises ``PipelineError`` where it has none."""
    inputs, outputs = model.inputs, model.outputs
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] != 3:
        shapes = f"{[tuple(i.shape) for i in inputs]} to {[tuple(o.shape) for o in outputs]}"
        raise PipelineError(f"An encoder maps (N, H, W, 3) to (N, D); {name} maps {shapes}.")
    shape = tuple(outputs[0].shape[1:])
    if len(shape) not in (1, 2) or None in shape:
        raise PipelineError(
            f"An encoder's output is (N, D), or (N, V, D) of V views; that of {name} is "
            f"{tuple(outputs[0].shape)}: end the model in GlobalAveragePooling2D."
        )
    _, height, width, _ = inputs[0].shape
    return (height or DEFAULT_SIZE, width or DEFAULT_SIZE), shape


def _weights_hash(model: "keras.Model") -> str:
    import keras

    digest = hashlib.sha256()
    for variable in model.variables:
        array = keras.ops.convert_to_numpy(variable)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]

"""Networks as a CPU runs them best: OpenVINO's form of a Keras model, in 32-bit floats or in 8-bit integers.

On a CPU, OpenVINO is faster than Keras's backends (see benchmarks/), agrees with them to the rounding of float32, and
starts without loading them.
"""

import contextlib
import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino.frontend import OpConversionFailure

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


class Network(NamedTuple):
    """A network as bytes: OpenVINO keeps a model in two files."""

    structure: bytes
    weights: bytes


def convert(model: "keras.Model") -> Network:
    """The network of a Keras model. Raises ``PipelineError`` where OpenVINO has no counterpart of some operation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        level = logging.root.level
        try:
            model.export(str(path), format="openvino", verbose=False)
        except OpConversionFailure as error:
            raise PipelineError(
                f"The encoder {model.name} can't be converted for CPUs, build it of other layers: {error}"
            ) from error
        finally:
            # Where it fails, OpenVINO leaves everybody's log at errors only.
            logging.root.setLevel(level)
        return _files(path)


def quantise(network: Network, pictures: npt.NDArray[np.uint8]) -> Network:
    """The network with its convolutions in 8-bit integers (Jacob et al. 2018, https://arxiv.org/abs/1712.05877).

    Args:
        network: in 32-bit floats.
        pictures: (N, H, W, 3) uint8, such as the network will see: their activations decide what the integers span.
    """
    import nncf

    nncf.set_log_level(logging.WARNING)
    samples = nncf.Dataset([picture[None].astype(np.float32) for picture in pictures])
    # Its bar of progress goes to standard output, where a command's result is expected.
    with contextlib.redirect_stdout(sys.stderr):
        quantised = nncf.quantize(_read(network), samples, subset_size=len(pictures))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        ov.save_model(quantised, path, compress_to_fp16=False)
        return _files(path)


class Compiled:
    """A network made ready for this machine's CPU. Calls from several threads run side by side.

    Attributes:
        size: (height, width) of its pictures; ``None`` where it takes any.
        shape: of the features of a picture, (D,) or (V, D).
        threads: from how many of them it should be called.
    """

    def __init__(self, network: Network) -> None:
        model = _read(network)
        _, *size, _ = model.input(0).partial_shape
        self.size = tuple(None if side.is_dynamic else side.get_length() for side in size)
        self.shape = tuple(side.get_length() for side in list(model.output(0).partial_shape)[1:])
        pictures = ov.preprocess.PrePostProcessor(model)
        pictures.input().tensor().set_element_type(ov.Type.u8)
        # A stream a core: cores that work on batches of their own need not wait for each other. Where a CPU has 16-bit
        # floats OpenVINO would compute in them, unless told otherwise.
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        # OpenVINO looks NumPy up when first it needs it: threads that did so at once would wait for each other for ever
        ov.Type.u8.to_dtype()
        self._compiled = ov.Core().compile_model(pictures.build(), "CPU", settings)
        self.threads: int = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._of_thread = threading.local()

    def __call__(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of a batch: (N, H, W, 3) RGB 0..255 to (N, D) or (N, V, D) float32."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        features: npt.NDArray[np.float32] = self._of_thread.request.infer([pictures], share_inputs=True)[0]
        return features


def _read(network: Network) -> ov.Model:
    # OpenVINO takes other formats by their look. Its ONNX may name files beside it, which are read:
    # of a model in memory those in the working directory.
    if not network.structure.startswith(b"<?xml"):
        raise PipelineError("A stored network is not in OpenVINO's XML. Publish the encoder again.")
    try:
        return ov.Core().read_model(network.structure, network.weights)
    except RuntimeError as error:
        raise PipelineError(f"A stored network can't be read: {error}. Publish the encoder again.") from error


def _files(path: Path) -> Network:
    return Network(path.read_bytes(), path.with_suffix(".bin").read_bytes())

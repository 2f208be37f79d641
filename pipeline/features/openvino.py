"""Networks on CPUs: Keras models converted to OpenVINO, in 32-bit floats or, encoders, in 8-bit integers.

On a CPU, OpenVINO is faster than the backends of Keras (see benchmarks/), agrees with them to the rounding of float32,
and starts without loading them.
"""

import contextlib
import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino.frontend import OpConversionFailure

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

_ADVICE = "Register the encoder again from its source with `captioning register-encoder`."


class Network(NamedTuple):
    """A network as bytes; OpenVINO stores a model in two files."""

    structure: bytes
    weights: bytes


def convert(model: "keras.Model", *, outputs: int | None = None, signature: Any = None) -> Network:
    """Convert a Keras model. Raises ``PipelineError`` if OpenVINO does not support an operation.

    Args:
        model: the model.
        outputs: their number; by default that of a functional model.
        signature: of its inputs, as ``model.export`` takes it; by default that of a functional model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        level = logging.root.level
        try:
            model.export(str(path), format="openvino", verbose=False, input_signature=signature)
        except OpConversionFailure as error:
            raise PipelineError(
                f"The model {model.name} can't be converted to OpenVINO, build it from other layers: {error}"
            ) from error
        finally:
            # When the conversion fails, OpenVINO leaves the root logger at the level of errors.
            logging.root.setLevel(level)
        network = read(_files(path), _ADVICE)
        return _save(_first_outputs(network, len(model.outputs) if outputs is None else outputs), path)


def _first_outputs(network: ov.Model, count: int) -> ov.Model:
    """The network without the outputs that the Keras model does not have: the export adds one for each swish, say."""
    names = ["Identity:0", *(f"Identity_{number}:0" for number in range(1, count))]
    outputs = [network.output(name) for name in names]
    return ov.Model([output.get_node() for output in outputs], network.get_parameters(), network.get_friendly_name())


def quantize(network: Network, pictures: npt.NDArray[np.uint8]) -> Network:
    """Quantize the convolutions of a network to 8-bit integers (Jacob et al. 2018, https://arxiv.org/abs/1712.05877).

    Args:
        network: in 32-bit floats.
        pictures: (N, H, W, 3) uint8, typical ones: their activations determine the range of the integers.
    """
    import nncf

    nncf.set_log_level(logging.WARNING)
    samples = nncf.Dataset([picture[None].astype(np.float32) for picture in pictures])
    # Its progress bar goes to standard output, where a command's result is expected.
    with contextlib.redirect_stdout(sys.stderr):
        quantized = nncf.quantize(read(network, _ADVICE), samples, subset_size=len(pictures))
    with tempfile.TemporaryDirectory() as folder:
        return _save(quantized, Path(folder, "network.xml"))


class CompiledNetwork:
    """A network compiled for the CPU of this machine. Calls from several threads run in parallel.

    Attributes:
        input_shapes: of each input, without its rows; -1 where any length is accepted.
        shapes: of each output in the same way.
        threads: the best number of threads to call it from.
    """

    def __init__(self, model: ov.Model) -> None:
        # One stream per core, so that cores do not wait for each other. On a CPU with 16-bit floats OpenVINO would
        # compute in them by default.
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        # OpenVINO looks up NumPy on first use, and threads that do so at the same time deadlock: do it here.
        ov.Type.u8.to_dtype()
        self._compiled = ov.Core().compile_model(model, "CPU", settings)
        self.input_shapes, self.shapes = (
            [
                tuple(-1 if side.is_dynamic else side.get_length() for side in list(each.partial_shape)[1:])
                for each in all_
            ]
            for all_ in (model.inputs, model.outputs)
        )
        self.threads: int = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._of_thread = threading.local()

    def __call__(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        """The outputs for a batch."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        outputs = self._of_thread.request.infer(inputs, share_inputs=True)
        return [outputs[number] for number in range(len(self.shapes))]


class EncoderNetwork(CompiledNetwork):
    """The network of an encoder, called with (N, H, W, 3) uint8 RGB pictures.

    Its outputs are the vectors, (D,) or (C, D) for a picture, and the regions, (R, K), if it yields them.

    Attributes:
        size: (height, width) of its pictures; ``None`` if any size is accepted.
    """

    def __init__(self, network: Network) -> None:
        model = read(network, _ADVICE)
        _, *size, _ = model.input(0).partial_shape
        self.size = tuple(None if side.is_dynamic else side.get_length() for side in size)
        pictures = ov.preprocess.PrePostProcessor(model)
        pictures.input().tensor().set_element_type(ov.Type.u8)
        super().__init__(pictures.build())


def read(network: Network, advice: str) -> ov.Model:
    """The network, to be compiled. Raises ``PipelineError``, which ends in ``advice``, if it is none."""
    # OpenVINO detects other formats by their content. ONNX may refer to external files, which it would read from the
    # working directory.
    if not network.structure.startswith(b"<?xml"):
        raise PipelineError(f"A stored network is not OpenVINO XML. {advice}")
    try:
        return ov.Core().read_model(network.structure, network.weights)
    except RuntimeError as error:
        raise PipelineError(f"A stored network can't be read: {error}. {advice}") from error


def _save(network: ov.Model, path: Path) -> Network:
    """The network as bytes, equal for equal networks: OpenVINO names operations by counters of its process."""
    for number, operation in enumerate(network.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
        for output in operation.outputs():
            output.get_tensor().set_names(set())
    ov.save_model(network, path, compress_to_fp16=False)
    return _files(path)


def _files(path: Path) -> Network:
    return Network(path.read_bytes(), path.with_suffix(".bin").read_bytes())

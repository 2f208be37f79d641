"""Extraction of ResNet50's features, against the usual ways and against what the machine's cores can multiply."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.measure import Cost, alternate, cpu, spread
from pipeline.data.images import Picture, decode
from pipeline.features import applications
from pipeline.features import encoder as encoders
from pipeline.features import extraction as features
from pipeline.storage import Bucket, layout, open_bucket
from pipeline.timing import Stopwatch
from pipeline.work import listing

PICTURE_FLOP = 7.7e9
"""Multiplications and additions of ResNet50 for a picture of 224 × 224 (He et al. 2015 count 3.8e9 of each)."""

SIDE = 3000
"""Size of the square matrices whose product shows how fast the cores multiply."""

PICTURES = 128
TUTORIAL_PICTURES, TUTORIAL_BATCH = 16, 32


def extraction(rounds: int) -> dict[str, float | str]:
    """Pictures encoded per CPU second, each way, and as shares of the rate of the fastest product of matrices."""
    from pipeline.features import openvino

    with tempfile.TemporaryDirectory() as folder:
        store, inbox = open_bucket(f"{folder}/store"), open_bucket(f"{folder}/inbox")
        for number, data in enumerate(photographs(PICTURES)):
            inbox.put(f"{number:04}.jpg", data)
        encoder_id = encoders.register("random", store)
        decoded = [decode(inbox.get(item.key), (224, 224)) for item in inbox.list()]
        pictures = np.stack([picture.pixels for picture in decoded])
        model = encoders.load_model(encoder_id, store)
        network = encoders.load_network(encoder_id, store)
        eight_bits = openvino.quantize(network, pictures[:32])
        encoders.save_network("eight-bits", eight_bits, store)
        as_floats = pictures.astype(np.float32)
        multiply = products()

        def one_by_one() -> None:
            for picture in as_floats[:TUTORIAL_PICTURES]:
                model.predict(picture[None], verbose=0)

        costs = dict(
            zip(
                (*multiply, "one_by_one", "batches", "ours", "int8", "end_to_end"),
                alternate(
                    *multiply.values(),
                    one_by_one,
                    lambda: model.predict(as_floats, batch_size=TUTORIAL_BATCH, verbose=0),
                    lambda: encode(encoders.load(encoder_id, store), PICTURES, decoded.__getitem__),
                    lambda: encode(encoders.load("eight-bits", store), PICTURES, decoded.__getitem__),
                    lambda: end_to_end(encoder_id, inbox, store),
                    rounds=rounds,
                ),
                strict=True,
            )
        )
    multiplied = {name: costs.pop(name) for name in multiply}
    library, most = roofline(multiplied)
    counts = dict.fromkeys(costs, PICTURES) | {"one_by_one": TUTORIAL_PICTURES}
    rates = {name: counts[name] / cpu(cost) for name, cost in costs.items()}
    return {
        **{f"product_{name}_gflop_per_cpu_second": 2e-9 * SIDE**3 / cpu(cost) for name, cost in multiplied.items()},
        "extraction_roofline": library,
        "extraction_roofline_per_cpu_second": most,
        **{f"extraction_{name}_per_cpu_second": rate for name, rate in rates.items()},
        "extraction_one_by_one_of_roofline": rates["one_by_one"] / most,
        "extraction_batches_of_roofline": rates["batches"] / most,
        "extraction_fp32_of_roofline": rates["ours"] / most,
        "extraction_end_to_end_of_roofline": rates["end_to_end"] / most,
        "extraction_int8_over_fp32": rates["int8"] / rates["ours"],
        "extraction_spread": max(map(spread, [*costs.values(), multiplied[library]])),
    }


def onnx(rounds: int) -> dict[str, float | str]:
    """The same by ONNX Runtime, in batches, as a share of the same rate; needs tf2onnx, onnx and onnxruntime."""
    import onnxruntime

    model = applications.build("resnet50", None)
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, 224, 224, 3)).astype(np.float32)
    model(pictures[:1])  # Keras writes to ONNX only what has been called
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/resnet50.onnx", format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(f"{folder}/resnet50.onnx", providers=["CPUExecutionProvider"])

    def batches() -> None:
        for start in range(0, PICTURES, TUTORIAL_BATCH):
            session.run(None, {session.get_inputs()[0].name: pictures[start : start + TUTORIAL_BATCH]})

    multiply = products()
    *multiplied, costs = alternate(*multiply.values(), batches, rounds=rounds)
    library, most = roofline(dict(zip(multiply, multiplied, strict=True)))
    return {
        "onnx_roofline": library,
        "extraction_onnx_of_roofline": PICTURES / cpu(costs) / most,
        "onnx_spread": spread(costs),
    }


def products() -> dict[str, Callable[[], object]]:
    """A product of matrices, which is what cores are best at, by each library that is installed.

    One library alone is no measure of the cores: NumPy takes twice as long where ``OPENBLAS_CORETYPE`` names an older
    processor.
    """
    matrix = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    found: dict[str, Callable[[], object]] = {"NumPy": lambda: np.matmul(matrix, matrix)}
    with contextlib.suppress(ImportError):
        import openvino as ov

        # As in a layer of a network, one of the matrices is known beforehand.
        layer = ov.opset8.parameter(matrix.shape, np.float32)
        network = ov.Model([ov.opset8.matmul(layer, matrix, False, False)], [layer])
        compiled = ov.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found["OpenVINO"] = lambda: compiled([matrix])
    with contextlib.suppress(ImportError):
        import tensorflow as tf

        tensor = tf.constant(matrix)
        found["TensorFlow"] = lambda: tf.matmul(tensor, tensor).numpy()
    return found


def roofline(costs: Mapping[str, list[Cost]]) -> tuple[str, float]:
    """The fastest library by the costs of its products, and pictures per CPU second, were they encoded at its rate."""
    library = min(costs, key=lambda name: cpu(costs[name]))
    return library, 2 * SIDE**3 / PICTURE_FLOP / cpu(costs[library])


def photographs(count: int, *, width: int = 500, height: int = 375) -> Iterator[bytes]:
    """JPEGs, by default of the size of Flickr8k's photographs; what they show is blurred noise."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def encode(encoder: encoders.Encoder, pictures: int, read: Callable[[int], Picture]) -> None:
    """Encode so many pictures as an extraction does, read by their number while others are encoded."""
    rows = [(str(number), "") for number in range(pictures)]
    features.encode(rows, lambda row, _: read(int(row[0])), encoder, Stopwatch())


def end_to_end(encoder_id: str, inbox: Bucket, store: Bucket) -> None:
    """From JPEGs in a bucket to features in Parquet; loading the encoder is part of it."""
    for item in store.list(f"{layout.features_folder(encoder_id)}/"):
        Path(store.uri.removeprefix("file://"), item.key).unlink()
    images = listing.tabulate(inbox.list())
    features.extract_missing(images, run="benchmark", source=inbox.uri, encoder_id=encoder_id, store=store)

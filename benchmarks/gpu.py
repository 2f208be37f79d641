"""Extraction, training and decoding on a GPU: pictures and captions per second of the clock.

    KERAS_BACKEND=jax python -m benchmarks gpu

Any backend of Keras will do. Extraction is compared with the rate at which the chip multiplies matrices of 16-bit
floats, and with the usual loop over a ResNet50 of PyTorch (torch and torchvision, which the pipeline itself does not
need). OpenVINO and Airflow need not be installed.
"""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np

from benchmarks.extraction import PICTURE_FLOP, encode, photographs
from benchmarks.learning import (
    CONFIG,
    LEARNT_PICTURES,
    LONGEST,
    WRITTEN_PICTURES,
    briefly_trained,
    captions_like_flickr8k,
)
from benchmarks.measure import alternate, wall
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.keras_decoder import KerasDecoder
from pipeline.config import GREEDY, DecodingConfig
from pipeline.data.images import decode
from pipeline.features import applications
from pipeline.features import encoder as encoders
from pipeline.training.loop import train_epoch

SIDE = 8192
"""Size of the square matrices whose product shows how fast the chip multiplies."""

PICTURES, DRAWN = 8192, 256
"""Pictures encoded, of which so many are different."""


def gpu(rounds: int) -> dict[str, float]:
    """Rates by the clock, and extraction's as shares of the chip's and of PyTorch's."""
    peak = 2 * SIDE**3 / seconds(product(), rounds) / PICTURE_FLOP
    encoder = encoders.on_gpu(applications.build("resnet50", None), "resnet50")
    jpegs = list(photographs(DRAWN))
    decoded = [decode(data, encoder.size) for data in jpegs]
    from_memory = PICTURES / seconds(lambda: encode(encoder, PICTURES, lambda number: decoded[number % DRAWN]), rounds)
    from_jpeg = PICTURES / seconds(
        lambda: encode(encoder, PICTURES, lambda number: decode(jpegs[number % DRAWN], encoder.size)), rounds
    )
    pytorch = PICTURES / seconds(
        pytorch_loop(np.stack([picture.pixels for picture in decoded]), encoder.batch_size), rounds
    )
    return {
        "gpu_roofline_per_second": peak,
        "gpu_extraction_per_second": from_memory,
        "gpu_extraction_from_jpeg_per_second": from_jpeg,
        "gpu_pytorch_per_second": pytorch,
        "gpu_extraction_of_roofline": from_memory / peak,
        "gpu_extraction_over_pytorch": from_memory / pytorch,
        **learning(rounds),
    }


def seconds(function: Callable[[], object], rounds: int) -> float:
    """The median of the seconds of the clock, after a call that compiles."""
    [costs] = alternate(function, rounds=rounds)
    return wall(costs)


def product() -> Callable[[], object]:
    """A product of matrices in 16-bit floats, whose end is waited for."""
    matrix = keras.random.normal((SIDE, SIDE), dtype="float16")
    return lambda: keras.ops.convert_to_numpy(keras.ops.matmul(matrix, matrix)[0, 0])


def pytorch_loop(pictures: np.ndarray, batch_size: int) -> Callable[[], object]:
    """ResNet50 as PyTorch's users run it: no gradient, 16-bit floats, a batch after the other."""
    import torch
    from torchvision.models import resnet50

    model = resnet50().cuda().half().to(memory_format=torch.channels_last).eval()
    model.fc = torch.nn.Identity()

    def loop() -> None:
        with torch.inference_mode():
            for start in range(0, PICTURES, batch_size):
                batch = pictures[np.arange(start, start + batch_size) % DRAWN]
                tensor = torch.from_numpy(batch).cuda().permute(0, 3, 1, 2).half() / 255
                model(tensor).float().cpu().numpy()

    return loop


def learning(rounds: int) -> dict[str, float]:
    """Captions trained on, and pictures captioned, per second."""
    captions = captions_like_flickr8k(LEARNT_PICTURES)
    model, vocabulary = briefly_trained(captions)
    captioner = Captioner(KerasDecoder([model]), vocabulary, max_length=LONGEST)
    features = captions.features[:WRITTEN_PICTURES]

    # Decoding first: the training changes its captions.
    greedy, beam = (
        seconds(partial(captioner.caption, features, decoding), rounds) for decoding in (GREEDY, DecodingConfig())
    )

    def learn() -> None:
        train_epoch(model, captions.training_batches(CONFIG.batch_size, np.random.default_rng(0)))

    return {
        "gpu_captions_learnt_per_second": len(captions.ids) / seconds(learn, rounds),
        "gpu_greedy_per_second": WRITTEN_PICTURES / greedy,
        "gpu_beam5_per_second": WRITTEN_PICTURES / beam,
    }

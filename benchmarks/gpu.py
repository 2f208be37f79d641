"""Extraction, training and decoding on a GPU: pictures and captions per second of the clock.

    KERAS_BACKEND=jax python -m benchmarks gpu

TensorFlow or JAX will do. Extraction is compared with the way it was done before, a batch after the other by
``predict_on_batch``; with batches of other sizes; with the rate at which the chip multiplies matrices of 16-bit floats;
and with the usual loop over a ResNet50 of PyTorch (torch and torchvision, which the pipeline itself does not need).
OpenVINO and Airflow need not be installed.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from pipeline.data.decoders import Decoders
from pipeline.data.images import Picture, decode
from pipeline.features import accelerator, applications
from pipeline.features import encoder as encoders
from pipeline.features.extraction import READERS
from pipeline.features.extraction import encode as encode_rows
from pipeline.features.folding import fold_batch_norms
from pipeline.timing import Stopwatch
from pipeline.training.batches import EncodedCaptions
from pipeline.training.loop import train_epoch

SIDE = 8192
"""Size of the square matrices whose product shows how fast the chip multiplies."""

PICTURES, DRAWN = 8192, 256
"""Pictures encoded, of which so many are different."""

BATCHES = (64, 128, 512)
"""Sizes of batches beside the largest that an encoder takes."""


def gpu(rounds: int) -> dict[str, float]:
    """Rates by the clock, and extraction's as shares of the chip's and of PyTorch's."""
    peak = 2 * SIDE**3 / seconds(product(), rounds) / PICTURE_FLOP
    model = applications.build("resnet50", None)
    encoder = encoders.on_gpu(model, "resnet50")
    jpegs = list(photographs(DRAWN))
    decoded = [decode(data, encoder.size) for data in jpegs]
    pictures = [picture.pixels for picture in decoded]
    found = {}
    with Decoders(encoder.size) as decoders, ThreadPoolExecutor(READERS) as readers:

        def from_jpeg(row: tuple[str, str], out: np.ndarray) -> Picture:
            return decoders.decode(jpegs[int(row[0]) % DRAWN], out=out)

        rows = [(str(number), "") for number in range(PICTURES)]
        ways: dict[str, Callable[[], object]] = {
            "extraction": lambda: encode(encoder, PICTURES, lambda number: decoded[number % DRAWN]),
            "extraction_before": one_by_one(model, pictures, encoder.batch_size),
            "extraction_from_jpeg": lambda: encode_rows(rows, from_jpeg, encoder, Stopwatch()),
            "decoding_pool": lambda: list(readers.map(lambda row: decoders.decode(jpegs[int(row[0]) % DRAWN]), rows)),
            "pytorch": pytorch_loop(np.stack(pictures), encoder.batch_size),
        }
        for way, costs in zip(ways, alternate(*ways.values(), rounds=rounds), strict=True):
            found[f"gpu_{way}_per_second"] = PICTURES / wall(costs)
    one_core = DRAWN / seconds(lambda: [decode(data, encoder.size) for data in jpegs], rounds)
    for size in BATCHES:
        resized = replace(encoder, batch_size=size, run=accelerator.in_full_batches(compiled_again(model), size))
        found[f"gpu_extraction_in_{size}_per_second"] = PICTURES / seconds(
            partial(encode, resized, PICTURES, lambda number: decoded[number % DRAWN]), rounds
        )
    return {
        "gpu_roofline_per_second": peak,
        **found,
        "gpu_extraction_of_roofline": found["gpu_extraction_per_second"] / peak,
        "gpu_extraction_over_pytorch": found["gpu_extraction_per_second"] / found["gpu_pytorch_per_second"],
        "gpu_extraction_over_before": found["gpu_extraction_per_second"] / found["gpu_extraction_before_per_second"],
        "gpu_decoding_pool_of_cores": found["gpu_decoding_pool_per_second"] / one_core / (os.cpu_count() or 1),
        **learning(rounds),
    }


def seconds(function: Callable[[], object], rounds: int) -> float:
    """The median of the seconds of the clock, after a call that compiles."""
    [costs] = alternate(function, rounds=rounds)
    return wall(costs)


def compiled_again(model: keras.Model) -> accelerator.Run:
    """As ``encoder.on_gpu`` compiles it, for batches of any size."""
    folded = fold_batch_norms(model)
    accelerator.prepare(folded)
    return accelerator.compiled(folded)


def one_by_one(model: keras.Model, pictures: list[np.ndarray], batch_size: int) -> Callable[[], object]:
    """The former way: batches are stacked, and each is waited for, by the model as it is, in mixed precision."""
    before = keras.models.clone_model(model)
    before.set_weights(model.get_weights())
    accelerator.prepare(before)

    def loop() -> None:
        for start in range(0, PICTURES, batch_size):
            before.predict_on_batch(np.stack([pictures[(start + place) % DRAWN] for place in range(batch_size)]))

    return loop


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

    def learn(captions: EncodedCaptions) -> None:
        train_epoch(model, captions.training_batches(CONFIG.batch_size, np.random.default_rng(0)))

    few_shapes = replace(captions, few_shapes=True)
    return {
        "gpu_captions_learnt_per_second": len(captions.ids) / seconds(partial(learn, few_shapes), rounds),
        "gpu_captions_learnt_in_many_shapes_per_second": len(captions.ids) / seconds(partial(learn, captions), rounds),
        "gpu_greedy_per_second": WRITTEN_PICTURES / greedy,
        "gpu_beam5_per_second": WRITTEN_PICTURES / beam,
    }

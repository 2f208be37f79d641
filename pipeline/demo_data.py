"""A drawn captioning data set whose truth is known, in the Flickr8k layout: the whole pipeline with no download.

Every picture is one ball on some ground, with four attributes; every caption states some of them. The attributes are
those that global average pooling keeps even behind an encoder that was never trained (area, colour and texture, but
neither shape nor place). The ball's place, the exact hues, the light and the noise vary freely, so that a captioner
has to learn the words from the pixels; ``attributes`` and ``read_truth`` then say which of its words are true.
"""

import csv
import io
import logging
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.storage import LocalBucket

logger = logging.getLogger(__name__)

WORDS = {
    "size": {"small": ("small", "little"), "large": ("large", "big")},
    "colour": {"red": ("red",), "yellow": ("yellow",), "blue": ("blue",), "black": ("black",)},
    "pattern": {
        "plain": ("plain", "unmarked"),
        "striped": ("striped", "stripy"),
        "dotted": ("dotted", "spotted"),
        "chequered": ("chequered", "checked"),
    },
    "ground": {
        "grass": ("grass", "lawn"),
        "snow": ("snow",),
        "sand": ("sand", "beach"),
        "water": ("water", "lake"),
    },
}
"""For each attribute, its values and the words that state each. A word states one value only, whatever stands around
it (colours are the ball's; the ground is never named by a colour), so recombined captions can be read as well."""

TEMPLATES = (
    "a {size} {colour} {pattern} ball lies on the {ground} .",
    "a {pattern} {colour} ball is lying on the {ground} .",
    "there is a {size} {pattern} ball on the {ground} .",
    "on the {ground} lies a {size} {colour} ball .",
    "the {pattern} ball on the {ground} is {size} and {colour} .",
    "somebody left a {colour} {pattern} ball on the {ground} .",
    "a ball on the {ground} , {size} , {colour} and {pattern} .",
    "a {size} ball rests on the {ground} ; it is {colour} and {pattern} .",
)

CAPTIONS_PER_IMAGE = 5

_SIDE = 224  # pixels, width and height
_RADIUS = {"small": (38, 44), "large": (72, 80)}  # pixels, from and to
_COLOURS = {"red": (205, 25, 35), "yellow": (250, 205, 10), "blue": (25, 50, 190), "black": (25, 25, 28)}


@dataclass(frozen=True, slots=True)
class _Ground:
    """Mean colour, and the noise laid over it: cells of (height, width) pixels, and its amplitude."""

    rgb: tuple[int, int, int]
    grain: tuple[int, int]
    amplitude: float


_GROUNDS = {
    "grass": _Ground((70, 140, 55), (14, 3), 14),
    "snow": _Ground((240, 243, 248), (40, 60), 6),
    "sand": _Ground((214, 186, 140), (2, 2), 9),
    "water": _Ground((80, 175, 205), (5, 40), 12),
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """One picture's truth, its captions, and the seed of everything about its pixels that no caption speaks of."""

    image: str
    truth: dict[str, str]
    captions: list[str]
    seed: int


def draw(directory: Path, *, images: int = 600, seed: int = 0) -> int:
    """Write the data set, or complete it where an earlier run was interrupted, and return its number of pictures.

    ``directory`` gets ``images/*.jpg`` (RGB, 224×224), ``Flickr8k.token.txt`` (``NAME.jpg#K<TAB>CAPTION``, five a
    picture), ``Flickr_8k.{train,dev,test}Images.txt`` (80, 10 and 10 %) and ``truth.csv`` (image and its attributes).
    The same ``images`` and ``seed`` give the same data set; a file that already has its bytes is left untouched.

    Raises:
        PipelineError: fewer than ten images, or ``directory`` holds something else.
    """
    if images < 10:
        raise PipelineError(f"A data set to be split 80/10/10 needs at least 10 images. Received: images={images}")
    scenes = [_scene(index, seed) for index in range(images)]
    bucket = LocalBucket(directory)
    _claim(bucket, _truth(scenes))
    for scene in scenes:
        _write(bucket, f"images/{scene.image}", _jpeg(_paint(scene)))
    for key, text in _annotations(scenes):
        _write(bucket, key, text.encode())
    logger.info("%s: %d pictures (seed %d)", bucket.uri, images, seed)
    return images


def attributes(caption: str) -> set[tuple[str, str]]:
    """What a caption states, as (attribute, value): ``{("size", "large"), ("colour", "red")}``."""
    words = set(caption.lower().split())
    return {
        (attribute, value)
        for attribute, values in WORDS.items()
        for value, synonyms in values.items()
        if words.intersection(synonyms)
    }


def read_truth(directory: Path) -> dict[str, set[tuple[str, str]]]:
    """What is true of each picture of ``directory``, by file name: the counterpart of ``attributes``."""
    with (directory / "truth.csv").open(encoding="utf-8", newline="") as file:
        return {row.pop("image"): set(row.items()) for row in csv.DictReader(file)}


def _scene(index: int, seed: int) -> _Scene:
    rng = random.Random(f"{seed}/{index}")
    truth = {attribute: rng.choice(list(values)) for attribute, values in WORDS.items()}
    captions = []
    for template in rng.sample(TEMPLATES, CAPTIONS_PER_IMAGE):
        words = {attribute: rng.choice(WORDS[attribute][value]) for attribute, value in truth.items()}
        captions.append(template.format(**words).capitalize())
    return _Scene(f"ball-{seed}-{index:04d}.jpg", truth, captions, rng.getrandbits(64))


def _paint(scene: _Scene) -> npt.NDArray[np.uint8]:
    """The picture as uint8 of shape (224, 224, 3)."""
    rng = np.random.default_rng(scene.seed)
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)

    ground = _GROUNDS[scene.truth["ground"]]
    canvas = _hue(ground.rgb, rng) + ground.amplitude * _noise(ground.grain, rng)[..., None]

    radius = rng.uniform(*_RADIUS[scene.truth["size"]])
    centre_y, centre_x = rng.uniform(radius + 6, _SIDE - radius - 6, size=2)
    v, u = y - centre_y, x - centre_x
    shadow = _inside(np.hypot((u - 0.15 * radius) / 1.05, (v - 0.75 * radius) / 0.45) - radius, blur=16)
    canvas = canvas * (1 - 0.35 * shadow[..., None])

    marks = MARK_STRENGTH * _marks(scene.truth["pattern"], u, v, rng)[..., None]
    colour = _hue(_COLOURS[scene.truth["colour"]], rng)
    ball = colour * (1 - marks) + _MARK_COLOUR * marks
    light = 1.08 - 0.35 * np.clip(np.hypot(u + 0.4 * radius, v + 0.45 * radius) / (1.6 * radius), 0, 1) ** 2
    ball = ball * light[..., None]
    disc = _inside(np.hypot(u, v) - radius)[..., None]
    canvas = canvas * (1 - disc) + ball * disc

    canvas = canvas * rng.uniform(0.92, 1.05) + rng.normal(0, 3, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


MARK_STRENGTH = 1.0
_MARK_COLOUR = np.array([250, 248, 240], np.float32)
PERIOD = {"striped": 20, "dotted": 20, "chequered": 28}


def _marks(pattern: str, u, v, rng):
    """Where the ball bears its second colour: float of shape (224, 224), 0..1."""
    if pattern == "plain":
        return np.zeros_like(u)
    angle = rng.uniform(-0.2, 0.2)
    u, v = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    period = PERIOD[pattern]
    # The distance from the nearest line of a grid, in pixels.
    du, dv = (np.abs((t + rng.uniform(0, period)) % period - period / 2) for t in (u, v))
    if pattern == "striped":
        return _inside(dv - period / 4)
    if pattern == "dotted":
        return _inside(np.hypot(du, dv) - 0.28 * period)
    a, b = _inside(du - period / 4), _inside(dv - period / 4)
    return a + b - 2 * a * b


def _inside(distance, blur: float = 1):
    """1 inside a shape and 0 outside of it, from the signed distance in pixels to its edge, ``blur`` pixels soft."""
    return np.clip(0.5 - distance / blur, 0, 1)


def _hue(rgb, rng):
    return np.array(rgb, np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)


def _noise(grain, rng):
    cells = rng.normal(size=(_SIDE // grain[0] + 2, _SIDE // grain[1] + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _truth(scenes: list[_Scene]) -> bytes:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, ["image", *WORDS], lineterminator="\n")
    table.writeheader()
    table.writerows({"image": scene.image, **scene.truth} for scene in scenes)
    return buffer.getvalue().encode()

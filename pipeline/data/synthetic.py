"""A synthetic captioning data set with known truth, in the Flickr8k layout: it runs the pipeline without a download.

Each picture shows one ball on a ground, with four attributes; each caption states at least three of them. The
attributes (area, colour and texture, but neither shape nor position) survive global average pooling even after an
untrained encoder. The position of the ball, the exact hues, the light and the noise vary freely, so a captioner has to
learn the words from the pixels. ``attributes`` and ``read_truth`` tell which words of a caption are true.
"""

import csv
import io
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import ENGLISH
from pipeline.data.text import clean
from pipeline.errors import PipelineError
from pipeline.storage import LocalBucket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wording:
    """How the captions of a language are made.

    Attributes:
        words: the words for each value of each attribute. No word has two meanings, and the grounds are not named by
            colours, so any combination of these words is unambiguous.
        templates: the sentences; the captions of a picture use different ones.
        endings: what the sentences may append to these words.
    """

    words: dict[str, dict[str, tuple[str, ...]]]
    templates: tuple[str, ...]
    endings: tuple[str, ...] = ("",)


WORDINGS = {
    "en": Wording(
        {
            "size": {"small": ("small", "little"), "large": ("large", "big")},
            "colour": {"red": ("red",), "yellow": ("yellow",), "blue": ("blue",), "black": ("black",)},
            "pattern": {
                "plain": ("plain",),
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
        },
        (
            "A {size} {colour} {pattern} ball lies on the {ground} .",
            "A {pattern} {colour} ball is lying on the {ground} .",
            "There is a {size} {pattern} ball on the {ground} .",
            "On the {ground} lies a {size} {colour} ball .",
            "The {pattern} ball on the {ground} is {size} and {colour} .",
            "Somebody left a {colour} {pattern} ball on the {ground} .",
            "A ball on the {ground} , {size} , {colour} and {pattern} .",
            "A {size} ball rests on the {ground} ; it is {colour} and {pattern} .",
        ),
    ),
    "de": Wording(
        {
            "size": {"small": ("klein", "winzig"), "large": ("groß", "riesig")},
            "colour": {"red": ("rot",), "yellow": ("gelb",), "blue": ("blau",), "black": ("schwarz",)},
            "pattern": {
                "plain": ("einfarbig",),
                "striped": ("gestreift",),
                "dotted": ("gepunktet", "getupft"),
                "chequered": ("kariert",),
            },
            "ground": {
                "grass": ("Gras", "Rasen"),
                "snow": ("Schnee",),
                "sand": ("Sand", "Strand"),
                "water": ("Wasser", "See"),
            },
        },
        (
            "Ein {size}er {colour}er {pattern}er Ball liegt auf dem {ground}.",
            "Der {pattern}e {colour}e Ball liegt auf dem {ground}.",
            "Auf dem {ground} ist ein {size}er {pattern}er Ball.",
            "Auf dem {ground} liegt ein {size}er {colour}er Ball.",
            "Der {pattern}e Ball auf dem {ground} ist {size} und {colour}.",
            "Jemand hat einen {colour}en {pattern}en Ball auf dem {ground} vergessen.",
            "Ein Ball auf dem {ground}, {size}, {colour} und {pattern}.",
            "Ein {size}er Ball ruht auf dem {ground}; er ist {colour} und {pattern}.",
        ),
        endings=("", "e", "er", "en"),
    ),
    "zh": Wording(
        {
            "size": {"small": ("小",), "large": ("大",)},
            "colour": {"red": ("红",), "yellow": ("黄",), "blue": ("蓝",), "black": ("黑",)},
            "pattern": {
                "plain": ("纯色", "素面"),
                "striped": ("条纹",),
                "dotted": ("圆点", "斑点"),
                "chequered": ("方格", "格子"),
            },
            "ground": {
                "grass": ("草地", "草坪"),
                "snow": ("雪地",),
                "sand": ("沙地", "沙滩"),
                "water": ("水面", "湖面"),
            },
        },
        (
            "{ground}上放着一个{size}的{colour}色{pattern}球。",
            "一个{colour}色的{pattern}球在{ground}上。",
            "{ground}上有一个{size}的{pattern}球。",
            "{ground}上有一个{size}的{colour}色的球。",
            "{ground}上的{pattern}球又{size}又{colour}。",
            "有人把一个{colour}色的{pattern}球忘在{ground}上。",
            "{ground}上的一个球，{size}的，{colour}色，{pattern}。",
            "一个{size}球停在{ground}上，颜色是{colour}色，花纹是{pattern}。",
        ),
    ),
}
"""By BCP 47 code of the language. All have the same attributes with the same values."""

CAPTIONS_PER_IMAGE = 5

# Chosen so that a linear probe on the pooled features of an untrained ResNet50 predicts every attribute of unseen
# pictures: balls large enough for their pattern, patterns of different scales, grounds with less contrast than these.
_SIDE = 224  # pixels, the pictures' width and height
_RADIUS = {"small": (60, 64), "large": (92, 98)}  # pixels, minimum and maximum
_PERIOD = {"striped": 18, "dotted": 16, "chequered": 40}  # pixels, period of the pattern
_COLOURS = {"red": (205, 25, 35), "yellow": (250, 205, 10), "blue": (25, 50, 190), "black": (25, 25, 28)}
_SECOND_COLOUR = np.array([250, 248, 240])  # of each ball that is not plain

_Floats: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Ground:
    """The mean colour, and the noise on it: the (height, width) of its grain in pixels, and its standard deviation."""

    colour: tuple[int, int, int]
    grain: tuple[int, int]
    deviation: float


_GROUNDS = {
    "grass": _Ground((70, 140, 55), (14, 4), 8),
    "snow": _Ground((240, 243, 248), (40, 60), 6),
    "sand": _Ground((214, 186, 140), (2, 2), 5),
    "water": _Ground((80, 175, 205), (5, 40), 8),
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """A picture: its file name, its attributes, its captions, and the seed of everything that no caption mentions."""

    image: str
    truth: dict[str, str]
    captions: list[str]
    seed: int


def generate(directory: Path, *, images: int = 600, new: int = 0, seed: int = 0, language: str = ENGLISH) -> int:
    """Write the data set, or complete an interrupted one, and return the number of its pictures.

    The files in ``directory`` are ``images/*.jpg`` (RGB, 224×224), ``Flickr8k.token.txt``
    (``NAME.jpg#K<TAB>CAPTION``, five per picture), ``Flickr_8k.{train,dev,test}Images.txt`` (80, 10 and 10 %, one file
    name per line) and ``truth.csv`` (the file name, then one column per attribute). ``new/*.jpg`` are as many further
    pictures as ``new`` says, without captions and in no split. The same ``images``, ``seed`` and ``language``, one
    of ``WORDINGS``, give the same data set; files that are already correct are not written again, so they keep their
    etags. File names differ between seeds and languages.

    Raises:
        PipelineError: fewer than ten images, or ``directory`` holds something else.
    """
    if images < 10:
        raise PipelineError(f"A data set to be split 80/10/10 needs at least 10 images. Received: images={images}")
    scenes = [_scene(index, seed, language) for index in range(images)]
    bucket = LocalBucket(directory)
    _claim(bucket, _truth_csv(scenes))
    for scene in scenes:
        _write(bucket, f"images/{scene.image}", _jpeg(_paint(scene)))
    for scene in (_scene(index, seed, language) for index in range(images, images + new)):
        _write(bucket, f"new/{scene.image}", _jpeg(_paint(scene)))
    for key, lines in _annotations(scenes):
        _write(bucket, key, "".join(f"{line}\n" for line in lines).encode())
    logger.info("%s holds %d synthetic pictures (seed %d)", bucket.uri, images, seed)
    return images


def generate_one(number: int) -> bytes:
    """A single picture as a JPEG (RGB, 224×224), for a number always the same one."""
    return _jpeg(_paint(_scene(0, number, ENGLISH)))


def attributes(caption: str, language: str = ENGLISH) -> set[tuple[str, str]]:
    """The (attribute, value) pairs that a caption states, such as ``("colour", "red")``, even contradictory ones."""
    text, wording = _spaced(caption), WORDINGS[language]
    return {
        (attribute, value)
        for attribute, values in wording.words.items()
        for value, synonyms in values.items()
        if any(_spaced(word + ending) in text for word in synonyms for ending in wording.endings)
    }


def read_truth(directory: Path) -> dict[str, set[tuple[str, str]]]:
    """The true (attribute, value) pairs of each picture by file name: ``attributes(caption) & truth[name]`` is correct.

    Raises:
        PipelineError: ``directory`` holds no ``truth.csv``.
    """
    text = LocalBucket(directory).get("truth.csv").decode()
    return {row.pop("image"): set(row.items()) for row in csv.DictReader(io.StringIO(text))}


def _spaced(text: str) -> str:
    """The words of a text, each between spaces."""
    return f" {' '.join(clean(text))} "


def _scene(index: int, seed: int, language: str) -> _Scene:
    rng, wording = random.Random(f"{seed}/{index}"), WORDINGS[language]
    truth = {attribute: rng.choice(list(values)) for attribute, values in wording.words.items()}
    captions = [
        template.format_map(
            {attribute: rng.choice(wording.words[attribute][value]) for attribute, value in truth.items()}
        )
        for template in rng.sample(wording.templates, CAPTIONS_PER_IMAGE)
    ]
    name = f"ball-{seed}" if language == ENGLISH else f"ball-{language}-{seed}"
    return _Scene(f"{name}-{index:04d}.jpg", truth, captions, rng.getrandbits(64))


def _truth_csv(scenes: list[_Scene]) -> bytes:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, ["image", *scenes[0].truth], lineterminator="\n")
    table.writeheader()
    table.writerows({"image": scene.image, **scene.truth} for scene in scenes)
    return buffer.getvalue().encode()


def _annotations(scenes: list[_Scene]) -> Iterator[tuple[str, list[str]]]:
    """The names and lines of the text files of the Flickr8k layout."""
    yield (
        "Flickr8k.token.txt",
        [f"{scene.image}#{k}\t{caption}" for scene in scenes for k, caption in enumerate(scene.captions)],
    )
    names = [scene.image for scene in scenes]
    dev, test = len(names) * 8 // 10, len(names) * 9 // 10
    yield "Flickr_8k.trainImages.txt", names[:dev]
    yield "Flickr_8k.devImages.txt", names[dev:test]
    yield "Flickr_8k.testImages.txt", names[test:]


def _claim(bucket: LocalBucket, truth: bytes) -> None:
    """Write ``truth.csv`` first: it identifies a folder whose data set was interrupted."""
    key = "truth.csv"
    if not bucket.root.exists() or (bucket.root.is_dir() and not any(bucket.list())):
        bucket.put(key, truth)
    elif not bucket.exists(key) or bucket.get(key) != truth:
        raise PipelineError(
            f"{bucket.root} holds something other than the synthetic data set of this size, seed and language. Choose "
            "an empty folder, or the size, seed and language that the data set was generated with."
        )


def _write(bucket: LocalBucket, key: str, data: bytes) -> None:
    if not bucket.exists(key) or bucket.get(key) != data:
        bucket.put(key, data)


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _paint(scene: _Scene) -> npt.NDArray[np.uint8]:
    """The picture: RGB, uint8 of shape (224, 224, 3)."""
    rng = np.random.default_rng(scene.seed)
    radius = rng.uniform(*_RADIUS[scene.truth["size"]])
    middle = rng.uniform(radius + 6, _SIDE - radius - 6, size=2)
    y, x = np.mgrid[:_SIDE, :_SIDE] - middle[:, None, None]  # pixels from the centre of the ball

    ground = _GROUNDS[scene.truth["ground"]]
    canvas = _vary(ground.colour, rng) + ground.deviation * _noise(ground.grain, rng)
    canvas *= 1 - 0.35 * _inside(np.hypot((x - 0.15 * radius) / 1.05, (y - 0.75 * radius) / 0.45) - radius, blur=16)

    marks = _marks(scene.truth["pattern"], y, x, rng)
    ball = _vary(_COLOURS[scene.truth["colour"]], rng) * (1 - marks) + _SECOND_COLOUR * marks
    from_highlight = np.hypot(x + 0.4 * radius, y + 0.45 * radius) / (1.6 * radius)
    ball *= (1.08 - 0.35 * from_highlight.clip(0, 1) ** 2)[..., None]

    disc = _inside(np.hypot(x, y) - radius)
    canvas = canvas * (1 - disc) + ball * disc
    canvas = canvas * rng.uniform(0.92, 1.05) + rng.normal(0, 3, canvas.shape)  # exposure and the sensor's noise
    return canvas.clip(0, 255).astype(np.uint8)


def _marks(pattern: str, y: _Floats, x: _Floats, rng: np.random.Generator) -> _Floats:
    """The share of the second colour in each pixel of a ball: (224, 224, 1), 0..1."""
    if pattern == "plain":
        return np.zeros((_SIDE, _SIDE, 1))
    period = _PERIOD[pattern]
    angle = rng.uniform(-0.2, 0.2)  # radians
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    # The distance of each pixel to the nearest line of a grid, in both directions.
    dx, dy = (np.abs((line + rng.uniform(0, period)) % period - period / 2) for line in (across, along))
    if pattern == "dotted":
        return _inside(np.hypot(dx, dy) - 0.28 * period)
    rows, columns = _inside(dy - period / 4), _inside(dx - period / 4)
    return rows if pattern == "striped" else rows + columns - 2 * rows * columns


def _inside(distance: _Floats, blur: float = 1) -> _Floats:
    """A mask, 1 inside a shape and 0 outside, from the signed distance to its edge; ``blur`` is the width of the edge.

    In pixels, (height, width) → (height, width, 1).
    """
    return (0.5 - distance / blur).clip(0, 1)[..., None]


def _vary(colour: tuple[int, int, int], rng: np.random.Generator) -> _Floats:
    return np.array(colour) + rng.uniform(-10, 10, size=3)


def _noise(grain: tuple[int, int], rng: np.random.Generator) -> _Floats:
    """Smooth noise: (224, 224, 1), with a standard deviation of about 1."""
    cells = rng.normal(size=(_SIDE // grain[0] + 2, _SIDE // grain[1] + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))[..., None]

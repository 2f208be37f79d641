"""A toy world that trains in seconds: pictures of one colour, captions that name it, an encoder that sees the mean."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.captioner.metadata import ModelMetadata
from pipeline.config import TrainingConfig
from pipeline.data import dataset
from pipeline.data.dataset import build_vocabulary
from pipeline.data.ingest import ingest
from pipeline.features import encoder, extraction
from pipeline.features.regions import add_regions
from pipeline.storage import Bucket
from pipeline.training.train import train_captioner

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200), "yellow": (210, 210, 40)}

TEXTS = {
    "en": ({}, ("a {} square", "the whole picture is {}")),
    "de": (
        {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"},
        ("Ein {}es Quadrat.", "Das ganze Bild ist {}."),
    ),
    "zh": (
        {"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄"},
        ("一个{}色的方块。", "整个画面都是{}{}的。"),
    ),
}
"""By language, the names of the colours where they are not these, and the two captions of each picture."""

SPLITS = ("train", "train", "train", "train", "dev", "test")
"""Of the pictures of each colour."""

CONFIG = TrainingConfig(
    embedding="learned",
    embedding_size=8,
    units=16,
    dropout=0,
    epochs=20,
    patience=20,
    batch_size=8,
    learning_rate=0.03,
    scst_epochs=0,
)


@dataclass(frozen=True)
class Inputs:
    """A training's inputs: the pictures, and the names of the dataset, the vocabulary and the encoder in the store."""

    source: Bucket
    dataset: str
    vocabulary: str
    encoder_id: str


@dataclass(frozen=True)
class Trained:
    """A store with a dataset, its features and a model trained on them."""

    store: Bucket
    inputs: Inputs
    model: ModelMetadata


def picture(colour: str, seed: int = 0, *, size: tuple[int, int] = (8, 8)) -> bytes:
    """A small JPEG of nearly the colour; other seeds give other pictures."""
    shade = np.random.default_rng(seed).integers(-25, 26, 3) + COLOURS[colour]
    buffer = io.BytesIO()
    Image.new("RGB", size, tuple(map(int, shade))).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(*colour: int) -> bytes:
    """A small PNG of just the colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def captions(colour: str, language: str = "en") -> list[str]:
    """The captions of a picture; one in Chinese repeats a character at once."""
    names, texts = TEXTS[language]
    name = names.get(colour, colour)
    return [text.format(name, name) for text in texts]


def draw(bucket: Bucket, *, seed: int = 0, broken: tuple[str, ...] = (), language: str = "en") -> str:
    """Put pictures (those named in ``broken`` damaged) and the table of their captions; return the table's URI."""
    lines = ["image,caption,split"]
    for colour in COLOURS:
        for number, split in enumerate(SPLITS):
            name = f"{colour}-{number}.jpg"
            data = picture(colour, seed + number)
            bucket.put(f"pictures/{name}", data[:50] if name in broken else data)
            lines += [f"{name},{caption},{split}" for caption in captions(colour, language)]
    bucket.put("captions.csv", "\n".join(lines).encode())
    return bucket.url("captions.csv")


def save_encoder(path: Path) -> Path:
    """Save an encoder whose features are the mean of each colour channel."""
    import keras

    pictures = keras.Input((8, 8, 3))
    keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(pictures)).save(path)
    return path


def prepare(
    source: Bucket,
    store: Bucket,
    encoder_file: Path,
    *,
    broken: tuple[str, ...] = (),
    crops: bool = False,
    regions: bool = False,
    language: str = "en",
) -> Inputs:
    """Draw pictures, ingest them and extract their features: all that comes before a training."""
    table = draw(source, broken=broken, language=language)
    dataset_id = ingest([table], store, name="toy", language=language).dataset
    vocabulary, _ = build_vocabulary(dataset_id, store, min_count=1)
    encoder_id = encoder.register(str(encoder_file), store, crops=crops)
    if regions:
        encoder_id = add_regions(encoder_id, dataset_id, store)
    for name, images in dataset.listings_by_source(dataset.load(dataset_id, store).table).items():
        extraction.extract_missing(images, run="r", source=name, encoder_id=encoder_id, store=store)
    return Inputs(source, dataset_id, vocabulary, encoder_id)


def train(inputs: Inputs, store: Bucket, config: TrainingConfig = CONFIG) -> ModelMetadata:
    """Train on the inputs, with one unreadable picture in twenty allowed."""
    return train_captioner(
        inputs.dataset,
        inputs.vocabulary,
        encoder_id=inputs.encoder_id,
        config=config,
        store=store,
        max_failed_fraction=0.05,
        tracking_uri="",
    )


def copy(source: Bucket, target: Bucket, *prefixes: str) -> None:
    """Copy the objects whose keys begin with one of ``prefixes``."""
    for prefix in prefixes:
        for item in source.list(prefix):
            target.put(item.key, source.get(item.key))


def etags(bucket: Bucket, *prefixes: str) -> dict[str, str]:
    """The etag of each object whose key begins with one of ``prefixes``."""
    return {item.key: item.etag for prefix in prefixes for item in bucket.list(prefix)}

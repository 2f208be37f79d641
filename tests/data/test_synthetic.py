"""The drawn data set: its layout, its truth, and that drawing it again disturbs nothing."""

import csv
import io
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import synthetic
from pipeline.data.synthetic import WORDINGS, attributes, generate, read_truth
from pipeline.errors import PipelineError

IMAGES = 20

LANGUAGES = pytest.mark.parametrize("language", list(WORDINGS))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, for reading only."""
    directory = tmp_path_factory.mktemp("drawn")
    assert generate(directory, images=IMAGES) == IMAGES
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files(directory)}


def mtimes(directory: Path) -> dict[str, int]:
    return {path.relative_to(directory).as_posix(): path.stat().st_mtime_ns for path in files(directory)}


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def captions(directory: Path) -> list[tuple[str, str]]:
    """The token file's (``NAME.jpg#K``, caption) pairs."""
    lines = (directory / "Flickr8k.token.txt").read_text().splitlines()
    return [(key, caption) for key, caption in (line.split("\t") for line in lines)]


def split(directory: Path, name: str) -> list[str]:
    return (directory / f"Flickr_8k.{name}Images.txt").read_text().splitlines()


def test_layout(drawn: Path) -> None:
    """The folder holds the Flickr8k files, the truth, and every picture as a 224×224 RGB JPEG, and nothing else."""
    names = [path.name for path in (drawn / "images").iterdir()]
    assert len(names) == IMAGES
    assert set(contents(drawn)) == {f"images/{name}" for name in names} | {
        "Flickr8k.token.txt",
        "Flickr_8k.trainImages.txt",
        "Flickr_8k.devImages.txt",
        "Flickr_8k.testImages.txt",
        "truth.csv",
    }
    for name in names:
        with Image.open(drawn / "images" / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224))


def test_new_pictures_are_in_no_split(drawn: Path, tmp_path: Path) -> None:
    """They are further ones, in a folder of their own, and change nothing else; drawn again, they stay as they are."""
    generate(tmp_path, images=IMAGES, new=3)
    found = contents(tmp_path)
    new = {key for key in found if key.startswith("new/")}
    assert {key: found[key] for key in found.keys() - new} == contents(drawn)
    assert new == {f"new/ball-0-{number:04d}.jpg" for number in (20, 21, 22)}
    assert not {found[key] for key in new} & {*contents(drawn).values()}
    before = mtimes(tmp_path)
    generate(tmp_path, images=IMAGES, new=3)
    assert mtimes(tmp_path) == before


def test_splits_are_80_10_10_and_cover_every_picture_once(drawn: Path) -> None:
    """Train, dev and test take 80, 10 and 10 % of the pictures, and share none."""
    train, dev, test = (split(drawn, name) for name in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (16, 2, 2)
    assert sorted(train + dev + test) == sorted(path.name for path in (drawn / "images").iterdir())


def test_truth_has_a_column_an_attribute(drawn: Path) -> None:
    """``truth.csv`` gives each picture one known value for each attribute."""
    with (drawn / "truth.csv").open(newline="") as file:
        table = csv.DictReader(file)
        assert table.fieldnames == ["image", "size", "colour", "pattern", "ground"]
        rows = list(table)
    assert len(rows) == IMAGES
    assert all(row[attribute] in values for row in rows for attribute, values in WORDINGS["en"].words.items())


def test_each_picture_has_five_different_captions(drawn: Path) -> None:
    """Each picture has captions #0 to #4, no two alike."""
    by_image: dict[str, set[str]] = {}
    keys = set()
    for key, caption in captions(drawn):
        keys.add(key)
        by_image.setdefault(key.rpartition("#")[0], set()).add(caption)
    assert keys == {f"{image}#{k}" for image in read_truth(drawn) for k in range(5)}
    assert all(len(different) == 5 for different in by_image.values())


def test_captions_are_true_and_state_at_least_three_attributes(drawn: Path) -> None:
    """A caption states three attributes or four, each as ``truth.csv`` has it, and ends as Flickr8k's do."""
    truth = read_truth(drawn)
    for key, caption in captions(drawn):
        stated = attributes(caption)
        assert len(stated) >= 3
        assert stated <= truth[key.rpartition("#")[0]]
        assert caption.endswith(" .")


def test_every_word_is_frequent_in_the_default_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default 600 pictures the train split has every word of the test and dev captions at least ten times."""
    monkeypatch.setattr(synthetic, "_paint", lambda scene: np.zeros((1, 1, 3), np.uint8))  # only the text matters
    generate(tmp_path)
    train = set(split(tmp_path, "train"))
    counts: Counter[str] = Counter()
    words = set()
    for key, caption in captions(tmp_path):
        words.update(caption.lower().split())
        if key.rpartition("#")[0] in train:
            counts.update(caption.lower().split())
    assert len(train) == 480
    stating = {word for values in WORDINGS["en"].words.values() for synonyms in values.values() for word in synonyms}
    assert stating <= words
    assert {word for word in words if counts[word] < 10} == set()


@LANGUAGES
def test_no_word_states_two_values(language: str) -> None:
    """A word is in the list of one value only, and in no template, so that recombined captions read one way."""
    wording = WORDINGS[language]
    words = [word for values in wording.words.values() for synonyms in values.values() for word in synonyms]
    assert len(words) == len(set(words))
    bare = [template.format_map(dict.fromkeys(wording.words, ".")) for template in wording.templates]
    assert all(attributes(template, language) == set() for template in bare)


@LANGUAGES
def test_every_language_states_the_same_attributes(language: str) -> None:
    """Each sentence with each word states the values of at least three attributes, as their names in English do."""
    wording = WORDINGS[language]
    english = {attribute: set(values) for attribute, values in WORDINGS["en"].words.items()}
    assert {attribute: set(values) for attribute, values in wording.words.items()} == english
    for attribute, values in wording.words.items():
        for value, synonyms in values.items():
            for word, template in itertools.product(synonyms, wording.templates):
                others = {name: next(iter(of_name.items())) for name, of_name in wording.words.items()}
                stated = {name: first for name, (first, _) in others.items()} | {attribute: value}
                words = {name: first_words[0] for name, (_, first_words) in others.items()} | {attribute: word}
                named = {name for name in stated if f"{{{name}}}" in template}
                assert len(named) >= 3
                assert attributes(template.format_map(words), language) == {(name, stated[name]) for name in named}


@pytest.mark.parametrize("language", ["de", "zh"])
def test_captions_of_another_language_are_true(tmp_path: Path, language: str) -> None:
    """They are those of the language, and the names of the files differ from those of English pictures."""
    generate(tmp_path, images=10, language=language)
    truth = read_truth(tmp_path)
    for key, caption in captions(tmp_path):
        assert len(attributes(caption, language)) >= 3
        assert attributes(caption, language) <= truth[key.rpartition("#")[0]]
    assert all(name.startswith(f"ball-{language}-0-") for name in truth)
    with pytest.raises(PipelineError, match="size, seed and language"):
        generate(tmp_path, images=10)


def test_attributes_reads_captions_of_any_wording() -> None:
    """Case, order, punctuation and unknown words do not matter; a contradiction gives both values."""
    assert attributes("Big RED thing, spotted on a lawn.") == {
        ("size", "large"),
        ("colour", "red"),
        ("pattern", "dotted"),
        ("ground", "grass"),
    }
    assert attributes("a red blue ball") == {("colour", "red"), ("colour", "blue")}
    assert attributes("a dog runs") == set()


def test_pixels_show_the_truth(drawn: Path) -> None:
    """The ball's middle and the picture's corners are nearest in colour to the truth, for plain balls."""
    truth = {name: dict(pairs) for name, pairs in read_truth(drawn).items()}
    for name, true in truth.items():
        with Image.open(drawn / "images" / name) as image:
            pixels = np.asarray(image).astype(float)
        corners = np.concatenate([pixels[:8, :8], pixels[:8, -8:], pixels[-8:, :8]]).mean(axis=(0, 1))
        assert (
            nearest(corners, {value: ground.colour for value, ground in synthetic._GROUNDS.items()}) == true["ground"]
        )
        if true["pattern"] == "plain":
            middle = pixels[104:120, 104:120].mean(axis=(0, 1))
            assert nearest(middle, synthetic._COLOURS) == true["colour"]


def nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - palette[name])))


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    """Another folder with the same count and seed gets byte for byte the same files."""
    generate(tmp_path / "again", images=IMAGES)
    assert contents(tmp_path / "again") == contents(drawn)


def test_another_seed_draws_other_pictures_under_other_names(drawn: Path, tmp_path: Path) -> None:
    """Two seeds share neither a file name nor a picture, so they can share a bucket."""
    generate(tmp_path, images=10, seed=1)
    one = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    other = {path.name: path.read_bytes() for path in (drawn / "images").iterdir()}
    assert not one.keys() & other.keys()
    assert not set(one.values()) & set(other.values())


def test_drawing_again_leaves_files_untouched(tmp_path: Path) -> None:
    """A second run rewrites nothing: modification times, and so etags, stay."""
    generate(tmp_path, images=10)
    before = mtimes(tmp_path)
    generate(tmp_path, images=10)
    assert mtimes(tmp_path) == before


def test_an_interrupted_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption the next run writes what is missing and leaves what is there untouched."""
    paint = synthetic._paint
    interrupt_at = 4

    def interrupted(scene: synthetic._Scene) -> np.ndarray:
        if scene.image.endswith(f"{interrupt_at:04d}.jpg"):
            raise KeyboardInterrupt
        return paint(scene)

    monkeypatch.setattr(synthetic, "_paint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "interrupted", images=10)
    monkeypatch.undo()
    before = mtimes(tmp_path / "interrupted")
    assert len(before) == interrupt_at + 1

    generate(tmp_path / "interrupted", images=10)
    generate(tmp_path / "whole", images=10)
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "whole")
    assert mtimes(tmp_path / "interrupted").items() >= before.items()


def test_a_damaged_picture_is_mended(tmp_path: Path) -> None:
    """A picture whose bytes are not the drawn ones is written again."""
    generate(tmp_path, images=10)
    whole = contents(tmp_path)
    damaged = next((tmp_path / "images").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    generate(tmp_path, images=10)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(("images", "seed"), [(11, 0), (10, 1)])
def test_a_data_set_of_another_size_or_seed_is_refused(tmp_path: Path, images: int, seed: int) -> None:
    """A folder that holds another drawing is named in the error and left as it is."""
    generate(tmp_path, images=10)
    before = mtimes(tmp_path)
    with pytest.raises(PipelineError, match=tmp_path.name):
        generate(tmp_path, images=images, seed=seed)
    assert mtimes(tmp_path) == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    """A folder with anybody else's file, or a file in place of a folder, is refused and left as it is."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PipelineError, match="empty folder"):
        generate(tmp_path, images=10)
    with pytest.raises(PipelineError, match="empty folder"):
        generate(tmp_path / "notes.txt", images=10)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_too_few_images_to_split_are_refused(tmp_path: Path) -> None:
    """Nine pictures leave a split empty: refused before anything is written."""
    with pytest.raises(PipelineError, match="images=9"):
        generate(tmp_path / "new", images=9)
    assert not (tmp_path / "new").exists()


def test_pictures_of_the_same_truth_differ(tmp_path: Path) -> None:
    """Pictures vary beyond their attributes: the same truth with another seed is another picture throughout."""
    scene = synthetic._scene(0, 0, "en")
    other = synthetic._Scene(scene.image, scene.truth, scene.captions, scene.seed + 1)
    one, two = synthetic._paint(scene).astype(int), synthetic._paint(other).astype(int)
    assert np.mean(np.abs(one - two)) > 5


def test_jpeg_keeps_the_pixels() -> None:
    """The written file decodes to the painted pixels, except for the loss of compression."""
    pixels = synthetic._paint(synthetic._scene(0, 0, "en"))
    with Image.open(io.BytesIO(synthetic._jpeg(pixels))) as image:
        assert np.mean(np.abs(np.asarray(image).astype(int) - pixels)) < 5

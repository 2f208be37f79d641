"""Captions on demand: which pictures are found, what is returned for each, and how it is printed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.captioner import registry
from pipeline.captioner.captioner import Caption
from pipeline.config import DecodingConfig
from pipeline.data.decoders import DecoderStartError
from pipeline.errors import PipelineError
from pipeline.serving import on_demand
from pipeline.serving.on_demand import Captioned
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.decoder_code import CANNOT_START, in_decoders
from tests.support.loading import load_once


@pytest.fixture(scope="module")
def store(trained, tmp_path_factory):
    """A store whose champion is the model of the toy world."""
    store = open_bucket(str(tmp_path_factory.mktemp("store")))
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    return store


@pytest.fixture
def caption(store, monkeypatch):
    """Caption pictures with that store; returns the results by the given names."""
    load_once(monkeypatch)

    def run(*pictures, **changes):
        options = {"version": None, "decoding": DecodingConfig(), "alternatives": 0, "store": store}
        return {found.picture: found for found in on_demand.caption(pictures, **(options | changes))}

    return run


def colour(found):
    """The colour that the caption names."""
    [named] = set(toy.COLOURS) & set(found.captions[0].text.split())
    return named


def test_a_folder_stands_for_all_its_pictures(bucket, caption):
    """All pictures in a folder or under an S3 prefix, at any depth, are captioned in the order of their names."""
    for key in ("b.jpg", "a/blue, näive.JPG", "c/d/red #1%.jpg"):
        bucket.put(key, toy.picture("red" if "red" in key else "blue"))
    bucket.put("notes.txt", b"no picture")
    found = caption(f"{bucket.uri}/")
    assert list(found) == [bucket.url(key) for key in ("a/blue, näive.JPG", "b.jpg", "c/d/red #1%.jpg")]
    assert [colour(picture) for picture in found.values()] == ["blue", "blue", "red"]
    # The printed names can be given again.
    assert [colour(caption(picture)[picture]) for picture in found] == ["blue", "blue", "red"]


def test_pictures_of_a_folder_are_known_by_their_content(bucket, caption):
    """Where their suffix is unknown, or there is none; a picture that is named may have any."""
    for key in ("photo.jpg_orig", "red", "1.txt"):
        bucket.put(key, toy.picture("red"))
    bucket.put("README", b"no picture")
    found = caption(f"{bucket.uri}/", bucket.url("1.txt"))
    assert list(found) == [bucket.url(key) for key in ("photo.jpg_orig", "red", "1.txt")]
    assert [colour(picture) for picture in found.values()] == ["red"] * 3


def test_pictures_keep_their_order_and_names(tmp_path, monkeypatch, caption):
    """Files, folders and URIs, relative or not, come in the order in which they were given."""
    monkeypatch.chdir(tmp_path)
    here = open_bucket(str(tmp_path))
    here.put("red.jpg", toy.picture("red"))
    for number in range(3):
        here.put(f"more/green-{number}.jpg", toy.picture("green", number))
    here.put("yellow.jpg", toy.picture("yellow"))
    found = caption(str(tmp_path / "yellow.jpg"), "more/", here.url("red.jpg"), "red.jpg")
    names = [str(tmp_path / "yellow.jpg"), *(f"more/green-{i}.jpg" for i in range(3)), here.url("red.jpg"), "red.jpg"]
    assert list(found) == names
    assert [colour(picture) for picture in found.values()] == ["yellow", *["green"] * 3, "red", "red"]


@pytest.mark.parametrize("name", ["~me.jpg", "a\nb\x1b[1m.jpg", "100%41.jpg", "s3:x?.jpg", os.fsdecode(b"\xff.jpg")])
def test_odd_names_are_captioned(name, tmp_path, monkeypatch, caption):
    """A file is captioned whatever characters its name has, and its line can be printed."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(toy.picture("blue"))
    found = caption(name)[name]
    assert colour(found) == "blue"
    line = found.to_text()
    assert line.isprintable()
    assert line.encode()
    assert json.loads(found.to_json())["picture"] == name


def test_an_empty_name_is_not_the_working_directory(tmp_path, monkeypatch, caption):
    """It is an error of its own, and no picture is captioned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red.jpg").write_bytes(toy.picture("red"))
    [(name, found)] = caption("").items()
    assert (name, found.error) == ("", "the name is empty; give the path or URI of a picture or a folder")
    assert found.to_text() == f"error: '': {found.error}"


def test_bad_pictures_do_not_affect_the_others(tmp_path, monkeypatch, caption):
    """Each bad picture has its error, in its place; the good ones have their captions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "good.jpg").write_bytes(toy.picture("green"))
    (tmp_path / "broken.jpg").write_bytes(toy.picture("green")[:100])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")
    expected = {
        "missing.jpg": "there is no such file or folder",
        "good.jpg": None,
        "broken.jpg": "cannot be decoded",
        "text.jpg": "not a picture in a known format",
        "large.png": "million pixels",
        "empty": "there is no picture in this folder, that is, no file in one of the formats JPEG, PNG,",
        "~nobody-of-this-name/a.jpg": "home directory",
        "ftp://host/a.jpg": "Not a bucket",
        "\0.jpg": "null byte",
    }
    found = caption(*expected)
    assert list(found) == list(expected)
    for picture, error in expected.items():
        if error is None:
            assert (found[picture].error, colour(found[picture])) == (None, "green")
        else:
            assert error in found[picture].error
            assert not found[picture].captions


def test_decoders_that_cannot_start(tmp_path, monkeypatch, caption):
    """No picture has an error of its own for it: the command fails."""
    (tmp_path / "good.jpg").write_bytes(toy.picture("green"))
    for name, value in in_decoders(CANNOT_START, tmp_path / "code").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DecoderStartError, match=r"libjpeg\.so\.62"):
        caption(str(tmp_path / "good.jpg"))


def test_without_any_readable_picture(caption):
    """Where no picture can be read, each has its error."""
    assert caption("a.jpg", "b.jpg").keys() == {"a.jpg", "b.jpg"}


def test_alternatives_are_as_many_as_wanted(tmp_path, caption):
    """The best caption comes first, for any number of alternatives; more than the beam holds are an error."""
    path = str(tmp_path / "red.jpg")
    Path(path).write_bytes(toy.picture("red"))
    alone, three = (caption(path, decoding=DecodingConfig(beam_width=4), alternatives=n)[path].captions for n in (0, 2))
    assert (len(alone), len(three)) == (1, 3)
    assert three[0] == alone[0]
    with pytest.raises(PipelineError, match="width 4 gives the best caption and 3 alternatives, not 4: raise --beam"):
        caption(path, decoding=DecodingConfig(beam_width=4), alternatives=4)


def test_a_model_can_be_named(tmp_path, caption, store, trained):
    """The named model captions instead of the champion; there must be such a model, or a champion."""
    path = str(tmp_path / "red.jpg")
    Path(path).write_bytes(toy.picture("red"))
    assert colour(caption(path, version=trained.model.version)[path]) == "red"
    with pytest.raises(PipelineError, match="no model 'v9'"):
        caption(path, version="v9")
    with pytest.raises(PipelineError, match="No model has been promoted"):
        caption(path, store=open_bucket(str(tmp_path / "elsewhere")))


BEST = {"caption": "a red square", "log_prob": -0.5, "probability": 0.125}

BEAM = [Caption("a red square", -0.5, 0.125), Caption("a square", -5.7, 1.1e-05)]


@pytest.mark.parametrize(
    ("captioned", "text", "record"),
    [
        (
            Captioned("a.jpg", BEAM[:1]),
            "a.jpg: a red square",
            {**BEST, "confidence": None, "novel": None, "alternatives": []},
        ),
        (
            Captioned("a.jpg", [replace(BEAM[0], confidence=0.716, novel=False)]),
            "a.jpg: a red square (72 % sure)",
            {**BEST, "confidence": 0.716, "novel": False, "alternatives": []},
        ),
        (
            Captioned("a.jpg", [replace(BEAM[0], confidence=0.716, novel=True)]),
            "a.jpg: a red square (unlike the photographs it learned from)",
            {**BEST, "confidence": 0.716, "novel": True, "alternatives": []},
        ),
        (
            Captioned("a.jpg", BEAM),
            "a.jpg: a red square\n    a square",
            {
                **BEST,
                "confidence": None,
                "novel": None,
                "alternatives": [{"caption": "a square", "log_prob": -5.7, "probability": 1.1e-05}],
            },
        ),
        (
            Captioned("a.jpg", [], "the file is empty"),
            "error: a.jpg: the file is empty",
            {"error": "the file is empty"},
        ),
    ],
    ids=["caption", "sure", "novel", "alternatives", "error"],
)
def test_text_and_json(captioned, text, record):
    """The text says how sure it is, but never of a novel picture; JSON is one object with the whole content."""
    assert captioned.to_text() == text
    assert json.loads(captioned.to_json()) == {"picture": "a.jpg", **record}

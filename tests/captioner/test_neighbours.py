"""The training photographs nearest to a picture, and what their captions do to its beam."""

import numpy as np
import pytest

from pipeline.captioner import neighbours as neighbours_module
from pipeline.captioner.captioner import Captioner
from pipeline.captioner.neighbours import Neighbours
from pipeline.captioner.sentences import Sentences
from pipeline.config import DecodingConfig
from pipeline.data.vocabulary import END, PAD, Vocabulary
from pipeline.features.store import Features

VECTORS = np.random.default_rng(0).normal(size=(40, 6)) * [1, 1, 100, 1, 1, 1] + 5
"""Vectors of 40 photographs. The numbers of one column are much larger, which should make no difference."""

WORDS = ["a", "dog", "cat", "sits", "runs"]
VOCABULARY = Vocabulary.build([" ".join(WORDS)], min_count=1)


def index(*captions):
    """The photographs with these lists of captions, the last one again and again."""
    lists = [captions[min(number, len(captions) - 1)] for number in range(len(VECTORS))]
    ids = [VOCABULARY.encode(text) for texts in lists for text in texts]
    return Neighbours.build(VECTORS, ids, np.repeat(np.arange(len(lists)), list(map(len, lists))))


def texts(voters):
    """The captions of voters, by image."""
    found = [VOCABULARY.decode(ids) for ids in voters.ids]
    return [[text for text, image in zip(found, voters.image, strict=True) if image == number] for number in (0, 1)]


def test_the_nearest_are_found():
    """They are the ones whose standardized vectors have the largest cosines, the nearest first; itself is the first."""
    standardized = (VECTORS - VECTORS.mean(axis=0)) / VECTORS.std(axis=0)
    unit = standardized / np.linalg.norm(standardized, axis=1, keepdims=True)
    photographs = index(["a dog"])
    found, cosines = photographs.search(photographs.components(VECTORS), 5)
    np.testing.assert_array_equal(found, np.argsort(-unit @ unit.T, axis=1)[:, :5])
    np.testing.assert_array_equal(found[:, 0], np.arange(40))
    assert (np.diff(cosines) <= 0).all()
    assert photographs.search(photographs.components(VECTORS[:2]), 100)[0].shape == (2, 40)


def test_their_captions_vote():
    """All captions of the nearest photographs are voters, however many each has."""
    photographs = index(["a dog runs", "a dog"], ["a cat sits"], ["cat", "a cat", "a cat runs"], ["dog"])
    voters = photographs.voters(VECTORS[[2, 0]], 1)
    assert voters.ids.dtype == np.int32
    assert texts(voters) == [["cat", "a cat", "a cat runs"], ["a dog runs", "a dog"]]
    assert [len(each) for each in texts(photographs.voters(VECTORS[[2, 0]], 40))] == [43, 43]


def test_a_file_holds_all():
    """An index is read as it was written, and equal indexes give equal files."""
    photographs = index(["a dog runs", "a dog"], ["a cat sits"])
    data = photographs.to_bytes()
    read = Neighbours.from_bytes(data)
    for name, array in vars(photographs).items():
        np.testing.assert_array_equal(vars(read)[name], array)
    assert read.captions.dtype == np.uint8
    assert read.to_bytes() == data


def test_large_datasets_are_thinned(monkeypatch):
    """Of more photographs than are kept, some of all are kept, with their own captions."""
    monkeypatch.setattr(neighbours_module, "MAX_PHOTOGRAPHS", 3)
    photographs = index(["a dog"], ["cat"])
    assert len(photographs.photographs) == 3
    assert texts(photographs.voters(VECTORS[[0, 39]], 1)) == [["a dog"], ["cat"]]


class TwoBeams:
    """A decoder that finds two captions for each image, in batches of one image."""

    attends = False

    def decode(self, features, decoding, **_):
        """A dog is a little more probable than a cat."""
        ids = [[*VOCABULARY.encode(text)[1:-1], END, PAD] for text in ("a dog runs", "a cat sits")]
        for _ in range(len(features)):
            yield Sentences(np.array([ids]), np.full((1, 2), 4), np.array([[-4.0, -4.2]])), None


def test_the_beam_is_reranked():
    """A picture like a photograph of a cat gets the caption of a cat, unless neighbours have no vote."""
    captioner = Captioner(TwoBeams(), VOCABULARY, index(["a cat sits", "a cat"], ["a dog runs"]), max_length=5)
    pictures = Features(VECTORS[[1, 0, 2]])
    decoding = DecodingConfig(beam_width=2, neighbours=1)
    assert [each.text for each in captioner.caption(pictures, decoding)] == ["a dog runs", "a cat sits", "a dog runs"]
    alone = decoding.model_copy(update={"neighbours": 0})
    assert {each.text for each in captioner.caption(pictures, alone)} == {"a dog runs"}


@pytest.mark.parametrize(("decoding", "neighbours"), [({}, 20), ({"beam_width": 1}, 0), ({"neighbours": 3}, 3)])
def test_greedy_search_has_none(decoding, neighbours):
    """By default 20 photographs vote; not for greedy search, which has one caption."""
    assert DecodingConfig(**decoding).neighbours == neighbours

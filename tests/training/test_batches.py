"""Batches of training data: every caption once, in order or shuffled, and long captions cut."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.vocabulary import END, PAD, START, Vocabulary
from pipeline.features.splits import SplitFeatures
from pipeline.features.store import Features
from pipeline.training.batches import EncodedCaptions, encode_captions
from tests.support.small_captioner import FEATURES, SENTENCES, VOCABULARY

MANY = EncodedCaptions(FEATURES, np.arange(35) % 3, [VOCABULARY.encode(text) for text in SENTENCES] * 7)
"""35 captions of three images."""


def training(captions, size, seed=0):
    """Batches to train on, shuffled by a seed."""
    return list(captions.training_batches(size, np.random.default_rng(seed)))


def rows(batches):
    """The image and the words of each row, padding left out."""
    found = []
    for inputs, targets, weights in batches:
        assert inputs["words"].shape == targets.shape == weights.shape
        for vector, words, following, weight in zip(inputs["features"], inputs["words"], targets, weights, strict=True):
            length = int(weight.sum())
            assert weight[:length].all()
            assert (following[length:] == PAD).all()
            assert words[0] == START
            assert following[length - 1] == END
            np.testing.assert_array_equal(words[1:length], following[: length - 1])
            found.append((int(np.flatnonzero((vector == FEATURES.vectors).all(axis=1))[0]), *words[:length], END))
    return found


@pytest.mark.parametrize("batches", [training, EncodedCaptions.evaluation_batches], ids=["training", "evaluation"])
def test_batches_hold_every_caption_once(batches):
    """Each caption comes once, with its own image, and its padding has no weight."""
    expected = sorted((int(image), *ids) for image, ids in zip(MANY.image, MANY.ids, strict=True))
    assert sorted(rows(batches(MANY, 4))) == expected


def test_training_batches_are_shuffled():
    """The order depends on the random generator; captions of a batch have similar lengths."""
    assert rows(training(MANY, 4)) == rows(training(MANY, 4))
    assert rows(training(MANY, 4)) != rows(training(MANY, 4, seed=1))
    for _, _, weights in training(MANY, 7):
        # Five different sentences, seven of each, make batches of one length.
        assert len(set(weights.sum(axis=1))) == 1


def test_evaluation_batches_are_always_the_same():
    """They come in the order of their length."""
    lengths = [len(row) for row in rows(MANY.evaluation_batches(4))]
    assert lengths == sorted(lengths)
    assert rows(MANY.evaluation_batches(4)) == rows(MANY.evaluation_batches(4))


def test_crops():
    """Each training caption has a random crop of its image, and each evaluation caption the mean crop."""
    crops = np.stack([FEATURES.vectors + shift for shift in range(3)], axis=1)
    captions = EncodedCaptions(Features(crops), MANY.image, MANY.ids)
    seen = {tuple(vector) for inputs, _, _ in training(captions, 4) for vector in inputs["features"]}
    assert seen == {tuple(vector) for vector in crops.reshape(-1, crops.shape[-1])}
    means = {tuple(vector) for inputs, _, _ in captions.evaluation_batches(4) for vector in inputs["features"]}
    assert means == {tuple(vector) for vector in crops.mean(axis=1)}


def test_long_captions_are_cut():
    """The few captions longer than the limit lose their end, and those of dev are cut to the limit of train."""
    captions = [["a red square"]] * 300 + [["a red " + "very " * 40 + "square"]]
    vocabulary = Vocabulary.build((text for texts in captions for text in texts), min_count=1)
    split = SplitFeatures(pa.table({"captions": captions}), Features(np.zeros((301, 3), np.float32)))
    encoded, max_length = encode_captions(split, vocabulary)
    assert max_length == 3
    assert encoded.ids[0] == vocabulary.encode("a red square")
    assert encoded.ids[-1] == vocabulary.encode("a red very")[:-1]
    assert [ids for ids in encoded.ids if ids[0] != START or (ids[-1] != END and len(ids) != 4)] == []
    shorter, limit = encode_captions(split, vocabulary, 2)
    assert (limit, max(len(ids) for ids in shorter.ids)) == (2, 3)


def test_captions_are_as_neutral_as_the_vocabulary():
    """A vocabulary of neutral captions makes a captioner learn these; the references stay as they are."""
    captions = [["A man runs .", "A woman runs ."], ["A man runs ."]]
    vocabulary = Vocabulary.build(["a man woman person runs"], min_count=1)
    split = SplitFeatures(
        pa.table({"image_id": ["a", "b"], "captions": captions}), Features(np.zeros((2, 3), np.float32))
    )
    for neutral, expected in ((False, ["a man runs", "a woman runs"]), (True, ["a person runs"] * 2)):
        encoded, _ = encode_captions(split, replace(vocabulary, neutral_wording=neutral))
        assert [vocabulary.decode(ids[1:]) for ids in encoded.ids] == [*expected, "a man runs"]
    assert split.references == dict(zip("ab", captions, strict=True))

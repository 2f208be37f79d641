"""Batches of training data: every caption once, in order or shuffled, and long captions cut."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.vocabulary import END, PAD, START, Vocabulary
from pipeline.features.splits import SplitFeatures
from pipeline.features.store import Features
from pipeline.training.batches import MULTIPLE, EncodedCaptions, encode_captions
from tests.support.small_captioner import FEATURES, REGIONS, SENTENCES, VOCABULARY

MANY = EncodedCaptions(FEATURES, np.arange(35) % 3, [VOCABULARY.encode(text) for text in SENTENCES] * 7)
"""35 captions of three images."""

ATTENDED = EncodedCaptions(REGIONS, MANY.image, MANY.ids)
"""The same captions of images with regions."""


def training(captions, size, seed=0):
    """Batches to train on, shuffled by a seed."""
    return list(captions.training_batches(size, np.random.default_rng(seed)))


def rows(batches):
    """The image and the words of each row, padding left out."""
    found = []
    for inputs, targets, weights in batches:
        assert inputs["words"].shape == targets.shape == weights.shape
        vectors = inputs["features"][inputs["rows"]]
        for vector, words, following, weight in zip(vectors, inputs["words"], targets, weights, strict=True):
            length = int(weight.sum())
            assert weight[:length].all()
            assert (following[length:] == PAD).all()
            assert words[0] == START
            assert following[length - 1] == END
            np.testing.assert_array_equal(words[1:length], following[: length - 1])
            found.append((int(np.flatnonzero((vector == FEATURES.vectors).all(axis=1))[0]), *words[:length], END))
    return found


@pytest.mark.parametrize("captions", [MANY, ATTENDED], ids=["vectors", "regions"])
@pytest.mark.parametrize("batches", [training, EncodedCaptions.evaluation_batches], ids=["training", "evaluation"])
def test_batches_hold_every_caption_once(batches, captions):
    """Each caption comes once, with its own image, and its padding has no weight."""
    expected = sorted((int(image), *ids) for image, ids in zip(MANY.image, MANY.ids, strict=True))
    assert sorted(rows(batches(captions, 4))) == expected


def test_training_batches_are_shuffled():
    """The order depends on the random generator; captions of a batch have similar lengths."""
    assert rows(training(MANY, 4)) == rows(training(MANY, 4))
    assert rows(training(MANY, 4)) != rows(training(MANY, 4, seed=1))
    for _, _, weights in training(MANY, 7):
        # Five different sentences, seven of each, make batches of one length.
        assert len(set(weights.sum(axis=1))) == 1


def test_captions_of_an_image_share_its_regions():
    """They are in one batch, or two that follow each other; images whose longest captions are alike are together."""
    rng = np.random.default_rng(0)
    features = Features(np.arange(40.0)[:, None], rng.random((40, 6, 4)).astype(np.float16))
    longest = rng.integers(3, 9, 40)
    lengths = np.minimum(longest[:, None], [9, 2, 9, 3, 2])
    ids = [[START, *[4] * (length - 2), END] for length in lengths.ravel()]
    captions = EncodedCaptions(features, np.repeat(np.arange(40), 5), ids)
    for found in (training(captions, 20), list(captions.evaluation_batches(20))):
        assert len(found) == 10
        for inputs, _, weights in found:
            images = inputs["features"][:, 0].astype(int)
            np.testing.assert_array_equal(inputs["regions"], features.regions[images])
            # Four images, filled up with the first of them.
            assert len(images) == MULTIPLE
            np.testing.assert_array_equal(np.bincount(inputs["rows"]), [5] * 4)
            lengths_of_images = longest[images]
            assert lengths_of_images.max() - lengths_of_images.min() <= 1
            assert weights.shape[1] == captions.pad_length(lengths_of_images.max() - 1)
    orders = [np.concatenate([inputs["rows"] for inputs, *_ in training(captions, 20, seed)]) for seed in (0, 1)]
    assert not np.array_equal(*orders)
    images = [training(captions, 20, seed)[0][0]["features"].tolist() for seed in (0, 0, 1)]
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize("captions", [MANY, ATTENDED], ids=["vectors", "regions"])
@pytest.mark.parametrize("batches", [training, EncodedCaptions.evaluation_batches], ids=["training", "evaluation"])
def test_few_shapes_for_an_accelerator(batches, captions):
    """Batches have one of two lengths, and one size, though 35 is no multiple of 4; each caption counts once."""
    few = replace(captions, few_shapes=True)
    found = list(batches(few, 4))
    longest = max(map(len, few.ids)) - 1
    assert {weights.shape for _, _, weights in found} == {(4, math.ceil(longest / 2)), (4, longest)}
    assert len({inputs["features"].shape for inputs, *_ in found}) == 1
    counted = []
    for inputs, targets, weights in found:
        kept = weights.any(axis=1)
        of_kept = {**inputs, "rows": inputs["rows"][kept], "words": inputs["words"][kept]}
        counted += rows([(of_kept, targets[kept], weights[kept])])
        # The others are captions, too: a model never sees an empty one.
        assert (targets[~kept] != PAD).any(axis=1).all()
    assert sorted(counted) == sorted(rows(batches(captions, 4)))


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

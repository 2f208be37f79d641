"""MBR decoding: a beam is reranked by its similarity to samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioner.mbr import Voters, rerank, stratified_uniforms
from pipeline.captioner.sentences import Sentences
from tests.support.encoded_captions import encoded

INFORMATION = np.array([0, 0, 0, 0, 1.0, 1, 2, 2, 3, 3])


def beam(*sentences, log_probs):
    """One image's beam, with the log probability of each whole sentence."""
    lengths = [len(sentence) + 1 for sentence in sentences]
    return Sentences(encoded(sentences)[None], np.array([lengths]), np.array([log_probs], np.float32))


def first(sentences):
    """The words of the best sentence of the first image."""
    return sentences.ids[0, 0, : sentences.lengths[0, 0] - 1].tolist()


def test_the_caption_of_most_samples_comes_first():
    """A caption that resembles most samples wins over one that is a little more probable."""
    found = beam([4, 5, 6], [7, 8, 9], log_probs=[-4.0, -4.4])
    samples = encoded([[7, 8, 9], [7, 8], [8, 9], [4, 5, 6]])[None]
    ranked = rerank(found, [Voters.sampled(samples)], INFORMATION)
    assert first(ranked) == [7, 8, 9]
    np.testing.assert_allclose(ranked.log_probs, [[-4.4, -4.0]])


def test_without_a_majority_probability_decides():
    """Of captions that are equally similar to the samples, the more probable comes first; empty places come last."""
    found = beam([4, 5], [], [8, 9], log_probs=[-4.0, -np.inf, -3.0])
    ranked = rerank(found, [Voters.sampled(encoded([[6, 7], [6]])[None])], INFORMATION)
    np.testing.assert_allclose(ranked.log_probs, [[-3.0, -4.0, -np.inf]])


def test_rare_words_decide():
    """Of two captions that share one word with the samples, the one that shares the rarer word wins."""
    found = beam([4, 5], [8, 5], log_probs=[-4.0, -4.0])
    assert first(rerank(found, [Voters.sampled(encoded([[4, 7], [8, 7]])[None])], INFORMATION)) == [8, 5]


def test_groups_of_voters_count_alike():
    """Two captions of one group count as much as four of another, and images may have different numbers of voters."""
    found = beam([4, 5, 6], [7, 8, 9], log_probs=[-4.0, -4.0])
    few, many = encoded([[7, 8, 9], [7, 8, 9]]), encoded([[4, 5]] * 4)
    groups = [Voters(few, np.zeros(2, int)), Voters(many, np.zeros(4, int))]
    assert first(rerank(found, groups, INFORMATION)) == [7, 8, 9]
    two = Sentences(*(np.concatenate([part, part]) for part in found))
    ranked = rerank(two, [Voters(np.concatenate([few, many]), np.array([0, 0, 1, 1, 1, 1]))], INFORMATION)
    assert ranked.ids[:, 0, 0].tolist() == [7, 4]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_images_do_not_affect_each_other(seed, images, width, samples):
    """The beam of each image is reranked as it is alone, and nothing is lost."""
    rng = np.random.default_rng(seed)
    ids = encoded([rng.integers(4, 10, rng.integers(8)).tolist() for _ in range(images * (width + samples))])
    ids = ids.reshape(images, width + samples, -1)
    lengths = (ids[:, :width] != 0).sum(axis=-1)
    found = Sentences(ids[:, :width], lengths, rng.normal(-9, 1, (images, width)).astype(np.float32))
    together = rerank(found, [Voters.sampled(ids[:, width:])], INFORMATION)
    for image in range(images):
        alone = rerank(
            Sentences(*(part[image : image + 1] for part in found)),
            [Voters.sampled(ids[image : image + 1, width:])],
            INFORMATION,
        )
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[image])
        assert sorted(together.log_probs[image]) == sorted(found.log_probs[image])


@pytest.mark.parametrize(("samples", "length"), [(1, 1), (7, 20), (1000, 3)])
def test_uniforms_are_stratified(samples, length):
    """Each column has one number in each stratum of [0, 1), in an order of its own; they are always the same."""
    numbers = stratified_uniforms(samples, length)
    assert (numbers.shape, numbers.dtype) == ((samples, length), np.float32)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    for column in numbers.T:
        # Rounding to float32 may move a number across the edge of its stratum.
        np.testing.assert_allclose(np.sort(column), (np.arange(samples) + 0.5) / samples, atol=0.51 / samples)
    assert len({tuple(column) for column in numbers.T}) == length
    np.testing.assert_array_equal(numbers, stratified_uniforms(samples, length))

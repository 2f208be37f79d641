"""The bootstrap: scores of resampled images from their statistics, against the toolkit's scores of those images."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.bootstrap import ImageStatistics, mean_interval

captions = st.lists(st.sampled_from(["a", "dog", "runs", "fast", "cat"]), min_size=1, max_size=9).map(" ".join)


def toolkit(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU computed by the toolkit."""
    from pycocoevalcap.bleu.bleu import Bleu

    ours, theirs = (
        {str(i): list(own) for i, own in enumerate(sets)} for sets in ([[c] for c in candidates], references)
    )
    return {f"BLEU-{n}": value for n, value in enumerate(Bleu(4).compute_score(theirs, ours, verbose=0)[0], 1)}


@given(st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1, max_size=6), st.data())
def test_any_resample_has_the_toolkits_score(images: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    """Each image once gives the toolkit's BLEU, and any resample that of the corpus with its images repeated."""
    candidates, references = [caption for caption, _ in images], [own for _, own in images]
    statistics = ImageStatistics.of(candidates, references, {})
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images)).filter(any))
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    expected = [
        toolkit(candidates, references),
        toolkit([candidates[row] for row in rows], [references[row] for row in rows]),
    ]
    found = statistics.scores(np.array([[1] * len(images), counts]))
    for name, values in found.items():
        assert values == pytest.approx([scores[name] for scores in expected], rel=1e-9, abs=1e-12)


def test_a_candidate_without_words_has_a_score() -> None:
    """Empty captions score 0, as in the toolkit."""
    statistics = ImageStatistics.of(["", ""], [["a dog"], ["a cat"]], {"CIDEr": [0, 0]})
    for values in statistics.scores(np.array([[1, 1]])).values():
        assert values == pytest.approx([0], abs=1e-9)


def test_means_follow_the_resample() -> None:
    """A metric that is a mean over images is the mean over the resampled images."""
    statistics = ImageStatistics.of(["a"] * 3, [["a"]] * 3, {"CIDEr": [1, 2, 6]})
    assert statistics.scores(np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]]))["CIDEr"].tolist() == pytest.approx(
        [3, 1, 14 / 3]
    )


def test_the_interval_of_a_mean_agrees_with_theory() -> None:
    """For many images it extends about 1.96 standard errors on either side of the mean."""
    values = np.random.default_rng(1).exponential(size=2000)
    low, high = mean_interval(values.tolist())
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)

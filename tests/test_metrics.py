"""Scores against those of the COCO toolkit called by hand, against hand-computed ones, and without Java."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.metrics import METRICS, Scores, cider, diversity, score

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")

REFERENCES = {
    "a.jpg": ["A brown dog runs on the grass .", "The dog's running in a field ."],
    "b.jpg": ["Two children can't stop playing in the snow .", "Kids play in snow (outside) ."],
    "c.jpg": ["A man rides a red bicycle .", "A t-shirted cyclist on a hill ."],
}
CANDIDATES = {"a.jpg": "a dog runs on the grass", "b.jpg": "two children play in the snow", "c.jpg": "a man on a hill"}


def by_hand(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """What the toolkit's own classes give, its Java tokenizer and METEOR included."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not os.access(Path(ptbtokenizer.__file__).parent, os.W_OK):
        pytest.skip("the toolkit's tokenizer writes into its own folder, which is read-only here")
    tokenizer = ptbtokenizer.PTBTokenizer()
    theirs = tokenizer.tokenize({image: [{"caption": text} for text in texts] for image, texts in references.items()})
    ours = tokenizer.tokenize({image: [{"caption": text}] for image, text in candidates.items()})
    bleu = Bleu(4).compute_score(theirs, ours, verbose=0)[0]
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}
    for name, metric in (("METEOR", Meteor()), ("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        scores[name] = metric.compute_score(theirs, ours)[0]
    return scores


@pytest.fixture(scope="module")
def people(flickr8k: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Of 250 real photographs the first caption as a candidate and the other four as references."""
    captions: dict[str, list[str]] = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t", 1)
        captions.setdefault(name.split("#")[0], []).append(caption)
    images = sorted(image for image, texts in captions.items() if len(texts) == 5)[:250]
    return {image: captions[image][0] for image in images}, {image: captions[image][1:] for image in images}


@needs_java
def test_scores_equal_the_toolkits_own() -> None:
    """Every score equals that of the toolkit's classes with its Java tokenizer."""
    scores = score(CANDIDATES, REFERENCES)
    assert scores.tokenizer == "ptb"
    assert tuple(scores.corpus) == METRICS
    assert scores.corpus == pytest.approx(by_hand(CANDIDATES, REFERENCES), abs=1e-6)


@needs_java
def test_scores_of_real_captions_equal_the_toolkits_own_with_and_without_java(
    people: tuple[dict[str, str], dict[str, list[str]]],
) -> None:
    """On real captions the scores are the toolkit's, and without Java they differ by less than 0.002."""
    expected = by_hand(*people)
    with_java, without = score(*people, java=True), score(*people, java=False)
    assert with_java.corpus == pytest.approx(expected, abs=1e-6)
    del expected["METEOR"]
    assert (without.tokenizer, without.corpus) == ("builtin", pytest.approx(expected, abs=0.002))
    assert 0.5 < without.corpus["CIDEr"] < 1.2  # people agree with each other about this much


def test_bleu_of_a_hand_computed_case() -> None:
    """Clipped precisions 5/6, 3/5, 2/4, 1/3 and a reference one word longer give BLEU by the formula."""
    scores = score({"a": "the the cat sat on mats"}, {"a": ["The cat sat on the mat today ."]}, java=False)
    # Of 6 words "the" counts twice, "mats" is missing; bigrams: the cat, cat sat, sat on; one 4-gram of three.
    precisions = (5 / 6, 3 / 5, 2 / 4, 1 / 3)
    brevity = math.exp(1 - 7 / 6)
    for n in range(1, 5):
        assert scores.corpus[f"BLEU-{n}"] == pytest.approx(brevity * math.prod(precisions[:n]) ** (1 / n), abs=1e-6)


def test_captions_that_repeat_a_reference_are_perfect() -> None:
    """A candidate equal to a reference but for case and punctuation gets BLEU and ROUGE-L of 1."""
    candidates = {image: texts[0].lower().replace(" .", "") for image, texts in REFERENCES.items()}
    corpus = score(candidates, REFERENCES, java=False).corpus
    assert [corpus[name] for name in ("BLEU-1", "BLEU-4", "ROUGE-L")] == pytest.approx([1, 1, 1])


def test_captions_without_a_common_word_score_nothing() -> None:
    """A candidate that shares no word with its references gets 0, an empty one too."""
    scores = score({"a.jpg": "xyzzy", "b.jpg": "", "c.jpg": "xyzzy"}, REFERENCES, java=False)
    assert list(scores.corpus.values()) == pytest.approx([0] * len(scores.corpus), abs=1e-6)


def test_cider_of_images_averages_to_the_corpus() -> None:
    """Each image has its CIDEr, the better caption the higher, and the corpus has their mean."""
    scores = score({**CANDIDATES, "c.jpg": "xyzzy"}, REFERENCES, java=False)
    assert scores.image_cider.keys() == CANDIDATES.keys()
    assert scores.image_cider["c.jpg"] == 0 < scores.image_cider["a.jpg"]
    assert scores.corpus["CIDEr"] == pytest.approx(sum(scores.image_cider.values()) / 3)
    assert cider({**CANDIDATES, "c.jpg": "xyzzy"}, REFERENCES) == pytest.approx(scores.corpus["CIDEr"])


def test_the_order_of_images_does_not_matter() -> None:
    """Candidates in another order than the references give the same scores to the same images."""
    backwards = dict(reversed(CANDIDATES.items()))
    assert score(backwards, REFERENCES, java=False).image_cider == pytest.approx(
        score(CANDIDATES, REFERENCES, java=False).image_cider
    )


def test_without_java_meteor_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no Java the record says so: our tokenizer, and no METEOR."""
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score(CANDIDATES, REFERENCES)
    assert scores.tokenizer == "builtin"
    assert tuple(scores.corpus) == tuple(name for name in METRICS if name != "METEOR")


def test_a_broken_java_is_done_without_unless_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Java that fails is warned of and done without; where it was asked for, it is an error."""
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(CANDIDATES, REFERENCES).tokenizer == "builtin"
    assert "without Java" in caplog.text
    with pytest.raises(PipelineError, match="PTBTokenizer ended with status 1"):
        score(CANDIDATES, REFERENCES, java=True)


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output stays clean, since the command line's result stands there."""
    score(CANDIDATES, REFERENCES)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("function", [score, cider])
def test_nothing_to_score_is_an_error(function: Callable[..., object]) -> None:
    """No candidates, an image without references, or with none that has a word, are errors that say so."""
    with pytest.raises(PipelineError, match="no captions to score"):
        function({}, REFERENCES)
    for references in ({"a.jpg": ["A dog ."]}, {"a.jpg": ["A dog ."], "b.jpg": []}, {"a.jpg": ["a"], "b.jpg": [" . "]}):
        with pytest.raises(PipelineError, match=r"1 captioned images have no reference .* b\.jpg"):
            function({"a.jpg": "a dog", "b.jpg": "a cat"}, references)


def test_images_without_a_candidate_are_left_out() -> None:
    """References of images that were not captioned change nothing."""
    assert score(CANDIDATES, {**REFERENCES, "d.jpg": ["a dog"]}, java=False) == score(
        CANDIDATES, REFERENCES, java=False
    )


def test_scores_survive_json() -> None:
    """Scores written as JSON are read back the same."""
    scores = score(CANDIDATES, REFERENCES, java=False)
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_diversity_counts_captions_and_words() -> None:
    """Of four captions three differ, and they use four words of a vocabulary of eight."""
    found = diversity({"1": "a dog", "2": "a dog", "3": "a cat runs", "4": "a"}, vocabulary_size=8)
    assert (found.captions, found.distinct_captions, found.words) == (4, 0.75, 4)
    assert (found.vocabulary_used, found.mean_length) == (0.5, 2.0)


def test_diversity_of_nothing_is_an_error() -> None:
    """Without captions there is no diversity to speak of."""
    with pytest.raises(PipelineError, match="no captions"):
        diversity({}, vocabulary_size=8)

"""Scores against those of the COCO toolkit called by hand, against hand-computed ones, and without Java."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.metrics import FUNCTION_WORDS, METRICS, Agreement, Scores, agreement, cider, diversity, score

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
def people(flickr8k: Path) -> dict[str, list[str]]:
    """The five captions of each of the real test photographs."""
    test = set((flickr8k / "Flickr_8k.testImages.txt").read_text(encoding="utf-8").split())
    captions: dict[str, list[str]] = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t", 1)
        if (image := name.split("#")[0]) in test:
            captions.setdefault(image, []).append(caption)
    return captions


def without(captions: dict[str, list[str]], place: int) -> dict[str, list[str]]:
    """All captions of each image but one."""
    return {image: texts[:place] + texts[place + 1 :] for image, texts in captions.items()}


@needs_java
def test_scores_equal_the_toolkits_own() -> None:
    """Every score equals that of the toolkit's classes with its Java tokenizer."""
    scores = score(CANDIDATES, REFERENCES)
    assert scores.tokenizer == "ptb"
    assert tuple(scores.corpus) == METRICS
    assert scores.corpus == pytest.approx(by_hand(CANDIDATES, REFERENCES), abs=1e-6)


@needs_java
def test_scores_of_real_captions_equal_the_toolkits_own_with_and_without_java(people: dict[str, list[str]]) -> None:
    """The first captions of all test photographs have the toolkit's scores, and without Java those within 0.002."""
    first, others = {image: texts[0] for image, texts in people.items()}, without(people, 0)
    expected = by_hand(first, others)
    with_java, java_free = score(first, others, java=True), score(first, others, java=False)
    assert with_java.corpus == pytest.approx(expected, abs=1e-6)
    del expected["METEOR"]
    assert (java_free.tokenizer, java_free.corpus) == ("builtin", pytest.approx(expected, abs=0.002))


def test_agreement_of_people_is_the_mean_over_who_is_left_out(people: dict[str, list[str]]) -> None:
    """On real captions people's agreement is the mean of five scorings, and people agree about as much as is known."""
    found = agreement(dict.fromkeys(people, "a dog runs"), people, java=False)
    rounds = [
        score({image: texts[place] for image, texts in people.items()}, without(people, place), java=False).corpus
        for place in range(5)
    ]
    assert found.people == pytest.approx({name: sum(r[name] for r in rounds) / 5 for name in rounds[0]})
    assert (found.images, found.images_left_out) == (len(people), 0)
    # Published for the official test images: BLEU-4 .209, CIDEr .789.
    assert found.people["BLEU-4"] == pytest.approx(0.209, abs=0.03)
    assert found.people["CIDEr"] == pytest.approx(0.789, abs=0.1)


def test_agreement_scores_both_against_the_same_references() -> None:
    """The captioner's scores are the means of those against all references but one, left out in turn."""
    references = {image: [*texts, f"{texts[0]} {texts[1]}"] for image, texts in REFERENCES.items()}
    found = agreement(CANDIDATES, references, java=False)
    rounds = [score(CANDIDATES, without(references, place), java=False).corpus for place in range(3)]
    assert found.captioner == pytest.approx({name: sum(r[name] for r in rounds) / 3 for name in rounds[0]})
    assert tuple(found.people) == tuple(name for name in METRICS if name != "METEOR")


def test_images_with_one_reference_do_not_count_for_agreement() -> None:
    """Who wrote alone of an image, or beside captions without a word, has nobody to agree with: it is only counted."""
    more = {"d.jpg": ["a cat"], "e.jpg": ["a cat", " . "]}
    found = agreement(CANDIDATES | dict.fromkeys(more, "a cat"), REFERENCES | more, java=False)
    alone = agreement(CANDIDATES, REFERENCES, java=False)
    assert found == alone.model_copy(update={"images_left_out": 2})
    assert agreement({"d.jpg": "a cat"}, more, java=False) == Agreement(
        images=0, images_left_out=1, people={}, captioner={}
    )


def test_images_may_have_different_numbers_of_references() -> None:
    """There are as many rounds as the image with the most references has; the others leave theirs out in turn."""
    references = {**REFERENCES, "a.jpg": [*REFERENCES["a.jpg"], "A dog plays on a field ."]}
    turns = [(0, 0), (1, 1), (2, 0)]
    rounds = [
        score(
            {image: texts[three if image == "a.jpg" else two] for image, texts in references.items()},
            {
                image: texts[: (at := three if image == "a.jpg" else two)] + texts[at + 1 :]
                for image, texts in references.items()
            },
            java=False,
        ).corpus
        for three, two in turns
    ]
    found = agreement(CANDIDATES, references, java=False)
    assert found.people == pytest.approx({name: sum(r[name] for r in rounds) / 3 for name in rounds[0]})


@needs_java
def test_agreement_has_meteor_where_there_is_java() -> None:
    """METEOR of people and captioner is that of all rounds' captions as one corpus."""
    found = agreement(CANDIDATES, REFERENCES)
    turns = {f"{place} {image}": (texts, place) for place in (0, 1) for image, texts in REFERENCES.items()}
    corpus = score(
        {turn: texts[place] for turn, (texts, place) in turns.items()},
        {turn: [texts[1 - place]] for turn, (texts, place) in turns.items()},
    ).corpus
    assert found.people["METEOR"] == pytest.approx(corpus["METEOR"], abs=1e-6)
    assert tuple(found.captioner) == METRICS


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


@pytest.mark.parametrize("function", [score, cider, agreement])
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


def test_intervals_hold_the_score() -> None:
    """Each score but METEOR lies within its interval, which is the same every time, and of one image is a point."""
    candidates = {f"{n} {image}": caption for n in range(9) for image, caption in CANDIDATES.items()}
    references = {f"{n} {image}": texts for n in range(9) for image, texts in REFERENCES.items()}
    scores = score(candidates, references, java=False)
    assert scores.intervals.keys() == scores.corpus.keys()
    for name, (low, high) in scores.intervals.items():
        assert low < scores.corpus[name] < high
    assert score(candidates, references, java=False).intervals == scores.intervals
    single = score({"a": "a dog runs"}, {"a": ["a dog runs fast"]}, java=False)
    for name, interval in single.intervals.items():
        assert interval == pytest.approx((single.corpus[name],) * 2)


def test_diversity_counts_captions_and_words() -> None:
    """Of four captions three differ, and they use four words, three of them of a vocabulary of six."""
    found = diversity(
        ["a dog", "A dog .", "a cat runs", "a"], vocabulary=["a", "dog", "cat", "x", "y", "z"], training=[]
    )
    assert (found.captions, found.distinct_captions, found.words) == (4, 0.75, 4)
    assert (found.vocabulary_used, found.mean_length) == (0.5, 2.0)


def test_novel_captions_are_no_training_captions() -> None:
    """A caption is novel where no training caption has its words, whatever the case and punctuation."""
    found = diversity(["a dog", "a dog runs", "a cat"], vocabulary=["a"], training=["A dog .", "A cat !"])
    assert found.novel_captions == pytest.approx(1 / 3)


def test_captions_that_break_off_are_counted() -> None:
    """A caption that ends in a function word breaks off; one without a word does not."""
    found = diversity(["a dog with a", "a dog in the snow", "", "two"], vocabulary=["a"], training=[])
    assert found.ends_in_function_word == 0.25
    assert {"a", "the", "of", "in", "on", "with", "and", "to", "at"} <= FUNCTION_WORDS


def test_diversity_of_nothing_is_an_error() -> None:
    """Without captions there is no diversity to speak of."""
    with pytest.raises(PipelineError, match="no captions"):
        diversity([], vocabulary=["a"], training=[])

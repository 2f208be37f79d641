"""Scores against those of the COCO toolkit called directly, against values computed by hand, and without Java."""

import logging
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline import progress
from pipeline.errors import PipelineError
from pipeline.metrics import coco, java
from pipeline.metrics.coco import (
    FUNCTION_WORDS,
    METRICS,
    Agreement,
    HumanBaseline,
    Scorer,
    Scores,
    cider,
    diversity,
    score,
)

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")

REFERENCES = {
    "a.jpg": ["A brown dog runs on the grass .", "The dog's running in a field ."],
    "b.jpg": ["Two children can't stop playing in the snow .", "Kids play in snow (outside) ."],
    "c.jpg": ["A man rides a red bicycle .", "A t-shirted cyclist on a hill ."],
}
CANDIDATES = {"a.jpg": "a dog runs on the grass", "b.jpg": "two children play in the snow", "c.jpg": "a man on a hill"}


def toolkit_scores(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """The scores by the toolkit's own classes, with its Java tokenizer and METEOR."""
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
def human_captions(flickr8k: Path) -> dict[str, list[str]]:
    """The five references of each of the real test photographs."""
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
    """Each score equals that of the toolkit's classes with its Java tokenizer."""
    scores = score(CANDIDATES, REFERENCES)
    assert scores.tokenizer == "ptb"
    assert tuple(scores.corpus) == METRICS
    assert scores.corpus == pytest.approx(toolkit_scores(CANDIDATES, REFERENCES), abs=1e-6)


@needs_java
def test_scores_of_real_captions_equal_the_toolkits_own_with_and_without_java(
    human_captions: dict[str, list[str]],
) -> None:
    """The first captions of all test photographs have the toolkit's scores, and without Java those within 0.002."""
    first = {image: texts[0] for image, texts in human_captions.items()}
    others = without(human_captions, 0)
    expected = toolkit_scores(first, others)
    with_java, java_free = score(first, others, java=True), score(first, others, java=False)
    assert with_java.corpus == pytest.approx(expected, abs=1e-6)
    del expected["METEOR"]
    assert (java_free.tokenizer, java_free.corpus) == ("builtin", pytest.approx(expected, abs=0.002))


def agreement(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: bool | None = None
) -> Agreement:
    """A captioner beside the human baseline."""
    with Scorer(references, java=java) as scorer:
        return scorer.agreement(candidates, scorer.human_baseline())


def mean_corpus(rounds: Sequence[Scores]) -> dict[str, float]:
    return {name: sum(scores.corpus[name] for scores in rounds) / len(rounds) for name in rounds[0].corpus}


def test_human_baseline_is_the_mean_over_the_references_left_out(human_captions: dict[str, list[str]]) -> None:
    """On real captions the human baseline is the mean of five scorings, and close to published values."""
    found = Scorer(human_captions, java=False).human_baseline()
    rounds = [
        score({image: texts[k] for image, texts in human_captions.items()}, without(human_captions, k), java=False)
        for k in range(5)
    ]
    assert found.scores == pytest.approx(mean_corpus(rounds))
    assert (found.tokenizer, found.images, found.images_left_out) == ("builtin", len(human_captions), 0)
    # Published for the official test images: BLEU-4 .209, CIDEr .789.
    assert found.scores["BLEU-4"] == pytest.approx(0.209, abs=0.03)
    assert found.scores["CIDEr"] == pytest.approx(0.789, abs=0.1)


def test_agreement_scores_both_against_the_same_references() -> None:
    """The captioner's scores are the means of those against all references but one, left out in turn."""
    references = {image: [*texts, f"{texts[0]} {texts[1]}"] for image, texts in REFERENCES.items()}
    found = agreement(CANDIDATES, references, java=False)
    rounds = [score(CANDIDATES, without(references, k), java=False) for k in range(3)]
    assert found.captioner == pytest.approx(mean_corpus(rounds))
    assert tuple(found.human) == tuple(name for name in METRICS if name != "METEOR")


def test_images_with_one_reference_do_not_count_for_agreement() -> None:
    """An image with a single reference, or a single one with a word in it, is only counted."""
    more = {"d.jpg": ["a cat"], "e.jpg": ["a cat", " . "]}
    found = agreement(CANDIDATES | dict.fromkeys(more, "a cat"), REFERENCES | more, java=False)
    alone = agreement(CANDIDATES, REFERENCES, java=False)
    assert found == alone.model_copy(update={"images_left_out": 2})
    assert agreement(dict.fromkeys(more, "a cat"), more, java=False) == Agreement(
        images=0, images_left_out=2, human={}, captioner={}
    )


def test_images_may_have_different_numbers_of_references() -> None:
    """There are as many rounds as the image with the most references has; the others leave theirs out in turn."""
    references = {**REFERENCES, "a.jpg": [*REFERENCES["a.jpg"], "A dog plays on a field ."]}
    rounds = []
    for of_three, of_two in [(0, 0), (1, 1), (2, 0)]:
        place = {image: of_three if image == "a.jpg" else of_two for image in references}
        rounds.append(
            score(
                {image: texts[place[image]] for image, texts in references.items()},
                {image: texts[: place[image]] + texts[place[image] + 1 :] for image, texts in references.items()},
                java=False,
            )
        )
    assert agreement(CANDIDATES, references, java=False).human == pytest.approx(mean_corpus(rounds))


@needs_java
def test_agreement_has_meteor_with_java() -> None:
    """METEOR, human and the captioner's, is that of the captions of all rounds as one corpus."""
    found = agreement(CANDIDATES, REFERENCES)
    rounds = {f"{k} {image}": (texts, k) for k in (0, 1) for image, texts in REFERENCES.items()}
    corpus = score(
        {name: texts[k] for name, (texts, k) in rounds.items()},
        {name: [texts[1 - k]] for name, (texts, k) in rounds.items()},
    ).corpus
    assert found.human["METEOR"] == pytest.approx(corpus["METEOR"], abs=1e-6)
    assert tuple(found.captioner) == METRICS


def test_a_stored_human_baseline_can_be_used_again() -> None:
    """A baseline that was written as JSON serves other captions of the same images, in any order."""
    human = Scorer(REFERENCES, java=False).human_baseline()
    stored = HumanBaseline.model_validate_json(human.model_dump_json())
    others = dict.fromkeys(reversed(REFERENCES), "a dog")
    scorer = Scorer(dict(reversed(REFERENCES.items())), java=False)
    assert scorer.can_use(stored)
    assert scorer.agreement(others, stored) == agreement(others, REFERENCES, java=False)


@pytest.mark.parametrize("changes", [{"tokenizer": "ptb"}, {"references": "0123456789abcdef"}])
def test_a_human_baseline_of_other_references_or_another_tokenizer_is_refused(changes: dict[str, Any]) -> None:
    """A baseline that was computed differently cannot be compared with the captioner."""
    scorer = Scorer(REFERENCES, java=False)
    human = scorer.human_baseline().model_copy(update=changes)
    assert not scorer.can_use(human)
    with pytest.raises(ValueError, match="other references, of another tokenizer"):
        scorer.agreement(CANDIDATES, human)


@needs_java
def test_a_human_baseline_that_lacks_meteor_is_computed_again() -> None:
    """A baseline from a time when METEOR failed is not used where METEOR runs."""
    lacking = Scorer(REFERENCES, java=False).human_baseline().model_copy(update={"tokenizer": "ptb"})
    with Scorer(REFERENCES, java=True) as scorer:
        assert not scorer.can_use(lacking)
        assert scorer.can_use(lacking.model_copy(update={"scores": {"METEOR": 0.2}}))


def test_the_fingerprint_is_of_the_raw_references() -> None:
    """Any change of a reference makes a stored baseline unusable."""
    human = Scorer(REFERENCES, java=False).human_baseline()
    changed = {**REFERENCES, "c.jpg": REFERENCES["c.jpg"][:1]}
    assert not Scorer(changed, java=False).can_use(human)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[Any]]:
    """The child processes that were started."""
    processes: list[subprocess.Popen[Any]] = []

    class Recorded(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return processes


@needs_java
def test_an_evaluation_starts_meteor_once(
    started: list[subprocess.Popen[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    """METEOR loads from the beginning; references and each set of captions take a tokenizer, and all of them end.

    Standard output stays empty, because the command line prints its result there.
    """
    other = {image: texts[0] for image, texts in REFERENCES.items()}
    with Scorer(REFERENCES, java=True) as scorer:
        assert len(started) == 2
        scores = [scorer.score(CANDIDATES), scorer.score(other)]
        found = scorer.agreement(CANDIDATES, scorer.human_baseline())
    programs = [process.args for process in started]
    assert ["meteor-1.5.jar" in str(program) for program in programs] == [False, True, False]
    assert all("edu.stanford.nlp.process.PTBTokenizer" in program for program in programs[::2])
    assert all(process.poll() is not None for process in started)
    assert tuple(found.human) == tuple(found.captioner) == METRICS
    assert capfd.readouterr().out == ""
    # The process gives its second corpus the same METEOR as a process of its own.
    assert scores[1] == score(other, REFERENCES)


@needs_java
def test_meteor_compares_no_pair_twice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A caption and a reference are compared once, for all corpora that have both; the log says how many are done."""
    asked, ask = [], java.Meteor._ask
    monkeypatch.setattr(java.Meteor, "_ask", lambda meteor, line: asked.append(line) or ask(meteor, line))
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level(logging.INFO)
    with Scorer(REFERENCES, java=True) as scorer:
        scorer.score(CANDIDATES)
        scorer.agreement(CANDIDATES, scorer.human_baseline())
    compared = [line for line in asked if line.startswith("SCORE")]
    # Three captions with two references each, and each reference with the other.
    assert len(compared) == len(set(compared)) == 6 + 6
    assert "6 of 6 comparisons by METEOR" in caplog.text


def test_words_of_two_tokenizers_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Java has tokenized the references, but not the captions, there is no score."""

    def tokenize_once(captions: Sequence[str]) -> list[str]:
        monkeypatch.setattr(coco, "tokenize_java", fail)
        return [*captions]

    def fail(*_: Any) -> NoReturn:
        raise java.JavaError("no memory")

    monkeypatch.setattr(java, "available", lambda: True)
    monkeypatch.setattr(java, "Meteor", fail)
    monkeypatch.setattr(coco, "tokenize_java", tokenize_once)
    scorer = Scorer(REFERENCES)
    with pytest.raises(java.JavaError, match="no memory"):
        scorer.score(CANDIDATES)


def test_without_java_no_process_is_started(started: list[subprocess.Popen[Any]]) -> None:
    """Our tokenizer runs in this process; so does CIDEr of an epoch."""
    agreement(CANDIDATES, REFERENCES, java=False)
    cider(CANDIDATES, REFERENCES)
    assert started == []


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


def test_captions_without_a_common_word_score_zero() -> None:
    """A candidate that shares no word with its references scores 0, and so does an empty one."""
    scores = score({"a.jpg": "xyzzy", "b.jpg": "", "c.jpg": "xyzzy"}, REFERENCES, java=False)
    assert list(scores.corpus.values()) == pytest.approx([0] * len(scores.corpus), abs=1e-6)


def test_cider_of_images_averages_to_the_corpus() -> None:
    """Each image has its CIDEr, higher for a better caption, and the corpus has their mean."""
    scores = score({**CANDIDATES, "c.jpg": "xyzzy"}, REFERENCES, java=False)
    assert scores.image_cider.keys() == CANDIDATES.keys()
    assert scores.image_cider["c.jpg"] == 0 < scores.image_cider["a.jpg"]
    assert scores.corpus["CIDEr"] == pytest.approx(sum(scores.image_cider.values()) / 3)
    assert cider({**CANDIDATES, "c.jpg": "xyzzy"}, REFERENCES) == pytest.approx(scores.corpus["CIDEr"])


def test_the_order_of_images_does_not_matter() -> None:
    """Each image has the same score when candidates and references come in different orders."""
    backwards = dict(reversed(CANDIDATES.items()))
    assert score(backwards, REFERENCES, java=False).image_cider == pytest.approx(
        score(CANDIDATES, REFERENCES, java=False).image_cider
    )


def test_without_java_meteor_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java the scores record our tokenizer and have no METEOR."""
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score(CANDIDATES, REFERENCES)
    assert scores.tokenizer == "builtin"
    assert tuple(scores.corpus) == tuple(name for name in METRICS if name != "METEOR")


def test_a_broken_java_is_an_error_only_if_java_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When Java fails, scoring continues without it and warns once; if Java is required, it is an error."""
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(CANDIDATES, REFERENCES).tokenizer == "builtin"
    assert caplog.text.count("without Java") == 1
    with pytest.raises(PipelineError, match="PTBTokenizer ended with status 1"):
        score(CANDIDATES, REFERENCES, java=True)


def test_nothing_to_score_is_an_error() -> None:
    """No captions, an image without a caption or references, or with none that has a word, are errors that say so."""
    for nothing in (lambda: score({}, REFERENCES), lambda: cider({}, REFERENCES), lambda: Scorer({})):
        with pytest.raises(PipelineError, match="no captions to score"):
            nothing()
    captions = {"a.jpg": "a dog", "b.jpg": "a cat"}
    for references in ({"a.jpg": ["A dog ."]}, {"a.jpg": ["A dog ."], "b.jpg": []}, {"a.jpg": ["a"], "b.jpg": [" . "]}):
        for function in (score, cider, agreement):
            with pytest.raises(PipelineError, match=r"no reference with a word in it for 1 image, such as b\.jpg"):
                function(captions, references)
    with pytest.raises(PipelineError, match=r"no generated caption for 2 images, such as b\.jpg, c\.jpg"):
        Scorer(REFERENCES, java=False).score({"a.jpg": "a dog"})


def test_images_without_a_candidate_are_left_out() -> None:
    """References of images without a caption change no score."""
    assert score(CANDIDATES, {**REFERENCES, "d.jpg": ["a dog"]}, java=False) == score(
        CANDIDATES, REFERENCES, java=False
    )


def test_scores_survive_json() -> None:
    """Scores written as JSON are read back unchanged."""
    scores = score(CANDIDATES, REFERENCES, java=False)
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_intervals_contain_the_score() -> None:
    """Each score but METEOR is within its interval, which is reproducible, and a point for a single image."""
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
    """Three of four captions are distinct, and they use four words, three of them in a vocabulary of six."""
    found = diversity(
        ["a dog", "A dog .", "a cat runs", "a"], vocabulary=["a", "dog", "cat", "x", "y", "z"], training=[]
    )
    assert (found.captions, found.distinct_captions, found.words) == (4, 0.75, 4)
    assert (found.vocabulary_used, found.mean_length) == (0.5, 2.0)


def test_novel_captions_are_no_training_captions() -> None:
    """A caption is novel if no training caption has the same words, regardless of case and punctuation."""
    found = diversity(["a dog", "a dog runs", "a cat"], vocabulary=["a"], training=["A dog .", "A cat !"])
    assert found.novel_captions == pytest.approx(1 / 3)


def test_truncated_captions_are_counted() -> None:
    """A caption that ends in a function word counts as truncated; one without a word does not."""
    found = diversity(["a dog with a", "a dog in the snow", "", "two"], vocabulary=["a"], training=[])
    assert found.ends_in_function_word == 0.25
    assert {"a", "the", "of", "in", "on", "with", "and", "to", "at"} <= FUNCTION_WORDS


def test_diversity_of_nothing_is_an_error() -> None:
    """Diversity is not defined without captions."""
    with pytest.raises(PipelineError, match="no captions"):
        diversity([], vocabulary=["a"], training=[])


def test_other_languages_are_scored_by_their_words() -> None:
    """Letters of any script count, and characters where there are no spaces; punctuation and case do not."""
    references = {"1.jpg": ["Ein großer Hund läuft.", "Der Hund"], "2.jpg": ["Straße", "die Straße !"]}
    found = score({"1.jpg": "ein großer hund läuft", "2.jpg": "straße"}, references, language="de")
    assert (found.tokenizer, found.corpus["BLEU-4"]) == ("words", pytest.approx(1))
    one, other = (
        score({"1.jpg": caption, "2.jpg": "猫"}, {"1.jpg": ["一只黑狗。"], "2.jpg": ["猫"]}, language="zh-Hans").corpus
        for caption in ("一只黑狗", "一只白狗")
    )
    assert 0 < other["BLEU-1"] < one["BLEU-1"] == pytest.approx(1)


def test_java_is_for_english_only() -> None:
    """Neither Stanford's tokenizer nor METEOR is run for another language, even where Java is required."""
    found = score({"1.jpg": "ein hund"}, {"1.jpg": ["ein Hund"]}, java=True, language="de")
    assert (found.tokenizer, "METEOR" in found.corpus) == ("words", False)


def test_truncation_is_counted_in_english_only() -> None:
    """No list of function words of another language is there."""
    assert diversity(["die"], vocabulary=["die"], training=[], language="de").ends_in_function_word is None

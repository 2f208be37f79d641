"""The rule of acceptance: nine in ten human captions pass it, and errors cost."""

import numpy as np

from pipeline.evaluation.acceptance import judge
from pipeline.evaluation.error_analysis import kinds_of_error

DOGS = ["a brown dog runs on the grass", "a dog runs across the grass", "the dog is running on a lawn"]
WOMEN = ["a woman rides a bike", "a woman in red on a bicycle", "a lady rides her bike down the street"]
REFERENCES = {"dogs.jpg": DOGS, "women.jpg": WOMEN, "one.jpg": ["a boat on a lake"]}


def accepted(dogs="a dog runs on the grass", women="a woman rides a bike", language="en"):
    """Whether captions of the first two images are accepted, and whether they are at least partly right."""
    captions = {"dogs.jpg": dogs, "women.jpg": women, "one.jpg": "a boat on a lake"}
    found = judge(captions, REFERENCES, language=language)
    return found.accepted.tolist()[:2], found.at_least_partly.tolist()[:2]


def test_good_captions_are_accepted_and_others_are_not():
    """A caption of something else fails even the lower limit."""
    assert accepted() == ([True, True], [True, True])
    assert accepted(women="two boats at sea") == ([True, False], [True, False])


def test_errors_cost():
    """A wrong gender alone makes a caption fail, in English; other languages have no error analysis."""
    wrong = "a man rides a bike"
    assert kinds_of_error([(wrong, WOMEN), ("a woman rides a bike", WOMEN)]) == [1, 0]
    scores = [accepted(women=wrong, language=language)[0][1] for language in ("en", "de")]
    assert scores[1] or not scores[0]


def test_without_two_references_there_is_no_rule():
    """Nothing says how people's captions score."""
    assert judge({"one.jpg": "a boat"}, REFERENCES, language="en") is None


def test_nine_in_ten_real_human_captions_pass(flickr8k):
    """Each judged by the others of its photograph; captions of other photographs mostly fail."""
    references: dict[str, list[str]] = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()[:1500]:
        name, caption = line.split("\t")
        references.setdefault(name.partition("#")[0], []).append(caption)
    others = dict(zip(references, np.roll([captions[0] for captions in references.values()], 1), strict=True))
    found = judge(others, references, language="en")
    assert 0.9 <= found.human_accepted < 0.91
    assert found.accepted.mean() < 0.2
    assert found.accepted.mean() <= found.at_least_partly.mean() < 0.5

"""Errors counted from words, on captions made up to have them or not, and scores by length of the references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import lexicon
from pipeline.evaluation.error_analysis import CASES, LENGTH_GROUPS, ErrorCount, Rate, by_length, count_errors


def check(kind: str, caption: str, *references: str) -> tuple[int, int, list[str]]:
    """For one caption: how often the error can occur, how often it does, and the wrong words."""
    count = count_errors({"1.jpg": caption}, {"1.jpg": references})[kind]
    return count.captioner.checked, count.captioner.wrong, list(count.words)


RIGHT = (1, 0, [])
UNSAID = (0, 0, [])


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a man rides a bike", ["A woman on a bike .", "Someone cycles ."], (1, 1, ["man"])),
        ("two girls in the snow", ["Two boys play .", "Children in snow ."], (1, 1, ["girls"])),
        ("a person with a dog on her arm", ["A man .", "A guy and his hat ."], UNSAID),  # it may be the dog's arm
        ("a person holds up her arm", ["A man ."], (1, 1, ["her"])),
        ("a man rides a bike", ["A boy on a bike .", "A woman watches him ."], RIGHT),
        ("a man and a woman", ["A man sits with his wife ."], RIGHT),
        ("a person rides a bike", ["A woman on a bike ."], UNSAID),
        ("a man rides a bike", ["A person on a bike ."], UNSAID),
    ],
)
def test_gender(caption: str, references: list[str], expected: tuple[int, int, list[str]]) -> None:
    """A gender is wrong if references name only the other, and is not checked if one side names none."""
    assert check("gender", caption, *references) == expected


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a dog runs", ["Two dogs run .", "Dogs on grass ."], (1, 1, ["dog"])),
        ("two dogs run", ["A dog runs .", "A brown puppy ."], (1, 1, ["dogs"])),
        ("a man in a street", ["A group of people .", "A crowd ."], (1, 1, ["man"])),
        ("a group of people", ["A boy .", "One child with a toy ."], (1, 1, ["people"])),
        ("a man and a woman", ["A person stands ."], (1, 1, ["man"])),
        ("a dog runs", ["Two dogs run .", "A dog on grass ."], RIGHT),
        ("a man and a woman", ["Two people .", "A couple ."], RIGHT),
        ("two dogs run", ["A dog chases another dog ."], RIGHT),
        ("two dogs run", ["A dog chases another ."], UNSAID),
        ("a dog looks up while the dog runs", ["A dog runs ."], RIGHT),
        ("a woman player", ["A player runs ."], RIGHT),
        ("three sheep", ["A sheep ."], UNSAID),  # the plural is no other word
        ("a dog runs", ["A man walks ."], UNSAID),
    ],
)
def test_number(caption: str, references: list[str], expected: tuple[int, int, list[str]]) -> None:
    """One is wrong if references name only several, and several if they name only one."""
    assert check("number", caption, *references) == expected


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a black dog", ["A brown dog .", "A dog runs ."], (1, 1, ["black"])),
        ("a black and white dog", ["A white dog ."], (1, 1, ["black"])),
        ("a grey dog", ["A gray dog ."], RIGHT),
        ("a tan dog", ["A golden dog ."], RIGHT),
        ("a black dog", ["A dog .", "A black and white dog ."], RIGHT),
        ("a black dog", ["A dog runs ."], UNSAID),
        ("a dog", ["A black dog ."], UNSAID),
    ],
)
def test_colour(caption: str, references: list[str], expected: tuple[int, int, list[str]]) -> None:
    """A colour is wrong if references name only others; similar shades count as one."""
    assert check("colour", caption, *references) == expected


@pytest.mark.parametrize(
    ("caption", "references", "expected"),
    [
        ("a dog with a frisbee", ["A dog runs .", "A brown dog ."], (1, 1, ["frisbee"])),
        ("a man on a bench", ["A dog on a bench ."], (1, 1, ["man"])),
        ("a puppy in the sea", ["A dog in the ocean ."], RIGHT),
        ("dogs play with balls", ["A dog catches a football ."], RIGHT),
        ("a man swims in the water", ["A swimmer in a lake ."], RIGHT),
        ("a man eats a hot dog", ["A man eats lunch ."], RIGHT),
        ("the sky is cloudy", ["A cloud ."], UNSAID),
    ],
)
def test_object(caption: str, references: list[str], expected: tuple[int, int, list[str]]) -> None:
    """An object is hallucinated if no reference names it, an object of its kind, or something that implies it."""
    assert check("object", caption, *references) == expected


def test_an_error_counts_once_per_caption() -> None:
    """Two hallucinated objects make one wrong caption, with the first as its word."""
    assert check("object", "a frisbee and a guitar", "A dog .") == (1, 1, ["frisbee"])


@given(st.lists(st.sampled_from(sorted({*lexicon.NAMES, *lexicon.SHADES, *lexicon.GENDERS, "two", "the"})), min_size=1))
def test_a_caption_that_repeats_a_reference_has_no_error(words: list[str]) -> None:
    """A caption equal to a reference is never wrong."""
    caption = " ".join(words)
    for count in count_errors({"1.jpg": caption}, {"1.jpg": [caption, "a thing"]}).values():
        assert count.captioner.wrong == 0


def test_references_are_checked_against_each_other() -> None:
    """Each reference is checked against the others of its image; a single reference is not checked."""
    references = {"1.jpg": ["A man .", "A woman .", "A woman walks ."], "2.jpg": ["A boy ."]}
    count = count_errors(dict.fromkeys(references, "a person"), references)["gender"]
    assert count.human == Rate(checked=3, wrong=1)
    assert count.captioner == Rate(checked=0, wrong=0)
    assert (count.captioner.share, count.human.share) == (0, pytest.approx(1 / 3))


def test_cases_show_different_words() -> None:
    """The most frequent words come first, and the cases show one of each before a second of any."""
    captions = ["a man", "a man", "a boy", "a man"] + ["a girl"] * 2
    references = [["A woman ."]] * 4 + [["A man ."]] * 2
    images = [f"{number}.jpg" for number in range(6)]
    count = count_errors(dict(zip(images, captions, strict=True)), dict(zip(images, references, strict=True)))["gender"]
    assert list(count.words.items()) == [("man", 3), ("girl", 2), ("boy", 1)]
    assert [(case.image, case.word) for case in count.cases] == [("0.jpg", "man"), ("4.jpg", "girl"), ("2.jpg", "boy")]
    assert len(count.cases) == CASES
    assert ErrorCount.model_validate_json(count.model_dump_json()) == count


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("dogs", "dog"), ("puppies", "puppy"), ("benches", "bench"), ("men", "man"), ("grass", "grass"), ("bus", "bus")],
)
def test_singular(plural: str, singular: str) -> None:
    """Regular and irregular plurals become singular; words that only look like plurals are unchanged."""
    assert lexicon.singular(plural) == singular


def test_groups_by_length_hold_every_image_once() -> None:
    """Images are grouped by length, shortest first, in groups of equal size with their own mean CIDEr."""
    references = {f"{n}.jpg": ["word " * n, "word " * (n + 2)] for n in range(1, 51)}
    cider = {image: float(n) for n, image in enumerate(references, 1)}
    found = by_length(dict.fromkeys(references, "three word caption"), references, cider)
    assert [group.images for group in found] == [10] * LENGTH_GROUPS
    assert [(group.shortest, group.longest) for group in found][:2] == [(2, 11), (12, 21)]
    assert [group.cider for group in found] == [5.5, 15.5, 25.5, 35.5, 45.5]
    for group in found:
        assert group.interval[0] < group.cider < group.interval[1]
        assert group.written == 3


def test_images_of_one_length_are_one_group() -> None:
    """If all references have the same length there is a single group."""
    references = {f"{n}.jpg": ["a dog runs"] for n in range(7)}
    [group] = by_length(dict.fromkeys(references, "a dog"), references, dict.fromkeys(references, 1.0))
    assert (group.images, group.shortest, group.longest, group.interval) == (7, 3, 3, (1, 1))

"""The page by which a person decides on a candidate."""

import pytest

from pipeline.captioner.registry import promote
from pipeline.config import GREEDY
from pipeline.errors import PipelineError
from pipeline.evaluation import comparison
from tests.support.models import BEAM, DATASET, write_evaluation, write_model

CAPTIONS_1 = {"a.jpg": "a dog", "b.jpg": "a yellow | square"}
CAPTIONS_2 = {"a.jpg": "a cat", "b.jpg": "a purple square"}


@pytest.fixture
def store(bucket):
    """A store with two evaluated models."""
    for version, cider, captions in (("v1", 0.4, CAPTIONS_1), ("v2", 0.5, CAPTIONS_2)):
        write_model(version, bucket)
        write_evaluation(version, bucket, cider=cider, captions=captions)
    return bucket


def compare(version, store, decoding=BEAM):
    """The lines of the page."""
    return comparison.compare(version, decoding=decoding, store=store).splitlines()


def test_the_first_candidate(store):
    """Without a champion, the page has the candidate's scores, its captions and the human ones. It names no file."""
    lines = compare("v1", store)
    assert "| CIDEr | 0.400 |" in lines
    assert "| BLEU-4 | 0.200 |" in lines
    assert "| photograph | candidate | human |" in lines
    assert "| a.jpg | a dog | a human caption |" in lines
    # A vertical bar in a caption does not divide cells.
    assert "| b.jpg | a yellow \\| square | a human caption |" in lines
    assert not any(store.uri in line for line in lines)
    assert lines[-1] == "There is no champion yet."


def test_texts_are_no_markdown(bucket):
    """Names and captions are shown as they are, whatever they are, each in its cell."""
    write_model("v1", bucket)
    captions = {"a_b_c.jpg": "a *dog* `runs`", "[a](b)\n<i>&amp;\\|.jpg": "~a~ ![c](d)"}
    write_evaluation("v1", bucket, cider=0.4, captions=captions)
    lines = compare("v1", bucket)
    assert r"| a\_b\_c.jpg | a \*dog\* \`runs\` | a human caption |" in lines
    assert r"| \[a\](b)\\n\<i\>\&amp;\\\|.jpg | \~a\~ !\[c\](d) | a human caption |" in lines


def test_a_candidate_beside_the_champion(store):
    """Scores and captions of both models are side by side."""
    promote("v1", store)
    lines = compare("v2", store)
    assert "|  | candidate v2 | champion v1 |" in lines
    assert "| CIDEr | 0.500 | 0.400 |" in lines
    assert "| photograph | candidate | champion | human |" in lines
    assert "| a.jpg | a cat | a dog | a human caption |" in lines


def test_a_dataset_that_differs_by_corrections(store):
    """The test split is the same, so the champion's scores on its own dataset are shown; those on another are not."""
    before = "toy/fedcba9876543210"
    write_model("v0", store, dataset=before)
    write_evaluation("v0", store, cider=0.45, dataset=before, decoding=GREEDY, captions=CAPTIONS_1)
    write_evaluation("v0", store, cider=0.45, dataset="other/0123456789abcdef", captions={"a.jpg": "a dog"})
    promote("v0", store)
    assert "was not evaluated on these photographs" in compare("v2", store)[-1]
    write_evaluation("v0", store, cider=0.45, dataset=before, captions=CAPTIONS_1)
    lines = compare("v2", store)
    assert "| CIDEr | 0.500 | 0.450 |" in lines
    assert "| BLEU-4 | 0.200 | 0.200 |" in lines
    assert "| a.jpg | a cat | a dog | a human caption |" in lines


@pytest.mark.parametrize(
    "other", [{"decoding": GREEDY}, {"dataset": "other/0123456789abcdef"}], ids=["another decoding", "another dataset"]
)
def test_a_champion_that_was_not_evaluated_so(store, other):
    """Scores that can't be compared are not shown; the page says which command evaluates the champion."""
    write_model("v0", store, dataset=other.get("dataset", DATASET))
    write_evaluation("v0", store, cider=0.45, **other)
    promote("v0", store)
    lines = compare("v2", store)
    assert "| CIDEr | 0.500 |" in lines
    assert lines[-1] == (
        "The champion v0 was not evaluated on these photographs with beam 3, 20 neighbours: "
        "`captioning evaluate-champion v2 --beam-width 3 --mbr-samples 0 --neighbours 20` does so."
    )
    write_evaluation("v0", store, cider=0.3)
    assert "| CIDEr | 0.500 | 0.300 |" in compare("v2", store)


def test_the_evaluation_with_the_given_decoding_is_shown(store):
    """Of several evaluations of a model, the page shows the one with this decoding."""
    write_evaluation("v1", store, cider=0.123, decoding=GREEDY)
    assert "| CIDEr | 0.123 |" in compare("v1", store, GREEDY)
    assert "| CIDEr | 0.400 |" in compare("v1", store)


def test_the_champion_itself(store):
    """The page of the champion says that this model is the champion."""
    promote("v1", store)
    assert compare("v1", store)[-1] == "This model is the champion already."


def test_a_candidate_without_evaluation(store):
    """The error says which command evaluates it."""
    write_model("v3", store)
    command = "captioning evaluate v3 --beam-width 3 --mbr-samples 0 --neighbours 20"
    with pytest.raises(PipelineError, match=f"v3 was not evaluated with beam 3, 20 neighbours: run `{command}` first"):
        compare("v3", store)
    with pytest.raises(PipelineError, match="no model 'v9'"):
        compare("v9", store)

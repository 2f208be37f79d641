"""Cleaning, the vocabulary and its GloVe vectors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.text import clean
from pipeline.data.vocabulary import SPECIAL_WORDS, UNKNOWN, Vocabulary, embedding_matrix
from pipeline.errors import PipelineError


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Dog runs .", "a dog runs"),
        ("Two dogs' owner's T-shirt , no. 42 !", "two dogs owner t shirt no"),
        ("un café déjà-vu", "un cafe deja vu"),
        ("the man’s hat", "the man hat"),
        ("ﬁsh ½ １２ Ａ", "fish a"),
        ("a", "a"),
        (" \t 123 ... ", ""),
    ],
)
def test_cleaning(caption, words):
    """Lower case, accents off, letters only; a possessive goes, one-letter words stay."""
    assert clean(caption) == words.split()


@given(st.text())
def test_cleaning_gives_plain_words_and_is_idempotent(caption):
    """Any text gives lower-case ASCII words, which cleaning leaves alone."""
    words = clean(caption)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert clean(" ".join(words)) == words


def test_keeps_the_words_seen_often_enough():
    """A word at the minimum count is in, one below it is out, and the most frequent come first."""
    vocabulary = Vocabulary.build(["dog dog dog cat cat bird"], min_count=2)
    assert vocabulary.words == (*SPECIAL_WORDS, "dog", "cat")
    assert vocabulary.counts[4:] == (3, 2)
    assert len(set(vocabulary.words)) == len(vocabulary)


def test_encodes_and_decodes():
    """The ids are between start and end, unknown words have their own id, and decoding stops at the end."""
    vocabulary = Vocabulary.build(["a dog runs"], min_count=1)
    ids = vocabulary.encode("A dog flies")
    assert [vocabulary.words[i] for i in ids] == ["<start>", "a", "dog", "<unk>", "<end>"]
    assert UNKNOWN in ids
    assert vocabulary.decode([*ids, 4, 4]) == "a dog"


def test_json_is_readable_and_complete():
    """The document has the id and the count of every word, and is read back the same."""
    vocabulary = Vocabulary.build(["a dog runs", "a cat"], min_count=1)
    document = json.loads(vocabulary.to_json())
    assert document["words"]["a"] == {"id": 4, "count": 2}
    assert Vocabulary.from_json(vocabulary.to_json(), origin="here") == vocabulary


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"min_count": 1, "words": {"a": {"id": 3, "count": 1}}}'])
def test_something_else_is_no_vocabulary(text):
    """Other content is refused with the name of the file."""
    with pytest.raises(PipelineError, match=r"here\.json|special words"):
        Vocabulary.from_json(text, origin="here.json")


def test_too_rare_words_are_an_error():
    """If no word reaches the minimum count, the error says how many words there are and what to do."""
    with pytest.raises(PipelineError, match=r"occurs 10 times \(2 different words.*lower"):
        Vocabulary.build(["a dog"])


def test_packaged_glove_vectors():
    """The packaged vectors are GloVe's: "the" begins as published, and every other word gets some vector."""
    vocabulary = Vocabulary.build(["the the dog qqqzzzx"], min_count=1)
    matrix, covered = embedding_matrix(vocabulary, "glove", seed=0)
    assert matrix.shape == (len(vocabulary), 50)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[vocabulary.words.index("the"), :3], [0.418, 0.24968, -0.41242], atol=1e-5)
    assert covered == pytest.approx(2 / 3)
    assert np.abs(matrix[vocabulary.words.index("qqqzzzx")]).sum() > 0


def test_glove_text_file(tmp_path):
    """A text file in GloVe's own format serves as well."""
    path = tmp_path / "glove.txt"
    path.write_text("dog 1 2 3\nzebra 4 5 6\n")
    vocabulary = Vocabulary.build(["a dog"], min_count=1)
    matrix, covered = embedding_matrix(vocabulary, str(path), seed=0, size=3)
    np.testing.assert_array_equal(matrix[vocabulary.words.index("dog")], [1, 2, 3])
    assert covered == 0.5


def test_wrong_glove_files_are_errors(tmp_path):
    """A missing file and vectors of another length are errors that say so."""
    vocabulary = Vocabulary.build(["a dog"], min_count=1)
    with pytest.raises(PipelineError, match="There is no GloVe file"):
        embedding_matrix(vocabulary, str(tmp_path / "missing.txt"), seed=0)
    (tmp_path / "short.txt").write_text("dog 1 2 3\n")
    with pytest.raises(PipelineError, match=r"length 50 .* length \[3\]"):
        embedding_matrix(vocabulary, str(tmp_path / "short.txt"), seed=0)

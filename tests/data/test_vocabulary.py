"""The vocabulary and its GloVe vectors."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.vocabulary import SPECIAL_WORDS, UNKNOWN, Vocabulary, embedding_matrix
from pipeline.errors import PipelineError

DOG = Vocabulary.build(["a dog"], min_count=1)


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


def test_chinese_is_decoded_without_spaces():
    """The characters are the words, and the text of a caption has no spaces."""
    vocabulary = Vocabulary.build(["一只狗。"], min_count=1)
    assert len(vocabulary) == len(SPECIAL_WORDS) + 3
    assert vocabulary.decode(vocabulary.encode("一只狗")) == "一只狗"


def test_apostrophes_are_written_where_the_language_has_them():
    """The vocabulary knows its language, also when it is read back."""
    vocabulary = Vocabulary.build(["Un chien dans l’herbe"], min_count=1, language="fr")
    read = Vocabulary.from_json(vocabulary.to_json(), origin="here")
    assert read == vocabulary
    assert read.decode(read.encode("L'herbe, un chien")) == "l'herbe un chien"
    assert DOG.decode(DOG.encode("a dog's")) == "a dog"


def test_json_is_readable_and_complete():
    """The document has the id and the count of every word, and is read back the same."""
    vocabulary = Vocabulary.build(["a dog runs", "a cat", "ein großer 狗"], min_count=1)
    assert '"großer": {"id"' in vocabulary.to_json()
    document = json.loads(vocabulary.to_json())
    assert document["words"]["a"] == {"id": 4, "count": 2}
    assert Vocabulary.from_json(vocabulary.to_json(), origin="here") == vocabulary
    neutral = replace(vocabulary, neutral_wording=True)
    assert Vocabulary.from_json(neutral.to_json(), origin="here") == neutral != vocabulary


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"min_count": 1, "language": "en", "words": {"a": {"id": 3, "count": 1}}}']
)
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
    matrix, covered = embedding_matrix(DOG, str(path), seed=0, size=3)
    np.testing.assert_array_equal(matrix[DOG.words.index("dog")], [1, 2, 3])
    assert covered == 0.5


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "lines",
    [
        ". . . 7 8 9\nat name@domain.com 7 8 9\ndog 1 2 3\n2 5 8 9\na\N{NO-BREAK SPACE}b 7 8 9\na\u2028b 7 8 9\n",
        "3 3\nzebra 4 5 6 \ndog 1 2 3 \ncat 7 8 9 \n",
        "7 7 8 9\r\ndog 1 2 3\r\n",
    ],
)
def test_other_text_files(tmp_path, compress, lines):
    """Tokens with spaces of any kind, a header of word2vec, lines with a space or a carriage return at their end."""
    path = tmp_path / "vectors"
    path.write_bytes(compress(lines.encode()))
    matrix, _ = embedding_matrix(DOG, str(path), seed=0, size=3)
    np.testing.assert_array_equal(matrix[DOG.words.index("dog")], [1, 2, 3])


def test_the_path_of_a_glove_file_may_be_in_the_home_folder(tmp_path, monkeypatch):
    """``~`` is expanded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "glove.txt").write_text("dog 1 2 3\n")
    assert embedding_matrix(DOG, "~/glove.txt", seed=0, size=3)[1] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dog 1 2 3\ncat 1 2.x 3\n", r"Line 2 of .*glove\.txt can't be read \(could not convert.*2\.x"),
        (b"dog 1 2,5 3\n", r"Line 1 of .*2,5"),
        (b"dog 1 2 3\ncat 1 nan 3\n", "Line 2 of .*not finite"),
        (b"dog 1 2 3\ncat 1 2", "Line 2 of .*"),
        (
            b"dog 1 2 3\ncat 1 2 3\n\xfc 1 2 3\n",
            r"Line 3 of .*'utf-8' codec can't decode.*Expected a text file in UTF-8",
        ),
        (b"dog 1 2\n", "length 3 .* length 2"),
        (b"dog 1 2 3 4\n", "length 3 .* length 4"),
        (b"1 4\ndog 1 2 3 4\n", "length 3 .* length 4"),
        (b"zebra 1 2 3\n", "length 3 .* no vector of the vocabulary's words"),
        (b"", "no vector of the vocabulary's words"),
        (gzip.compress(b"dog 1 2 3\n" * 1000, mtime=0)[:-20], "is damaged after line .*download it again"),
    ],
)
def test_wrong_glove_files_are_errors(tmp_path, content, message):
    """The error names the line, whether or not the vocabulary has its word, or both lengths."""
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=message):
        embedding_matrix(DOG, str(path), seed=0, size=3)


def test_a_missing_glove_file_is_an_error(tmp_path):
    """The error says what else can be given."""
    with pytest.raises(PipelineError, match=r"There is no GloVe file.*`glove`, or `learned`"):
        embedding_matrix(DOG, str(tmp_path / "missing.txt"), seed=0)

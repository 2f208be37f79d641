"""The training photographs nearest to a picture, whose captions vote on those of its beam.

What people wrote about similar photographs says what is worth saying about this one (Devlin et al. 2015, "Exploring
nearest neighbor approaches for image captioning", https://arxiv.org/abs/1505.04467). Their captions are never
candidates: a caption of another photograph is mostly wrong in its details.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.captioner.mbr import Voters
from pipeline.captioner.search import Floats, Ids, top_k
from pipeline.captioner.sentences import padded
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
        texts = [ids[row] for row in kept.tolist()]
        captions = padded(texts, max(map(len, texts)) - 1)
        return cls(
            matrix,
            shift,
            _directions(exact[chosen] @ matrix + shift).astype(np.float16),
            captions.astype(np.min_scalar_type(captions.max())),
            np.append(np.searchsorted(image[kept], chosen), len(kept)),
        )

    def components(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """The principal components (B, K) of pictures (B, D)."""
        return vectors.astype(np.float32) @ self.matrix + self.shift

    def search(self, components: Floats, count: int) -> tuple[Ids, Floats]:
        """The photographs nearest to pictures, of which these are the components (B, K), by the cosine.

        Returns:
            The photographs (B, count), or all if there are fewer, the nearest first; and their cosines.
        """
        cosines, nearest = top_k(_directions(components) @ self._exact.T, min(count, len(self.photographs)))
        return nearest, cosines

    @cached_property
    def _exact(self) -> Floats:
        """The photographs in float32, in which they are compared."""
        return self.photographs.astype(np.float32)

    def captions_of(self, photograph: int) -> npt.NDArray[np.unsignedinteger]:
        """The ids of the captions of a photograph, a row each."""
        return self.captions[self.first[photograph] : self.first[photograph + 1]]

    def voters(self, vectors: npt.NDArray[np.floating], count: int) -> Voters:
        """The captions of the photographs nearest to pictures (B, D), ``count`` photographs each."""
        nearest, _ = self.search(self.components(vectors), count)
        captions = [self.captions_of(photograph) for photograph in nearest.ravel().tolist()]
        image = np.repeat(np.arange(len(nearest)), nearest.shape[1])
        return Voters(np.concatenate(captions).astype(np.int32), np.repeat(image, list(map(len, captions))))

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


def _directions(components: Floats) -> Floats:
    """Components (N, K) scaled to a length of 1."""
    directions: Floats = components / np.maximum(np.linalg.norm(components, axis=1, keepdims=True), 1e-12)
    return directions

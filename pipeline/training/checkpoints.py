"""Checkpoints of training phases: an interrupted phase continues from its own, and other trainings reuse finished ones.

The name of a checkpoint is a hash of all that the result of its phase depends on. Any training of the same phase finds
it: the same training started again, or another one that begins in the same way.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.captioner.metadata import Epoch
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError

if TYPE_CHECKING:
    import keras

Arrays = list[npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Checkpoint:
    """A training phase after an epoch.

    Attributes:
        epochs: those of the phase so far.
        best: the variables of the model, the states of its random generators among them, after the best epoch.
        model: its variables now; empty if the phase has ended.
        optimizer: the variables of the optimizer now; empty if the phase has ended.
    """

    epochs: list[Epoch]
    best: Arrays
    model: Arrays
    optimizer: Arrays

    @property
    def finished(self) -> bool:
        """Whether the phase has ended."""
        return not self.model

    def save(self, key: str, store: Bucket) -> None:
        """Write the checkpoint over the one before, as one NumPy archive."""
        groups = {"best": self.best, "model": self.model, "optimizer": self.optimizer}
        arrays: dict[str, Any] = {
            f"{name}/{number}": array for name, group in groups.items() for number, array in enumerate(group)
        }
        buffer = io.BytesIO()
        epochs = json.dumps([epoch.model_dump(mode="json") for epoch in self.epochs])
        np.savez(buffer, epochs=np.array(epochs), **arrays)
        store.put(key, buffer.getvalue())

    @classmethod
    def load(cls, key: str, store: Bucket) -> "Checkpoint | None":
        """The checkpoint under this key, if there is one. Raises ``PipelineError`` if it can't be read."""
        try:
            data = store.get(key)
        except ObjectNotFoundError:
            return None
        try:
            return cls._read(data)
        # RuntimeError: a damaged flag says that a file is encrypted, or is compressed in an unknown way.
        except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise PipelineError(
                f"{store.url(key)} can't be read as a checkpoint: {error}. Delete it to train the phase "
                "from the beginning."
            ) from error

    @classmethod
    def _read(cls, data: bytes) -> "Checkpoint":
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        groups: dict[str, Arrays] = {"best": [], "model": [], "optimizer": []}
        for name in archive.files:
            if name != "epochs":
                groups[name.partition("/")[0]].append(archive[name])
        return cls([Epoch.model_validate(epoch) for epoch in json.loads(str(archive["epochs"]))], **groups)


def values(variables: "Sequence[keras.Variable]") -> Arrays:
    """Copies of the values of variables."""
    return [np.array(variable) for variable in variables]


def assign(variables: "Sequence[keras.Variable]", arrays: Arrays) -> None:
    """Set variables to earlier values."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)

"""Checkpoints: what an interrupted stage of training goes on from, and what a finished one hands on.

A stage's checkpoint is named after a hash of all that its result depends on. So it is found again by whoever trains the
same stage: the same training started once more, or another one that begins alike.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.captioner import Epoch
from pipeline.errors import PipelineError
from pipeline.storage import Bucket, ObjectNotFoundError

if TYPE_CHECKING:
    import keras

Arrays = list[npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Checkpoint:
    """A stage of training after an epoch.

    Attributes:
        epochs: those of the stage so far.
        best: the model's variables, the states of its random generators among them, at the stage's best moment.
        model: its variables now; empty where the stage has ended.
        optimizer: the optimizer's variables now; empty where the stage has ended.
    """

    epochs: list[Epoch]
    best: Arrays
    model: Arrays
    optimizer: Arrays

    @property
    def finished(self) -> bool:
        """Whether the stage has ended."""
        return not self.model

    def save(self, key: str, store: Bucket) -> None:
        """Write the checkpoint in place of the one before, as one NumPy archive."""
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
        """The checkpoint under this key, if there is one. Raises ``PipelineError`` where it can't be read."""
        try:
            data = store.get(key)
        except ObjectNotFoundError:
            return None
        try:
            return cls._read(data)
        except (ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            raise PipelineError(
                f"{store.url(key)} can't be read as a checkpoint: {error}. Delete it, and its stage is trained "
                "from the beginning."
            ) from error

    @classmethod
    def _read(cls, data: bytes) -> "Checkpoint":
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        groups: dict[str, Arrays] = {"best": [], "model": [], "optimizer": []}
        for name in archive.files:
            if name != "epochs":
                groups[name.partition("/")[0]].append(archive[name])
        return cls([Epoch.model_validate(epoch) for epoch in json.loads(str(archive["epochs"]))], **groups)


def values(variables: "Sequence[keras.Variable]") -> Arrays:
    """The values of variables, copied."""
    return [np.array(variable) for variable in variables]


def assign(variables: "Sequence[keras.Variable]", arrays: Arrays) -> None:
    """Give variables back the values that they had."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)

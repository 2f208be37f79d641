"""Keras models as bytes, because Keras saves and loads only paths."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import keras


def to_bytes(model: "keras.Model") -> bytes:
    """The model as a ``.keras`` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return path.read_bytes()


def from_bytes(data: bytes, *, origin: str) -> "keras.Model":
    """The model in a ``.keras`` file. Raises ``PipelineError``, naming ``origin``, if it can't be loaded safely."""
    import keras
    from keras.src.saving.serialization_lib import SafeModeScope

    with as_file(data, ".keras") as path:
        try:
            # A model of unknown origin must not execute code. The scope is needed because
            # keras.config.enable_unsafe_deserialization() overrides the argument.
            with SafeModeScope(True):
                return keras.saving.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise PipelineError(
                f"{origin} can't be loaded as a Keras model in safe mode: {error}. Save it with `model.save(…)` in "
                "Keras 3, of built-in layers only (no Lambda, no custom class). Those of Keras Hub need it installed."
            ) from error


@contextlib.contextmanager
def as_file(data: bytes, suffix: str) -> Iterator[str]:
    """The path of a temporary file with these bytes, removed at the end of the context."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        path.write_bytes(data)
        yield str(path)

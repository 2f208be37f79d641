"""The networks of keras.applications as encoders: their names, and models that include their preprocessing."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import keras

RANDOM_SEED = 0
"""Seed of random weights."""


def networks() -> dict[str, Callable[..., Any]]:
    """The functions of keras.applications by the names of their networks, such as ``convnext-base``."""
    import keras

    functions = filter(inspect.isfunction, vars(keras.applications).values())
    return {_name(function): function for function in functions if "include_top" in _parameters(function)}


def build(name: str, weights: str | None) -> "keras.Model":
    """A network that maps RGB 0..255, (N, H, W, 3), to pooled vectors, (N, D).

    Args:
        name: of the network.
        weights: ``imagenet``, which Keras downloads, a ``.h5`` file of weights without the top, or None for random
            ones, which are always the same.

    Raises:
        PipelineError: the weights can't be downloaded, or the file does not hold those of the network.
    """
    import keras

    function = networks()[name]
    module: Any = inspect.getmodule(function)
    from_file = weights not in ("imagenet", None)
    takes_file = module is not inspect.getmodule(keras.applications.EfficientNetB0)
    if from_file and not takes_file:
        raise PipelineError(
            f"Keras builds {name} without a step of its preprocessing if the weights are in a file: put the file that "
            f"Keras would download into ~/.keras/models, and name the encoder {name}."
        )
    size = _size(name)
    keras.utils.set_random_seed(RANDOM_SEED)
    try:
        network = function(include_top=False, weights=weights, pooling="avg", input_shape=(*size, 3))
    except Exception as error:
        # Keras has no type of its own for a failed download.
        if "URL fetch failure" in str(error):
            elsewhere = f"name it as {name}:/path/weights.h5" if takes_file else "put it into ~/.keras/models"
            raise PipelineError(
                f"The ImageNet weights of {name} could not be downloaded: {error}. Check the connection to the "
                f"internet. Without one, download the file elsewhere and {elsewhere}, or name a model of your own, "
                "/path/model.keras, as the encoder."
            ) from error
        if not from_file or not isinstance(error, ValueError | OSError | KeyError):
            raise
        raise PipelineError(
            f"The file does not hold the weights of {name} without its top (`include_top=False`): {error}"
        ) from error
    pictures = keras.Input((*size, 3), name="pictures")
    # On a symbolic input it adds operations of Keras, which are saved with the model.
    return keras.Model(pictures, network(module.preprocess_input(pictures)), name=name.replace("-", "_"))


@functools.cache
def _size(name: str) -> tuple[int, int]:
    """The height and width of the pictures that a network was trained with."""
    # A network without its top takes any size, so that this one must be built. MobileNetV3 takes any size even so.
    _, height, width, _ = networks()[name](weights=None, classes=1).input_shape
    return height or 224, width or 224


def _name(function: Callable[..., Any]) -> str:
    # The networks whose name depends on other arguments have none by default.
    default = getattr(_parameters(function).get("name"), "default", None)
    return str(default or function.__name__).lower().replace("_", "-")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)

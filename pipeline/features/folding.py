"""Batch normalizations folded into the layers before them, which then compute the same in one step.

In inference, a batch normalization multiplies each channel by a constant and adds another. A convolution or a dense
layer does both as well, so its weights can include these constants (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877). OpenVINO does this by itself. On an accelerator nothing does: there the weights are
arguments of the compiled network.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras


def fold_batch_norms(model: "keras.Model") -> "keras.Model":
    """A model for inference that computes the same up to rounding, without the batch normalizations that can be folded.

    These directly follow a ``Conv2D``, ``DepthwiseConv2D``, ``SeparableConv2D`` or ``Dense`` layer without an
    activation, whose output nothing else reads, and both are used once. Models within the model are folded, too, except
    those of a class of their own, whose graph may not be all that they do. The model itself is not changed; the result
    shares its other layers.
    """
    import keras
    from keras.src.models.functional import Functional

    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if type(model) is not Functional:
        return model
    folded = _foldable(model)
    replaced: dict[int, Any] = {id(layer): _with_bias(layer) for layer, _ in folded}
    dropped = {id(norm) for _, norm in folded}

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        if id(layer) in dropped:
            return inputs[0]
        if isinstance(layer, keras.Model) and id(layer) not in replaced:
            replaced[id(layer)] = fold_batch_norms(layer)
        return replaced.get(id(layer), layer)(*inputs, **options)

    result = _follow(model, call)
    for layer, norm in folded:
        replaced[id(layer)].set_weights(_folded_weights(layer, norm))
    return result


def _follow(model: "keras.Model", call: Callable[..., Any]) -> "keras.Model":
    """The graph of a functional model, in which ``call`` is called in place of each layer, with it as an argument."""
    import keras

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _foldable(model: "keras.Model") -> list[tuple[Any, Any]]:
    """Each layer that is followed by a batch normalization that can be folded into it, with this one."""
    import keras

    calls: Counter[int] = Counter()
    readers: Counter[int] = Counter()
    made_by: dict[int, Any] = {}
    pairs = []
    kept = []  # an id is only of one object while this exists

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        output = layer(*inputs, **options)
        kept.append(output)
        calls[id(layer)] += 1
        readers.update(map(id, keras.tree.flatten((inputs, options))))
        made_by.update({id(tensor): layer for tensor in keras.tree.flatten(output)})
        if isinstance(layer, keras.layers.BatchNormalization) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], layer, inputs[0]))
        return output

    graph = _follow(model, call)
    readers.update(map(id, graph.outputs))
    return [
        (layer, norm)
        for layer, norm, tensor in pairs
        if readers[id(tensor)] == 1 and calls[id(layer)] == calls[id(norm)] == 1 and _is_linear(layer, norm, tensor)
    ]


def _is_linear(layer: Any, norm: Any, output: Any) -> bool:
    """Whether a layer multiplies and adds, and nothing more, and its last axis is the normalized one."""
    from keras import activations, layers

    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)
    return (
        type(layer) in kinds
        and layer.activation in (None, activations.linear)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and norm.axis in (-1, len(output.shape) - 1)
    )


def _with_bias(layer: Any) -> Any:
    """A new layer like this one, with a bias, and without weights yet."""
    return type(layer).from_config({**layer.get_config(), "use_bias": True})


def _folded_weights(layer: Any, norm: Any) -> list[npt.NDArray[np.float64]]:
    """The weights of the layer that computes what the layer and the batch normalization compute."""
    from keras import layers, ops

    def exact(variable: Any) -> npt.NDArray[np.float64]:
        return np.asarray(ops.convert_to_numpy(variable), np.float64)

    factor = 1 / np.sqrt(exact(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        factor = factor * exact(norm.gamma)
    bias = (exact(layer.bias) if layer.use_bias else 0.0) - exact(norm.moving_mean)
    bias = bias * factor + (exact(norm.beta) if norm.center else 0.0)
    *earlier, kernel = [exact(weights) for weights in layer.weights[: -1 if layer.use_bias else None]]
    # A depthwise convolution has its outputs on two axes: for each channel, as many as it multiplies them by.
    scale = factor.reshape(kernel.shape[-2:]) if isinstance(layer, layers.DepthwiseConv2D) else factor
    return [*earlier, kernel * scale, bias]

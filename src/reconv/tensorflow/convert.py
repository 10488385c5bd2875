"""Weights between the layouts of TensorFlow and of PyTorch, both ways.

TensorFlow                                    PyTorch
conv        (*kernel, in / groups, out)       (out, in / groups, *kernel)
depthwise   (*kernel, in, depth_multiplier)   (in · depth_multiplier, 1, *kernel)
transposed  (*kernel, out / groups, in)       (in, out / groups, *kernel)
separable   a depthwise and a conv one        a depthwise and a conv one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reconv.errors import conv_error

KINDS = ("conv", "depthwise", "transposed", "separable")
Array = NDArray[Any]


# -- views, which the entrances use at each call --------------------------------------------------
def conv_view(filters: Tensor) -> Tensor:
    """(*kernel, a, b) as (b, a, *kernel), for convolutions and transposed ones alike."""
    return filters.movedim((-1, -2), (0, 1))


def depthwise_view(filters: Tensor) -> Tensor:
    """(*kernel, in, multiplier) as (in · multiplier, 1, *kernel)."""
    return filters.flatten(-2).movedim(-1, 0).unsqueeze(1)


# -- kernels --------------------------------------------------------------------------------------
def to_torch(kernel: Any, kind: str = "conv") -> Any:
    """A kernel of TensorFlow as the weight of PyTorch's layer of the same kind.

    Args:    kernel: a tensor or array, (*kernel, …) in the order above, of 1, 2 or 3 dimensions;
             of a separable convolution the pair of both.
             kind: "conv", "depthwise", "transposed" or "separable".
    Returns: a new tensor; of a separable convolution a pair.
    Raises:  ConvError (a ValueError): when the kind is unknown or the kernel has another number of axes.
    Example:
             >>> tuple(to_torch(torch.zeros(3, 5, 16, 32)).shape)
             (32, 16, 3, 5)
             >>> tuple(to_torch(torch.zeros(3, 5, 16, 2), "depthwise").shape)
             (32, 1, 3, 5)
    """
    if _checked("to_torch", kind) == "separable":
        depthwise, pointwise = _two("to_torch", kernel)
        return to_torch(depthwise, "depthwise"), to_torch(pointwise)
    tensor = _tensor("to_torch", kernel)
    view = depthwise_view(tensor) if kind == "depthwise" else conv_view(tensor)
    return view.clone(memory_format=torch.contiguous_format)


def from_torch(weight: Any, kind: str = "conv", depth_multiplier: int = 1) -> Any:
    """The inverse of `to_torch`: a weight of PyTorch as a kernel of TensorFlow.

    Args:    weight: a tensor or array; of a separable convolution the pair of both.
             depth_multiplier: output channels for each input channel of a depthwise or separable one.
    Raises:  ConvError (a ValueError): when the kind is unknown or the weight is not of its shape.
    Example:
             >>> tuple(from_torch(torch.zeros(32, 1, 3, 5), "depthwise", depth_multiplier=2).shape)
             (3, 5, 16, 2)
    """
    if _checked("from_torch", kind) == "separable":
        depthwise, pointwise = _two("from_torch", weight)
        return from_torch(depthwise, "depthwise", depth_multiplier), from_torch(pointwise)
    tensor = _tensor("from_torch", weight)
    if kind == "depthwise":
        if tensor.shape[1] != 1 or depth_multiplier < 1 or tensor.shape[0] % depth_multiplier:
            raise conv_error("from_torch", "a depthwise weight must be (in · depth_multiplier, 1, *kernel)",
                             got={"weight": tuple(tensor.shape), "depth_multiplier": depth_multiplier},
                             also=ValueError)  # fmt: skip
        tensor = tensor.squeeze(1).movedim(0, -1).unflatten(-1, (-1, depth_multiplier))
    else:
        tensor = tensor.movedim((0, 1), (-1, -2))
    return tensor.clone(memory_format=torch.contiguous_format)


# -- whole layers ---------------------------------------------------------------------------------
def state_from_keras(weights: Sequence[Any], kind: str = "conv") -> dict[str, Tensor]:
    """The state dict of PyTorch's layer, from the list that `get_weights()` of Keras' layer gives.

    A separable convolution is a chain of two, as reconv.nn.SeparableConv2d is: `0.weight`, `1.weight`, `1.bias`.

    Args:    weights: [kernel] or [kernel, bias]; of a separable one [depthwise, pointwise] and the bias, if any.
    Raises:  ConvError (a ValueError): when the list has another length, or a kernel another shape.
    Example:
             >>> state = state_from_keras([torch.zeros(3, 3, 16, 32), torch.zeros(32)])
             >>> torch.nn.Conv2d(16, 32, 3).load_state_dict(state)
             <All keys matched successfully>
    """
    if not isinstance(weights, Sized):
        raise conv_error("state_from_keras", "weights must be a list of arrays", also=TypeError,
                         got={"weights": type(weights).__name__})  # fmt: skip
    keys = _keys("state_from_keras", kind, len(weights))
    kernels = weights[:2] if kind == "separable" else weights[0]
    converted = to_torch(kernels, kind)
    tensors = [*converted] if kind == "separable" else [converted]
    tensors += [_copied(bias) for bias in weights[len(tensors) :]]
    return dict(zip(keys, tensors, strict=True))


def keras_from_state(state: Mapping[str, Any], kind: str = "conv", depth_multiplier: int = 1) -> list[Array]:
    """The inverse of `state_from_keras`: the list for `set_weights()` of Keras' layer.

    Args:    state: of PyTorch's layer. kind: "conv", "depthwise", "transposed" or "separable".
             depth_multiplier: of a depthwise or separable one, the filters of each channel.
    Raises:  ConvError (a ValueError): when the state dict has other keys, or a weight another shape.
    Example:
             >>> weights = keras_from_state(torch.nn.ConvTranspose1d(16, 32, 3).state_dict(), "transposed")
             >>> [array.shape for array in weights]
             [(3, 32, 16), (32,)]
    """
    if not isinstance(state, Mapping):
        raise conv_error("keras_from_state", "state must be names and tensors", got={"state": type(state).__name__},
                         also=TypeError)  # fmt: skip
    keys = _keys("keras_from_state", kind, len(state))
    if set(state) != set(keys):
        raise conv_error("keras_from_state", f"the state dict must have the keys {', '.join(keys)}",
                         got={"keys": ", ".join(state)}, also=ValueError)  # fmt: skip
    tensors = [state[key] for key in keys]
    if kind == "separable":
        kernels = [*from_torch(tensors[:2], kind, depth_multiplier)]
    else:
        kernels = [from_torch(tensors[0], kind, depth_multiplier)]
    return [array(tensor) for tensor in kernels + [_copied(bias) for bias in tensors[len(kernels) :]]]


def array(tensor: Tensor) -> Array:
    """A NumPy array of its own; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def _keys(name: str, kind: str, count: int) -> list[str]:
    keys = ["0.weight", "1.weight", "1.bias"] if _checked(name, kind) == "separable" else ["weight", "bias"]
    if count not in (len(keys) - 1, len(keys)):
        raise conv_error(name, f"there must be {len(keys) - 1} or {len(keys)} weights for the kind {kind}",
                         got={"weights": count}, also=ValueError)  # fmt: skip
    return keys[:count]


def _checked(name: str, kind: str) -> str:
    if kind not in KINDS:
        raise conv_error(name, f"kind must be one of {', '.join(KINDS)}", got={"kind": repr(kind)}, also=ValueError)
    return kind


def _two(name: str, kernels: Any) -> tuple[Any, Any]:
    if not isinstance(kernels, (tuple, list)) or len(kernels) != 2:
        raise conv_error(name, "a separable convolution must be given as a pair, depthwise and pointwise",
                         got={"kernels": type(kernels).__name__}, also=ValueError)  # fmt: skip
    return kernels[0], kernels[1]


def _tensor(name: str, value: Any) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if not 3 <= tensor.ndim <= 5:
        raise conv_error(name, "a kernel must have 3, 4 or 5 axes", got={"shape": tuple(tensor.shape)},
                         also=ValueError)  # fmt: skip
    return tensor


def _copied(bias: Any) -> Tensor:
    return bias.detach().clone() if isinstance(bias, Tensor) else torch.from_numpy(np.array(bias))

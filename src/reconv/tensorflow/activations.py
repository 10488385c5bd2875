"""Keras' activations by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.tensorflow.arguments import by_name

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "relu": torch.relu, "relu6": F.relu6, "leakyrelu": partial(F.leaky_relu, negative_slope=0.2), "elu": F.elu,
    "selu": F.selu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "mish": F.mish,
    "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "hardsilu": F.hardswish, "hardswish": F.hardswish,
    "tanh": torch.tanh, "softplus": F.softplus, "softsign": F.softsign, "exponential": torch.exp,
    "softmax": partial(torch.softmax, dim=-1), "logsoftmax": partial(torch.log_softmax, dim=-1),
    "linear": None,
}  # fmt: skip


def get(activation: Any) -> Any:
    """An activation by its name, of Keras 3's definition; functions and modules are given back."""
    return by_name("activation", activation, ACTIVATIONS)

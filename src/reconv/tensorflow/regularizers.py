"""Keras' regularisers: functions of a tensor that give what it adds to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from torch import Tensor

from reconv.errors import conv_error
from reconv.tensorflow.arguments import by_name


@dataclass(frozen=True)
class L1L2:
    """l1 · Σ|w| + l2 · Σw²

    Raises:  ConvError (a ValueError): when a factor is no finite number >= 0.
    Example:
             >>> import torch
             >>> L1L2(l1=0.5, l2=0.25)(torch.tensor([1.0, -2.0]))
             tensor(2.7500)
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or not 0 <= value < inf:
                raise conv_error(type(self).__name__, f"{field.name} must be a number >= 0", got={field.name: value},
                                 also=ValueError)  # fmt: skip

    def __call__(self, tensor: Tensor) -> Tensor:
        return self.l1 * tensor.abs().sum() + self.l2 * tensor.square().sum()


@dataclass(frozen=True)
class L1(L1L2):
    """l1 · Σ|w|"""

    l1: float = 0.01


@dataclass(frozen=True, init=False)
class L2(L1L2):
    """l2 · Σw²"""

    def __init__(self, l2: float = 0.01) -> None:
        object.__setattr__(self, "l1", 0.0)
        object.__setattr__(self, "l2", l2)
        self.__post_init__()


REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {"l1": L1(), "l2": L2(), "l1l2": L1L2(0.01, 0.01)}


def get(regularizer: Any) -> Any:
    """A regulariser by its name (`l1`, `l2`, `l1_l2`, each with 0.01); functions are given back."""
    return by_name("regularizer", regularizer, REGULARIZERS)

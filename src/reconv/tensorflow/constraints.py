"""Keras' constraints: functions of a tensor that give the nearest one that is allowed.

Axes are those of TensorFlow's layout: [0, 1, 2] of a kernel (H, W, in, out) gives each filter a norm of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reconv.errors import conv_error
from reconv.tensorflow.arguments import by_name

EPSILON = 1e-7
Axes = int | Sequence[int]


@dataclass(frozen=True)
class NonNeg:
    """Values below 0 become 0."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.clamp(min=0)


@dataclass(frozen=True)
class MaxNorm:
    """No norm along the axes above max_value.

    Example:
             >>> import torch
             >>> MaxNorm(1.0)(torch.tensor([[3.0, 0.3], [4.0, 0.4]]))
             tensor([[0.6000, 0.3000], [0.8000, 0.4000]])
    """

    max_value: float = 2
    axis: Axes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        norms = _norms(tensor, self.axis)
        return tensor * (norms.clamp(0, self.max_value) / (EPSILON + norms))


@dataclass(frozen=True)
class UnitNorm:
    """Every norm along the axes is 1."""

    axis: Axes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor / (EPSILON + _norms(tensor, self.axis))


@dataclass(frozen=True)
class MinMaxNorm:
    """Every norm along the axes within bounds; a rate below 1 goes only that part of the way there."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: Axes = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_value <= self.max_value:
            raise conv_error("MinMaxNorm", "0 <= min_value <= max_value must hold",
                             got={"min_value": self.min_value, "max_value": self.max_value},
                             also=ValueError)  # fmt: skip

    def __call__(self, tensor: Tensor) -> Tensor:
        norms = _norms(tensor, self.axis)
        wanted = self.rate * norms.clamp(self.min_value, self.max_value) + (1 - self.rate) * norms
        return tensor * (wanted / (EPSILON + norms))


CONSTRAINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "maxnorm": MaxNorm(), "nonneg": NonNeg(), "unitnorm": UnitNorm(), "minmaxnorm": MinMaxNorm(),
}  # fmt: skip


def get(constraint: Any) -> Any:
    """A constraint by its name (`max_norm` or `MaxNorm`); functions are given back."""
    return by_name("constraint", constraint, CONSTRAINTS)


def _norms(tensor: Tensor, axis: Axes) -> Tensor:
    return tensor.square().sum(axis if isinstance(axis, int) else tuple(axis), keepdim=True).sqrt()

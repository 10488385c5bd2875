"""What constructors are given."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar, Protocol

from reconv.errors import conv_error
from reconv.ops.problem import Size


class OfDimensions(Protocol):
    spatial_dims: ClassVar[int]


def per_axis(layer: OfDimensions, size: Size) -> tuple[int, ...]:
    """The kernel size along each axis of the layer's maps."""
    dims = layer.spatial_dims
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * dims
    if len(sizes) != dims:
        raise conv_error(type(layer).__name__, f"kernel_size must be an integer, or {dims} of them",
                         got={"kernel_size": size}, also=ValueError)  # fmt: skip
    return sizes


def check_counts(layer: object, **counts: object) -> None:
    """Each must be a number of things.

    Args:    layer: what is told to have been given them, by its name or by its class.
    """
    told = layer if isinstance(layer, str) else type(layer).__name__
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise conv_error(told, f"{name} must be an integer >= 1", got={name: repr(value)}, also=ValueError)

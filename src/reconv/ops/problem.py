"""`Problem`: all that the choice of a kernel depends on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """A convolution to compute. Strides of tensors are torch's.

    bias: its shape and stride, or True where there is none.
    """

    dims: int
    input: tuple[int, ...]
    input_stride: tuple[int, ...]
    weight: tuple[int, ...]
    weight_stride: tuple[int, ...]
    bias: tuple[tuple[int, ...], tuple[int, ...]] | bool
    stride: int | tuple[int, ...]
    padding: str | int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    groups: int
    dtype: torch.dtype
    threads: int
    relu: bool = False  # what is negative becomes 0
    pool: int = 1  # side of the squares whose largest value is kept, as by torch.nn.MaxPool2d

    @classmethod
    def of(cls, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1) -> Problem:  # fmt: skip
        """That of torch.nn.functional's convolution with these arguments, on the threads that there are now."""
        of_bias = bias is None or (bias.shape, bias.stride())
        return cls(weight.ndim - 2, input.shape, input.stride(), weight.shape, weight.stride(), of_bias, stride,
                   padding, dilation, groups, input.dtype, torch.get_num_threads())  # fmt: skip


def is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether PyTorch takes a 4D tensor to be channels_last, by its strides alone where sizes of 1 leave it open."""
    least = 0
    for axis in (1, 3, 2, 0):
        if strides[1] == 0 or shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


def channels_last_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a dense channels_last tensor (N, C, H, W), as PyTorch makes it."""
    _, c, height, width = shape
    return c * height * width, 1, c * width, c

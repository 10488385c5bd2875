"""The native direct convolution of small channels-last maps (csrc/direct.cpp).

On a small map the time of PyTorch's convolution is hardly its arithmetic: im2col, reordered weights and the way to the
kernel cost more. This kernel has none of them, and one call of about ten microseconds.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reconv.ops.native import native_isa

DTYPES = (torch.float32, torch.float64)


class Problem(NamedTuple):
    """What the choice of a kernel depends on. Strides as torch has them; bias: its shape or None."""

    dims: int
    input: tuple[int, ...]
    input_stride: tuple[int, ...]
    weight: tuple[int, ...]
    weight_stride: tuple[int, ...]
    bias: tuple[int, ...] | None
    stride: int | tuple[int, ...]
    padding: str | int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    groups: int
    dtype: torch.dtype
    threads: int


def refuse(problem: Problem) -> str | None:
    """Why the native direct convolution does not serve, or None."""
    if native_isa() is None:
        return "the package was built without native kernels"
    if problem.dims != 2 or len(problem.input) != 4 or not problem.input[0]:
        return "the input must be a batch of 2D maps"
    if problem.dtype not in DTYPES:
        return f"the dtype must be one of {', '.join(map(str, DTYPES))}"
    if problem.groups != 1:
        return "there must be one group"
    if not is_valid(problem):
        return "the arguments must be valid"
    if not (is_channels_last(problem.input, problem.input_stride)
            or is_channels_last(problem.weight, problem.weight_stride)):  # fmt: skip
        return "input or weight must be channels_last, as then PyTorch's output is, too"
    return None


def is_valid(problem: Problem) -> bool:
    """Whether PyTorch would take the arguments; where it does not, it shall say why."""
    if (
        len(problem.weight) != 4
        or problem.input[1] != problem.weight[1]
        or problem.bias not in (None, problem.weight[:1])
    ):
        return False
    words = problem.padding in ("same", "valid")
    given = (problem.stride, problem.dilation, 0 if words else problem.padding)
    if not all(isinstance(value, int) or _is_pair(value) for value in given):
        return False
    stride, dilation = _pair(problem.stride), _pair(problem.dilation)
    pads = _pads(problem.padding, problem.weight, dilation)
    if min(*problem.weight, *problem.input[1:], *stride, *dilation) < 1 or min(pads) < 0:
        return False
    room = [n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(problem.input[2:])]
    fits = all(r > d * (k - 1) for r, d, k in zip(room, dilation, problem.weight[2:], strict=True))
    small = prod(problem.input[:2]) * prod(room) < 2**31 and prod(problem.weight) < 2**31
    return fits and small and (problem.padding != "same" or stride == (1, 1))


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) in (1, 2) and all(isinstance(n, int) for n in value)


def run(dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
        groups: int) -> Tensor:  # fmt: skip
    """The convolution; the output is channels_last."""
    if input.stride(1) != 1 and input.shape[1] > 1:
        input = input.contiguous(memory_format=torch.channels_last)
    if bias is not None and bias.stride(0) != 1:
        bias = bias.contiguous()
    dilation = _pair(dilation)
    return torch.ops.reconv.direct_conv2d.default(
        input, weight, bias, *_pair(stride), *_pads(padding, weight.shape, dilation), *dilation
    )


def is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether PyTorch takes a tensor to be channels_last, by its strides alone where sizes of 1 leave it open."""
    least = 0
    for axis in (1, 3, 2, 0):
        if strides[1] == 0 or shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _pads(padding: Any, weight: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Zeros at the top, bottom, left and right. Of an odd number "same" puts the larger half last, as torch does."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        high, wide = (d * (k - 1) for d, k in zip(dilation, weight[2:], strict=True))
        return high // 2, high - high // 2, wide // 2, wide - wide // 2
    high, wide = _pair(padding)
    return high, high, wide, wide

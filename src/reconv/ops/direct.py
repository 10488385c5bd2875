"""The native direct convolution of small channels-last maps (csrc/direct.cpp).

On a small map the time of PyTorch's convolution is hardly its arithmetic: im2col, reordered weights and the way to the
kernel cost more. This kernel has none of them. It packs the weights at each call, so that large ones are better left
to PyTorch. The limits are from `python benchmarks/kernels.py benchmarks/problems/small_maps.txt`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from reconv.ops.native import library, native_isa
from reconv.ops.problem import Problem, channels_last_strides, is_channels_last

MEASURED = ("avx512",)  # instruction sets with results; others route to PyTorch
MOST_MACS, MOST_WEIGHTS = 16_000_000, 2**17
FUNCTIONS = {torch.float32: "reconv_direct_f32", torch.float64: "reconv_direct_f64"}


def refuse(problem: Problem) -> str | None:
    """Why the native direct convolution does not serve, or None."""
    if native_isa() is None:
        return "the package was built without native kernels"
    if native_isa() not in MEASURED:
        return f"it has not been measured on {native_isa()}"
    if problem.dims != 2 or len(problem.input) != 4 or not problem.input[0]:
        return "the input must be a batch of 2D maps"
    if problem.dtype not in FUNCTIONS:
        return f"the dtype must be one of {', '.join(map(str, FUNCTIONS))}"
    if problem.groups != 1:
        return "there must be one group"
    if not is_valid(problem):
        return "the arguments must be valid"
    if not (is_channels_last(problem.input, problem.input_stride)
            or is_channels_last(problem.weight, problem.weight_stride)):  # fmt: skip
        return "input or weight must be channels_last, as then PyTorch's output is, too"
    weights = prod(problem.weight)
    if weights > MOST_WEIGHTS or weights * problem.input[0] * prod(convolved_size(problem)) > MOST_MACS:
        return f"PyTorch is faster beyond {MOST_WEIGHTS} weights or {MOST_MACS} multiply-accumulates"
    return None


def is_valid(problem: Problem) -> bool:
    """Whether PyTorch would take the arguments; where it does not, it shall say why."""
    if len(problem.weight) != 4 or problem.input[1] != problem.weight[1]:
        return False
    if problem.bias not in (True, (problem.weight[:1], (1,))):
        return False
    words = problem.padding in ("same", "valid")
    given = (problem.stride, problem.dilation, 0 if words else problem.padding)
    if not all(isinstance(value, int) or _is_pair(value) for value in given):
        return False
    stride, dilation = _pair(problem.stride), _pair(problem.dilation)
    pads = _pads(problem.padding, problem.weight, dilation)
    if min(*problem.weight, *problem.input[1:], *stride, *dilation) < 1 or min(pads) < 0:
        return False
    room = _room(problem.input, pads)
    fits = all(r > d * (k - 1) for r, d, k in zip(room, dilation, problem.weight[2:], strict=True))
    small = prod(problem.input[:2]) * prod(room) < 2**31 and prod(problem.weight) < 2**31
    return fits and small and (problem.padding != "same" or stride == (1, 1)) and 0 not in output_size(problem)


def prepare(*problems: Problem) -> Callable[..., Tensor]:
    """The function (input, weight, bias, weight, bias, …) that computes these convolutions one after the other.

    Its output is channels_last.
    """
    first, last = problems[0], problems[-1]
    dense = first.input[1] == 1 or first.input_stride[1] == 1
    if not dense:
        first = first._replace(input_stride=channels_last_strides(first.input))
    numbers = [number for problem in (first, *problems[1:]) for number in _table(problem)]
    shapes = (ctypes.c_int64 * len(numbers))(*numbers)
    address, count = ctypes.addressof(shapes), len(problems)
    out_shape = (first.input[0], last.weight[0], *output_size(last))
    out_strides = channels_last_strides(out_shape)
    function: Any = getattr(library(), FUNCTIONS[first.dtype])
    pack = Struct(f"{2 + 2 * count}P").pack  # pointers as bytes: cheaper than a ctypes array

    def run(input: Tensor, *tensors: Tensor | None, alive: object = shapes) -> Tensor:
        if not dense:
            input = input.contiguous(memory_format=torch.channels_last)
        output = input.new_empty_strided(out_shape, out_strides)
        places = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        if function(count, address, pack(input.data_ptr(), output.data_ptr(), *places)):
            raise MemoryError(f"no memory for the convolutions {problems}")
        return output

    return run


def _table(problem: Problem) -> list[int]:
    """DirectShape of csrc/direct.hpp."""
    n, c, height, width = problem.input
    dilation = _pair(problem.dilation)
    pads = _pads(problem.padding, problem.weight, dilation)
    batch_stride, _, *strides = problem.input_stride
    window = (*problem.weight[2:], *_pair(problem.stride), *dilation, *pads)
    return [n, height, width, c, problem.weight[0], *convolved_size(problem), *window, batch_stride, *strides,
            *problem.weight_stride, problem.threads, problem.relu, problem.pool]  # fmt: skip


def output_size(problem: Problem) -> tuple[int, int]:
    """Height and width of the output."""
    high, wide = convolved_size(problem)
    return high // problem.pool, wide // problem.pool


def convolved_size(problem: Problem) -> tuple[int, int]:
    """Height and width of what the convolution gives, before it is pooled."""
    dilation = _pair(problem.dilation)
    room = _room(problem.input, _pads(problem.padding, problem.weight, dilation))
    steps = zip(room, dilation, problem.weight[2:], _pair(problem.stride), strict=True)
    high, wide = ((r - d * (k - 1) - 1) // s + 1 for r, d, k, s in steps)
    return high, wide


def _room(input: tuple[int, ...], pads: tuple[int, int, int, int]) -> tuple[int, int]:
    """Height and width of the padded input."""
    return input[2] + pads[0] + pads[1], input[3] + pads[2] + pads[3]


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) in (1, 2) and all(isinstance(n, int) for n in value)


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

"""The native direct convolution of small channels-last maps (csrc/direct.cpp).

On a small map the time of PyTorch's convolution is hardly its arithmetic: im2col, reordered weights and the way to the
kernel cost more. This kernel has none of them. It packs the weights at each call, so that large ones are better left
to PyTorch. The limits are from `python benchmarks/kernels.py benchmarks/problems/small_maps.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from reconv.ops.native import bound, native_isa
from reconv.ops.problem import Problem, dense_strides, is_channels_last

MEASURED = ("avx512",)  # instruction sets with results; others route to PyTorch
MOST_MACS, MOST_WEIGHTS = 16_000_000, 2**17
TYPES = (torch.float32, torch.float64)


def refuse(problem: Problem) -> str | None:
    """Why the native direct convolution does not serve, or None."""
    if native_isa() is None:
        return "the package was built without native kernels"
    if native_isa() not in MEASURED:
        return f"it has not been measured on {native_isa()}"
    if problem.op != "forward" or problem.transposed:
        return "it computes nothing but the forward pass"
    if problem.dims != 2:
        return "the input must be a batch of 2D maps"
    if problem.dtype not in TYPES:
        return f"the dtype must be one of {', '.join(map(str, TYPES))}"
    if problem.groups != 1:
        return "there must be one group"
    if not (is_channels_last(problem.x, problem.x_stride) or is_channels_last(problem.w, problem.w_stride)):
        return "input or weight must be channels_last, as then PyTorch's output is, too"
    if prod(problem.w) > MOST_WEIGHTS or problem.macs > MOST_MACS:
        return f"PyTorch is faster beyond {MOST_WEIGHTS} weights or {MOST_MACS} multiply-accumulates"
    if 0 in output_size(problem):
        return "the arguments must be valid"
    return None


def prepare(*problems: Problem) -> Callable[..., Tensor]:
    """The function (input, weight, bias, weight, bias, …) that computes these convolutions one after the other.

    Its output is channels_last.
    """
    first, last = problems[0], problems[-1]
    dense = first.x[1] == 1 or first.x_stride[1] == 1
    if not dense:
        first = first._replace(x_stride=dense_strides(first.x, channels_last=True))
    numbers = [number for problem in (first, *problems[1:]) for number in _table(problem)]
    out_shape = (first.x[0], last.w[0], *output_size(last))
    out_strides = dense_strides(out_shape, channels_last=True)
    call = bound("direct", len(problems), first.dtype, numbers)

    def run(input: Tensor, *tensors: Tensor | None) -> Tensor:
        if not dense:
            input = input.contiguous(memory_format=torch.channels_last)
        output = input.new_empty_strided(out_shape, out_strides)
        call(input, output, *tensors)
        return output

    return run


def prepare_one(problem: Problem) -> Callable[..., Tensor]:
    run = prepare(problem)
    return lambda x, w, b, y: run(x, w, b)


def _table(problem: Problem) -> list[int]:
    """DirectShape of csrc/direct.hpp."""
    n, c, height, width = problem.x
    (top, bottom), (left, right) = problem.padding
    batch_stride, _, *strides = problem.x_stride
    window = (*problem.w[2:], *problem.stride, *problem.dilation, top, bottom, left, right)
    return [n, height, width, c, problem.w[0], *problem.y[2:], *window, batch_stride, *strides, *problem.w_stride,
            problem.threads, problem.relu, problem.pool]  # fmt: skip


def output_size(problem: Problem) -> tuple[int, ...]:
    """Height and width of the output, once it is pooled."""
    return tuple(n // problem.pool for n in problem.y[2:])

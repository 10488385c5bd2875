"""A depthwise convolution and the pointwise one after it by one native kernel (csrc/separable.cpp).

The map between them is never in memory: a piece of a row of it is multiplied while it is in the first cache. The limits
are from benchmarks/problems/separable.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

from reconv.ops.native import TYPES, Operand, bound, conv_shape, native_isa
from reconv.ops.problem import MOST_ELEMENTS, Problem, dense_strides

MEASURED = ("avx512",)  # instruction sets with results; others route to PyTorch
MOST_WEIGHTS = 200_000  # of the pointwise part: they are packed at each call, and more do not stay in the cache


def refuse(depthwise: Problem, pointwise: Operand) -> str | None:
    """Why the native separable convolution does not serve, or None.

    pointwise: shape and strides of its weight, (C_out, C_in, 1, …).
    """
    reason = cannot(depthwise, pointwise)
    if reason is None and native_isa() not in MEASURED:
        return f"it has not been measured on {native_isa()}"
    if reason is None and prod(pointwise[0]) > MOST_WEIGHTS:
        return f"two kernels are faster beyond {MOST_WEIGHTS} pointwise weights"
    return reason


def cannot(depthwise: Problem, pointwise: Operand) -> str | None:
    """Why it could not even compute them, or None."""
    if native_isa() is None:
        return "the package was built without native kernels"
    if depthwise.dtype not in TYPES:
        return f"the dtype must be one of {', '.join(map(str, TYPES))}"
    if depthwise.op != "forward" or depthwise.transposed or depthwise.pool > 1 or depthwise.dims > 2:
        return "it computes nothing but the forward pass of one or two dimensions"
    if depthwise.w[:2] != (depthwise.x[1], 1) or depthwise.groups != depthwise.x[1]:
        return "each channel must have one filter of its own"
    shape, _ = pointwise
    if tuple(shape[1:]) != (depthwise.y[1], *[1] * depthwise.dims):
        return "the second convolution must be pointwise"
    if max(prod(depthwise.x), prod(depthwise.y), prod(depthwise.y) // depthwise.y[1] * shape[0]) >= MOST_ELEMENTS:
        return f"tensors must have fewer than {MOST_ELEMENTS} elements"
    return None


def prepare(depthwise: Problem, pointwise: Operand, threads: int, relu: bool = False) -> Callable[..., Tensor]:
    """The function (input, depthwise weight, its bias, pointwise weight, its bias) that computes both.

    relu: whether what is negative becomes 0 in the end; depthwise.relu says so of what is between them.
    """
    shape, strides = pointwise
    out_shape = (depthwise.y[0], shape[0], *depthwise.y[2:])
    out_strides = dense_strides(out_shape, channels_last=depthwise.y_stride == dense_strides(depthwise.y, True))
    axes = [(s, d, lo) for s, d, (lo, _) in zip(depthwise.stride, depthwise.dilation, depthwise.padding, strict=True)]
    numbers = [*conv_shape("forward", (depthwise.x, depthwise.x_stride), (depthwise.w, depthwise.w_stride),
                           (depthwise.y, out_strides), axes, depthwise.groups, threads, relu),
               shape[0], *strides[:2], depthwise.relu]  # fmt: skip
    call = bound("separable", 0, depthwise.dtype, numbers)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, pointwise_weight: Tensor,
            pointwise_bias: Tensor | None) -> Tensor:  # fmt: skip
        output = input.new_empty_strided(out_shape, out_strides)
        call(input, weight, bias, pointwise_weight, pointwise_bias, output)
        return output

    return run

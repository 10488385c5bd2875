"""A depthwise convolution and the pointwise one after it by one native kernel (csrc/separable.cpp).

The map between them is never in memory: a piece of a row of it is multiplied while it is in the first cache. The limits
are from benchmarks/problems/separable.txt.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from math import prod
from struct import Struct
from typing import Any

from torch import Tensor

from reconv.ops.native import TYPES, Operand, conv_shape, library, native_isa
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
    if _kernel() is None:
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
    table = (ctypes.c_int64 * len(numbers))(*numbers)
    address, of, pack, function = ctypes.addressof(table), TYPES.index(depthwise.dtype), Struct("6P").pack, _kernel()
    assert function is not None

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, pointwise_weight: Tensor,
            pointwise_bias: Tensor | None, alive: object = table) -> Tensor:  # fmt: skip
        output = input.new_empty_strided(out_shape, out_strides)
        tensors = (input, weight, bias, pointwise_weight, pointwise_bias, output)
        if function(of, address, pack(*[0 if t is None else t.data_ptr() for t in tensors])):
            raise MemoryError(f"no memory for the separable convolution of {depthwise}")
        return output

    return run


@cache
def _kernel() -> Any:
    kernel = getattr(library(), "reconv_separable", None)
    if kernel is not None:
        kernel.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p]
    return kernel

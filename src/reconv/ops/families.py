"""The native kernels that are told a convolution in the same way (csrc/conv.hpp): what each serves, and its call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from reconv.ops.kernel import Kernel, Run
from reconv.ops.native import TYPES, conv_call, native_isa
from reconv.ops.problem import MOST_ELEMENTS, Problem


def _prepare(family: str, problem: Problem) -> Run:
    axes = [(s, d, lo) for s, d, (lo, _) in zip(problem.stride, problem.dilation, problem.padding, strict=True)]
    call = conv_call(family, problem.op, (problem.x, problem.x_stride), (problem.w, problem.w_stride),
                     (problem.y, problem.y_stride), axes, problem.groups, problem.dtype, problem.threads,
                     problem.relu)  # fmt: skip
    shape, strides = problem.wanted

    def forward(x: Tensor, w: Tensor, b: Tensor | None, y: Any) -> Tensor:
        output = x.new_empty_strided(shape, strides)
        call(x, w, b, output)
        return output

    def input_gradient(x: Any, w: Tensor, b: Tensor | None, y: Tensor) -> Tensor:
        output = y.new_empty_strided(shape, strides)
        call(output, w, b, y)
        return output

    def weight_gradient(x: Tensor, w: Any, b: Any, y: Tensor) -> Tensor:
        output = x.new_empty_strided(shape, strides)
        call(x, output, None, y)
        return output

    runs: dict[str, Run] = {"forward": forward, "input_gradient": input_gradient, "weight_gradient": weight_gradient}
    return runs[problem.op]


def _refuse(serves: Callable[[Problem], str | None], problem: Problem) -> str | None:
    if native_isa() is None:
        return "the package was built without native kernels"
    if problem.dtype not in TYPES:
        return f"the dtype must be one of {', '.join(map(str, TYPES))}"
    if problem.pool > 1:
        return "it does not pool"
    if max(prod(problem.x), prod(problem.y)) >= MOST_ELEMENTS:
        return f"tensors must have fewer than {MOST_ELEMENTS} elements"
    return serves(problem)


def _depthwise(problem: Problem) -> str | None:
    return None if problem.w[1] == 1 and problem.groups == problem.x[1] else "each channel must have its own filters"


def _planar(problem: Problem) -> str | None:
    fewer, more = sorted((problem.w[1], problem.w[0] // problem.groups))
    most = 64 if problem.dims == 1 else 16
    few = fewer <= 4 or more <= most
    return None if few else f"a group must have few channels: at most 4 on one side, or {most} on both"


def _dense(problem: Problem) -> str | None:
    if problem.op == "weight_gradient":
        return "it computes no gradients to weights"
    return None if problem.groups == 1 else "there must be one group"


def _family(name: str, serves: Callable[[Problem], str | None]) -> Kernel:
    return Kernel(name, partial(_prepare, name), partial(_refuse, serves))


DEPTHWISE, PLANAR, DENSE = (
    _family("depthwise", _depthwise), _family("planar", _planar), _family("dense", _dense),
)  # fmt: skip

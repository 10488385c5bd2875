"""`Problem`: all that the choice of a kernel depends on. Arguments as torch takes them become numbers for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from reconv.spec import ConvSpec

Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
Size = int | Sequence[int]  # one for all axes, or one each
Padding = str | int | Sequence[int | tuple[int, int]]
OPS = ("forward", "input_gradient", "weight_gradient")  # the order is csrc/conv.hpp's
MOST_ELEMENTS = 2**31  # larger tensors are PyTorch's


class Problem(NamedTuple):
    """One pass of the convolution y = x * w: y from x and w, x from y and w, or w from x and y.

    Strides are torch's; those of the wanted tensor are the ones that it will have.
    bias: whether there is one. transposed: whether a transposed convolution was asked for, of which x is the output and
    y the input.
    """

    op: str
    x: Shape
    w: Shape
    y: Shape
    x_stride: Shape
    w_stride: Shape
    y_stride: Shape
    bias: bool
    stride: Shape
    padding: Pads
    dilation: Shape
    groups: int
    dtype: torch.dtype
    threads: int
    transposed: bool = False
    relu: bool = False  # what is negative becomes 0
    pool: int = 1  # side of the squares whose largest value is kept, as by torch.nn.MaxPool2d

    @property
    def dims(self) -> int:
        return len(self.w) - 2

    @property
    def wanted(self) -> tuple[Shape, Shape]:
        """Shape and strides of what is computed."""
        return {"forward": (self.y, self.y_stride), "input_gradient": (self.x, self.x_stride),
                "weight_gradient": (self.w, self.w_stride)}[self.op]  # fmt: skip

    @property
    def macs(self) -> int:
        """Multiply-accumulates, with those that meet zeros of the padding."""
        return prod(self.y) * prod(self.w[1:])

    @property
    def even_padding(self) -> Shape | None:
        """One number for each axis, where PyTorch can be told so: both sides have the same, and no window lies in
        the padding alone.
        """
        if any(lo != hi for lo, hi in self.padding) or beyond(self.padding, self.w[2:], self.dilation):
            return None
        return tuple(lo for lo, _ in self.padding)

    def is_channels_last(self) -> bool:
        """Whether what is given and wanted lies with its channels innermost."""
        given = (self.y, self.y_stride) if self.op == "input_gradient" else (self.x, self.x_stride)
        return channels_innermost(*given)


# -- from the arguments of an entrance ------------------------------------------------------------
def forward(dims: int, x: Shape, x_stride: Shape, w: Shape, w_stride: Shape, bias: Any, stride: Any, padding: Any,
            dilation: Any, groups: int, dtype: torch.dtype, threads: int, relu: bool = False,
            pool: int = 1) -> Problem | None:  # fmt: skip
    """That of torch's convolution; None where torch would not take the arguments: it shall say why.

    bias: its shape and strides, or True where there is none.
    """
    axes = _axes(dims, w, stride, padding, dilation)
    if axes is None or not _fits(dims, x, w, groups, bias, w[:1]) or x[1] != w[1] * groups or w[0] % groups:
        return None
    strides, pads, dilations = axes
    if padding == "same" and set(strides) != {1}:
        return None
    out = tuple((n + lo + hi - d * (k - 1) - 1) // s + 1 if n + lo + hi > d * (k - 1) else 0
                for n, (lo, hi), d, k, s in zip(x[2:], pads, dilations, w[2:], strides, strict=True))  # fmt: skip
    y = (x[0], w[0], *out)
    if 0 in out or prod(x[:2]) * prod(n + lo + hi for n, (lo, hi) in zip(x[2:], pads, strict=True)) >= MOST_ELEMENTS:
        return None
    last = gives_channels_last(dtype, (x, x_stride), (w, w_stride))
    problem = Problem("forward", x, w, y, x_stride, w_stride, dense_strides(y, last), bias is not True, strides, pads,
                      dilations, groups, dtype, threads, False, relu, pool)  # fmt: skip
    return problem if prod(y) < MOST_ELEMENTS else None


def transposed(
    dims: int, y: Shape, y_stride: Shape, w: Shape, w_stride: Shape, bias: Any, stride: Any, padding: Any,
    dilation: Any, output_padding: Any, groups: int, dtype: torch.dtype, threads: int,
) -> Problem | None:  # fmt: skip
    """That of torch's transposed convolution, whose input is y; None where torch would not take the arguments."""
    axes = _axes(dims, w, stride, padding, dilation)
    extra = _numbers(output_padding, dims)
    channels = (w[1] * groups,) if len(w) > 1 else ()
    if isinstance(padding, str) or axes is None or extra is None:
        return None
    if not _fits(dims, y, w, groups, bias, channels) or y[1] != w[0] or y[1] % groups:
        return None
    strides, pads, dilations = axes
    if min(extra) < 0 or any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return None
    each = zip(y[2:], pads, dilations, w[2:], strides, extra, strict=True)
    out = tuple((n - 1) * s - lo - hi + d * (k - 1) + e + 1 for n, (lo, hi), d, k, s, e in each)
    x = (y[0], *channels, *out)
    if min(out) < 1 or max(prod(x), prod(y)) >= MOST_ELEMENTS:
        return None
    last = gives_channels_last(dtype, (y, y_stride), (w, w_stride))
    return Problem("input_gradient", x, w, y, dense_strides(x, last), w_stride, y_stride, bias is not True, strides,
                   pads, dilations, groups, dtype, threads, True)  # fmt: skip


def of_spec(spec: ConvSpec, shape: Shape, channels_last: bool, dtype: torch.dtype, threads: int) -> Problem | None:
    """That of a described convolution on a dense batch; None where there is nothing to compute."""
    if len(shape) != spec.spatial_dims + 2:
        return None
    if spec.padding_mode != "zeros":  # the layer pads first
        shape = (*shape[:2], *(n + sum(pair) for n, pair in zip(shape[2:], spec.padding, strict=True)))
        spec = spec.replace(padding=0, padding_mode="zeros")
    weight = spec.weight_shape
    known = (spec.spatial_dims, shape, dense_strides(shape, channels_last), weight,
             dense_strides(weight, channels_last and spec.spatial_dims > 1),  # torch has no such format for 1D
             ((spec.out_channels,), (1,)) if spec.bias else True, spec.stride, spec.padding, spec.dilation)  # fmt: skip
    rest = (spec.groups, dtype, threads)
    return transposed(*known, spec.output_padding, *rest) if spec.transposed else forward(*known, *rest)


def gradients(of: Problem, grad_stride: Shape) -> tuple[Problem, Problem]:
    """The problems of its backward pass: the gradient to its input and that to its weight."""
    if of.transposed:  # the gradient arrives at x
        plain = of._replace(x_stride=grad_stride, bias=False)
        dense = dense_strides(of.y, channels_innermost(of.y, of.y_stride) and of.dims > 1)
        to_input = plain._replace(op="forward", y_stride=dense)
    else:
        plain = of._replace(y_stride=grad_stride, bias=False, relu=False)
        dense = dense_strides(of.x, channels_innermost(of.x, of.x_stride) and of.dims > 1)
        to_input = plain._replace(op="input_gradient", x_stride=dense)
    last = channels_innermost(of.w, of.w_stride) and of.dims > 1
    return to_input, plain._replace(op="weight_gradient", w_stride=dense_strides(of.w, last))


def _fits(dims: int, input: Shape, w: Shape, groups: int, bias: Any, channels: Shape) -> bool:
    """Whether ranks and sizes are such that there is something to compute."""
    return (
        len(w) == len(input) == dims + 2 and groups > 0 and min(*w, *input) > 0 and prod(w) < MOST_ELEMENTS
        and (bias is True or bias == (channels, (1,)))
    )  # fmt: skip


def _axes(dims: int, w: Shape, stride: Any, padding: Any, dilation: Any) -> tuple[Shape, Pads, Shape] | None:
    strides, dilations = _numbers(stride, dims), _numbers(dilation, dims)
    if strides is None or dilations is None or len(w) != dims + 2 or min(*strides, *dilations) < 1:
        return None
    pads = _pads(padding, w[2:], dilations)
    return None if pads is None or min(min(pair) for pair in pads) < 0 else (strides, pads, dilations)


def _numbers(value: Any, dims: int) -> Shape | None:
    if isinstance(value, int):
        return (value,) * dims
    if not isinstance(value, (tuple, list)) or not all(isinstance(n, int) for n in value):
        return None
    return tuple(value) * (dims if len(value) == 1 else 1) if len(value) in (1, dims) else None


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether these are integers and words, or tuples of them: not what PyTorch puts for a size while it traces, and
    nothing that only equals an integer.
    """
    return all(type(v) is int or type(v) is str or (isinstance(v, tuple) and are_numbers(v)) for v in values)


def _pads(padding: Any, kernel: Sequence[int], dilation: Shape) -> Pads | None:
    """(lo, hi) for each axis. Of an odd number "same" puts the larger half last, as torch does."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        each = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in each)
    if has_sides(padding):
        return padding if len(padding) == len(kernel) else None
    numbers = _numbers(padding, len(kernel))
    return None if numbers is None else tuple((n, n) for n in numbers)


def has_sides(padding: Any) -> bool:
    """Whether padding is a (lo, hi) pair for each axis."""
    return isinstance(padding, tuple) and bool(padding) and isinstance(padding[0], tuple)


def beyond(pads: Pads, kernel: Sequence[int], dilation: Shape) -> bool:
    """Whether windows may lie in the padding alone. There F.conv2d of PyTorch 2.13 may end the process (oneDNN, with a
    channels_last weight), so that zeros are put around the input first.
    """
    return any(max(pair) > d * (k - 1) for pair, d, k in zip(pads, dilation, kernel, strict=True))


def pads_beyond(w: Shape, padding: Any, dilation: Any) -> Pads | None:
    """(lo, hi) for each axis where windows may lie in the padding alone; None elsewhere."""
    axes = _axes(len(w) - 2, w, 1, padding, dilation)
    return axes[1] if axes is not None and beyond(axes[1], w[2:], axes[2]) else None


def flat_pads(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """(lo, hi) per axis in the order of F.pad, which begins with the last axis."""
    return [side for pair in reversed(pairs) for side in pair]


# -- layouts --------------------------------------------------------------------------------------
def gives_channels_last(dtype: torch.dtype, *given: tuple[Shape, Shape]) -> bool:
    """Whether PyTorch's output would be channels_last, too."""
    dims = len(given[0][0]) - 2
    if dims == 1 or (dims == 3 and dtype == torch.float64):
        return False
    return any(is_channels_last(shape, strides) for shape, strides in given)


def is_channels_last(shape: Shape, strides: Shape) -> bool:
    """Whether PyTorch takes a tensor to be channels_last, by its strides alone where sizes of 1 leave it open."""
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if strides[1] == 0 or shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


def is_mistaken(dtype: torch.dtype, groups: int, *given: tuple[Shape, Shape]) -> bool:
    """Whether input and weight have one channel, lie as PyTorch takes for channels_last, and are not dense. There
    oneDNN in PyTorch 2.13 may give wrong values (where the last axis of the output is 1).
    """
    if groups != 1 or any(shape[1] != 1 for shape, _ in given) or not gives_channels_last(dtype, *given):
        return False
    return any(n > 1 and step != dense for shape, strides in given
               for n, step, dense in zip(shape, strides, dense_strides(shape, False), strict=True))  # fmt: skip


def channels_innermost(shape: Shape, strides: Shape) -> bool:
    """Whether the channels of a position lie side by side, and positions do not."""
    return shape[1] > 1 and strides[1] == 1 and not (strides[-1] == 1 and shape[-1] > 1)


def dense_strides(shape: Shape, channels_last: bool) -> Shape:
    """Of a dense tensor, as PyTorch makes it."""
    order = (1, *range(len(shape) - 1, 1, -1), 0) if channels_last else range(len(shape) - 1, -1, -1)
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)

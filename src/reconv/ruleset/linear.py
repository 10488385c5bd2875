"""What a block of linear parts computes, as one convolution: a fold over Block.

Shapes are computed at once, and from the block alone; weights only when they are asked for. So a rule refuses quickly,
and what it offers does not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any, assert_never

import torch
from torch import Tensor

from reconv.ruleset.canonical import dense_weight, float64
from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    convs,
    in_channels,
)
from reconv.spec.conv import Ints

Tensors = Mapping[str, Tensor]
EPS = 1e-5  # of a BatchNorm


class NotOneError(Exception):
    """Why a block is no single convolution; a refusal, never shown as an error."""


@dataclass(frozen=True)
class Linear:
    """One convolution; `bias()` is what it adds, where `spec.bias` says that it adds anything.

    kernel() is (groups, out / groups, in / groups, *kernel), both in float64.
    """

    spec: ConvSpec
    kernel: Callable[[], Tensor]
    bias: Callable[[], Tensor]


def linear(block: Block, tensors: Tensors, dims: int | None = None, channels: int | None = None) -> Linear:
    """The convolution that the block is.

        chain:   w[o, c, t] = Σ_{m, s_A·d_B·t_B + d_A·t_A = D·t} w_B[o, m, t_B] · w_A[m, c, t_A]
        sum:     w[o, c, t] = Σ_j Σ_{d_j·t_j − lo_j = D·t − lo} w_j[o, c, t_j]
        concat:  the same, each branch with its own outputs o
        bn:      w[c] = γ[c] / √(σ²[c] + ε),  b[c] = β[c] − w[c] · μ[c]

    Args:    tensors: the state dict of the block's layer.
             dims, channels: number of spatial axes, and of channels that come in, where no part tells them.
    Raises:  NotOneError: when it is none, with the reason.
    """
    dims = dims or next((spec.spatial_dims for spec in convs(block)), None)
    channels = channels or in_channels(block)
    match block:
        case ConvSpec():
            return _conv(block, tensors)
        case BatchNorm():
            return _norm(tensors, dims or 1)
        case Shuffle() | Permute():
            raise NotOneError(f"it reorders channels: {block}")
        case PixelShuffle():
            raise NotOneError(f"it spreads channels over space: {block}")
        case Activation(name="identity") if channels is not None:
            return _identity(channels, dims or 1)
        case Gate() | Deform() | Activation():
            raise NotOneError(f"it is not linear: {block}")
        case Chain():
            first = linear(block.blocks[0], inside(tensors, 0), dims, channels)
            for i, part in enumerate(block.blocks[1:], 1):
                first = _after(first, linear(part, inside(tensors, i), dims, first.spec.out_channels))
            return first
        case Branches():
            parts = [linear(part, inside(tensors, i), dims, channels) for i, part in enumerate(block.blocks)]
            return _side_by_side(parts, block.join)
        case _:
            assert_never(block)


def inside(tensors: Tensors, position: int) -> dict[str, Tensor]:
    """The tensors of one part of a block."""
    prefix = f"{position}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


# -- leaves -----------------------------------------------------------------------------------------------
def _conv(spec: ConvSpec, tensors: Tensors) -> Linear:
    return Linear(spec, lambda: dense_weight(spec, tensors["weight"]), lambda: float64(tensors["bias"]))


def _norm(tensors: Tensors, dims: int) -> Linear:
    """A depthwise 1×1."""
    channels = len(tensors["weight"])
    spec = ConvSpec(in_channels=channels, out_channels=channels, kernel_size=(1,) * dims, groups=channels)

    def scale() -> Tensor:
        return float64(tensors["weight"]) / (float64(tensors["running_var"]) + EPS).sqrt()

    return Linear(spec, lambda: scale().reshape(channels, *[1] * (dims + 2)),
                  lambda: float64(tensors["bias"]) - scale() * float64(tensors["running_mean"]))  # fmt: skip


def _identity(channels: int, dims: int) -> Linear:
    spec = ConvSpec(in_channels=channels, out_channels=channels, kernel_size=(1,) * dims, groups=channels, bias=False)
    return Linear(spec, lambda: torch.ones(channels, *[1] * (dims + 2), dtype=torch.float64), torch.Tensor)


# -- one after the other ----------------------------------------------------------------------------------
def _after(first: Linear, then: Linear) -> Linear:
    a, b = first.spec, then.spec
    groups = gcd(a.groups, b.groups)
    spec = _chained_spec(a, b).replace(groups=groups, bias=a.bias or b.bias)

    def kernel() -> Tensor:
        w_a, w_b = _together([regrouped(first.kernel(), groups), regrouped(then.kernel(), groups)])
        result = w_a.new_zeros(groups, spec.out_channels // groups, spec.in_channels // groups, *spec.kernel_size)
        steps = _steps(a, b)
        size = [(k - 1) * s // d + 1 for k, s, d in zip(a.kernel_size, steps[0], spec.dilation, strict=True)]
        for tap in _taps(b.kernel_size):
            mixed = torch.einsum("gmi...,gom->goi...", w_a, w_b[_at(tap)])
            starts = [t * s // d for t, s, d in zip(tap, steps[1], spec.dilation, strict=True)]
            strides = [max(1, s // d) for s, d in zip(steps[0], spec.dilation, strict=True)]
            window = [slice(at, at + n, stride) for at, n, stride in zip(starts, size, strides, strict=True)]
            result[_at(window)] += mixed
        return result

    def bias() -> Tensor:
        added = then.bias() if b.bias else torch.zeros(b.out_channels, dtype=torch.float64)
        if a.bias:
            mixing = regrouped(then.kernel().flatten(3).sum(-1), b.groups)
            passed = torch.einsum("gom,gm->go", mixing, first.bias().reshape(b.groups, -1)).flatten()
            added = added.to(passed.device) + passed
        return added

    return Linear(spec, kernel, bias)


def _steps(a: ConvSpec, b: ConvSpec) -> tuple[Ints, Ints]:
    """By how much a tap of each moves what the chain reads, per axis."""
    if a.transposed or b.transposed:  # what is written last has the finest grid
        return tuple(s * d for s, d in zip(b.stride, a.dilation, strict=True)), b.dilation
    return a.dilation, tuple(s * d for s, d in zip(a.stride, b.dilation, strict=True))


def _chained_spec(a: ConvSpec, b: ConvSpec) -> ConvSpec:
    """Kernel, stride, padding and dilation of b after a; groups and bias are left to the caller."""
    if a.bias and not _keeps_constants(b):
        raise NotOneError("a bias before the last kernel meets its padding, or the gaps of its stride")
    if a.transposed != b.transposed and not (_plain(a) or _plain(b)):
        raise NotOneError("a chain of a transposed and of another convolution")
    shape = b.transposed if _plain(a) else a.transposed
    steps, axes = _steps(a, b), range(a.spatial_dims)
    size, stride, padding, dilation, extra = [], [], [], [], []
    for axis in axes:
        neutral_a, neutral_b = _neutral(a, axis), _neutral(b, axis)
        both = not neutral_a and not neutral_b
        if both and not shape and any(b.padding[axis]):
            raise NotOneError("two kernels along the same axis with padding between them")
        if both and shape and _cut_between(a, b, axis):
            raise NotOneError("two transposed kernels along the same axis, of which the first cuts off what the "
                              "other needs")  # fmt: skip
        padded = b if neutral_a else a
        moves = [step[axis] for step, each in zip(steps, (a, b), strict=True) if each.kernel_size[axis] > 1]
        d = gcd(*moves) if moves else 1
        reach = sum((each.kernel_size[axis] - 1) * step[axis] for each, step in zip((a, b), steps, strict=True))
        size.append(reach // d + 1)
        stride.append(a.stride[axis] * b.stride[axis])
        dilation.append(d if moves else padded.dilation[axis])
        ends, more = padded.padding[axis], padded.output_padding[axis]
        if both and shape:
            ends, more = _ends(a, b, axis, dilation[-1])
        padding.append(ends)
        extra.append(more)
    return ConvSpec(in_channels=a.in_channels, out_channels=b.out_channels, kernel_size=tuple(size), stride=stride,
                    padding=padding, dilation=dilation, padding_mode=_mode([a, b]), transposed=shape,
                    output_padding=extra)  # fmt: skip


def _cut_between(a: ConvSpec, b: ConvSpec, axis: int) -> bool:
    """Of transposed ones: whether something that the first cuts off at an end would come into what the second gives."""
    (lo, hi), (lo_b, hi_b), stride = a.padding[axis], b.padding[axis], b.stride[axis]
    reach, net = b.dilation[axis] * (b.kernel_size[axis] - 1), hi_b - b.output_padding[axis]
    return (lo > 0 and reach - stride >= lo_b) or (hi > a.output_padding[axis] and reach - stride >= net)


def _ends(a: ConvSpec, b: ConvSpec, axis: int, dilation: int) -> tuple[tuple[int, int], int]:
    """Padding and output padding of a transposed one after another."""
    (lo, hi), (lo_b, hi_b), stride = a.padding[axis], b.padding[axis], b.stride[axis]
    low, net = stride * lo + lo_b, stride * (hi - a.output_padding[axis]) + hi_b - b.output_padding[axis]
    most = max(a.stride[axis] * stride, dilation) - 1
    more = low - net if 0 <= low - net <= most else max(0, -net)  # alike at both ends, where that may be
    if more > most:
        raise NotOneError("two transposed kernels along the same axis, with more empty output at the end than one "
                          "may have")  # fmt: skip
    return (low, net + more), more


def _neutral(spec: ConvSpec, axis: int) -> bool:
    """Whether it does nothing along the axis."""
    return (spec.kernel_size[axis], spec.stride[axis], spec.padding[axis], spec.output_padding[axis]) == (
        1, 1, (0, 0), 0)  # fmt: skip


def _plain(spec: ConvSpec) -> bool:
    """Whether it only mixes channels: such a one is transposed or not, as you like."""
    return all(_neutral(spec, axis) for axis in range(spec.spatial_dims))


def _keeps_constants(spec: ConvSpec) -> bool:
    """Whether it makes a constant map of a constant map, up to the border."""
    padded = any(map(any, spec.padding)) and spec.padding_mode == "zeros"
    return _plain(spec) or not (spec.transposed or padded)


def _mode(specs: Sequence[ConvSpec]) -> str:
    modes = {spec.padding_mode for spec in specs if any(map(any, spec.padding))}
    if len(modes) > 1:
        raise NotOneError(f"its parts pad in several ways: {', '.join(sorted(modes))}")
    return next(iter(modes), "zeros")


# -- side by side -----------------------------------------------------------------------------------------
def _side_by_side(parts: Sequence[Linear], join: str) -> Linear:
    specs = [part.spec for part in parts]
    groups = gcd(*(spec.groups for spec in specs)) if join == "sum" else 1
    outputs = specs[0].out_channels if join == "sum" else sum(spec.out_channels for spec in specs)
    spec = _merged_spec(specs).replace(out_channels=outputs, groups=groups, bias=any(each.bias for each in specs))

    def kernel() -> Tensor:
        kernels = _together([embedded(part.spec, regrouped(part.kernel(), groups), spec) for part in parts])
        return torch.stack(kernels).sum(0) if join == "sum" else torch.cat(kernels, 1)

    def bias() -> Tensor:
        each = [p.bias() if p.spec.bias else torch.zeros(p.spec.out_channels, dtype=torch.float64) for p in parts]
        device = next(b.device for b, p in zip(each, parts, strict=True) if p.spec.bias)
        each = [b.to(device) for b in each]
        return torch.stack(each).sum(0) if join == "sum" else torch.cat(each)

    return Linear(spec, kernel, bias)


def _merged_spec(specs: Sequence[ConvSpec]) -> ConvSpec:
    """The smallest kernel that has every tap of every branch; channels, groups and bias are left to the caller."""
    shapes = {spec.transposed for spec in specs if not _plain(spec)}
    if len(shapes) > 1 or len({spec.stride for spec in specs}) > 1:
        raise NotOneError("its branches differ in their strides, or only some are transposed")
    size, padding, dilation, extra = [], [], [], []
    for axis in range(specs[0].spatial_dims):
        along = [(s.kernel_size[axis], s.padding[axis], s.dilation[axis], s.output_padding[axis]) for s in specs]
        if len({lo + hi - op - d * (k - 1) for k, (lo, hi), d, op in along}) > 1:
            raise NotOneError("its branches give maps of one size for some inputs only")
        low, net = max(lo for _, (lo, _), _, _ in along), max(hi - op for _, (_, hi), _, op in along)
        moves = [d for k, _, d, _ in along if k > 1] + [low - lo for _, (lo, _), _, _ in along if lo < low]
        step = gcd(*moves) if moves else 1
        reach = max(d * (k - 1) - lo for k, (lo, _), d, _ in along) + low
        size.append(reach // step + 1)
        dilation.append(step if moves else along[0][2])
        more = max(op for *_, op in along)
        if more >= max(specs[0].stride[axis], dilation[-1]):  # more than this kernel allows: less is cut off instead
            more = max(0, -net)
        padding.append((low, net + more))
        extra.append(more)
    return specs[0].replace(kernel_size=tuple(size), padding=padding, dilation=dilation, output_padding=extra,
                            transposed=True in shapes, padding_mode=_mode(specs), groups=1)  # fmt: skip


# -- kernels ----------------------------------------------------------------------------------------------
def regrouped(weight: Tensor, groups: int) -> Tensor:
    """A dense weight in fewer groups, a divisor of those that it has: zeros between the groups that become one."""
    now, o, i, *k = weight.shape
    many = now // groups
    if many == 1:
        return weight
    result = weight.new_zeros(groups, many, o, many, i, *k)
    each = torch.arange(many)
    result[:, each, :, each] = weight.reshape(groups, many, o, i, *k).transpose(0, 1)
    return result.reshape(groups, many * o, many * i, *k)


def embedded(spec: ConvSpec, weight: Tensor, into: ConvSpec) -> Tensor:
    """The weight of `spec` as that of `into`, which has all its taps."""
    result = weight.new_zeros(*weight.shape[:3], *into.kernel_size)
    window = []
    for axis, k in enumerate(spec.kernel_size):
        at = (into.padding[axis][0] - spec.padding[axis][0]) // into.dilation[axis]
        stride = max(1, spec.dilation[axis] // into.dilation[axis])
        window.append(slice(at, at + (k - 1) * stride + 1, stride))
    result[_at(window)] = weight
    return result


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """All on one device: an identity does not know on which the others are."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if device is None else [t.to(device) for t in tensors]


def _at(window: Sequence[int | slice]) -> Any:
    """The index of such places on the last axes."""
    return (..., *window)


def _taps(kernel_size: Ints) -> list[tuple[int, ...]]:
    return list(product(*map(range, kernel_size)))

"""Shapes and receptive field, as folds over a block."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import assert_never

from reconv.errors import conv_error
from reconv.spec.block import Block, Branches, Chain, Deform, Gate, Permute, Shuffle, convs
from reconv.spec.conv import ConvSpec, Ints


def output_shape(block: Block, input_shape: Sequence[int]) -> Ints:
    """Shape of a block's output for an input (N, C, *spatial).

    Raises:  ConvError: when the channels or the number of dimensions do not fit, or an output would be empty.
    Example: >>> output_shape(ConvSpec(in_channels=3, out_channels=8, kernel_size=(3, 3), stride=2), (1, 3, 9, 9))
             (1, 8, 4, 4)
    """
    shape = tuple(int(n) for n in input_shape)
    match block:
        case ConvSpec():
            return _conv_output(block, shape)
        case Deform():
            return _conv_output(block.conv, shape)
        case Chain():
            for part in block.blocks:
                shape = output_shape(part, shape)
            return shape
        case Branches():
            return _joined(block, [output_shape(part, shape) for part in block.blocks])
        case Shuffle() | Permute() | Gate():
            _check_mixing(block, shape)
            return shape
        case _:
            assert_never(block)


def out_channels(block: Block, in_channels: int) -> int:
    """Channels that a block gives for `in_channels`."""
    match block:
        case ConvSpec():
            return block.out_channels
        case Deform():
            return block.conv.out_channels
        case Chain():
            for part in block.blocks:
                in_channels = out_channels(part, in_channels)
            return in_channels
        case Branches():
            each = [out_channels(part, in_channels) for part in block.blocks]
            return sum(each) if block.join == "concat" else each[0]
        case Shuffle() | Permute() | Gate():
            return in_channels
        case _:
            assert_never(block)


def in_channels(block: Block) -> int | None:
    """Channels that a block takes; None where none of its parts tells them.

    Example: >>> in_channels(Chain(Shuffle(2), ConvSpec(in_channels=8, out_channels=4, kernel_size=(1,))))
             8
    """
    match block:
        case ConvSpec():
            return block.in_channels
        case Deform():
            return block.conv.in_channels
        case Permute():
            return block.channels
        case Chain():
            for part in block.blocks:
                if (channels := in_channels(part)) or isinstance(part, Branches):
                    return channels
            return None
        case Branches():
            return next((channels for part in block.blocks if (channels := in_channels(part))), None)
        case Shuffle() | Gate():
            return None
        case _:
            assert_never(block)


def receptive_field(block: Block, spatial_dims: int | None = None) -> Ints:
    """Input samples, per axis, that one output position can see; the largest over positions.

    Example: >>> receptive_field(Chain(*[ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3))] * 2))
             (5, 5)
    """
    return tuple(max(1, hi - lo + 1) for lo, hi in _window(block, spatial_dims))


def axis_length(spec: ConvSpec, axis: int, length: int) -> int:
    """Output length of one axis (may come out < 1, where no output exists)."""
    k, s, d = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis]
    pad = sum(spec.padding[axis])
    if spec.transposed:
        return (length - 1) * s - pad + d * (k - 1) + spec.output_padding[axis] + 1
    return (length + pad - d * (k - 1) - 1) // s + 1


def _conv_output(spec: ConvSpec, shape: Ints) -> Ints:
    if len(shape) != spec.spatial_dims + 2:
        raise conv_error("output_shape", f"the input must be (N, C, {spec.spatial_dims} spatial axes)",
                         got={"input_shape": shape}, spec=spec, also=RuntimeError)  # fmt: skip
    if shape[1] != spec.in_channels:
        raise conv_error("output_shape", "the input's channels must be in_channels",
                         got={"input_shape": shape, "in_channels": spec.in_channels}, spec=spec,
                         also=RuntimeError)  # fmt: skip
    lengths = tuple(axis_length(spec, axis, n) for axis, n in enumerate(shape[2:]))
    if any(n < 1 for n in lengths):
        raise conv_error("output_shape", "the padded input must be at least as large as the dilated kernel",
                         got={"input_shape": shape}, spec=spec, also=RuntimeError)  # fmt: skip
    return (shape[0], spec.out_channels, *lengths)


def _joined(block: Branches, shapes: list[Ints]) -> Ints:
    first = shapes[0]
    same = (0, *range(2, len(first))) if block.join == "concat" else range(len(first))
    if any(len(s) != len(first) or any(s[i] != first[i] for i in same) for s in shapes):
        raise conv_error("output_shape", "branches must give shapes that can be joined",
                         got={"shapes": shapes}, spec=block, also=RuntimeError)  # fmt: skip
    return first if block.join == "sum" else (first[0], sum(s[1] for s in shapes), *first[2:])


def _check_mixing(block: Shuffle | Permute | Gate, shape: Ints) -> None:
    channels = shape[1]
    if (isinstance(block, Shuffle) and channels % block.groups) or (
        isinstance(block, Permute) and channels != block.channels
    ):
        raise conv_error("output_shape", "the channels must fit the block", got={"input_shape": shape}, spec=block,
                         also=RuntimeError)  # fmt: skip


def _window(block: Block, dims: int | None) -> list[tuple[int, int]]:
    """Hull of input offsets, per axis, over one period of output positions, relative to the position's own.

    Offsets are taken over `period` consecutive outputs, so that transposed strides are right.
    """
    dims = dims or next((spec.spatial_dims for spec in convs(block)), 2)
    widest = []
    for axis in range(dims):
        period = prod(s.stride[axis] for s in convs(block) if s.transposed)
        spans = [_span(block, axis, i, i) for i in range(period)]
        lo, hi = max((s for s in spans if s), key=lambda s: s[1] - s[0], default=(0, 0))
        widest.append((lo, hi))
    return widest


def _span(block: Block, axis: int, lo: int, hi: int) -> tuple[int, int] | None:
    """Input interval seen by the output interval [lo, hi]; None where nothing is."""
    match block:
        case ConvSpec():
            return _conv_span(block, axis, lo, hi)
        case Deform():
            return _conv_span(block.conv, axis, lo, hi)
        case Chain():
            span: tuple[int, int] | None = (lo, hi)
            for part in reversed(block.blocks):
                span = _span(part, axis, *span) if span else None
            return span
        case Branches():
            spans = [s for part in block.blocks if (s := _span(part, axis, lo, hi))]
            return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
        case Shuffle() | Permute() | Gate():
            return lo, hi
        case _:
            assert_never(block)


def _conv_span(spec: ConvSpec, axis: int, lo: int, hi: int) -> tuple[int, int] | None:
    k, s, d, pad = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis], spec.padding[axis][0]
    if not spec.transposed:
        return lo * s - pad, hi * s - pad + d * (k - 1)
    seen = [(i + pad - d * t) // s for i in range(lo, hi + 1) for t in range(k) if (i + pad - d * t) % s == 0]
    return (min(seen), max(seen)) if seen else None

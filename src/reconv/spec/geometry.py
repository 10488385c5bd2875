"""Shapes and receptive field, as folds over a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from reconv.errors import conv_error
from reconv.spec.block import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    convs,
    no_block,
)
from reconv.spec.conv import ConvSpec, Ints


def given_shape(input_shape: Sequence[int]) -> Ints:
    """Its numbers, as a tuple."""
    try:
        return tuple(int(n) for n in input_shape)
    except (TypeError, ValueError) as error:
        raise conv_error("reconv", "input_shape must be integers (N, C, *spatial)", also=TypeError,
                         got={"input_shape": repr(input_shape)}) from error  # fmt: skip


def output_shape(block: Block, input_shape: Sequence[int]) -> Ints:
    """Shape of a block's output for an input (N, C, *spatial).

    Raises:  ConvError: when the channels or the number of dimensions do not fit, or an output would be empty.
    Example:
             >>> output_shape(ConvSpec(in_channels=3, out_channels=8, kernel_size=(3, 3), stride=2), (1, 3, 9, 9))
             (1, 8, 4, 4)
    """
    shape = given_shape(input_shape)
    if len(shape) < 2:
        raise conv_error("output_shape", "the input must be (N, C, *spatial)", got={"input_shape": shape}, spec=block,
                         also=RuntimeError)  # fmt: skip
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
        case PixelShuffle():
            return _shuffled(block, shape)
        case Activation() | BatchNorm():
            return shape
        case _:
            no_block(block)


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
        case PixelShuffle():
            return in_channels // prod(block.factors)
        case Shuffle() | Permute() | Gate() | Activation() | BatchNorm():
            return in_channels
        case _:
            no_block(block)


def in_channels(block: Block) -> int | None:
    """Channels that a block takes; None where none of its parts tells them.

    Example:
             >>> in_channels(Chain(Shuffle(2), ConvSpec(in_channels=8, out_channels=4, kernel_size=(1,))))
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
        case Shuffle() | PixelShuffle() | Gate() | Activation() | BatchNorm():
            return None
        case _:
            no_block(block)


def receptive_field(block: Block, spatial_dims: int | None = None) -> Ints:
    """Extent of the input, per axis, that one output position sees; the largest over positions.

    A gate looks at the whole map, to weigh channels; that is left out.

    Example:
             >>> receptive_field(Chain(*[ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3))] * 2))
             (5, 5)
    """
    dims = spatial_dims or dimensions(block) or 2
    return tuple(max(_widths(block, axis)) for axis in range(dims))


def dimensions(block: Block) -> int | None:
    """The number of spatial axes; None where no part tells it."""
    return next((spec.spatial_dims for spec in convs(block)), None) or next(
        (len(part.factors) for part in _pixel_shuffles(block)), None)  # fmt: skip


def _pixel_shuffles(block: Block) -> Iterator[PixelShuffle]:
    if isinstance(block, PixelShuffle):
        yield block
    elif isinstance(block, Chain | Branches):
        for part in block.blocks:
            yield from _pixel_shuffles(part)


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
        must = "the padding must leave some of the output" if spec.transposed else (
            "the padded input must be at least as large as the dilated kernel")  # fmt: skip
        raise conv_error("output_shape", must, got={"input_shape": shape}, spec=spec, also=RuntimeError)
    return (shape[0], spec.out_channels, *lengths)


def _joined(block: Branches, shapes: list[Ints]) -> Ints:
    first = shapes[0]
    same = (0, *range(2, len(first))) if block.join == "concat" else range(len(first))
    if any(len(s) != len(first) or any(s[i] != first[i] for i in same) for s in shapes):
        raise conv_error("output_shape", "branches must give shapes that can be joined",
                         got={"shapes": shapes}, spec=block, also=RuntimeError)  # fmt: skip
    return first if block.join == "sum" else (first[0], sum(s[1] for s in shapes), *first[2:])


def _shuffled(block: PixelShuffle, shape: Ints) -> Ints:
    every = prod(block.factors)
    if len(shape) != len(block.factors) + 2 or shape[1] % every:
        raise conv_error("output_shape", f"the input must be (N, a multiple of {every}, {len(block.factors)} spatial "
                         "axes)", got={"input_shape": shape}, spec=block, also=RuntimeError)  # fmt: skip
    lengths = tuple(s * n - sum(ends) for s, n, ends in zip(block.factors, shape[2:], block.crop, strict=True))
    if any(n < 1 for n in lengths):
        raise conv_error("output_shape", "the crop must leave some of the output", got={"input_shape": shape},
                         spec=block, also=RuntimeError)  # fmt: skip
    return (shape[0], shape[1] // every, *lengths)


def _check_mixing(block: Shuffle | Permute | Gate, shape: Ints) -> None:
    channels = shape[1]
    if (isinstance(block, Shuffle) and channels % block.groups) or (
        isinstance(block, Permute) and channels != block.channels
    ):
        raise conv_error("output_shape", "the channels must fit the block", got={"input_shape": shape}, spec=block,
                         also=RuntimeError)  # fmt: skip


def _widths(block: Block, axis: int) -> Iterator[int]:
    """Extent of what is seen by each output position, over one period of what makes maps larger."""
    factors = [spec.stride[axis] for spec in convs(block) if spec.transposed]
    factors += [part.factors[axis] for part in _pixel_shuffles(block)]
    for position in range(prod(factors)):
        seen = _seen(block, axis, {position})
        yield max(seen) - min(seen) + 1 if seen else 1


def _seen(block: Block, axis: int, positions: set[int]) -> set[int]:
    """Input positions, inside the input or not, that some output positions see."""
    match block:
        case ConvSpec():
            return _conv_seen(block, axis, positions)
        case Deform():
            return _conv_seen(block.conv, axis, positions)
        case Chain():
            for part in reversed(block.blocks):
                positions = _seen(part, axis, positions)
            return positions
        case Branches():
            return set().union(*(_seen(part, axis, positions) for part in block.blocks))
        case PixelShuffle():
            return {(p + block.crop[axis][0]) // block.factors[axis] for p in positions}
        case Shuffle() | Permute() | Gate() | Activation() | BatchNorm():
            return positions
        case _:
            no_block(block)


def taps_at(spec: ConvSpec, axis: int, position: int) -> list[tuple[int, int]]:
    """(tap, input position) of the taps that meet the input's grid at an output position, inside the input or not.

    Example:
             >>> taps_at(ConvSpec(in_channels=1, out_channels=1, kernel_size=(3,), stride=2, padding=1), 0, 1)
             [(0, 1), (1, 2), (2, 3)]
    """
    stride, lo, dilation = spec.stride[axis], spec.padding[axis][0], spec.dilation[axis]
    taps = range(spec.kernel_size[axis])
    if spec.transposed:
        reached = [(t, position + lo - dilation * t) for t in taps]
        return [(t, place // stride) for t, place in reached if place % stride == 0]
    return [(t, position * stride - lo + dilation * t) for t in taps]


def _conv_seen(spec: ConvSpec, axis: int, positions: set[int]) -> set[int]:
    return {place for p in positions for _, place in taps_at(spec, axis, p)}

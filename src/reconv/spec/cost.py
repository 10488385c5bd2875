"""What a block costs: parameters, multiply-accumulates and bytes, as folds."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import assert_never

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
)
from reconv.spec.conv import ConvSpec
from reconv.spec.geometry import in_channels as taken_channels
from reconv.spec.geometry import out_channels, output_shape


def params(block: Block, in_channels: int | None = None) -> int:
    """Learned numbers of a block, weights and biases; `in_channels` is needed only where no part tells them.

    Example:
             >>> params(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3), groups=8, bias=False))
             4608
    """
    match block:
        case ConvSpec():
            return prod(block.weight_shape) + block.bias * block.out_channels
        case Deform():
            return params(block.conv) + params(block.offset_conv)
        case Chain():
            total, channels = 0, in_channels or taken_channels(block)
            for part in block.blocks:
                total += params(part, channels)
                channels = out_channels(part, channels or 0) or None
            return total
        case Branches():
            channels = in_channels or taken_channels(block)
            return sum(params(part, channels) for part in block.blocks)
        case Gate():
            channels = _known(in_channels, block)
            hidden = max(1, channels // block.reduction)
            return channels * hidden * 2 + hidden + channels
        case BatchNorm():
            return 2 * _known(in_channels, block)
        case Shuffle() | Permute() | PixelShuffle() | Activation():
            return 0
        case _:
            assert_never(block)


def _known(channels: int | None, block: Gate | BatchNorm) -> int:
    if channels is None:
        what = "a gate" if isinstance(block, Gate) else "a batch norm"
        raise conv_error("params", f"{what} must know its channels", do="Give in_channels.", spec=block)
    return channels


def macs(block: Block, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of a block on the whole batch `input_shape`, (N, C, *spatial).

    Example:
             >>> macs(ConvSpec(in_channels=16, out_channels=32, kernel_size=(3, 3), padding=1), (1, 16, 28, 28))
             3612672
    """
    shape = tuple(input_shape)
    match block:
        case ConvSpec():
            # a transposed one spends its weights once per input position, any other once per output position
            positions = shape if block.transposed else output_shape(block, shape)
            return prod(block.weight_shape) * shape[0] * prod(positions[2:])
        case Deform():
            return macs(block.conv, shape) + macs(block.offset_conv, shape)
        case Chain():
            total = 0
            for part in block.blocks:
                total += macs(part, shape)
                shape = output_shape(part, shape)
            return total
        case Branches():
            return sum(macs(part, shape) for part in block.blocks)
        case Gate():
            return shape[0] * 2 * shape[1] * max(1, shape[1] // block.reduction)
        case Shuffle() | Permute() | PixelShuffle() | Activation() | BatchNorm():
            return 0
        case _:
            assert_never(block)


def weight_bytes(block: Block, in_channels: int | None = None, itemsize: int = 4) -> int:
    """Bytes of a block's parameters."""
    return params(block, in_channels) * itemsize


def activation_bytes(block: Block, input_shape: Sequence[int], itemsize: int = 4) -> int:
    """Bytes that the block writes: the outputs of all its parts, on the whole batch."""
    shape = tuple(input_shape)
    match block:
        case Chain():
            total = 0
            for part in block.blocks:
                total += activation_bytes(part, shape, itemsize)
                shape = output_shape(part, shape)
            return total
        case Branches():
            joined = prod(output_shape(block, shape)) * itemsize
            return joined + sum(activation_bytes(part, shape, itemsize) for part in block.blocks)
        case Deform():
            offsets = activation_bytes(block.offset_conv, shape, itemsize)
            return offsets + activation_bytes(block.conv, shape, itemsize)
        case ConvSpec() | Shuffle() | Permute() | PixelShuffle() | Gate() | Activation() | BatchNorm():
            return prod(output_shape(block, shape)) * itemsize
        case _:
            assert_never(block)

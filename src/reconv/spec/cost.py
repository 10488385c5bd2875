"""What a block costs: parameters, multiply-accumulates and bytes, as folds."""

from __future__ import annotations

from collections.abc import Sequence
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
    no_block,
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
            no_block(block)


def _known(channels: int | None, block: Gate | BatchNorm) -> int:
    if channels is None:
        what = "a gate" if isinstance(block, Gate) else "a batch norm"
        raise conv_error("params", f"{what} must know its channels", do="Give in_channels.", spec=block,
                         also=ValueError)  # fmt: skip
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
            no_block(block)


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
            no_block(block)


def peak_bytes(block: Block, input_shape: Sequence[int], itemsize: int = 4) -> int:
    """The most bytes alive at once while the block runs, on the whole batch; its caller holds the input to the end.

    As the layers compute it, one part after the other, without what a kernel needs inside: of a deformable convolution
    without the samples that plain operators would write.

    Example:
             >>> peak_bytes(ConvSpec(in_channels=2, out_channels=3, kernel_size=(1, 1)), (1, 2, 5, 5))
             500
    """
    shape = tuple(input_shape)
    return (prod(shape) + _made(block, shape)[0]) * itemsize


def _made(block: Block, shape: Sequence[int]) -> tuple[int, int]:
    """Numbers made besides the input: the most that are alive at once, and those that stay, 0 if it is the input."""
    match block:
        case ConvSpec():
            return _conv_made(block, shape)
        case Deform():
            spec, made = block.conv, prod(output_shape(block, shape))
            moves = prod(output_shape(block.offset_conv, shape))
            mask = moves // (spec.spatial_dims + 1) if block.modulated else 0
            padded = _padded(spec, shape) if spec.padding_mode != "zeros" else 0
            return max(_made(block.offset_conv, shape)[0], moves + mask + padded + made), made
        case Chain():
            return _chain_made(block, shape)
        case Branches():
            most = held = 0
            for part in block.blocks:
                inside, stays = _made(part, shape)
                most, held = max(most, held + inside), held + stays
            joined = prod(output_shape(block, shape))
            sums = 2 if block.join == "sum" and len(block.blocks) > 2 else 1  # the next one is made from the last
            return max(most, held + sums * joined), joined
        case Gate():
            return prod(shape) + 2 * shape[0] * shape[1], prod(shape)  # the means and the weights of the channels
        case PixelShuffle():
            whole = prod(shape)  # what is cut off stays behind it
            return whole, whole
        case Activation(name="identity"):
            return 0, 0
        case Shuffle() | Permute() | Activation() | BatchNorm():
            return prod(shape), prod(shape)
        case _:
            no_block(block)


def _conv_made(spec: ConvSpec, shape: Sequence[int]) -> tuple[int, int]:
    if spec.transposed:  # ends that differ are cut off a larger output, which stays behind it
        whole = prod(output_shape(spec.replace(padding=[min(ends) for ends in spec.padding]), shape))
        return whole, whole
    made, apart = prod(output_shape(spec, shape)), spec.padding_mode != "zeros" or spec.even_padding is None
    return made + apart * _padded(spec, shape), made


def _padded(spec: ConvSpec, shape: Sequence[int]) -> int:
    """Numbers of the input where an operator of its own pads it."""
    return prod(shape[:2]) * prod(n + sum(ends) for n, ends in zip(shape[2:], spec.padding, strict=True))


def _chain_made(chain: Chain, shape: Sequence[int]) -> tuple[int, int]:
    most = held = 0  # held: what the next part takes, unless it is the chain's own input
    before: Block | None = None
    for part in chain.blocks:
        inside, stays = (0, 0) if _in_place(part, before) else _made(part, shape)
        most, held = max(most, held + inside), stays or held
        shape, before = output_shape(part, shape), part
    return most, held


def _in_place(part: Block, before: Block | None) -> bool:
    """A ReLU is written over what a 2D convolution gave, which nobody else sees."""
    plain = isinstance(before, ConvSpec) and before.spatial_dims == 2 and not before.transposed
    return plain and part == Activation("relu")

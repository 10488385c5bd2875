"""Lower bounds of latencies on this machine: a proposal that cannot win by them is not built, timed or fitted."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import assert_never

import torch

from reconv.benching.roofline import Machine, measured
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
    macs,
    output_shape,
    params,
)
from reconv.spec.geometry import axis_length
from reconv.targets import Target

SAFE = 0.7  # of a bound is believed: the machine's limits are measured, too
TRANSFORMED = 4.0  # times fewer multiplications, at most, for 3×3 kernels by Winograd's algorithm (Lavin 2015)
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def machine_of(target: Target, device: torch.device, dtype: torch.dtype) -> Machine | None:
    """The limits that bound a target's latencies; None where they are not known."""
    if device.type != "cpu" or dtype not in DTYPES or not hasattr(target, "threads"):
        return None
    return measured(target.threads or torch.get_num_threads())


def bound_ms(block: Block, input_shape: Sequence[int], machine: Machine, dtype: torch.dtype) -> float:
    """The least that a block can take: its arithmetic without what meets padding, or its first and last bytes moved.

    Example:
             >>> machine = Machine(1, {"float32": 1e9}, (1e9,) * 12)
             >>> round(bound_ms(ConvSpec.parse("ic8oc8k1x1"), (1, 8, 10, 10), machine, torch.float32), 5)
             0.00468
    """
    shape = tuple(input_shape)
    read, written = prod(shape), prod(output_shape(block, shape))
    size = dtype.itemsize * (read + written + params(block, shape[1]))
    return SAFE * 1e3 * max(_least_macs(block, shape) / machine.peak[DTYPES[dtype]], size / machine.bandwidth_of(size))


def _least_macs(block: Block, shape: tuple[int, ...]) -> float:
    """The multiply-accumulates of its convolutions that no algorithm of today's engines can spare."""
    match block:
        case ConvSpec():
            wide = sum(k >= 3 for k in block.kernel_size) > 1 and block.groups < block.in_channels
            return macs(block, shape) * _inside(block, shape[2:]) / (TRANSFORMED if wide else 1.0)
        case Chain():
            total = 0.0
            for part in block.blocks:
                total += _least_macs(part, shape)
                shape = output_shape(part, shape)
            return total
        case Branches():
            return sum(_least_macs(part, shape) for part in block.blocks)
        case Deform() | Gate() | Shuffle() | Permute() | PixelShuffle() | Activation() | BatchNorm():
            return 0.0
        case _:
            assert_never(block)


def _inside(spec: ConvSpec, lengths: tuple[int, ...]) -> float:
    """The share of taps that meet no padding; 0 of transposed convolutions, whose taps are others."""
    if spec.transposed:
        return 0.0
    return prod(_axis_inside(spec, axis, length) for axis, length in enumerate(lengths))


def _axis_inside(spec: ConvSpec, axis: int, length: int) -> float:
    outputs, kernel = axis_length(spec, axis, length), spec.kernel_size[axis]
    low, stride, dilation = spec.padding[axis][0], spec.stride[axis], spec.dilation[axis]
    met = sum(0 <= o * stride - low + k * dilation < length for o in range(outputs) for k in range(kernel))
    return met / (outputs * kernel)

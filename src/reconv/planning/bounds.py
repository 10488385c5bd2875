"""Lower bounds of latencies on this machine: a proposal that cannot win by them is not built, timed or fitted."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from reconv.benching.roofline import Machine, measured
from reconv.spec import Block, ConvSpec, convs, macs, output_shape, params
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
    total, least = macs(block, shape), _least_share(block, shape)
    return SAFE * 1e3 * max(total * least / machine.peak[DTYPES[dtype]], size / machine.bandwidth_of(size))


def _least_share(block: Block, shape: tuple[int, ...]) -> float:
    """The part of all multiply-accumulates that no algorithm of today's engines can spare."""
    specs = list(convs(block))
    if any(sum(k >= 3 for k in spec.kernel_size) > 1 and spec.groups < spec.in_channels for spec in specs):
        return _inside(specs, shape) / TRANSFORMED
    return _inside(specs, shape)


def _inside(specs: Sequence[ConvSpec], shape: tuple[int, ...]) -> float:
    """The smallest share of taps that meet no padding, of any of these convolutions on maps of such a size."""
    spatial = shape[2:]
    return min((prod(_axis_inside(spec, axis, length) for axis, length in enumerate(spatial)) for spec in specs
                if not spec.transposed and len(spatial) == spec.spatial_dims), default=0.0)  # fmt: skip


def _axis_inside(spec: ConvSpec, axis: int, length: int) -> float:
    outputs, kernel = axis_length(spec, axis, length), spec.kernel_size[axis]
    low, stride, dilation = spec.padding[axis][0], spec.stride[axis], spec.dilation[axis]
    met = sum(0 <= o * stride - low + k * dilation < length for o in range(outputs) for k in range(kernel))
    return met / (outputs * kernel)

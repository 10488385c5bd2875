"""What a user of PyTorch writes where torch.nn.functional has no function: the peers of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.ops.kernel import CONV
from reconv.spec import ConvSpec


def separable(input: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, bias: Tensor | None,
              stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:  # fmt: skip
    """The two convolutions one after the other."""
    conv = CONV[input.ndim - 2]
    each = conv(input, depthwise_weight, None, stride, padding, dilation, input.shape[1])
    return conv(each, pointwise_weight, bias)


def deformable(spec: ConvSpec, input: Tensor, lengths: Sequence[int]) -> Callable[..., Tensor]:
    """A function (input, offset, weight, bias, mask): all points sampled by one grid_sample, then one product.

    The grid without offsets is made here, once.
    """
    dims, taps = spec.spatial_dims, prod(spec.kernel_size)
    sizes, lengths = list(input.shape[2:]), list(lengths)
    steps = torch.tensor([2 / size for size in sizes], dtype=input.dtype)  # a sample of the map in grid_sample's units
    axes = [torch.arange(size) for size in (*spec.kernel_size, *lengths)]
    indices = torch.meshgrid(*axes, indexing="ij")
    places = [
        indices[axis] * spec.dilation[axis] + indices[dims + axis] * spec.stride[axis] - spec.padding[axis][0]
        for axis in range(dims)
    ]
    base = (torch.stack(places, -1).reshape(taps, *lengths, dims) + 0.5) * steps - 1

    def run(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        batch, groups = input.shape[0], offset.shape[1] // (taps * dims)
        moved = offset.reshape(batch * groups, taps, dims, *lengths).movedim(2, -1)
        grid = (moved * steps + base).flip(-1).flatten(1, 2)  # x comes first
        maps = input.reshape(batch * groups, -1, *sizes)
        if dims == 1:  # a map of one row
            grid, maps = torch.stack([grid, torch.zeros_like(grid)], -1).flatten(-2)[:, None], maps.unsqueeze(2)
        seen = F.grid_sample(maps, grid, align_corners=False).reshape(batch * groups, -1, taps, *lengths)
        if mask is not None:
            seen = seen * mask.reshape(batch * groups, 1, taps, *lengths)
        columns = seen.reshape(batch, spec.groups, -1, prod(lengths))
        output = torch.matmul(weight.reshape(spec.groups, -1, columns.shape[2]), columns)
        output = output.reshape(batch, spec.out_channels, *lengths)
        return output if bias is None else output + bias.reshape(-1, *[1] * dims)

    return run

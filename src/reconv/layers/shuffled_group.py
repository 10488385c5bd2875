"""Grouped convolutions whose groups hear of each other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from reconv.layers.arguments import per_axis
from reconv.layers.compose import Builder, ChainLayer
from reconv.ops.problem import Padding, Size
from reconv.spec import ConvSpec, Shuffle


class _ShuffledGroupConv(ChainLayer):
    """A grouped convolution, then a channel shuffle: the next grouped layer sees channels of every group.

        y[n, j·groups + i, p] = z[n, i·(C_out / groups) + j, p],  z = the grouped convolution of x

    Args:    groups: must divide in_channels and out_channels.
             stride, padding, dilation, bias, padding_mode: as torch.nn's; padding also (lo, hi) per axis.
    Raises:  ConvError: when the arguments do not describe such a layer.
    Source:  Zhang et al. 2017, arXiv:1707.01083, figure 1
    Example:
             >>> from reconv.nn import ShuffledGroupConv1d
             >>> str(ShuffledGroupConv1d(8, 12, 3, padding=1, groups=4).block)
             'ic8oc12k3p1g4 -> shuffle(4)'
    """

    spatial_dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        groups: int,
    ) -> None:
        grouped = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=padding_mode,
        )  # fmt: skip
        super().__init__(*Builder(self.spatial_dims, device, dtype).parts([grouped, Shuffle(grouped.groups)]))


class ShuffledGroupConv1d(_ShuffledGroupConv):
    spatial_dims = 1


class ShuffledGroupConv2d(_ShuffledGroupConv):
    spatial_dims = 2


class ShuffledGroupConv3d(_ShuffledGroupConv):
    spatial_dims = 3

"""One convolution along each axis in turn."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from reconv.layers.arguments import check_counts, per_axis
from reconv.layers.compose import Builder, ChainLayer
from reconv.ops.problem import Padding, Size
from reconv.spec import ConvSpec


class _AsymmetricConv(ChainLayer):
    """k×1, then 1×k; in three dimensions k×1×1, 1×k×1, 1×1×k. One axis alone leaves k, then 1.

        w[o, c, ky, kx] = Σ_m b[o, m, kx] · a[m, c, ky]        the kernel that the two compose to

    Nothing stands between the factors: the layer is one convolution of `kernel_size`, borders included, whose kernel
    has low rank. Stride, padding and dilation go with their axis.

    Args:    mid_channels: between the factors; out_channels where None.
             bias: of the last factor.
    Raises:  ConvError: when the arguments do not describe such a layer.
    Source:  Jaderberg et al. 2014, arXiv:1405.3866; Szegedy et al. 2015, arXiv:1512.00567, section 3.2
    Example:
             >>> from reconv.nn import AsymmetricConv2d
             >>> str(AsymmetricConv2d(8, 16, 7, stride=2, padding=3, mid_channels=4).block)
             'ic8oc4k7x1s2x1p3x0nb -> ic4oc16k1x7s1x2p0x3'
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
        mid_channels: int | None = None,
    ) -> None:
        mid = out_channels if mid_channels is None else mid_channels
        check_counts(self, out_channels=out_channels, mid_channels=mid)
        whole = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, bias=bias, padding_mode=padding_mode,
        )  # fmt: skip
        axes: list[list[int]] = [[0], []] if self.spatial_dims == 1 else [[axis] for axis in range(self.spatial_dims)]
        first, *inner, last = [whole.along(axis) for axis in axes]
        factors = [
            first.replace(out_channels=mid, bias=False),
            *(factor.replace(in_channels=mid, out_channels=mid, bias=False) for factor in inner),
            last.replace(in_channels=mid),
        ]
        super().__init__(*Builder(self.spatial_dims, device, dtype).parts(factors))


class AsymmetricConv1d(_AsymmetricConv):
    spatial_dims = 1


class AsymmetricConv2d(_AsymmetricConv):
    spatial_dims = 2


class AsymmetricConv3d(_AsymmetricConv):
    spatial_dims = 3

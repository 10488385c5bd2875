"""Convolutions over space alone and over channels alone."""

from __future__ import annotations

from typing import Any

import torch

from reconv.layers.arguments import check_counts
from reconv.layers.conv import Conv1d, Conv2d, Conv3d, _Conv
from reconv.ops.problem import Padding, Size


class _DepthwiseConv(_Conv):
    """y[n, m·c + j, p] = b[m·c + j] + Σ_k w[m·c + j, k] · x[n, c, s·p + d·k − lo]: each channel for itself.

    It is torch.nn's convolution with groups=in_channels, and loads its weights.

    Args:    depth_multiplier: m, the outputs of each channel.
             stride, padding, dilation, bias, padding_mode: as torch.nn's; padding also (lo, hi) per axis.
    Raises:  ConvError: when the arguments do not describe a convolution.
    Source:  Sifre 2014; Chollet 2017, arXiv:1610.02357
    Example:
             >>> from reconv.nn import DepthwiseConv2d
             >>> DepthwiseConv2d(8, 3, padding=1, depth_multiplier=2)
             DepthwiseConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8)
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        depth_multiplier: int = 1,
    ) -> None:
        check_counts(self, in_channels=in_channels, depth_multiplier=depth_multiplier)
        super().__init__(in_channels, in_channels * depth_multiplier, kernel_size, stride, padding, dilation,
                         in_channels, bias, padding_mode, device, dtype)  # fmt: skip


class _PointwiseConv(_Conv):
    """y[n, o, p] = b[o] + Σ_c w[o, c] · x[n, c, s·p]: a linear layer over the channels, at each position.

    It is torch.nn's convolution with kernel_size=1, and loads its weights.

    Raises:  ConvError: when the arguments do not describe a convolution.
    Source:  Lin et al. 2013, arXiv:1312.4400
    Example:
             >>> from reconv.nn import PointwiseConv1d
             >>> PointwiseConv1d(8, 16, bias=False)
             PointwiseConv1d(8, 16, kernel_size=(1,), stride=(1,), bias=False)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride, groups=groups, bias=bias, device=device, dtype=dtype)


class DepthwiseConv1d(_DepthwiseConv, Conv1d): ...


class DepthwiseConv2d(_DepthwiseConv, Conv2d): ...


class DepthwiseConv3d(_DepthwiseConv, Conv3d): ...


class PointwiseConv1d(_PointwiseConv, Conv1d): ...


class PointwiseConv2d(_PointwiseConv, Conv2d): ...


class PointwiseConv3d(_PointwiseConv, Conv3d): ...

"""Depthwise separable convolutions: over space, then over channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from reconv.layers.arguments import check_counts, per_axis
from reconv.layers.between import Act, Norm, between
from reconv.layers.compose import Builder, ChainLayer
from reconv.ops.problem import Padding, Size
from reconv.spec import ConvSpec


class _SeparableConv(ChainLayer):
    """A depthwise convolution, then a pointwise one.

        y[n, o, p] = b[o] + Σ_{c,j} v[o, m·c + j] · f(Σ_k w[m·c + j, k] · x[n, c, s·p + d·k − lo])

    Args:    depth_multiplier: m, the inner channels of each input channel.
             norm: None, "batch", or a class or function that makes a module of the inner channels.
             activation: None, a name ("relu", "silu", …), or a class or function that makes a module; f is the norm,
             then the activation.
             stride, padding, dilation, padding_mode: of the depthwise convolution.
             bias: of the pointwise one; of the depthwise one as well where an activation but no norm follows it.
    Raises:  ConvError: when the arguments do not describe such a layer.
    Source:  Chollet 2017, arXiv:1610.02357; Howard et al. 2017, arXiv:1704.04861
    Example:
             >>> from reconv.nn import SeparableConv2d
             >>> layer = SeparableConv2d(16, 32, 3, padding=1, bias=False, norm="batch", activation="relu")
             >>> str(layer.block)
             'ic16oc16k3x3p1g16nb -> bn -> relu -> ic16oc32k1x1nb'
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
        depth_multiplier: int = 1,
        norm: Norm = None,
        activation: Act = None,
    ) -> None:
        check_counts(self, in_channels=in_channels, out_channels=out_channels, depth_multiplier=depth_multiplier)
        inner, dims = in_channels * depth_multiplier, self.spatial_dims
        depthwise = ConvSpec(
            in_channels=in_channels, out_channels=inner, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, groups=in_channels, padding_mode=padding_mode,
            bias=bias and activation is not None and norm is None,
        )  # fmt: skip
        pointwise = ConvSpec(in_channels=inner, out_channels=out_channels, kernel_size=(1,) * dims, bias=bias)
        middle = between(type(self).__name__, norm, activation, inner, dims)
        super().__init__(*Builder(dims, device, dtype).parts([depthwise, *middle, pointwise]))


class SeparableConv1d(_SeparableConv):
    spatial_dims = 1


class SeparableConv2d(_SeparableConv):
    spatial_dims = 2


class SeparableConv3d(_SeparableConv):
    spatial_dims = 3

"""torch.nn's six convolutions, with one padding per side besides: `padding=((lo, hi), …)`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from reconv.layers.arguments import per_axis
from reconv.layers.described import Described
from reconv.ops.convolve import convolve
from reconv.ops.functional import conv_nd
from reconv.ops.problem import Padding, Size, flat_pads
from reconv.spec import ConvSpec


class _Conv(Described, _ConvNd):
    """y[n, o, p] = b[o] + Σ_{c,k} w[o, c, k] · x[n, c, s·p + d·k − lo], in any number of dimensions.

    Arguments, state dict and repr are torch.nn's; `padding` may also be a (lo, hi) pair per axis, in every padding
    mode: with (1, 2) and zeros, 1234 -> 0123400.

    Args:    input: (N, C_in, *spatial) or (C_in, *spatial).
    Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial).
    Raises:  ConvError: when the arguments do not describe a convolution.
    Example:
             >>> Conv1d(1, 1, 3, padding=[(2, 0)])(torch.zeros(8, 1, 16)).shape  # causal
             torch.Size([8, 1, 16])
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
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        spec = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=padding_mode,
        )  # fmt: skip
        arguments = _arguments(spec, device, dtype)
        if isinstance(padding, str):  # torch keeps the word
            arguments["padding"] = padding
        super().__init__(**arguments)  # of torch.nn.Conv1d … Conv3d, which come next
        if not isinstance(padding, str):
            _keep_uneven(self, spec)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros" or is_uneven(self):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode), 0
        return convolve(self.spatial_dims, input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(Described, _ConvNd):
    """y[n, o, s·p + d·k − lo] += w[c, o, k] · x[n, c, p], plus b[o]: the gradient of a convolution to its input.

    Arguments, state dict and repr are torch.nn's; `padding`, which crops the output, may also be a (lo, hi) pair
    per axis.

    Args:    input: (N, C_in, *spatial) or (C_in, *spatial); output_size: the wanted one, where a stride allows several.
    Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial).
    Raises:  ConvError: when the arguments do not describe a transposed convolution.
    Example:
             >>> layer = ConvTranspose2d(8, 4, 3, stride=2, padding=1)
             >>> layer(torch.zeros(1, 8, 7, 7)).shape, layer(torch.zeros(1, 8, 7, 7), output_size=(14, 14)).shape
             (torch.Size([1, 4, 13, 13]), torch.Size([1, 4, 14, 14]))
    """

    spatial_dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        spec = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=padding_mode, transposed=True,
            output_padding=output_padding,
        )  # fmt: skip
        arguments = _arguments(spec, device, dtype)
        super().__init__(**arguments, output_padding=spec.output_padding)  # of torch.nn.ConvTranspose1d … 3d
        _keep_uneven(self, spec)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims: int = self.spatial_dims
        pads: Any = self.padding
        cropped = pads
        if is_uneven(self):
            cropped = [0] * dims
            if output_size is not None:  # as if nothing were cut off
                output_size = [n + sum(pair) for n, pair in zip(output_size[-dims:], pads, strict=True)]
        extra = self._output_padding(  # type: ignore[operator]  # torch.nn.ConvTranspose's own
            input, output_size, self.stride, cropped, self.kernel_size, dims, self.dilation)  # fmt: skip
        return conv_nd(dims, input, self.weight, self.bias, self.stride, pads, self.dilation, self.groups, extra,
                       transposed=True)  # fmt: skip


def is_uneven(module: nn.Module) -> bool:
    """Whether the padding is told per side."""
    return isinstance(module.padding, tuple) and isinstance(module.padding[0], tuple)


def _arguments(spec: ConvSpec, device: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """For torch.nn's constructor: no padding, where it is told per side."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "bias", "padding_mode")
    even = spec.even_padding or (0,) * spec.spatial_dims
    return {name: getattr(spec, name) for name in names} | {"padding": even, "device": device, "dtype": dtype}


def _keep_uneven(module: _ConvNd, spec: ConvSpec) -> None:
    if spec.even_padding is None:
        module.padding = spec.padding  # pairs, where torch has numbers
        module._reversed_padding_repeated_twice = flat_pads(spec.padding)


class Conv1d(_Conv, nn.Conv1d):
    spatial_dims = 1


class Conv2d(_Conv, nn.Conv2d):
    spatial_dims = 2


class Conv3d(_Conv, nn.Conv3d):
    spatial_dims = 3


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    spatial_dims = 1


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    spatial_dims = 2


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    spatial_dims = 3

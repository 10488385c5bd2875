"""Convolutions whose sampling points are learned: deformable, with a learned mask where modulated."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.errors import conv_error
from reconv.layers.arguments import per_axis
from reconv.layers.conv import Conv1d, Conv2d, Conv3d
from reconv.layers.described import Described
from reconv.ops.deform import deform_nd
from reconv.ops.problem import Padding, Size, flat_pads
from reconv.spec import Deform
from reconv.spec.conv import ConvSpec


class _DeformConv(Described):
    """A deformable convolution that computes its offsets, and its mask, from its input by a convolution.

        y[n, o, p] = b[o] + Σ_{c,k} w[o, c, k] · m[n, k, p] · x[n, c, s·p + d·k − lo + Δ[n, k, p]]

    `offset_conv` is an ordinary convolution of the same window. Its output channels are first all offsets Δ, as
    `reconv.functional.deform_conv1d…3d` take them, then, where modulated, the masks before the sigmoid. It starts from
    zeros: at first there are no offsets, and each mask is 0.5, so that the layer equals the plain convolution, or where
    modulated its half (plus the bias), as the papers have it. With another padding mode than zeros, input and offsets
    are those of the padded input, outside of which there are zeros.

    Args:    in_channels to dtype: as torch.nn's convolutions; padding may also be a (lo, hi) pair per axis.
             offset_groups: groups of channels with offsets of their own. modulated: with a mask.
             input: (N, C_in, *spatial) or (C_in, *spatial).
    Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial).
    Raises:  ConvError: when the arguments do not describe a convolution.
    Source:  Dai et al. 2017, arXiv:1703.06211 (version 1); Zhu et al. 2018, arXiv:1811.11168 (modulated, version 2)
    Example:
             >>> from reconv.nn import DeformConv2d
             >>> DeformConv2d(3, 8, 3, padding=1)
             DeformConv2d(
               3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), offset_groups=1, modulated=True
               (offset_conv): Conv2d(3, 27, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
             )
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
        offset_groups: int = 1,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        spec = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size),
            stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=padding_mode,
        )  # fmt: skip
        self.deform = Deform(spec, offset_groups, bool(modulated))
        self.weight = nn.Parameter(torch.empty(spec.weight_shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(spec.out_channels, device=device, dtype=dtype)) if spec.bias else None
        moves = self.deform.offset_conv
        self.offset_conv = CONVS[self.spatial_dims - 1](
            moves.in_channels, moves.out_channels, moves.kernel_size, moves.stride, moves.padding, moves.dilation,
            padding_mode=moves.padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch.nn's convolutions have them; no offsets."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        for parameter in self.offset_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == self.spatial_dims + 1:
            return self._batch_forward(input[None])[0]
        return self._batch_forward(input)

    def _batch_forward(self, input: Tensor) -> Tensor:
        offset, mask = self.offset_and_mask(input)
        spec, padding = self.deform.conv, self.deform.conv.padding
        if spec.padding_mode != "zeros":
            input, padding = F.pad(input, flat_pads(padding), spec.padding_mode), ((0, 0),) * spec.spatial_dims
        return deform_nd(spec.spatial_dims, input, offset, self.weight, self.bias, spec.stride, padding,
                         spec.dilation, mask)  # fmt: skip

    def offset_and_mask(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the layer learned to look at for this input: offsets in samples of it, and the mask where modulated."""
        moves = self.offset_conv(input)
        if not self.deform.modulated:
            return moves, None
        count = moves.shape[1] // (self.spatial_dims + 1) * self.spatial_dims
        return moves[:, :count], moves[:, count:].sigmoid()

    def extra_repr(self) -> str:
        spec = self.deform.conv
        padding = spec.padding if spec.even_padding is None else spec.even_padding
        shown = {"kernel_size": spec.kernel_size, "stride": spec.stride, "padding": padding, "dilation": spec.dilation,
                 "groups": spec.groups, "bias": spec.bias, "padding_mode": spec.padding_mode}  # fmt: skip
        plain = (1,) * self.spatial_dims
        usual = {"padding": (0,) * self.spatial_dims, "dilation": plain, "groups": 1, "bias": True,
                 "padding_mode": "zeros"}  # fmt: skip
        told = {name: value for name, value in shown.items() if name not in usual or value != usual[name]}
        told |= {"offset_groups": self.deform.offset_groups, "modulated": self.deform.modulated}
        settings = ", ".join(f"{name}={value}" for name, value in told.items())
        return f"{spec.in_channels}, {spec.out_channels}, {settings}"


class DeformConv1d(_DeformConv):
    spatial_dims = 1


class DeformConv2d(_DeformConv):
    spatial_dims = 2


class DeformConv3d(_DeformConv):
    spatial_dims = 3


CONVS = (Conv1d, Conv2d, Conv3d)
DEFORMABLE = (DeformConv1d, DeformConv2d, DeformConv3d)


def is_deformable(layer: object) -> TypeGuard[_DeformConv]:
    """Whether a layer is one of these, and no more than that."""
    return type(layer) in DEFORMABLE and not {"forward", "offset_and_mask"} & vars(layer).keys()


def deform_of(layer: _DeformConv) -> Deform:
    """The block that a deformable layer computes.

    Raises:  ConvError (a TypeError): when something else than its convolution computes the offsets.
    """
    if type(layer.offset_conv) not in CONVS or ConvSpec.of(layer.offset_conv) != layer.deform.offset_conv:
        raise conv_error("block_of", "the offsets of a deformable layer must come from its own convolution",
                         got={"offset_conv": type(layer.offset_conv).__name__}, spec=layer.deform,
                         also=TypeError)  # fmt: skip
    return layer.deform

"""Small kernels, one after the other, for a large one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import nn

from reconv.errors import conv_error
from reconv.layers.arguments import check_counts, per_axis
from reconv.layers.between import Act, between
from reconv.layers.compose import Builder, ChainLayer
from reconv.ops.problem import Padding, Size
from reconv.spec import Block, ConvSpec
from reconv.spec.conv import Ints, Pads


class _StackedConv(ChainLayer):
    """Convolutions of `small` taps whose receptive field together is exactly that of `kernel_size`.

        7 = 3, 3, 3        6 = 3, 3, 2        7×3 = 3×3, 3×1, 3×1

    The stride is the last one's. The output has the shape that the one large convolution gives, always.

    Without an activation the layer is one large convolution, borders included: the first one does all of the padding.
    With one, as in VGG, there are several nonlinearities where the large convolution is followed by one; the padding
    is then spread, the last ones first, so that with padding="same" each map keeps its size. The repr says which.

    Args:    small: the largest extent of the small kernels, at least 2.
             mid_channels: between the small convolutions; out_channels where None.
             activation: None, a name ("relu", …), or a class or function that makes a module; between, not at the end.
             bias: of the last convolution; of the others as well where an activation follows them.
    Raises:  ConvError: when the arguments do not describe such a layer, or one small kernel would do.
    Source:  Simonyan and Zisserman 2014, arXiv:1409.1556, section 2.3
    Example:
             >>> from reconv.nn import StackedConv2d
             >>> StackedConv2d(8, 16, 5, padding=2, activation="relu")
             StackedConv2d(
               kernel_size=(5, 5), activations between: 1
               (0): Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
               (1): ReLU()
               (2): Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
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
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        small: int = 3,
        mid_channels: int | None = None,
        activation: Act = None,
    ) -> None:
        name, mid = type(self).__name__, out_channels if mid_channels is None else mid_channels
        check_counts(self, out_channels=out_channels, small=small, mid_channels=mid)
        whole = ConvSpec(
            in_channels=in_channels, out_channels=out_channels, kernel_size=per_axis(self, kernel_size), stride=stride,
            padding=padding, dilation=dilation, bias=bias, padding_mode=padding_mode,
        )  # fmt: skip
        if small < 2 or max(whole.kernel_size) <= small:
            raise conv_error(name, "small must be at least 2, and kernel_size larger along some axis",
                             got={"kernel_size": whole.kernel_size, "small": small}, do="Or use a plain convolution.",
                             also=ValueError)  # fmt: skip
        parts: list[Block | nn.Module] = []
        convolutions = stack(whole, small, mid, linear=activation is None)
        for spec in convolutions:
            if parts:
                parts += between(name, None, activation, mid, whole.spatial_dims)
            parts.append(spec)
        super().__init__(*Builder(whole.spatial_dims, device, dtype).parts(parts))
        self.kernel_size = whole.kernel_size
        self.activations = len(parts) - len(convolutions)

    def extra_repr(self) -> str:
        count = self.activations
        return f"kernel_size={self.kernel_size}, " + (
            f"activations between: {count}" if count else "no activation between: one linear map")  # fmt: skip


def stack(whole: ConvSpec, small: int, mid_channels: int, linear: bool) -> list[ConvSpec]:
    """The small convolutions for the large one; `linear`: nothing will stand between them."""
    kernels = stacked_kernels(whole.kernel_size, small)
    pads = [((0, 0),) * whole.spatial_dims] * len(kernels)
    pads[0] = whole.padding
    for i in range(len(kernels) - 1, 0, -1) if not linear else ():
        pads[0], pads[i] = _shared(pads[0], kernels[i], whole.dilation)
    last = len(kernels) - 1
    return [
        whole.replace(
            in_channels=mid_channels if i else whole.in_channels,
            out_channels=whole.out_channels if i == last else mid_channels,
            kernel_size=kernel, padding=pads[i], stride=whole.stride if i == last else 1,
            bias=whole.bias and (i == last or not linear),
        )
        for i, kernel in enumerate(kernels)
    ]  # fmt: skip


def stacked_kernels(size: Ints, small: int) -> tuple[Ints, ...]:
    """Kernels up to `small` that cover `size` together: each adds its size − 1."""
    return tuple(zip_longest(*(_sizes(length, small) for length in size), fillvalue=1))


def _sizes(size: int, small: int) -> list[int]:
    sizes = [min(size, small)]
    while (left := size - sum(s - 1 for s in sizes)) > 1:
        sizes.append(min(left, small))
    return sizes


def _shared(pads: Pads, kernel: Sequence[int], dilation: Ints) -> tuple[Pads, Pads]:
    """What is left of the padding, and what a small kernel takes of it: at most what keeps its map's size."""
    taken = []
    for (lo, hi), k, d in zip(pads, kernel, dilation, strict=True):
        extent = d * (k - 1)
        taken.append((min(lo, extent // 2), min(hi, extent - extent // 2)))
    left = tuple((lo - a, hi - b) for (lo, hi), (a, b) in zip(pads, taken, strict=True))
    return left, tuple(taken)


class StackedConv1d(_StackedConv):
    spatial_dims = 1


class StackedConv2d(_StackedConv):
    spatial_dims = 2


class StackedConv3d(_StackedConv):
    spatial_dims = 3

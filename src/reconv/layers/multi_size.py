"""Several kernel sizes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from reconv.errors import ConvError, conv_error
from reconv.layers.arguments import check_counts, per_axis
from reconv.layers.compose import BranchesLayer, Builder
from reconv.ops.problem import Padding, Size
from reconv.spec import Block, Chain, ConvSpec


class _MultiSizeConv(BranchesLayer):
    """Convolutions of several sizes over the same input, their outputs concatenated or added.

    All kernels are centred on the same points: each branch pads by what its kernel needs, so that with stride 1 and
    padding 0 the map keeps its size.

    Args:    out_channels: of all branches together, shared as evenly as can be; or, to concatenate, one per branch.
             kernel_sizes: one per branch, each an int or a tuple. (1, 3, 5) is Inception's.
             padding: on top of what each kernel needs; "same" is 0 with stride 1.
             dilation: an int for all branches, or one entry per branch, each an int or a tuple (as in ASPP).
             reduction: channels of a 1×1 convolution before each kernel larger than 1; or one per branch, or None.
             join: "concat" or "sum"; all branches of a sum have out_channels.
             bias: of each branch's last convolution; of a sum, the first branch's.
    Raises:  ConvError: when the arguments do not describe such a layer.
    Source:  Szegedy et al. 2014, arXiv:1409.4842; Chen et al. 2017, arXiv:1706.05587
    Example:
             >>> from reconv.nn import MultiSizeConv1d
             >>> str(MultiSizeConv1d(8, 12, (1, 3, 3), dilation=(1, 1, 4), reduction=2).block)
             '(ic8oc4k1 | ic8oc2k1nb -> ic2oc4k3p1 | ic8oc2k1nb -> ic2oc4k3p4d4)'
    """

    spatial_dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int],
        kernel_sizes: Sequence[Size] = (1, 3, 5),
        stride: Size = 1,
        padding: Padding = 0,
        dilation: int | Sequence[Size] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: int | Sequence[int | None] | None = None,
        join: str = "concat",
    ) -> None:
        if join not in ("concat", "sum"):
            raise self._wrong("join must be 'concat' or 'sum'", join=repr(join))
        if not isinstance(kernel_sizes, Sequence) or len(kernel_sizes) < 2:
            raise self._wrong("kernel_sizes must be a sequence of two sizes or more", kernel_sizes=kernel_sizes)
        if padding == "valid":
            raise self._wrong("padding must be numbers or 'same': the branches' maps are of one size", padding=padding)
        dims, sizes = self.spatial_dims, [per_axis(self, size) for size in kernel_sizes]
        outs = self._outputs(out_channels, len(sizes), join)
        dilations = self._per_branch("dilation", dilation, len(sizes))
        reductions = self._per_branch("reduction", reduction, len(sizes))
        if not isinstance(reduction, Sequence):
            reductions = [None if set(size) == {1} else reduction for size in sizes]
        centre = ConvSpec(in_channels=in_channels, out_channels=outs[0], kernel_size=(1,) * dims, stride=stride,
                          padding=padding, bias=bias, padding_mode=padding_mode)  # fmt: skip
        branches = [
            self._branch(centre.replace(out_channels=out, bias=bias and (not i or join == "concat")), size, d, reduced)
            for i, (size, out, d, reduced) in enumerate(zip(sizes, outs, dilations, reductions, strict=True))
        ]
        builder = Builder(dims, device, dtype)
        super().__init__([builder.layer(branch, None) for branch in branches], join, dims)

    def _branch(self, centre: ConvSpec, size: tuple[int, ...], dilation: Size, reduced: int | None) -> Block:
        """A kernel around the points that `centre` sees, behind its reduction."""
        spec = centre.replace(kernel_size=size, dilation=dilation, padding=0)
        extents = [d * (k - 1) for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
        spec = spec.replace(padding=tuple(
            (lo + extent // 2, hi + extent - extent // 2)
            for (lo, hi), extent in zip(centre.padding, extents, strict=True)
        ))  # fmt: skip
        if reduced is None:
            return spec
        check_counts(self, reduction=reduced)
        before = ConvSpec(in_channels=spec.in_channels, out_channels=reduced, kernel_size=(1,) * len(size), bias=False)
        return Chain(before, spec.replace(in_channels=reduced))

    def _outputs(self, out_channels: int | Sequence[int], branches: int, join: str) -> Sequence[int]:
        """The outputs of each branch."""
        if isinstance(out_channels, Sequence):
            if join == "sum" or len(out_channels) != branches:
                raise self._wrong("out_channels must be an integer, or for join='concat' one per branch",
                                  out_channels=out_channels, kernel_sizes=branches, join=repr(join))  # fmt: skip
            check_counts(self, **{f"out_channels[{i}]": out for i, out in enumerate(out_channels)})
            return out_channels
        check_counts(self, out_channels=out_channels)
        if join == "sum":
            return [out_channels] * branches
        if out_channels < branches:
            raise self._wrong("out_channels must be at least one per branch", out_channels=out_channels,
                              kernel_sizes=branches)  # fmt: skip
        return [out_channels // branches + (i < out_channels % branches) for i in range(branches)]

    def _per_branch(self, name: str, value: Any, branches: int) -> Sequence[Any]:
        if not isinstance(value, Sequence):
            return [value] * branches
        if len(value) != branches:
            raise self._wrong(f"{name} must be one for all branches, or one per branch", **{name: value},
                              kernel_sizes=branches)  # fmt: skip
        return value

    def _wrong(self, must: str, **got: object) -> ConvError:
        return conv_error(type(self).__name__, must, got=got, also=ValueError)


class MultiSizeConv1d(_MultiSizeConv):
    spatial_dims = 1


class MultiSizeConv2d(_MultiSizeConv):
    spatial_dims = 2


class MultiSizeConv3d(_MultiSizeConv):
    spatial_dims = 3

"""Layers that mix or weigh whole channels.

Each takes (N, C, *spatial). Where `spatial_dims` is given, unbatched (C, *spatial) is understood as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reconv.errors import conv_error
from reconv.layers.arguments import check_counts
from reconv.layers.described import Described
from reconv.ops.functional import shuffled
from reconv.spec import Description


def channel_dim(spatial_dims: int | None) -> int:
    """The axis of the channels: counted from the end, where the number of spatial axes is known."""
    return 1 if spatial_dims is None else -1 - spatial_dims


def _check_channels(layer: nn.Module, input: Tensor, dim: int, channels: int, told: str = "") -> None:
    """Whether there are so many, or where they are told by a text a multiple of so many."""
    axes = range(-input.ndim, input.ndim)
    if dim not in axes or (input.shape[dim] % channels if told else input.shape[dim] != channels):
        raise conv_error(type(layer).__name__, f"input must have {told or channels} channels on axis {dim}",
                         got={"input": tuple(input.shape)}, also=RuntimeError)  # fmt: skip


class ChannelShuffle(Described):
    """y[n, j·groups + i] = x[n, i·(C/groups) + j]: channels of different groups become neighbours.

    Args:    groups: which divides the channels. spatial_dims: of the maps, where inputs may come without a batch.
    Raises:  ConvError: when groups is no count; (a RuntimeError too) for an input whose channels it does not divide.
    Source:  Zhang et al. 2017, arXiv:1707.01083
    Example:
             >>> ChannelShuffle(2)(torch.arange(6).view(1, 6)).tolist()
             [[0, 3, 1, 4, 2, 5]]
    """

    def __init__(self, groups: int, spatial_dims: int | None = None) -> None:
        super().__init__()
        check_counts(self, groups=groups)
        self.groups, self.dim = groups, channel_dim(spatial_dims)

    def forward(self, input: Tensor) -> Tensor:
        _check_channels(self, input, self.dim, self.groups, f"{self.groups} times n")
        return shuffled(input, self.groups, self.dim % input.ndim)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class ChannelPermute(Described):
    """y[n, c] = x[n, index[c]]. The order is data: the buffer `index`, at first the identity.

    Args:    channels: C. spatial_dims: of the maps, where inputs may come without a batch.
    Raises:  ConvError: when channels is no count; (a RuntimeError too) for an input of other channels.
    Example:
             >>> layer = ChannelPermute(3)
             >>> _ = layer.load_state_dict({"index": torch.tensor([2, 0, 1])})
             >>> layer(torch.tensor([[10, 20, 30]])).tolist()
             [[30, 10, 20]]
    """

    index: Tensor

    def __init__(self, channels: int, spatial_dims: int | None = None, device: Any = None) -> None:
        super().__init__()
        check_counts(self, channels=channels)
        self.dim = channel_dim(spatial_dims)
        self.register_buffer("index", torch.arange(channels, device=device))

    def forward(self, input: Tensor) -> Tensor:
        _check_channels(self, input, self.dim, self.index.numel())
        return input.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        return str(self.index.numel())


class SqueezeExcite(Described):
    """y[n, c] = x[n, c] · sigmoid(expand(relu(reduce(mean of x over space))))[n, c].

    Args:    channels: C. reduction: the hidden layer has max(1, channels // reduction) units.
             spatial_dims: of the maps, where inputs may come without a batch.
    Raises:  ConvError: when channels or reduction is no count.
    Source:  Hu et al. 2017, arXiv:1709.01507, equations 2 to 4
    Example:
             >>> layer = SqueezeExcite(32, reduction=8)
             >>> layer.reduce, layer(torch.zeros(1, 32, 7, 7)).shape
             (Linear(in_features=32, out_features=4, bias=True), torch.Size([1, 32, 7, 7]))
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        spatial_dims: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_counts(self, channels=channels, reduction=reduction)
        hidden = max(1, channels // reduction)
        self.reduction, self.spatial_dims = reduction, spatial_dims
        self.reduce = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.expand = nn.Linear(hidden, channels, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        dims = input.ndim - 2 if self.spatial_dims is None else self.spatial_dims
        self._check(tuple(input.shape), dims, batch=self.spatial_dims is None)
        squeezed = input.flatten(-dims).mean(-1)
        scale = self.expand(self.reduce(squeezed).relu()).sigmoid()
        return input * scale.reshape(*scale.shape, *[1] * dims)

    def describe(self, input_shape: Sequence[int]) -> Description:
        self._check(tuple(input_shape), self.spatial_dims or len(input_shape) - 2, batch=True)
        return super().describe(input_shape)

    def _check(self, shape: tuple[int, ...], dims: int, batch: bool) -> None:
        channels = self.reduce.in_features
        if dims < 1 or len(shape) not in (dims + 2, dims + 2 - (not batch)) or shape[-dims - 1] != channels:
            raise conv_error(type(self).__name__, f"input must be (N, {channels}, {_axes(self.spatial_dims)})",
                             got={"input": shape}, also=RuntimeError)  # fmt: skip

    def extra_repr(self) -> str:
        return f"reduction={self.reduction}"


def _axes(spatial_dims: int | None) -> str:
    return "*spatial" if spatial_dims is None else f"{spatial_dims} spatial axes"


class _SqueezeExcite(SqueezeExcite):
    """SqueezeExcite for maps of so many axes: (N, C, *spatial), or (C, *spatial) without a batch.

    Args:    channels: C. reduction: the hidden layer has max(1, channels // reduction) units.
    Raises:  ConvError: when channels or reduction is no count.
    Source:  Hu et al. 2017, arXiv:1709.01507, equations 2 to 4
    Example:
             >>> SqueezeExcite2d(32, reduction=8)(torch.zeros(32, 7, 7)).shape
             torch.Size([32, 7, 7])
    """

    dims: ClassVar[int]

    def __init__(
        self, channels: int, reduction: int = 16, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(channels, reduction, self.dims, device, dtype)


class SqueezeExcite1d(_SqueezeExcite):
    dims = 1


class SqueezeExcite2d(_SqueezeExcite):
    dims = 2


class SqueezeExcite3d(_SqueezeExcite):
    dims = 3

"""`build(block)` makes the layer that a block describes; `block_of(layer)` is its inverse."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reconv.errors import ConvError, conv_error
from reconv.layers import conv
from reconv.layers.between import CLASSES, NORMS, named
from reconv.layers.deform import DEFORMABLE, deform_of, is_deformable
from reconv.layers.described import Described
from reconv.layers.mixing import ChannelPermute, ChannelShuffle, SqueezeExcite, channel_dim
from reconv.layers.pixel_shuffle import PixelShuffleLayer
from reconv.layers.sequence import Absorbed, QuickSequential
from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    convs,
    in_channels,
    out_channels,
)
from reconv.spec.block import no_block
from reconv.spec.geometry import dimensions

CONVS: tuple[type[conv._Conv], ...] = (conv.Conv1d, conv.Conv2d, conv.Conv3d)
TRANSPOSED: tuple[type[conv._ConvTranspose], ...] = (conv.ConvTranspose1d, conv.ConvTranspose2d, conv.ConvTranspose3d)


class ChainLayer(Described, QuickSequential):
    """One layer after the other, with the state-dict keys `0.weight`, `1.weight` and so on.

    Args:    args: the layers, or an OrderedDict of them, as torch.nn.Sequential takes them.
    Example:
             >>> from reconv.spec import parse
             >>> layer = build(parse("ic8oc4k1x1 -> ic4oc8k3x3p1"))
             >>> type(layer).__name__, list(layer.state_dict())
             ('ChainLayer', ['0.weight', '0.bias', '1.weight', '1.bias'])
    """

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # a subclass takes other arguments
            return ChainLayer(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class BranchesLayer(Described, nn.ModuleList):
    """Layers side by side on the same input, with the state-dict keys `0.weight`, `1.weight` and so on."""

    def __init__(self, branches: Iterable[nn.Module], join: str, spatial_dims: int | None) -> None:
        super().__init__(branches)
        self.join, self.dim = join, channel_dim(spatial_dims)

    def forward(self, input: Tensor) -> Tensor:
        outputs = [branch(input) for branch in self]
        return torch.cat(outputs, self.dim) if self.join == "concat" else functools.reduce(torch.add, outputs)

    def extra_repr(self) -> str:
        return f"join={self.join!r}"

    def __getitem__(self, index: Any) -> Any:
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


class ConcatLayer(BranchesLayer):
    """Layers side by side on the same input, their outputs joined along the channels.

    Args:    branches: the layers. spatial_dims: of the maps, where inputs may come without a batch.
    Example:
             >>> ConcatLayer([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 3, padding=1)])(torch.zeros(1, 3, 5, 5)).shape
             torch.Size([1, 12, 5, 5])
    """

    def __init__(self, branches: Iterable[nn.Module] = (), spatial_dims: int | None = None) -> None:
        super().__init__(branches, "concat", spatial_dims)


class SumLayer(BranchesLayer):
    """Layers side by side on the same input, their outputs added.

    Args:    branches: the layers.
    Example:
             >>> SumLayer([nn.Identity(), nn.ReLU()])(torch.tensor([[-1.0, 2.0]]))
             tensor([[-1.,  4.]])
    """

    def __init__(self, branches: Iterable[nn.Module] = ()) -> None:
        super().__init__(branches, "sum", None)


def build(block: Block, device: Any = None, dtype: torch.dtype | None = None, channels: int | None = None,
          spatial_dims: int | None = None) -> nn.Module:  # fmt: skip
    """The layer that a block describes, with torch's default initialisation.

    State-dict keys follow the block: a convolution has `weight` and `bias`, a permutation `index`, a gate
    `reduce.weight`, `reduce.bias`, `expand.weight` and `expand.bias`, a deformable convolution also
    `offset_conv.weight` and `offset_conv.bias`; the i-th part of a chain or of branches puts `i.` in front, as in
    `1.0.weight`.

    Args:    block: from `reconv.parse`, `block_of` or the classes of reconv.spec.
             channels, spatial_dims: of the input; needed only where no part of the block tells them.
    Raises:  ConvError: when the parts do not fit each other; a TypeError where it is no block.
    Example:
             >>> from reconv.spec import parse
             >>> build(parse("ic8oc8k3x3p1g8nb -> ic8oc16k1x1"))
             ChainLayer(
               (0): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8, bias=False)
               (1): Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
             )
    """
    if spatial_dims not in (None, 1, 2, 3):
        raise conv_error("build", "spatial_dims must be 1, 2 or 3", got={"spatial_dims": repr(spatial_dims)},
                         also=ValueError)  # fmt: skip
    told = [*(spec.spatial_dims for spec in convs(block)), dimensions(block), spatial_dims]
    dims = {number for number in told if number is not None}
    if len(dims) > 1:
        raise conv_error("build", "all convolutions of a block must have the same number of dimensions",
                         got={"spatial_dims": sorted(dims)}, spec=block, also=ValueError)  # fmt: skip
    return Builder(next(iter(dims), None), device, dtype).layer(block, channels)


def block_of(layer: nn.Module) -> Block:
    """The block that a layer computes; torch.nn's own convolutions are understood, too.

    Args:    layer: of torch.nn or reconv.nn; made by `build`, or by its own class.
    Raises:  ConvError (a TypeError): when the layer is none of build's, or its forward has been changed.
    Example:
             >>> str(block_of(nn.Conv2d(3, 8, 3, padding="same")))
             'ic3oc8k3x3p1'
    """
    if not isinstance(layer, nn.Module):
        raise _not_ours(layer)
    if isinstance(layer, _ConvNd) and _convolves(layer):
        return ConvSpec.of(layer)
    if (block := named(layer)) is not None:
        return block
    if type(layer) is nn.PixelShuffle and _defined_in(layer.forward, "torch.nn"):
        return PixelShuffle((layer.upscale_factor,) * 2)
    if _defined_in(layer.forward, "reconv.layers"):
        match layer:
            case ChainLayer():
                parts = [block_of(part) for part in layer if type(part) is not Absorbed]
                return parts[0] if len(parts) == 1 else Chain(*parts)
            case BranchesLayer():
                return Branches(*map(block_of, layer), join=layer.join)
            case ChannelShuffle():
                return Shuffle(layer.groups)
            case PixelShuffleLayer():
                return layer.shuffle
            case ChannelPermute():
                return Permute(layer.index.numel())
            case SqueezeExcite():
                return Gate(layer.reduction)
            case _ if is_deformable(layer):
                return deform_of(layer)
    raise _not_ours(layer)


def _not_ours(layer: object) -> ConvError:
    return conv_error("block_of", "the layer must be a convolution of torch.nn or a layer of reconv.nn",
                      got={"layer": type(layer).__name__}, also=TypeError)  # fmt: skip


def _convolves(layer: _ConvNd) -> bool:
    """A subclass that does more than its convolution is no convolution."""
    methods = (layer.forward, layer._conv_forward)
    return all(_defined_in(method, "torch.nn.modules.conv", conv.__name__) for method in methods)


def _defined_in(method: object, *modules: str) -> bool:
    home = getattr(method, "__module__", None) or ""
    return any(home == module or home.startswith(f"{module}.") for module in modules)


class Builder:
    """Makes layers for maps of so many dimensions."""

    def __init__(self, spatial_dims: int | None, device: Any, dtype: torch.dtype | None) -> None:
        self.dims, self.device, self.dtype = spatial_dims, device, dtype

    def layer(self, block: Block, channels: int | None) -> nn.Module:
        needed = in_channels(block)
        if None not in (channels, needed) and channels != needed:
            raise conv_error("build", "each part must take the channels that come in",
                             got={"channels": channels, "needed": needed}, spec=block, also=ValueError)  # fmt: skip
        channels = channels or needed
        match block:
            case ConvSpec():
                return self.conv(block)
            case Chain():
                return ChainLayer(*self.parts(block.blocks, channels))
            case Branches():
                branches = [self.layer(part, channels) for part in block.blocks]
                return SumLayer(branches) if block.join == "sum" else ConcatLayer(branches, self.dims)
            case Shuffle():
                return ChannelShuffle(block.groups, self.dims)
            case PixelShuffle():
                return self.pixel_shuffle(block, channels)
            case Permute():
                return ChannelPermute(block.channels, self.dims, self.device)
            case Gate():
                return SqueezeExcite(_known(channels, block), block.reduction, self.dims, self.device, self.dtype)
            case Activation():
                return CLASSES[block.name]()
            case BatchNorm():
                return self.norm(_known(channels, block))
            case Deform():
                return self.deform(block)
            case _:
                no_block(block)

    def parts(self, chain: Iterable[Block | nn.Module], channels: int | None = None) -> Iterator[nn.Module]:
        """The layers of a chain; a part that is a module already keeps the channels."""
        for part in chain:
            if isinstance(part, nn.Module):
                yield part.to(device=self.device, dtype=self.dtype)
                continue
            yield self.layer(part, channels)
            channels = out_channels(part, channels or in_channels(part) or 0) or None

    def pixel_shuffle(self, block: PixelShuffle, channels: int | None) -> nn.Module:
        if self.dims not in (None, len(block.factors)) or (channels or 0) % prod(block.factors):
            raise conv_error("build", "a pixel shuffle has a factor for each axis, and their product divides the "
                             "channels", got={"spatial_dims": self.dims, "channels": channels}, spec=block,
                             also=ValueError)  # fmt: skip
        return PixelShuffleLayer(block.factors, block.crop)

    def norm(self, channels: int) -> nn.Module:
        if self.dims is None:
            raise conv_error("build", "a batch norm must know its number of dimensions", do="Give spatial_dims=….",
                             also=ValueError)  # fmt: skip
        return NORMS[self.dims - 1](channels, device=self.device, dtype=self.dtype)

    def conv(self, spec: ConvSpec) -> nn.Module:
        common: dict[str, Any] = {
            "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
            "bias": spec.bias, "padding_mode": spec.padding_mode, "device": self.device, "dtype": self.dtype,
        }  # fmt: skip
        which = spec.spatial_dims - 1
        if spec.transposed:
            return TRANSPOSED[which](spec.in_channels, spec.out_channels, spec.kernel_size,
                                     output_padding=spec.output_padding, **common)  # fmt: skip
        return CONVS[which](spec.in_channels, spec.out_channels, spec.kernel_size, **common)

    def deform(self, block: Deform) -> nn.Module:
        spec = block.conv
        return DEFORMABLE[spec.spatial_dims - 1](
            spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.padding, spec.dilation,
            spec.groups, spec.bias, spec.padding_mode, self.device, self.dtype, block.offset_groups, block.modulated,
        )  # fmt: skip


def _known(channels: int | None, block: Block) -> int:
    if channels is None:
        what = "a gate" if isinstance(block, Gate) else "a batch norm"
        raise conv_error("build", f"{what} must know its channels", do="Give channels=….", spec=block,
                         also=ValueError)  # fmt: skip
    return channels

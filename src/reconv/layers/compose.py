"""`build(block)` makes the layer that a block describes; `block_of(layer)` is its inverse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reconv.errors import conv_error
from reconv.layers import conv
from reconv.layers.mixing import ChannelPermute, ChannelShuffle, SqueezeExcite, channel_dim
from reconv.ops.dispatch import convolve_all
from reconv.spec import (
    Activation,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    Shuffle,
    convs,
    in_channels,
    out_channels,
)

CONVS: tuple[type[conv._Conv], ...] = (conv.Conv1d, conv.Conv2d, conv.Conv3d)
TRANSPOSED: tuple[type[conv._ConvTranspose], ...] = (conv.ConvTranspose1d, conv.ConvTranspose2d, conv.ConvTranspose3d)


class Quick(nn.Module):
    """A call goes straight to `forward` where no hook listens: on small maps the way there costs as much."""

    def __call__(self, input: Tensor) -> Tensor:
        if (
            type(input) is Tensor
            and not _hooked(self)
            and not self._backward_hooks
            and not self._backward_pre_hooks
            and not _hooked_everywhere()
        ):
            return self.forward(input)
        return super().__call__(input)


class Absorbed(Quick, nn.Identity):
    """An identity where a module was whose work another layer has taken over."""


class ChainLayer(Quick, nn.Sequential):
    """One layer after the other; state-dict keys `0.weight`, `1.weight`, …

    Plain convolutions, with ReLUs behind them, are computed in one call where a kernel does that.
    """

    def forward(self, input: Tensor) -> Tensor:
        if type(input) is Tensor and (parts := self._convolutions()):
            output = convolve_all(input.ndim - 2, input, *parts)
            if output is not None:
                return output
        fresh = False  # a convolution's output, which nobody else sees
        for part in self:
            plain = not (_hooked(part) or _hooked_everywhere())
            input = input.relu_() if fresh and plain and type(part) is nn.ReLU else part(input)
            fresh = plain and isinstance(part, _ConvNd)
        return input

    def _convolutions(self) -> tuple[list[Tensor | None], tuple[Any, ...]] | None:
        """Weights, biases and settings of all parts; None where calling them would do more than convolve."""
        tensors: list[Tensor | None] = []
        settings: list[tuple[Any, ...]] = []
        if _hooked_everywhere():
            return None
        for part in self._modules.values():
            kind = type(part)
            if part is None or _hooked(part):
                return None
            if kind is conv.Conv2d and part.padding_mode == "zeros":
                parameters = part._parameters
                tensors += (parameters.get("weight"), parameters.get("bias"))
                settings.append((part.stride, part.padding, part.dilation, part.groups, False))
            elif kind is nn.ReLU and settings:
                settings[-1] = (*settings[-1][:-1], True)
            else:
                return None
        return tensors, tuple(settings)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _hooked_everywhere() -> bool:
    of_all = nn.modules.module
    return bool(
        of_all._global_forward_hooks or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks or of_all._global_backward_pre_hooks
    )  # fmt: skip


class ConcatLayer(nn.ModuleList):
    """Layers side by side on the same input, their outputs joined along the channels."""

    def __init__(self, branches: Iterable[nn.Module] = (), spatial_dims: int | None = None) -> None:
        super().__init__(branches)
        self.dim = channel_dim(spatial_dims)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self], self.dim)


class SumLayer(nn.ModuleList):
    """Layers side by side on the same input, their outputs added."""

    def forward(self, input: Tensor) -> Tensor:
        first, *others = [branch(input) for branch in self]
        for other in others:
            first = first + other
        return first


def build(block: Block, device: Any = None, dtype: torch.dtype | None = None, channels: int | None = None) -> nn.Module:
    """The layer that a block describes, with torch's default initialisation.

    State-dict keys follow the block: a convolution has `weight` and `bias`, a permutation `index`, a gate
    `reduce.weight`, `reduce.bias`, `expand.weight` and `expand.bias`; the i-th part of a chain or of branches puts
    `i.` in front, as in `1.0.weight`.

    Args:    channels: of the input; needed only where no part of the block tells them.
    Raises:  ConvError: when the parts do not fit each other.
    Example:
             >>> from reconv.spec import parse
             >>> build(parse("ic8oc8k3x3p1g8nb -> ic8oc16k1x1"))
             ChainLayer(
               (0): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8, bias=False)
               (1): Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
             )
    """
    dims = {spec.spatial_dims for spec in convs(block)}
    if len(dims) > 1:
        raise conv_error("build", "all convolutions of a block must have the same number of dimensions",
                         got={"spatial_dims": sorted(dims)}, spec=block, also=ValueError)  # fmt: skip
    return _Builder(next(iter(dims), None), device, dtype).layer(block, channels)


def block_of(layer: nn.Module) -> Block:
    """The block that a layer computes; torch.nn's own convolutions are understood, too.

    Raises:  ConvError (a TypeError): when the layer is none of build's, or its forward has been changed.
    Example:
             >>> str(block_of(nn.Conv2d(3, 8, 3, padding="same")))
             'ic3oc8k3x3p1'
    """
    if isinstance(layer, _ConvNd) and _forward_is_known(layer):
        return ConvSpec.of(layer)
    match layer:
        case ChainLayer():
            return Chain(*map(block_of, layer))
        case ConcatLayer():
            return Branches(*map(block_of, layer))
        case SumLayer():
            return Branches(*map(block_of, layer), join="sum")
        case ChannelShuffle():
            return Shuffle(layer.groups)
        case ChannelPermute():
            return Permute(layer.index.numel())
        case SqueezeExcite():
            return Gate(layer.reduction)
        case nn.ReLU() if type(layer) is nn.ReLU:
            return Activation("relu")
    raise conv_error("block_of", "the layer must be a convolution of torch.nn or a layer of reconv.nn",
                     got={"layer": type(layer).__name__}, also=TypeError)  # fmt: skip


def _forward_is_known(layer: _ConvNd) -> bool:
    """A subclass that does more than its convolution is no convolution."""
    known = {"torch.nn.modules.conv", conv.__name__}
    return layer.forward.__module__ in known and layer._conv_forward.__module__ in known


class _Builder:
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
                return ChainLayer(*self.parts(block, channels))
            case Branches():
                branches = [self.layer(part, channels) for part in block.blocks]
                return SumLayer(branches) if block.join == "sum" else ConcatLayer(branches, self.dims)
            case Shuffle():
                return ChannelShuffle(block.groups, self.dims)
            case Permute():
                return ChannelPermute(block.channels, self.dims, self.device)
            case Gate():
                return SqueezeExcite(_known(channels, block), block.reduction, self.dims, self.device, self.dtype)
            case Activation():
                return nn.ReLU()
            case Deform():
                raise conv_error("build", "the block must be one that has a layer", do="Deformable ones come later.",
                                 spec=block, also=NotImplementedError)  # fmt: skip
            case _:
                assert_never(block)

    def parts(self, chain: Chain, channels: int | None) -> Iterable[nn.Module]:
        for part in chain.blocks:
            yield self.layer(part, channels)
            channels = out_channels(part, channels) if channels else None

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


def _known(channels: int | None, block: Block) -> int:
    if channels is None:
        raise conv_error("build", "a gate must know its channels", do="Give channels=….", spec=block,
                         also=ValueError)  # fmt: skip
    return channels

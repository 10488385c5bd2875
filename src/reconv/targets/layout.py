"""Memory formats of whole networks: which one a network has, and another one for a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAYOUTS = ("contiguous", "channels_last")
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_layout(model: nn.Module, layout: str) -> nn.Module:
    """Lays the 4D and 5D parameters out as `contiguous` or `channels_last`, in place; returns the model.

    Convolutions whose weights are channels_last give channels_last outputs, so that the whole network follows.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() in _CHANNELS_LAST:
            tensor.data = laid_out(tensor.data, layout)
    return model


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in a memory format, where its number of dimensions knows one.

    `Tensor.contiguous` leaves the strides where sizes of 1 let both formats fit (one input channel, say), but PyTorch
    chooses a convolution's format by the strides.
    """
    known = layout == "channels_last" and tensor.dim() in _CHANNELS_LAST
    wanted = _CHANNELS_LAST[tensor.dim()] if known else torch.contiguous_format
    laid = torch.empty_like(tensor, memory_format=wanted)
    return tensor if tensor.stride() == laid.stride() else laid.copy_(tensor)


def layouts_of(model: nn.Module) -> tuple[str, ...]:
    """The memory formats that the weights can tell apart; the model's own first."""
    own = layout_of(model)
    several = any(tensor.dim() in _CHANNELS_LAST for tensor in model.parameters())
    return (own, *(other for other in LAYOUTS if several and other != own))


def layout_of(model: nn.Module) -> str:
    """`channels_last` where some weight can only be read so, else `contiguous`."""
    for tensor in model.parameters():
        if tensor.dim() in _CHANNELS_LAST and not tensor.is_contiguous():
            return "channels_last"
    return "contiguous"

"""What several networks are made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

Act = Callable[[], nn.Module] | None


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def sequence(parts: Mapping[str, nn.Module]) -> nn.Sequential:
    """One after the other, under names."""
    return nn.Sequential(OrderedDict(parts))


def named(**parts: nn.Module) -> nn.Sequential:
    """One after the other, under names."""
    return sequence(parts)


def norm_of(conv: nn.Module, eps: float = 1e-5) -> nn.Module:
    """The batch norm of what a convolution gives."""
    weight = conv.get_parameter("weight")
    return NORMS[weight.ndim - 3](weight.shape[0], eps)


def conv_norm(conv: nn.Module, act: Act = relu, eps: float = 1e-5) -> nn.Sequential:
    """A convolution, its batch norm and an activation: `conv`, `norm`, `act`."""
    parts = {"conv": conv, "norm": norm_of(conv, eps)}
    return sequence(parts | {"act": act()} if act else parts)


def conv_norms(*convs: nn.Module, act: Callable[[], nn.Module] = relu) -> nn.Sequential:
    """Convolutions, each with its batch norm, and activations between them: `conv1`, `norm1`, `act1`, `conv2`, …"""
    parts: dict[str, nn.Module] = {}
    for i, conv in enumerate(convs, 1):
        parts |= {f"conv{i}": conv, f"norm{i}": norm_of(conv)} | ({f"act{i}": act()} if i < len(convs) else {})
    return sequence(parts)


def head(channels: int, classes: int, spatial_dims: int = 2, dropout: float = 0) -> nn.Sequential:
    """The mean over space, then a linear layer `fc`."""
    parts = {"pool": POOLS[spatial_dims - 1](1), "flat": nn.Flatten()}
    return sequence(parts | ({"drop": nn.Dropout(dropout)} if dropout else {}) | {"fc": nn.Linear(channels, classes)})


class Residual(nn.Module):
    """y = act(body(x) + skip(x)); the skip is the identity where none is given.

    Source:  He et al. 2015, arXiv:1512.03385
    """

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, act: Act = None) -> None:
        super().__init__()
        self.body, self.skip, self.act = body, skip or nn.Identity(), act() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))


class Concat(nn.ModuleDict):
    """Branches under names on the same input, their outputs joined along the channels.

    Source:  Szegedy et al. 2014, arXiv:1409.4842
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.values()], 1)

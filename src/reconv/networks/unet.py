"""U-Net: down to small maps and up again, what was seen on the way down beside what comes up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reconv.layers import Conv2d, ConvTranspose2d, PointwiseConv2d
from reconv.networks.catalogue import network
from reconv.networks.parts import named, relu

DEPTH = 4  # halvings


@network(
    paper="Ronneberger, Fischer, Brox 2015, arXiv:1505.04597", input_shape=(1, 1, 572, 572), params=31_030_658,
    macs=150_428_424_448, published="388×388 outputs (paper); 31,030,658 parameters from its figure 1",
    kinds="standard pointwise transposed",
)  # fmt: skip
def unet(channels: int = 1, classes: int = 2, width: int = 64, padded: bool = False) -> nn.Module:
    """U-Net: four halvings of two 3×3 convolutions each, four transposed 2×2 convolutions up again.

    Args:    channels: of the input, (N, channels, *spatial), 572×572 in the paper.
             width: of the largest maps; doubled at each halving.
             padded: whether the 3×3 convolutions keep the size of their maps; in the paper they do not.
    Returns: a network that gives scores (N, classes, *spatial): without padding, smaller by 92 cells on each side at
             the paper's sizes; with it, of the input's size rounded down to a multiple of 16.
    Raises:  ConvError: when a number is no integer >= 1.
    Source:  Ronneberger et al. 2015, figure 1
    Example:
             >>> import torch
             >>> unet(width=2, padded=True)(torch.zeros(1, 1, 37, 53)).shape
             torch.Size([1, 2, 32, 48])
    """
    padding = 1 if padded else 0
    inner: nn.Module = _convs(width * 2 ** (DEPTH - 1), width * 2**DEPTH, padding)
    for level in reversed(range(1, DEPTH)):
        inner = _Level(width * 2 ** (level - 1), width * 2**level, inner, padding)
    return named(net=_Level(channels, width, inner, padding), score=PointwiseConv2d(width, classes))


class _Level(nn.Module):
    """Two convolutions, all that is below, and two convolutions over both."""

    def __init__(self, inputs: int, width: int, below: nn.Module, padding: int) -> None:
        super().__init__()
        self.down = _convs(inputs, width, padding)
        self.pool, self.below = nn.MaxPool2d(2), below
        self.up = ConvTranspose2d(2 * width, width, 2, 2)
        self.join = _convs(2 * width, width, padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        below = self.up(self.below(self.pool(x)))
        return self.join(torch.cat([_middle(x, below), below], 1))


def _convs(inputs: int, outputs: int, padding: int) -> nn.Module:
    return named(conv1=Conv2d(inputs, outputs, 3, 1, padding), act1=relu(),
                 conv2=Conv2d(outputs, outputs, 3, 1, padding), act2=relu())  # fmt: skip


def _middle(x: Tensor, like: Tensor) -> Tensor:
    """The cells of x around its centre, as many as there are of `like`."""
    for axis in (2, 3):
        size = like.shape[axis]
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x

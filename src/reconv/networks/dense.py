"""DenseNet: each layer sees the maps of all before it."""

from __future__ import annotations

from torch import nn

from reconv.layers import ConcatLayer, Conv2d, PointwiseConv2d
from reconv.networks.catalogue import network
from reconv.networks.parts import head, named, relu, sequence

GROWTH = 32
DEPTHS = (6, 12, 24, 16)


@network(
    paper="Huang et al. 2016, arXiv:1608.06993", input_shape=(1, 3, 224, 224), params=7_978_856, macs=2_834_161_664,
    published="7,978,856, 2.834 GMACs (torchvision)", kinds="standard pointwise dense",
)  # fmt: skip
def densenet121(channels: int = 3, classes: int = 1000) -> nn.Module:
    """DenseNet-121: 58 layers of 1×1 and 3×3 convolutions, each adding 32 maps to all that came before.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Huang et al. 2016, table 1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     densenet121()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    width = 64
    parts: dict[str, nn.Module] = {
        "conv0": Conv2d(channels, width, 7, 2, 3, bias=False), "norm0": nn.BatchNorm2d(width), "act0": relu(),
        "pool0": nn.MaxPool2d(3, 2, 1),
    }  # fmt: skip
    for i, depth in enumerate(DEPTHS, 1):
        parts[f"block{i}"] = nn.Sequential(*(_layer(width + GROWTH * j) for j in range(depth)))
        width += GROWTH * depth
        if i < len(DEPTHS):
            parts[f"transition{i}"] = _transition(width)
            width //= 2
    parts |= {"norm5": nn.BatchNorm2d(width), "act5": relu()}
    return named(features=sequence(parts), head=head(width, classes))


def _layer(width: int) -> nn.Module:
    """What came in, and 32 maps more."""
    inner = 4 * GROWTH
    body = named(
        norm1=nn.BatchNorm2d(width), act1=nn.ReLU(), conv1=PointwiseConv2d(width, inner, bias=False),
        norm2=nn.BatchNorm2d(inner), act2=relu(), conv2=Conv2d(inner, GROWTH, 3, 1, 1, bias=False),
    )  # fmt: skip
    return ConcatLayer([nn.Identity(), body], 2)


def _transition(width: int) -> nn.Module:
    return named(norm=nn.BatchNorm2d(width), act=relu(), conv=PointwiseConv2d(width, width // 2, bias=False),
                 pool=nn.AvgPool2d(2))  # fmt: skip

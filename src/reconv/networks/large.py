"""Large kernels: ConvNeXt and RepLKNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reconv.layers import ChainLayer, Conv2d, DepthwiseConv2d, PointwiseConv2d, SumLayer
from reconv.networks.catalogue import network
from reconv.networks.parts import Residual, conv_norm, head, named, relu, sequence

CONVNEXT_TINY = ((96, 3), (192, 3), (384, 9), (768, 3))  # width and depth of each stage
REPLKNET_31B = ((128, 2, 31), (256, 2, 29), (512, 18, 27), (1024, 2, 13))  # and the size of its large kernels


@network(
    paper="Liu et al. 2022, arXiv:2201.03545", input_shape=(1, 3, 224, 224), params=28_589_128, macs=4_455_531_264,
    published="29 M parameters, 4.5 G (paper); 28,589,128, 4.456 GMACs (torchvision)",
    kinds="standard pointwise depthwise skip",
)  # fmt: skip
def convnext_tiny(channels: int = 3, classes: int = 1000) -> nn.Module:
    """ConvNeXt-T: eighteen blocks of a depthwise 7×7 convolution and two 1×1 ones, normed over the channels.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Liu et al. 2022, figure 4
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     convnext_tiny()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    width = CONVNEXT_TINY[0][0]
    parts: dict[str, nn.Module] = {"stem": named(conv=Conv2d(channels, width, 4, 4), norm=ChannelNorm(width))}
    for i, (outputs, depth) in enumerate(CONVNEXT_TINY):
        if i:
            parts[f"down{i}"] = named(norm=ChannelNorm(width), conv=Conv2d(width, outputs, 2, 2))
        parts[f"stage{i + 1}"] = nn.Sequential(*(_convnext_block(outputs) for _ in range(depth)))
        width = outputs
    last = named(pool=nn.AdaptiveAvgPool2d(1), norm=ChannelNorm(width), flat=nn.Flatten(), fc=nn.Linear(width, classes))
    return sequence({**parts, "head": last})


def _convnext_block(width: int) -> nn.Module:
    return Residual(named(
        depthwise=DepthwiseConv2d(width, 7, 1, 3), norm=ChannelNorm(width), widen=PointwiseConv2d(width, 4 * width),
        act=nn.GELU(), narrow=PointwiseConv2d(4 * width, width), scale=Scale(width),
    ))  # fmt: skip


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Scale(nn.Module):
    """A learned factor for each channel, small at first.

    Source:  Touvron et al. 2021, arXiv:2103.17239
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@network(
    paper="Ding et al. 2022, arXiv:2203.06717", input_shape=(1, 3, 224, 224), params=79_527_272, macs=15_353_525_248,
    published="79 M parameters, 15.3 G (paper)", kinds="standard pointwise depthwise skip",
)  # fmt: skip
def replknet31b(channels: int = 3, classes: int = 1000, branched: bool = False) -> nn.Module:
    """RepLKNet-31B: depthwise convolutions of up to 31×31 samples between 1×1 ones.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
             branched: as it is trained: each large kernel has a 5×5 one beside it, with batch norms of their own, which
             the rule fold_branches merges into one kernel.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Ding et al. 2022, section 4.1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     replknet31b()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    width = REPLKNET_31B[0][0]
    parts: dict[str, nn.Module] = {"stem": named(
        conv1=conv_norm(Conv2d(channels, width, 3, 2, 1, bias=False)), conv2=_depthwise(width),
        conv3=_pointwise(width, width), conv4=_depthwise(width, 2),
    )}  # fmt: skip
    for i, (outputs, depth, size) in enumerate(REPLKNET_31B):
        if i:
            parts[f"down{i}"] = named(conv1=_pointwise(width, outputs), conv2=_depthwise(outputs, 2))
        blocks = [block for _ in range(depth) for block in (_large(outputs, size, branched), _mixed(outputs))]
        parts[f"stage{i + 1}"] = nn.Sequential(*blocks)
        width = outputs
    return sequence({**parts, "norm": nn.BatchNorm2d(width), "head": head(width, classes)})


def _depthwise(width: int, stride: int = 1) -> nn.Module:
    return conv_norm(DepthwiseConv2d(width, 3, stride, 1, bias=False))


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    return conv_norm(PointwiseConv2d(inputs, outputs, bias=False))


def _large(width: int, size: int, branched: bool) -> nn.Module:
    """1×1, a large depthwise kernel, 1×1."""
    kernel: nn.Module = DepthwiseConv2d(width, size, 1, size // 2)
    if branched:
        branches = [DepthwiseConv2d(width, k, 1, k // 2, bias=False) for k in (size, 5)]
        kernel = SumLayer(ChainLayer(branch, nn.BatchNorm2d(width)) for branch in branches)
    return Residual(named(
        norm=nn.BatchNorm2d(width), conv1=_pointwise(width, width), kernel=kernel, act=relu(),
        conv2=conv_norm(PointwiseConv2d(width, width, bias=False), act=None),
    ))  # fmt: skip


def _mixed(width: int) -> nn.Module:
    """Two 1×1 convolutions over four times the channels."""
    return Residual(named(
        norm=nn.BatchNorm2d(width),
        conv1=conv_norm(PointwiseConv2d(width, 4 * width, bias=False), nn.GELU),
        conv2=conv_norm(PointwiseConv2d(4 * width, width, bias=False), act=None),
    ))  # fmt: skip

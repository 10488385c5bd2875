"""Residual networks: plain, with weighted channels, deformable, dilated, and over time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reconv.layers import (
    Conv2d,
    Conv3d,
    DeformConv2d,
    MultiSizeConv2d,
    PointwiseConv2d,
    PointwiseConv3d,
    SqueezeExcite2d,
)
from reconv.networks.catalogue import network
from reconv.networks.parts import Residual, conv_norm, conv_norms, head, named, relu

WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # outputs of a bottleneck over its width

Block = Callable[..., Residual]


@network(
    paper="He et al. 2015, arXiv:1512.03385", input_shape=(1, 3, 224, 224), params=11_689_512, macs=1_814_073_344,
    published="1.8 G (paper); 11,689,512 parameters, 1.814 GMACs (torchvision)", kinds="standard pointwise skip",
)  # fmt: skip
def resnet18(channels: int = 3, classes: int = 1000) -> nn.Module:
    """ResNet-18: eight blocks of two 3×3 convolutions, each added to what came in.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  He et al. 2015, table 1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     resnet18()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    return named(stem=_stem(channels), **_stages(_basic, 1, (2, 2, 2, 2)), head=head(512, classes))


@network(
    paper="He et al. 2015, arXiv:1512.03385", input_shape=(1, 3, 224, 224), params=25_557_032, macs=4_089_184_256,
    published="25,557,032 parameters, 4.089 GMACs (torchvision); 3.8 G with its strides elsewhere (paper)",
    kinds="standard pointwise skip",
)  # fmt: skip
def resnet50(channels: int = 3, classes: int = 1000) -> nn.Module:
    """ResNet-50: sixteen bottlenecks, 1×1, 3×3 and 1×1, each added to what came in.

    The stride is the 3×3 convolution's, as everywhere but in the paper.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  He et al. 2015, table 1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     resnet50()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    return named(stem=_stem(channels), **_stages(_bottleneck), head=head(2048, classes))


@network(
    paper="Hu et al. 2017, arXiv:1709.01507", input_shape=(1, 3, 224, 224), params=28_088_024, macs=4_091_699_200,
    published="about 2.5 M parameters more than ResNet-50 (paper); 28,088,024 (timm)",
    kinds="standard pointwise squeeze_excite skip",
)  # fmt: skip
def se_resnet50(channels: int = 3, classes: int = 1000) -> nn.Module:
    """SE-ResNet-50: in each bottleneck of ResNet-50, the channels are weighed before the sum.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Hu et al. 2017, figure 3
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     se_resnet50()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    block = partial(_bottleneck, gated=True)
    return named(stem=_stem(channels), **_stages(block), head=head(2048, classes))


@network(
    paper="Dai et al. 2017, arXiv:1703.06211; Zhu et al. 2018, arXiv:1811.11168", input_shape=(1, 3, 224, 224),
    params=25_805_918, macs=4_101_377_024, published="", kinds="standard pointwise deformable skip",
)  # fmt: skip
def deform_resnet50(channels: int = 3, classes: int = 1000, modulated: bool = False) -> nn.Module:
    """ResNet-50 whose last stage samples its maps at learned places: three deformable 3×3 convolutions.

    Args:    channels: of the input, (N, channels, *spatial).
             modulated: with a learned weight for each sample, which starts at one half (version 2).
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Dai et al. 2017, table 1: the last three 3×3 convolutions
    Example:
             >>> from reconv.networks import CATALOGUE
             >>> plain, offsets = 25_557_032, 3 * (512 * 9 * 18 + 18)
             >>> CATALOGUE["deform_resnet50"].params == plain + offsets
             True
    """
    stages = _stages(_bottleneck)
    stages["layer4"] = _stage(partial(_bottleneck, conv=partial(DeformConv2d, modulated=modulated)), 1024, 512, 3, 2)
    return named(stem=_stem(channels), **stages, head=head(2048, classes))


@network(
    paper="Chen et al. 2017, arXiv:1706.05587", input_shape=(1, 3, 520, 520), params=39_638_869, macs=168_731_205_888,
    published="42,004,074 parameters, 178.722 GMACs (torchvision, with the head of its training)",
    kinds="standard pointwise dilated multi_size skip",
)  # fmt: skip
def deeplab_resnet50(channels: int = 3, classes: int = 21) -> nn.Module:
    """DeepLab-v3: ResNet-50 that dilates its last two stages in place of their strides, then kernels of four fields.

    Without the second head that its training uses.

    Args:    channels: of the input, (N, channels, *spatial).
    Returns: a network that gives a map of scores of the size of the input: (N, classes, *spatial).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Chen et al. 2017, figure 5
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     deeplab_resnet50()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 21, 65, 97])
    """
    stages = _stages(_bottleneck) | {
        "layer3": _stage(_bottleneck, 512, 256, 6, dilations=(1, 2, 2, 2, 2, 2)),
        "layer4": _stage(_bottleneck, 1024, 512, 3, dilations=(2, 4, 4)),
    }
    return _Segmenter(named(
        stem=_stem(channels), **stages, pyramid=_Pyramid(2048, 256, (12, 24, 36)),
        conv=conv_norm(Conv2d(256, 256, 3, 1, 1, bias=False)), score=PointwiseConv2d(256, classes),
    ))  # fmt: skip


@network(
    paper="Tran et al. 2018, arXiv:1711.11248", input_shape=(1, 3, 16, 112, 112), params=33_371_472,
    macs=40_696_553_472, published="33.4 M parameters (paper); 33,371,472, 40.697 GMACs (torchvision)",
    kinds="standard pointwise dimensions skip",
)  # fmt: skip
def resnet3d18(channels: int = 3, classes: int = 400) -> nn.Module:
    """R3D-18: ResNet-18 whose 3×3×3 convolutions run over time as well.

    Args:    channels: of the input, (N, channels, time, *spatial), 16 frames of 112×112 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Tran et al. 2018, section 3.2
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     resnet3d18()(torch.zeros(2, 3, 5, 33, 49)).shape
             torch.Size([2, 400])
    """
    stem = conv_norm(Conv3d(channels, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False))
    block = partial(_basic, conv=Conv3d, pointwise=PointwiseConv3d)
    return named(stem=stem, **_stages(block, 1, (2, 2, 2, 2)), head=head(512, classes, 3))


def _stem(channels: int) -> nn.Sequential:
    stem = conv_norm(Conv2d(channels, 64, 7, 2, 3, bias=False))
    stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
    return stem


def _stages(block: Block, expansion: int = EXPANSION, depths: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, nn.Module]:
    """The four stages of a network, each but the first of half the size of the one before."""
    stages: dict[str, nn.Module] = {}
    inputs = 64
    for i, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), 1):
        stages[f"layer{i}"] = _stage(block, inputs, width, depth, 1 if i == 1 else 2, expansion=expansion)
        inputs = width * expansion
    return stages


def _stage(block: Block, inputs: int, width: int, depth: int, stride: int = 1,
           dilations: tuple[int, ...] | None = None, expansion: int = EXPANSION) -> nn.Sequential:  # fmt: skip
    blocks = []
    for i, dilation in enumerate(dilations or (1,) * depth):
        blocks.append(block(inputs, width, stride if i == 0 else 1, dilation))
        inputs = width * expansion
    return nn.Sequential(*blocks)


def _basic(inputs: int, width: int, stride: int, dilation: int, conv: Any = Conv2d, pointwise: Any = PointwiseConv2d,
           ) -> Residual:  # fmt: skip
    body = conv_norms(
        conv(inputs, width, 3, stride, dilation, dilation, bias=False), conv(width, width, 3, 1, 1, bias=False)
    )
    return Residual(body, _fitted(inputs, width, stride, pointwise), relu)


def _bottleneck(inputs: int, width: int, stride: int, dilation: int, conv: Any = Conv2d, gated: bool = False,
                ) -> Residual:  # fmt: skip
    outputs = width * EXPANSION
    middle = conv(width, width, 3, stride, dilation, dilation, bias=False)
    body = conv_norms(PointwiseConv2d(inputs, width, bias=False), middle, PointwiseConv2d(width, outputs, bias=False))
    if gated:
        body.add_module("gate", SqueezeExcite2d(outputs, 16))
    return Residual(body, _fitted(inputs, outputs, stride, PointwiseConv2d), relu)


def _fitted(inputs: int, outputs: int, stride: int, pointwise: Any) -> nn.Module | None:
    """The way around a block: a 1×1 convolution where it changes the shape."""
    if inputs == outputs and stride == 1:
        return None
    return conv_norm(pointwise(inputs, outputs, stride, bias=False), act=None)


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: 1×1, 3×3 at several dilations, and the mean of the whole map, then a 1×1."""

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        kernels = 1 + len(dilations)
        fields = MultiSizeConv2d(inputs, (width,) * kernels, (1, *(3 for _ in dilations)), dilation=(1, *dilations),
                                 bias=False)  # fmt: skip
        self.fields = named(conv=fields, norm=nn.BatchNorm2d(kernels * width), act=relu())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mean = conv_norm(PointwiseConv2d(inputs, width, bias=False))
        self.project = conv_norm(PointwiseConv2d((kernels + 1) * width, width, bias=False))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(self.pool(x)).expand(-1, -1, *x.shape[-2:])
        return self.drop(self.project(torch.cat([self.fields(x), mean], 1)))


class _Segmenter(nn.Module):
    """Scores, enlarged to the size of the input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.net(x), x.shape[-2:], mode="bilinear", align_corners=False)

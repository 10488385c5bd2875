"""Space and channels apart: Xception, MobileNets, ShuffleNet."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from reconv.layers import Conv2d, DepthwiseConv2d, PointwiseConv2d, SeparableConv2d, ShuffledGroupConv2d
from reconv.networks.catalogue import network
from reconv.networks.parts import Residual, conv_norm, conv_norms, head, named, relu, relu6, sequence

# stride and outputs of each layer
MOBILENET_V1 = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *((1, 512),) * 5, (2, 1024), (1, 1024))
# expansion, outputs, layers, stride of the first
MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                (6, 320, 1, 1))  # fmt: skip
# outputs and units of each stage, for three groups
SHUFFLENET_V1 = ((240, 4), (480, 8), (960, 4))


@network(
    paper="Chollet 2016, arXiv:1610.02357", input_shape=(1, 3, 299, 299), params=22_855_952, macs=8_357_403_496,
    published="22,855,952 parameters (paper, table 3); 8.4 GMACs (timm)",
    kinds="standard pointwise depthwise separable skip",
)  # fmt: skip
def xception(channels: int = 3, classes: int = 1000) -> nn.Module:
    """Xception: Inception taken to its end, 34 separable convolutions in blocks that are added to what came in.

    Args:    channels: of the input, (N, channels, *spatial), 299×299 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Chollet 2016, figure 5
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     xception()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    blocks = {
        "block1": _xception_block((64, 128, 128), first_act=False),
        "block2": _xception_block((128, 256, 256)), "block3": _xception_block((256, 728, 728)),
        **{f"block{i}": _xception_block((728,) * 4, stride=1) for i in range(4, 12)},
        "block12": _xception_block((728, 728, 1024)),
    }  # fmt: skip
    return named(
        conv1=conv_norm(Conv2d(channels, 32, 3, 2, bias=False)), conv2=conv_norm(Conv2d(32, 64, 3, bias=False)),
        **blocks, conv3=_separable(1024, 1536), act3=relu(), conv4=_separable(1536, 2048), act4=relu(),
        head=head(2048, classes),
    )  # fmt: skip


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    return named(conv=SeparableConv2d(inputs, outputs, 3, padding=1, bias=False), norm=nn.BatchNorm2d(outputs))


def _xception_block(widths: tuple[int, ...], stride: int = 2, first_act: bool = True) -> nn.Module:
    parts: dict[str, nn.Module] = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
        if i > 1 or first_act:
            parts[f"act{i}"] = nn.ReLU(inplace=i > 1)  # what goes around the block stays as it is
        parts[f"sep{i}"] = _separable(inputs, outputs)
    if stride == 1:
        return Residual(sequence(parts))
    parts["pool"] = nn.MaxPool2d(3, stride, 1)
    return Residual(sequence(parts), conv_norm(PointwiseConv2d(widths[0], widths[-1], stride, bias=False), act=None))


@network(
    paper="Howard et al. 2017, arXiv:1704.04861", input_shape=(1, 3, 224, 224), params=4_231_976, macs=568_740_352,
    published="4.2 M parameters, 569 M (paper, table 8)", kinds="standard pointwise depthwise separable",
)  # fmt: skip
def mobilenet_v1(channels: int = 3, classes: int = 1000) -> nn.Module:
    """MobileNet: thirteen depthwise convolutions, each followed by a 1×1 one.

    Activations are min(relu, 6), as in the authors' code.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Howard et al. 2017, table 1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     mobilenet_v1()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    layers, width = [], 32
    for stride, outputs in MOBILENET_V1:
        conv = SeparableConv2d(width, outputs, 3, stride, 1, bias=False, norm="batch", activation=relu6)
        layers.append(named(conv=conv, norm=nn.BatchNorm2d(outputs), act=relu6()))
        width = outputs
    stem = conv_norm(Conv2d(channels, 32, 3, 2, 1, bias=False), relu6)
    return named(stem=stem, layers=nn.Sequential(*layers), head=head(width, classes))


@network(
    paper="Sandler et al. 2018, arXiv:1801.04381", input_shape=(1, 3, 224, 224), params=3_504_872, macs=300_774_272,
    published="3.4 M parameters, 300 M (paper, table 4); 3,504,872, 0.301 G (torchvision)",
    kinds="standard pointwise depthwise skip",
)  # fmt: skip
def mobilenet_v2(channels: int = 3, classes: int = 1000) -> nn.Module:
    """MobileNet-v2: narrow maps, widened by a 1×1 convolution, filtered depthwise, and narrowed without activation.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Sandler et al. 2018, table 2
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     mobilenet_v2()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    layers, width = [], 32
    for expansion, outputs, depth, stride in MOBILENET_V2:
        for i in range(depth):
            layers.append(_inverted(width, outputs, expansion, stride if i == 0 else 1))
            width = outputs
    return named(
        stem=conv_norm(Conv2d(channels, 32, 3, 2, 1, bias=False), relu6), layers=nn.Sequential(*layers),
        last=conv_norm(PointwiseConv2d(width, 1280, bias=False), relu6), head=head(1280, classes, dropout=0.2),
    )  # fmt: skip


def _inverted(inputs: int, outputs: int, expansion: int, stride: int) -> nn.Module:
    inner = inputs * expansion
    widen = [PointwiseConv2d(inputs, inner, bias=False)] if expansion > 1 else []
    body = conv_norms(*widen, DepthwiseConv2d(inner, 3, stride, 1, bias=False),
                      PointwiseConv2d(inner, outputs, bias=False), act=relu6)  # fmt: skip
    return Residual(body) if stride == 1 and inputs == outputs else named(body=body)


@network(
    paper="Zhang et al. 2017, arXiv:1707.01083", input_shape=(1, 3, 224, 224), params=1_865_728, macs=137_460_672,
    published="137 M (paper, table 1); 1,865,728 parameters (pytorchcv)",
    kinds="standard pointwise grouped shuffled depthwise skip",
)  # fmt: skip
def shufflenet_v1(channels: int = 3, classes: int = 1000) -> nn.Module:
    """ShuffleNet, three groups: grouped 1×1 convolutions whose channels are shuffled before the depthwise one.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Zhang et al. 2017, table 1, g = 3
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     shufflenet_v1()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    stages: dict[str, nn.Module] = {}
    width = 24
    for i, (outputs, depth) in enumerate(SHUFFLENET_V1, 2):
        first = _Halving(width, outputs, groups=3 if i > 2 else 1)  # 24 channels are too few to be grouped
        rest = [Residual(_shuffle_unit(outputs, outputs, 3), act=relu) for _ in range(depth - 1)]
        stages[f"stage{i}"] = nn.Sequential(first, *rest)
        width = outputs
    stem = conv_norm(Conv2d(channels, 24, 3, 2, 1, bias=False))
    stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
    return named(stem=stem, **stages, head=head(width, classes))


def _shuffle_unit(inputs: int, outputs: int, groups: int, stride: int = 1, added: int = 0) -> nn.Module:
    """1×1 in groups, shuffled; depthwise; 1×1 in groups. `added`: outputs that come from elsewhere."""
    inner = outputs // 4
    first = (ShuffledGroupConv2d(inputs, inner, 1, bias=False, groups=groups) if groups > 1 else
             PointwiseConv2d(inputs, inner, bias=False))  # fmt: skip
    return named(
        conv1=first, norm1=nn.BatchNorm2d(inner), act1=relu(),
        conv2=DepthwiseConv2d(inner, 3, stride, 1, bias=False), norm2=nn.BatchNorm2d(inner),
        conv3=PointwiseConv2d(inner, outputs - added, groups=3, bias=False), norm3=nn.BatchNorm2d(outputs - added),
    )  # fmt: skip


class _Halving(nn.Module):
    """A unit of stride 2: what came in, pooled, beside what the unit computes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.body = _shuffle_unit(inputs, outputs, groups, 2, added=inputs)
        self.pool, self.act = nn.AvgPool2d(3, 2, 1), relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.cat([self.pool(x), self.body(x)], 1))

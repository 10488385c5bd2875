"""Plain sequences: LeNet-5, AlexNet, VGG, Network in Network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from reconv.layers import Conv2d, PointwiseConv2d
from reconv.networks.catalogue import network
from reconv.networks.parts import named, relu


@network(
    paper="LeCun, Bottou, Bengio, Haffner 1998, doi:10.1109/5.726791", input_shape=(1, 1, 32, 32),
    params=61_706, macs=416_520, published="60,000 parameters (paper)", kinds="standard",
)  # fmt: skip
def lenet5(channels: int = 1, classes: int = 10) -> nn.Module:
    """LeNet-5: two 5×5 convolutions, each pooled by means, then three linear layers; tanh.

    In the paper the second convolution sees only some of the maps (900 weights less), its poolings have 44 weights and
    its outputs, which are distances, none (850).

    Args:    channels: of the input, (N, channels, 32, 32); other sizes are pooled to 5×5 before the linear layers.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  LeCun et al. 1998, section II.B
    Example:
             >>> sum(p.numel() for p in lenet5().parameters())
             61706
    """
    return named(
        conv1=Conv2d(channels, 6, 5), act1=nn.Tanh(), pool1=nn.AvgPool2d(2),
        conv2=Conv2d(6, 16, 5), act2=nn.Tanh(), pool2=nn.AvgPool2d(2), fit=nn.AdaptiveAvgPool2d(5),
        flat=nn.Flatten(), fc1=nn.Linear(400, 120), act3=nn.Tanh(),
        fc2=nn.Linear(120, 84), act4=nn.Tanh(), fc3=nn.Linear(84, classes),
    )  # fmt: skip


@network(
    paper="Krizhevsky, Sutskever, Hinton 2012, Advances in Neural Information Processing Systems 25",
    input_shape=(1, 3, 224, 224), params=60_965_224, macs=724_406_816,
    published="60 M parameters (paper); 724 M MACs (Sze et al. 2017, arXiv:1703.09039)", kinds="standard grouped",
)  # fmt: skip
def alexnet(channels: int = 3, classes: int = 1000) -> nn.Module:
    """AlexNet: five convolutions, three of them in two groups, as the paper had them on two GPUs.

    torchvision's network of this name is a later one without groups.

    Args:    channels: of the input, (N, channels, 224, 224); other sizes are pooled to 6×6 before the linear layers.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Krizhevsky et al. 2012, section 3
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     alexnet()(torch.zeros(2, 3, 227, 227)).shape
             torch.Size([2, 1000])
    """
    features = named(
        conv1=Conv2d(channels, 96, 11, 4, 2), act1=relu(), norm1=_responses(), pool1=nn.MaxPool2d(3, 2),
        conv2=Conv2d(96, 256, 5, 1, 2, groups=2), act2=relu(), norm2=_responses(), pool2=nn.MaxPool2d(3, 2),
        conv3=Conv2d(256, 384, 3, 1, 1), act3=relu(),
        conv4=Conv2d(384, 384, 3, 1, 1, groups=2), act4=relu(),
        conv5=Conv2d(384, 256, 3, 1, 1, groups=2), act5=relu(), pool5=nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return named(features=features, head=_linear_head(256, 6, classes))


def _responses() -> nn.Module:
    """Local response normalisation with the constants of the paper; torch divides alpha by the size."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)


def _linear_head(channels: int, side: int, classes: int) -> nn.Module:
    return named(
        fit=nn.AdaptiveAvgPool2d(side), flat=nn.Flatten(),
        fc1=nn.Linear(channels * side * side, 4096), act1=relu(), drop1=nn.Dropout(),
        fc2=nn.Linear(4096, 4096), act2=relu(), drop2=nn.Dropout(), fc3=nn.Linear(4096, classes),
    )  # fmt: skip


@network(
    paper="Simonyan, Zisserman 2014, arXiv:1409.1556", input_shape=(1, 3, 224, 224), params=132_863_336,
    macs=7_609_090_048, published="133 M parameters (paper); 7.609 GMACs (torchvision)", kinds="standard stacked",
)  # fmt: skip
def vgg11(channels: int = 3, classes: int = 1000) -> nn.Module:
    """VGG-11: eight 3×3 convolutions, then three linear layers.

    Args:    channels: of the input, (N, channels, 224, 224); other sizes are pooled to 7×7 before the linear layers.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Simonyan and Zisserman 2014, table 1, column A
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     vgg11(classes=10)(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 10])
    """
    return named(features=nn.Sequential(*_vgg(channels, (1, 1, 2, 2, 2))), head=_linear_head(512, 7, classes))


@network(
    paper="Simonyan, Zisserman 2014, arXiv:1409.1556", input_shape=(1, 3, 224, 224), params=138_357_544,
    macs=15_470_264_320, published="138 M parameters (paper); 15.47 GMACs (torchvision)", kinds="standard stacked",
)  # fmt: skip
def vgg16(channels: int = 3, classes: int = 1000) -> nn.Module:
    """VGG-16: thirteen 3×3 convolutions, two or three of them in place of a larger one, then three linear layers.

    Args:    channels: of the input, (N, channels, 224, 224); other sizes are pooled to 7×7 before the linear layers.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Simonyan and Zisserman 2014, table 1, column D
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     vgg16()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """
    return named(features=nn.Sequential(*_vgg(channels, (2, 2, 3, 3, 3))), head=_linear_head(512, 7, classes))


def _vgg(channels: int, depths: tuple[int, ...]) -> Iterator[nn.Module]:
    for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
        for _ in range(depth):
            yield Conv2d(channels, width, 3, 1, 1)
            yield relu()
            channels = width
        yield nn.MaxPool2d(2)


@network(
    paper="Lin, Chen, Yan 2013, arXiv:1312.4400", input_shape=(1, 3, 32, 32), params=966_986, macs=222_486_528,
    published="966,986 parameters (pytorchcv)", kinds="standard pointwise",
)  # fmt: skip
def nin(channels: int = 3, classes: int = 10) -> nn.Module:
    """Network in Network: three convolutions, each followed by two 1×1 ones; the last maps are averaged to classes.

    Args:    channels: of the input, (N, channels, *spatial); the paper's for CIFAR-10, 32×32.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Lin et al. 2013, section 3; widths as in the authors' CIFAR-10 model
    Example:
             >>> sum(p.numel() for p in nin().parameters())
             966986
    """
    return named(
        block1=_mlp_conv(channels, (192, 160, 96), 5), pool1=nn.MaxPool2d(3, 2, ceil_mode=True), drop1=nn.Dropout(),
        block2=_mlp_conv(96, (192, 192, 192), 5), pool2=nn.AvgPool2d(3, 2, ceil_mode=True), drop2=nn.Dropout(),
        block3=_mlp_conv(192, (192, 192, classes), 3), pool3=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
    )  # fmt: skip


def _mlp_conv(channels: int, widths: tuple[int, int, int], size: int) -> nn.Module:
    """A small network of 1×1 convolutions behind a larger one."""
    first, second, third = widths
    return named(
        conv=Conv2d(channels, first, size, 1, size // 2), act1=relu(),
        mix1=PointwiseConv2d(first, second), act2=relu(), mix2=PointwiseConv2d(second, third), act3=relu(),
    )  # fmt: skip

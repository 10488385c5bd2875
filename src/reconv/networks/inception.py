"""Kernels of several sizes side by side: GoogLeNet and Inception-v3."""

from __future__ import annotations

from torch import nn

from reconv.layers import Conv2d
from reconv.networks.catalogue import network
from reconv.networks.parts import Concat, conv_norm, head, named, relu, sequence

# outputs of 1×1; 1×1 before 3×3, 3×3; 1×1 before 5×5, 5×5; 1×1 behind the pooling
GOOGLENET: dict[str, int | tuple[int, int, int, int, int, int]] = {
    "inception3a": (64, 96, 128, 16, 32, 32), "inception3b": (128, 128, 192, 32, 96, 64), "pool3": 3,
    "inception4a": (192, 96, 208, 16, 48, 64), "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64), "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128), "pool4": 3,
    "inception5a": (256, 160, 320, 32, 128, 128), "inception5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


@network(
    paper="Szegedy et al. 2014, arXiv:1409.4842", input_shape=(1, 3, 224, 224), params=6_998_552, macs=1_582_671_872,
    published="6.8 M parameters, 1.5 G (sums of the paper's table 1)", kinds="standard pointwise multi_size",
)  # fmt: skip
def googlenet(channels: int = 3, classes: int = 1000, torchvision: bool = False) -> nn.Module:
    """GoogLeNet (Inception-v1): nine modules of 1×1, 3×3 and 5×5 convolutions and a pooling side by side.

    Without the two heads that only its training needs.

    Args:    channels: of the input, (N, channels, *spatial), 224×224 in the paper.
             torchvision: as torchvision has it: batch norms, 3×3 in place of 5×5, and 2×2 in the last pooling.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Szegedy et al. 2014, table 1
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     googlenet()(torch.zeros(2, 3, 65, 97)).shape
             torch.Size([2, 1000])
    """

    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
        layer = Conv2d(inputs, outputs, size, stride, size // 2, bias=not torchvision)
        return conv_norm(layer, eps=1e-3) if torchvision else named(conv=layer, act=relu())

    def responses() -> nn.Module:
        return nn.Identity() if torchvision else nn.LocalResponseNorm(5)

    def pool(size: int = 3) -> nn.Module:
        return nn.MaxPool2d(size, 2, ceil_mode=True)

    def inception(inputs: int, one: int, to3: int, three: int, to5: int, five: int, pooled: int) -> nn.Module:
        return Concat({
            "1x1": conv(inputs, one, 1),
            "3x3": nn.Sequential(conv(inputs, to3, 1), conv(to3, three, 3)),
            "5x5": nn.Sequential(conv(inputs, to5, 1), conv(to5, five, 3 if torchvision else 5)),
            "pool": nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, pooled, 1)),
        })  # fmt: skip

    parts: dict[str, nn.Module] = {
        "conv1": conv(channels, 64, 7, 2), "pool1": pool(), "norm1": responses(),
        "conv2": conv(64, 64, 1), "conv3": conv(64, 192, 3), "norm2": responses(), "pool2": pool(),
    }  # fmt: skip
    width = 192
    for name, outputs in GOOGLENET.items():
        if isinstance(outputs, int):
            parts[name] = pool(2 if torchvision and name == "pool4" else outputs)
            continue
        parts[name] = inception(width, *outputs)
        one, _, three, _, five, pooled = outputs
        width = one + three + five + pooled
    return sequence({**parts, "head": head(width, classes, dropout=0.4)})


@network(
    paper="Szegedy et al. 2015, arXiv:1512.00567", input_shape=(1, 3, 299, 299), params=23_834_568,
    macs=5_713_216_096,
    published="less than 25 M parameters (paper); 5.713 GMACs (torchvision); 23.83 M parameters (timm)",
    kinds="standard pointwise asymmetric multi_size",
)  # fmt: skip
def inception_v3(channels: int = 3, classes: int = 1000) -> nn.Module:
    """Inception-v3: modules whose 7×7 and 3×3 kernels are a row and a column, a nonlinearity between them.

    Without the head that only its training needs.

    Args:    channels: of the input, (N, channels, *spatial), 299×299 in the paper, at least 75×75.
    Returns: a network that gives (N, classes).
    Raises:  ConvError: when an argument is no integer >= 1.
    Source:  Szegedy et al. 2015, table 1 and figures 5 to 7
    Example:
             >>> import torch
             >>> with torch.device("meta"):
             ...     inception_v3()(torch.zeros(2, 3, 75, 97)).shape
             torch.Size([2, 1000])
    """
    return named(
        conv1a=_conv(channels, 32, 3, 2, 0), conv2a=_conv(32, 32, 3, 1, 0), conv2b=_conv(32, 64, 3),
        pool1=nn.MaxPool2d(3, 2), conv3b=_conv(64, 80, 1), conv4a=_conv(80, 192, 3, 1, 0), pool2=nn.MaxPool2d(3, 2),
        mixed5b=_squares(192, 32), mixed5c=_squares(256, 64), mixed5d=_squares(288, 64),
        mixed6a=_to_17(288), mixed6b=_sevens(128), mixed6c=_sevens(160), mixed6d=_sevens(160), mixed6e=_sevens(192),
        mixed7a=_to_8(768), mixed7b=_wide(1280), mixed7c=_wide(2048), head=head(2048, classes, dropout=0.5),
    )  # fmt: skip


def _conv(inputs: int, outputs: int, size: int | tuple[int, int], stride: int = 1, padding: int | None = None,
          ) -> nn.Sequential:  # fmt: skip
    sizes = (size, size) if isinstance(size, int) else size
    pads = tuple(k // 2 if padding is None else padding for k in sizes)
    return conv_norm(Conv2d(inputs, outputs, sizes, stride, pads, bias=False), eps=1e-3)


def _chain(*parts: nn.Module) -> nn.Module:
    """Counted from 1, as the names of the branches are in other packages."""
    return sequence({str(i): part for i, part in enumerate(parts, 1)})


def _pooled(inputs: int, outputs: int) -> nn.Module:
    return named(pool=nn.AvgPool2d(3, 1, 1), conv=_conv(inputs, outputs, 1))


def _squares(inputs: int, pooled: int) -> nn.Module:
    """35×35 maps: a 5×5, and two 3×3 in place of one."""
    return Concat({
        "1x1": _conv(inputs, 64, 1), "5x5": _chain(_conv(inputs, 48, 1), _conv(48, 64, 5)),
        "3x3dbl": _chain(_conv(inputs, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3)), "pool": _pooled(inputs, pooled),
    })  # fmt: skip


def _to_17(inputs: int) -> nn.Module:
    return Concat({
        "3x3": _conv(inputs, 384, 3, 2, 0),
        "3x3dbl": _chain(_conv(inputs, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3, 2, 0)), "pool": nn.MaxPool2d(3, 2),
    })  # fmt: skip


def _sevens(inner: int) -> nn.Module:
    """17×17 maps: rows of seven and columns of seven."""
    row, column = (1, 7), (7, 1)
    return Concat({
        "1x1": _conv(768, 192, 1),
        "7x7": _chain(_conv(768, inner, 1), _conv(inner, inner, row), _conv(inner, 192, column)),
        "7x7dbl": _chain(_conv(768, inner, 1), _conv(inner, inner, column), _conv(inner, inner, row),
                         _conv(inner, inner, column), _conv(inner, 192, row)),
        "pool": _pooled(768, 192),
    })  # fmt: skip


def _to_8(inputs: int) -> nn.Module:
    return Concat({
        "3x3": _chain(_conv(inputs, 192, 1), _conv(192, 320, 3, 2, 0)),
        "7x7x3": _chain(_conv(inputs, 192, 1), _conv(192, 192, (1, 7)), _conv(192, 192, (7, 1)),
                        _conv(192, 192, 3, 2, 0)),
        "pool": nn.MaxPool2d(3, 2),
    })  # fmt: skip


def _wide(inputs: int) -> nn.Module:
    """8×8 maps: a row of three and a column of three side by side."""

    def cross(width: int) -> nn.Module:
        return Concat({"a": _conv(width, 384, (1, 3)), "b": _conv(width, 384, (3, 1))})

    return Concat({
        "1x1": _conv(inputs, 320, 1), "3x3": _chain(_conv(inputs, 384, 1), cross(384)),
        "3x3dbl": _chain(_conv(inputs, 448, 1), _conv(448, 384, 3), cross(384)), "pool": _pooled(inputs, 192),
    })  # fmt: skip

"""The table of layers: each kind in 1, 2 and 3 dimensions, and the block that its arguments mean.

In a block's text `{3}` stands for 3, 3x3 or 3x3x3. A new class of reconv.nn needs a row here: `test_kinds.py` fails
without one.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from cases import fill, whole_numbers
from torch import Tensor, nn

from reconv import layers
from reconv.spec import Block, parse

SIZES = (7, 5, 6)


class Row(NamedTuple):
    kind: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    text: str | tuple[str, str, str]
    channels: int = 4


ROWS = {
    "conv": Row("Conv", (4, 6, 3), {"padding": 1, "groups": 2}, "ic4oc6k{3}p1g2"),
    "transposed": Row("ConvTranspose", (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1},
                      "ic4oc3k{3}s2p1top1"),
    "depthwise": Row("DepthwiseConv", (4, 3), {"padding": 1}, "ic4oc4k{3}p1g4"),
    "depthwise, all arguments": Row("DepthwiseConv", (4, 2, 2, ((0, 1),), 2, False, "reflect"),
                                    {"depth_multiplier": 3}, "ic4oc12k{2}s2p0:1d2g4nbmreflect"),
    "pointwise": Row("PointwiseConv", (4, 6), {}, "ic4oc6k{1}"),
    "pointwise, all arguments": Row("PointwiseConv", (4, 6, 2, 2, False), {}, "ic4oc6k{1}s2g2nb"),
    "separable": Row("SeparableConv", (4, 6, 3), {"padding": "same"}, "ic4oc4k{3}p1g4nb -> ic4oc6k{1}"),
    "separable, all between": Row(
        "SeparableConv", (4, 6, 3, 2, 1, 1, False), {"depth_multiplier": 2, "norm": "batch", "activation": "relu"},
        "ic4oc8k{3}s2p1g4nb -> bn -> relu -> ic8oc6k{1}nb"),
    "separable, activated": Row("SeparableConv", (4, 6, 3, 1, 2, 2), {"activation": nn.ReLU6},
                                "ic4oc4k{3}p2d2g4 -> relu6 -> ic4oc6k{1}"),
    "asymmetric": Row("AsymmetricConv", (4, 6, 3), {"padding": 1, "stride": 2, "mid_channels": 5}, (
        "ic4oc5k3s2p1nb -> ic5oc6k1",
        "ic4oc5k3x1s2x1p1x0nb -> ic5oc6k1x3s1x2p0x1",
        "ic4oc5k3x1x1s2x1x1p1x0x0nb -> ic5oc5k1x3x1s1x2x1p0x1x0nb -> ic5oc6k1x1x3s1x1x2p0x0x1")),
    "asymmetric, circular": Row("AsymmetricConv", (4, 3, 2), {"padding": "same", "padding_mode": "circular"}, (
        "ic4oc3k2p0:1nbmcircular -> ic3oc3k1mcircular",
        "ic4oc3k2x1p0:1x0nbmcircular -> ic3oc3k1x2p0x0:1mcircular",
        "ic4oc3k2x1x1p0:1x0x0nbmcircular -> ic3oc3k1x2x1p0x0:1x0nbmcircular -> ic3oc3k1x1x2p0x0x0:1mcircular")),
    "shuffled groups": Row("ShuffledGroupConv", (4, 6, 3), {"padding": 1, "groups": 2},
                           "ic4oc6k{3}p1g2 -> shuffle(2)"),
    "stacked": Row("StackedConv", (4, 6, 5), {"padding": 2, "stride": 2},
                   "ic4oc6k{3}p2nb -> ic6oc6k{3}s2"),
    "stacked as in VGG": Row("StackedConv", (4, 3, 7), {"padding": "same", "activation": "relu", "mid_channels": 2},
                             "ic4oc2k{3}p1 -> relu -> ic2oc2k{3}p1 -> relu -> ic2oc3k{3}p1"),
    "stacked, even": Row("StackedConv", (4, 3, 4), {"padding": 1, "bias": False}, "ic4oc3k{3}p1nb -> ic3oc3k{2}nb"),
    "multi-size": Row("MultiSizeConv", (4, 8), {},
                      "(ic4oc3k{1} | ic4oc3k{3}p1 | ic4oc2k{5}p2)"),
    "multi-size, reduced and dilated": Row(
        "MultiSizeConv", (4, (1, 2, 3), (1, 3, 3), 2), {"dilation": (1, 1, 2), "reduction": 2, "bias": False},
        "(ic4oc1k{1}s2nb | ic4oc2k{1}nb -> ic2oc2k{3}s2p1nb | ic4oc2k{1}nb -> ic2oc3k{3}s2p2d2nb)"),
    "multi-size, summed": Row("MultiSizeConv", (4, 5, (2, 3)), {"join": "sum", "reduction": (None, 2), "padding": 1}, (
        "(ic4oc5k2p1:2 + ic4oc2k1nb -> ic2oc5k3p2nb)",
        "(ic4oc5k2x2p1:2 + ic4oc2k1x1nb -> ic2oc5k3x3p2nb)",
        "(ic4oc5k2x2x2p1:2 + ic4oc2k1x1x1nb -> ic2oc5k3x3x3p2nb)")),
    "squeeze and excite": Row("SqueezeExcite", (4, 2), {}, "se(2)"),
    "deformable": Row("DeformConv", (4, 6, 3), {"padding": 1, "modulated": False}, "deform(ic4oc6k{3}p1, og1)"),
    "deformable, modulated": Row("DeformConv", (4, 6, 2), {"groups": 2, "offset_groups": 2, "bias": False},
                                 "deform(ic4oc6k{2}g2nb, og2, mask)"),
}  # fmt: skip

ROUNDED = ("se(", "bn", "mask")  # the values of these are rounded; all others are exact on whole numbers


class Kind(NamedTuple):
    """A row in so many dimensions."""

    row: Row
    dims: int

    @property
    def name(self) -> str:
        return f"{self.row.kind}{self.dims}d"

    @property
    def block(self) -> Block:
        text = self.row.text
        text = text if isinstance(text, str) else text[self.dims - 1]
        return parse(re.sub(r"\{(\d)\}", lambda found: "x".join([found[1]] * self.dims), text))

    @property
    def exact(self) -> bool:
        return not any(word in str(self.block) for word in ROUNDED)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2, self.row.channels, *SIZES[: self.dims])

    def input(self, seed: int = 99) -> Tensor:
        return whole_numbers(self.input_shape, seed)

    def make(self, **more: Any) -> nn.Module:
        return getattr(layers, self.name)(*self.row.arguments, **self.row.keywords, **more)

    def filled(self) -> nn.Module:
        """In float64, with whole numbers for weights, in evaluation mode."""
        return fill(self.make(dtype=torch.float64)).eval()


KINDS = {f"{name}, {dims}d": Kind(row, dims) for name, row in ROWS.items() for dims in (1, 2, 3)}

# For slow tests: the first row of each kind, and the fullest ones; test_layers.py and test_deform.py have the others.
ELSEWHERE = ("Conv", "ConvTranspose", "DeformConv")
FIRST = {row.kind: name for name, row in reversed(ROWS.items()) if row.kind not in ELSEWHERE}
MAIN = {*FIRST.values(), "separable, all between", "stacked as in VGG", "multi-size, reduced and dilated"}
MAIN_KINDS = {name: kind for name, kind in KINDS.items() if name[:-4] in MAIN}

"""The kinds that the page offers: which controls each has, and the layer that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, int]


@dataclass(frozen=True)
class Control:
    """A number that can be moved. most: by number of dimensions where a tuple."""

    name: str
    label: str
    least: int
    most: int | tuple[int, int, int]
    usual: int

    def limit(self, dims: int) -> int:
        return self.most if isinstance(self.most, int) else self.most[dims - 1]


CONTROLS = {
    control.name: control
    for control in (
        Control("ic", "input channels", 1, 512, 4),
        Control("oc", "output channels", 1, 512, 6),
        Control("k", "kernel size", 1, (63, 31, 9), 3),
        Control("s", "stride", 1, 8, 1),
        Control("p", "padding", 0, 31, 1),
        Control("d", "dilation", 1, 16, 1),
        Control("g", "groups", 1, 512, 2),
        Control("m", "depth multiplier", 1, 8, 1),
        Control("op", "output padding", 0, 7, 0),
        Control("small", "small kernel", 2, 7, 3),
        Control("r", "reduction", 1, 64, 2),
        Control("og", "offset groups", 1, 16, 1),
        Control("n", "input size", 1, (512, 224, 32), 7),
    )
}


@dataclass(frozen=True)
class Layer:
    """A layer of reconv.nn by its name, without the number of dimensions, and what it is called with.

    Args:    joined: "sum" or "concat" where the layer's output is joined with its input.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    joined: str = ""


@dataclass(frozen=True)
class Kind:
    """title and line say what it is; `usual` are values that show it well."""

    name: str
    title: str
    line: str
    controls: tuple[str, ...]
    layer: Callable[[Values], Layer]
    usual: Mapping[str, int] = field(default_factory=dict)


WINDOW = ("k", "s", "p", "d")


def _window(v: Values, **more: int) -> dict[str, Any]:
    return {"stride": v["s"], "padding": v["p"], "dilation": v["d"], **more}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("standard", "Standard", "Every output channel looks at a window of every input channel.",
             ("ic", "oc", *WINDOW), lambda v: Layer("Conv", (v["ic"], v["oc"], v["k"]), _window(v))),
        Kind("pointwise", "Pointwise (1×1)", "Mixes channels at each position by itself; looks at no neighbour.",
             ("ic", "oc", "s"), lambda v: Layer("PointwiseConv", (v["ic"], v["oc"]), {"stride": v["s"]})),
        Kind("grouped", "Grouped", "Channels are split into groups that do not see each other.",
             ("ic", "oc", *WINDOW, "g"),
             lambda v: Layer("Conv", (v["ic"], v["oc"], v["k"]), _window(v, groups=v["g"])), {"ic": 4, "oc": 4}),
        Kind("depthwise", "Depthwise", "One kernel for each channel; channels are not mixed at all.",
             ("ic", *WINDOW, "m"),
             lambda v: Layer("DepthwiseConv", (v["ic"], v["k"]), _window(v, depth_multiplier=v["m"]))),
        Kind("separable", "Separable", "A depthwise convolution, then a pointwise one.", ("ic", "oc", *WINDOW, "m"),
             lambda v: Layer("SeparableConv", (v["ic"], v["oc"], v["k"]), _window(v, depth_multiplier=v["m"]))),
        Kind("dilated", "Dilated", "Gaps between the taps: a wide view with few weights.", ("ic", "oc", *WINDOW),
             lambda v: Layer("Conv", (v["ic"], v["oc"], v["k"]), _window(v)),
             {"ic": 2, "oc": 2, "d": 2, "p": 2, "n": 9}),
        Kind("asymmetric", "Asymmetric", "A long thin kernel along each axis, one after the other.",
             ("ic", "oc", *WINDOW), lambda v: Layer("AsymmetricConv", (v["ic"], v["oc"], v["k"]), _window(v)),
             {"ic": 3, "oc": 4}),
        Kind("transposed", "Transposed", "Zeros between the input's cells make the output larger.",
             ("ic", "oc", *WINDOW, "op"),
             lambda v: Layer("ConvTranspose", (v["ic"], v["oc"], v["k"]), _window(v, output_padding=v["op"])),
             {"ic": 2, "oc": 3, "s": 2, "n": 4}),
        Kind("deformable", "Deformable", "Each tap looks where the data tells it to.", ("ic", "oc", *WINDOW, "og"),
             lambda v: Layer("DeformConv", (v["ic"], v["oc"], v["k"]), _window(v, offset_groups=v["og"])), {"ic": 3}),
        Kind("shuffled", "Shuffled groups", "Groups whose channels are shuffled, so that they meet in the next layer.",
             ("ic", "oc", *WINDOW, "g"),
             lambda v: Layer("ShuffledGroupConv", (v["ic"], v["oc"], v["k"]), _window(v, groups=v["g"])),
             {"ic": 6, "oc": 6, "g": 3, "n": 6}),
        Kind("stacked", "Stacked small kernels", "Several small kernels see as much as a large one, for fewer weights.",
             ("ic", "oc", "k", "s", "p", "small"),
             lambda v: Layer("StackedConv", (v["ic"], v["oc"], v["k"]),
                             {"stride": v["s"], "padding": v["p"], "small": v["small"], "activation": "relu"}),
             {"ic": 2, "oc": 2, "k": 5, "p": 2, "n": 8}),
        Kind("multi_size", "Multi-size", "Kernels of several sizes side by side, their outputs joined.",
             ("ic", "oc", "s"),
             lambda v: Layer("MultiSizeConv", (v["ic"], v["oc"], (1, 3, 5)), {"stride": v["s"]}), {"ic": 3}),
        Kind("squeeze_excite", "Channel weights", "Each channel is multiplied by a weight that the whole map decides.",
             ("ic", "r"), lambda v: Layer("SqueezeExcite", (v["ic"], v["r"]))),
        Kind("skip", "With a skip", "The input is added to what the convolution makes of it.", ("ic", "k", "d"),
             lambda v: Layer("Conv", (v["ic"], v["ic"], v["k"]), {"padding": "same", "dilation": v["d"]}, "sum")),
        Kind("dense", "Dense", "The input is kept beside what the convolution makes of it.", ("ic", "oc", "k", "d"),
             lambda v: Layer("Conv", (v["ic"], v["oc"], v["k"]), {"padding": "same", "dilation": v["d"]}, "concat"),
             {"ic": 3, "oc": 2}),
    )
}  # fmt: skip

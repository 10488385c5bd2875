"""The table of convolutions and blocks that every fold, operator and layer is tested on.

A new kind of block, padding mode or number of dimensions needs a row here: `test_spec.py` fails without one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    parse,
)
from reconv.spec.block import ACTIVATIONS
from reconv.spec.conv import PADDING_MODES


class Case(NamedTuple):
    block: Block
    input_shape: tuple[int, ...]


def _table(rows: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Case]:
    return {name: Case(parse(text), shape) for name, (text, shape) in rows.items()}


CONVS = _table({
    # every number of dimensions
    "1d": ("ic3oc5k3", (2, 3, 11)),
    "2d": ("ic3oc5k3x3p1", (2, 3, 9, 7)),
    "3d": ("ic2oc3k3x3x3p1", (2, 2, 5, 6, 7)),
    "pointwise": ("ic7oc5k1x1", (2, 7, 5, 3)),
    "pointwise strided": ("ic3oc4k1x1s2", (2, 3, 7, 6)),
    "one channel": ("ic1oc1k5x5p2", (1, 1, 9, 9)),
    "without bias": ("ic3oc5k3x3nb", (2, 3, 6, 5)),
    # sizes
    "kernel per axis": ("ic3oc4k1x5p0x2", (2, 3, 4, 9)),
    "even kernel, same": ("ic3oc4k4x2p1:2x0:1", (2, 3, 9, 8)),
    "as large as the map": ("ic3oc4k5x3", (2, 3, 5, 3)),
    "one-wide map": ("ic3oc4k3x3p1", (2, 3, 1, 1)),
    "one-wide axis": ("ic3oc4k1x3p0x1", (2, 3, 9, 1)),
    # strides and dilation
    "stride": ("ic3oc4k3x3s2p1", (2, 3, 9, 8)),
    "stride per axis": ("ic3oc4k3x3s2x3p1x0", (2, 3, 9, 11)),
    "stride above kernel": ("ic3oc4k2x2s5", (2, 3, 13, 12)),
    "stride above kernel 1d": ("ic3oc4k1s4", (2, 3, 13)),
    "dilation": ("ic3oc4k3x3p2d2", (2, 3, 9, 8)),
    "dilation per axis": ("ic3oc4k3x2p3x0d3x4", (2, 3, 9, 11)),
    "stride and dilation 3d": ("ic2oc3k2x3x2s2x1x3p1x1x0d2x1x3", (1, 2, 5, 4, 9)),
    # groups
    "groups": ("ic6oc4k3x3p1g2", (2, 6, 7, 5)),
    "groups 1d": ("ic6oc9k3p1g3", (2, 6, 7)),
    "groups 3d": ("ic4oc6k2x2x2g2", (2, 4, 4, 3, 5)),
    "depthwise": ("ic5oc5k3x3p1g5", (2, 5, 7, 8)),
    "depthwise multiplied": ("ic3oc9k3x3s2p1g3", (2, 3, 7, 8)),
    "depthwise 3d": ("ic3oc3k3x3x3p1g3nb", (1, 3, 4, 5, 3)),
    # padding, even and uneven, in every mode
    "uneven": ("ic3oc4k3x3s2p0:1x2:0", (2, 3, 8, 7)),
    "uneven 1d": ("ic3oc4k4p1:2", (2, 3, 9)),
    "uneven 3d": ("ic2oc3k2x3x2p0:1x1x1:0", (1, 2, 4, 5, 3)),
    "reflect": ("ic3oc4k3x3p1mreflect", (2, 3, 6, 5)),
    "reflect uneven 1d": ("ic3oc4k4p3:1mreflect", (2, 3, 6)),
    "reflect uneven 3d": ("ic2oc3k2x3x2p0:1x1x1:0mreflect", (1, 2, 4, 5, 3)),
    "replicate": ("ic3oc4k5x3s2p2x1mreplicate", (2, 3, 6, 5)),
    "replicate uneven": ("ic4oc4k3x3p3:0x0:2d2g2mreplicate", (2, 4, 6, 5)),
    "circular 1d": ("ic3oc4k3p1mcircular", (2, 3, 6)),
    "circular uneven": ("ic3oc4k3x4p2:1x0:3mcircular", (2, 3, 6, 5)),
    "circular 3d": ("ic2oc3k3x3x3p1mcircular", (1, 2, 4, 3, 3)),
    # transposed
    "transposed 1d": ("ic3oc4k3s2t", (2, 3, 6)),
    "transposed": ("ic3oc4k3x3s2p1top1", (2, 3, 5, 4)),
    "transposed 3d": ("ic2oc3k3x2x3s2x1x3p1x0x1top1x0x2", (1, 2, 3, 4, 2)),
    "transposed, output padding per axis": ("ic3oc4k3x3s3x2p1top2x0nb", (2, 3, 3, 4)),
    "transposed groups": ("ic6oc4k3x3s2p1g2t", (2, 6, 4, 3)),
    "transposed depthwise multiplied": ("ic3oc6k2x2s2g3t", (2, 3, 4, 3)),
    "transposed dilated": ("ic3oc4k3x3p2d2x3t", (2, 3, 5, 6)),
    "transposed, output padding by dilation": ("ic3oc4k3x3d3top2x1", (2, 3, 4, 3)),
    "transposed, stride above kernel": ("ic3oc4k2x2s5t", (2, 3, 3, 2)),
    "transposed uneven": ("ic3oc4k3x3s2p0:1x2:0top1", (2, 3, 5, 4)),
    "transposed uneven 1d": ("ic3oc4k4s3p2:0t", (2, 3, 5)),
    "transposed uneven 3d": ("ic2oc4k2x3x3s1x2x2p1:0x0:2x1:2g2t", (1, 2, 4, 3, 3)),
})  # fmt: skip

BLOCKS = _table({
    "chain": ("ic4oc4k3x3p1g4nb -> ic4oc6k1x1", (2, 4, 7, 6)),
    "chain 1d": ("ic3oc2k3p1 -> ic2oc2k4s2 -> ic2oc5k1", (2, 3, 13)),
    "chain 3d, up and down": ("ic2oc3k3x3x3s2p1nb -> ic3oc2k2x2x2s2t", (1, 2, 6, 4, 5)),
    "concatenated": ("(ic3oc2k1x1 | ic3oc4k3x3p1 | ic3oc1k5x5p2)", (2, 3, 7, 6)),
    "summed": ("(ic4oc6k3x1p1x0nb -> ic6oc5k1x3p0x1 + ic4oc5k1x1nb)", (2, 4, 5, 6)),
    "summed thrice": ("(ic3oc4k2 + ic3oc4k2nb + ic3oc4k2)", (2, 3, 7)),
    "nested": ("ic3oc4k1x1 -> (ic4oc2k1x1 | (ic4oc3k3x3p1 + ic4oc3k1x1)) -> ic5oc2k2x2", (2, 3, 5, 6)),
    "shuffle": ("shuffle(3)", (2, 6, 4, 3)),
    "shuffled groups": ("ic6oc6k1x1g3 -> shuffle(3) -> ic6oc6k3x3p1g6", (2, 6, 5, 4)),
    "permute": ("permute(7)", (2, 7, 5)),
    "permuted groups": ("permute(6) -> ic6oc4k3x3p1g2nb -> permute(4)", (2, 6, 5, 4)),
    "pixel shuffle": ("ic3oc12k3x3p1 -> pixel_shuffle(2x2)", (2, 3, 6, 5)),
    "pixel shuffle alone, 1d": ("pixel_shuffle(3)", (2, 6, 4)),
    "pixel shuffle, cropped": ("pixel_shuffle(2x3, crop0x1:2)", (2, 12, 3, 4)),
    "pixel shuffle, 3d": ("ic2oc6k1x1x1nb -> pixel_shuffle(1x2x3, crop0x1:0x2) -> relu", (2, 2, 3, 2, 4)),
    "gate": ("ic3oc8k3x3p1 -> se(4)", (2, 3, 6, 5)),
    "gate alone": ("se(16)", (2, 5, 4)),
    "gated branches, 3d": ("(se(2) -> ic4oc3k1x1x1 | shuffle(2) -> se(1))", (2, 4, 3, 2, 4)),
    "activation": ("relu", (2, 5, 4)),
    "chain with activation": ("ic4oc6k3x3p1 -> relu", (2, 4, 7, 6)),
    "activations in a chain, 1d": ("relu -> ic3oc4k3p0:1 -> relu -> ic4oc2k1nb -> relu", (2, 3, 9)),
    "relu6 and hardswish": ("ic3oc4k3x3p1 -> relu6 -> ic4oc4k3x3 -> hardswish", (2, 3, 7, 6)),
    "leaky, elu, gelu, 1d": ("ic3oc4k3p1 -> leaky_relu -> ic4oc3k2nb -> elu -> ic3oc2k1 -> gelu", (2, 3, 9)),
    "silu, sigmoid, tanh, 3d": ("(ic3oc2k1x1x1 -> silu | sigmoid | tanh -> hardsigmoid)", (2, 3, 3, 2, 4)),
    "batch norm, 1d": ("ic3oc4k3 -> bn -> relu", (2, 3, 9)),
    "batch norm": ("ic4oc4k3x3p1g4nb -> bn -> relu6 -> ic4oc6k1x1", (2, 4, 5, 6)),
    "batch norm first, 3d": ("bn -> (ic3oc4k1x1x1nb -> bn + ic3oc4k3x3x3p1)", (2, 3, 3, 2, 4)),
    "residual": ("(ic4oc4k3x3p1 -> bn -> relu -> ic4oc4k3x3p1 + identity) -> relu", (2, 4, 5, 6)),
    "activated branches, 3d": ("(ic3oc3k1x1x1 -> relu + relu) -> permute(3)", (2, 3, 3, 2, 4)),
    # deformable
    "deform": ("deform(ic4oc6k3x3p1, og1)", (2, 4, 7, 6)),
    "deform modulated": ("deform(ic4oc6k3x2s2p1, og2, mask)", (2, 4, 7, 6)),
    "deform in a chain, 1d": ("ic3oc4k1 -> deform(ic4oc4k3p2d2g4, og4, mask)", (2, 3, 9)),
    "deform 1d": ("deform(ic6oc4k4s2p2:1g2nb, og3)", (2, 6, 11)),
    "deform 3d": ("deform(ic4oc3k2x3x1s1x2x1p1x1x0, og2)", (1, 4, 3, 5, 4)),
    "deform modulated 3d": ("deform(ic2oc2k1x2x3p0x0:1x2d1x1x2g2, og1, mask)", (2, 2, 2, 3, 4)),
    "deform reflect": ("deform(ic2oc3k3x3p0:1x2:1mreflect, og1)", (2, 2, 5, 4)),
    "deform circular, in a chain": ("deform(ic3oc4k3p1mcircular, og1, mask) -> relu", (2, 3, 7)),
})  # fmt: skip

BUILT = CONVS | BLOCKS


def whole_numbers(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Small whole numbers in float64, on which every order of additions gives the same."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).double()


def fill(layer: nn.Module) -> nn.Module:
    """Gives the layer whole numbers for weights, and permutations that move channels."""
    for i, (name, tensor) in enumerate(layer.state_dict().items()):
        generator = torch.Generator().manual_seed(i)
        if name.endswith("index"):
            tensor.copy_(torch.randperm(tensor.numel(), generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(whole_numbers(tuple(tensor.shape), seed=i).abs() + 1)
        else:
            tensor.copy_(whole_numbers(tuple(tensor.shape), seed=i))
    return layer


# -- random ones ----------------------------------------------------------------------------------
@st.composite
def conv_specs(draw: st.DrawFn, dims: int | None = None, in_channels: int | None = None) -> ConvSpec:
    """Any convolution of small sizes."""
    dims = dims or draw(st.integers(1, 3))
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if (in_channels or g) % g == 0]))
    transposed = draw(st.booleans())

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * dims))

    stride, dilation = each(1, 3), each(1, 3)
    most = max(0, min(map(max, stride, dilation)) - 1) if transposed else 0
    return ConvSpec(
        in_channels=in_channels or groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel_size=each(1, 4), stride=stride, dilation=dilation, groups=groups, bias=draw(st.booleans()),
        padding=tuple(zip(each(0, 2), each(0, 2), strict=True)), transposed=transposed, output_padding=each(0, most),
        padding_mode="zeros" if transposed else draw(st.sampled_from(PADDING_MODES)),
    )  # fmt: skip


@st.composite
def pixel_shuffles(draw: st.DrawFn) -> PixelShuffle:
    factors = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ends = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return PixelShuffle(tuple(factors), tuple(draw(st.tuples(*[ends] * len(factors)))))


def blocks() -> st.SearchStrategy[Block]:
    """Any expression, whether or not its parts fit each other."""
    number = st.integers(1, 70)
    plain = conv_specs().filter(lambda spec: not spec.transposed)
    leaves = (
        conv_specs()
        | st.builds(Shuffle, number)
        | st.builds(Permute, number)
        | pixel_shuffles()
        | st.builds(Gate, number)
        | st.builds(Activation, st.sampled_from(ACTIVATIONS))
        | st.builds(BatchNorm)
        | st.builds(lambda conv, modulated: Deform(conv, conv.in_channels, modulated), plain, st.booleans())
    )

    def grown(part: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
        several = st.lists(part, min_size=2, max_size=4)
        return several.map(lambda parts: Chain(*parts)) | st.builds(
            lambda parts, join: Branches(*parts, join=join), several, st.sampled_from(["concat", "sum"])
        )

    return st.recursive(leaves, grown, max_leaves=12)

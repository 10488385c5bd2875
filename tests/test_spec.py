"""ConvSpec and Block: their text, their folds against what torch really does, and their errors."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from cases import BLOCKS, BUILT, CONVS, Case, blocks, conv_specs
from hypothesis import assume, given
from hypothesis import strategies as st
from messages import told
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reconv.errors import ConvError
from reconv.layers import build
from reconv.layers.between import CLASSES
from reconv.ops import reference
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
    activation_bytes,
    convs,
    in_channels,
    macs,
    out_channels,
    output_shape,
    params,
    parse,
    receptive_field,
    weight_bytes,
)
from reconv.spec.block import ACTIVATIONS
from reconv.spec.conv import PADDING_MODES

DEFORMABLE = {name: case for name, case in BLOCKS.items() if "deform" in str(case.block)}
each_case = pytest.mark.parametrize("case", BUILT.values(), ids=BUILT.keys())


def spec_of(**changes: object) -> ConvSpec:
    return ConvSpec(**{"in_channels": 6, "out_channels": 8, "kernel_size": (3, 3)} | changes)


# -- the table ------------------------------------------------------------------------------------
def parts(block: Block) -> list[Block]:
    inner = block.blocks if isinstance(block, (Chain, Branches)) else ()
    return [block, *(deeper for part in inner for deeper in parts(part))]


def test_every_kind_has_a_row():
    kinds = {type(part) for case in BUILT.values() for part in parts(case.block)}
    assert kinds == set(get_args(Block))
    assert {part.join for case in BLOCKS.values() for part in parts(case.block) if isinstance(part, Branches)} == {
        "concat", "sum"}  # fmt: skip


def test_every_activation_has_a_row():
    leaves = [part for case in BUILT.values() for part in parts(case.block) if isinstance(part, Activation)]
    assert {part.name for part in leaves} == set(ACTIVATIONS) == set(CLASSES) == set(reference.ACTIVATIONS)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_kind_of_convolution_has_a_row_of_each_number_of_dimensions(dims):
    specs = [case.block for case in CONVS.values() if case.block.spatial_dims == dims]
    assert any(spec.transposed and spec.even_padding is None for spec in specs)
    assert any(not spec.transposed and spec.even_padding is None for spec in specs)
    assert any(spec.groups > 1 for spec in specs)
    assert any(max(spec.stride) > 1 for spec in specs)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("uneven", [False, True])
def test_every_padding_mode_has_a_row(mode, uneven):
    assert any(
        spec.padding_mode == mode and (spec.even_padding is None) == uneven and any(map(any, spec.padding))
        for spec in (case.block for case in CONVS.values())
    )


# -- text -----------------------------------------------------------------------------------------
@given(conv_specs())
def test_text_of_a_convolution_reads_back(spec):
    assert ConvSpec.parse(str(spec)) == spec


@given(blocks())
def test_text_of_a_block_reads_back(block):
    assert parse(str(block)) == block


@given(blocks())
def test_spaces_do_not_matter(block):
    assert parse(str(block).replace(" ", "")) == parse("  " + str(block).replace(" ", "  ") + "\n") == block


@given(st.text("ick3oc8x1:p sdg(|+),->tnbmreflshuopa²٣", max_size=40))
def test_other_text_is_refused_or_read_faithfully(text):
    try:
        block = parse(text)
    except ConvError:
        return
    assert parse(str(block)) == block


TEXTS = {
    "ic3oc8k3x3": spec_of(in_channels=3),
    "ic6oc8k3": spec_of(kernel_size=(3,)),
    "ic6oc8k3x5x3": spec_of(kernel_size=(3, 5, 3)),
    "ic6oc8k3x3s2p1d2g2": spec_of(stride=2, padding=1, dilation=2, groups=2),
    "ic6oc8k3x3s2x1p0:1x2:2": spec_of(stride=(2, 1), padding=((0, 1), (2, 2))),
    "ic6oc8k3x3s2top1x0nb": spec_of(stride=2, transposed=True, output_padding=(1, 0), bias=False),
    "ic6oc8k3x3p1mcircular": spec_of(padding=1, padding_mode="circular"),
    "ic6oc8k3x3 -> shuffle(4) -> se(16)": Chain(spec_of(), Shuffle(4), Gate(16)),
    "bn -> leaky_relu -> (ic6oc8k3x3 | bn)": Chain(
        BatchNorm(), Activation("leaky_relu"), Branches(spec_of(), BatchNorm())),
    "ic6oc8k3x3 -> relu -> shuffle(4)": Chain(spec_of(), Activation("relu"), Shuffle(4)),
    "(ic6oc8k3x3 | permute(6))": Branches(spec_of(), Permute(6)),
    "((ic6oc8k3x3 + ic6oc8k3x3nb) | ic6oc8k3x3)": Branches(
        Branches(spec_of(), spec_of(bias=False), join="sum"), spec_of()),
    "pixel_shuffle(2)": PixelShuffle((2,)),
    "ic6oc8k3x3 -> pixel_shuffle(2x4, crop1:0x0)": Chain(spec_of(), PixelShuffle((2, 4), ((1, 0), (0, 0)))),
    "pixel_shuffle(2x2, crop1)": PixelShuffle((2, 2), ((1, 1), (1, 1))),
    "deform(ic6oc8k3x3, og2, mask)": Deform(spec_of(), 2, True),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_reads_text(text):
    assert parse(text) == TEXTS[text]


BAD_TEXTS = {
    "": "a block is expected",
    "ic3": "a convolution is written like",
    "ic3oc8": "a convolution is written like",
    "ic3oc8k3x3x3x3": "a convolution is written like",
    "ic3oc8k3x3q1": "a convolution is written like",
    "ic3oc8k٣": "the text must end after the block|a convolution is written like",
    "ic3oc8k3x3op1": "a convolution is written like",
    "ic3oc8k3x3 ->": "a block is expected",
    "ic3oc8k3x3 ic8oc8k1x1": "must end after the block",
    "(ic3oc8k3x3)": "with one mark",
    "(ic3oc8k1x1 | ic3oc8k3x3 + ic3oc8k3x3)": "with one mark",
    "(ic3oc8k1x1 | ic3oc8k3x3": "'\\)' is expected",
    "shuffle(0)": "a number >= 1",
    "relu(1)": "must end after the block",
    "bn(2)": "must end after the block",
    "relux": "a convolution is written like",
    "pixel_shuffle()": "a factor per axis",
    "pixel_shuffle(2x2x2x2)": "a factor per axis",
    "ic3oc8k3x3 relu": "must end after the block",
    "shuffle(-1)": "a block is expected|a number >= 1",
    "se(1234567890)": "at most nine digits",
    "ic" + "9" * 5000 + "oc8k3": "a convolution is written like",
    "deform(ic3oc8k3x3, og2)": "in_channels must be divisible by offset_groups",
    "deform(ic3oc8k3x3, fast)": "deform takes",
    "deform(ic3oc8k3x3t, og1)": "must not be transposed",
    "ic6oc8k3x3g4": "in_channels must be divisible by groups",
    "ic6oc8k0x3": "kernel_size must be an integer >= 1",
    "ic6oc8k3x3s1x1x1": "stride must be an integer >= 1, or 2 of them",
    "(" * 60 + "ic3oc8k3": "nest at most",
    "ic3oc8k3 " * 20_000: "at most 100000 characters",
}


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: text[:30])
def test_refuses_text(text):
    with pytest.raises(ConvError, match=BAD_TEXTS[text]) as caught:
        parse(text)
    told(caught.value)


def test_one_convolution_is_asked_for():
    with pytest.raises(ConvError, match="must describe one convolution"):
        ConvSpec.parse("shuffle(4)")


# -- validation -----------------------------------------------------------------------------------
BAD_SPECS = [
    ({"in_channels": 6, "groups": 4}, ValueError, r"in_channels must be divisible by groups; got in_channels=6, "
     r"groups=4\. Use groups 1 or 2\. \[ic6oc8k3x3g4\]"),
    ({"out_channels": 7, "groups": 2}, ValueError, r"out_channels must be divisible by groups; .*Use groups 1\."),
    ({"in_channels": 0}, ValueError, "in_channels must be an integer >= 1"),
    ({"out_channels": -8}, ValueError, "out_channels must be an integer >= 1"),
    ({"out_channels": True}, ValueError, "out_channels must be an integer >= 1"),
    ({"groups": 0}, ValueError, "groups must be an integer >= 1"),
    ({"kernel_size": 3}, TypeError, "kernel_size must be a tuple of 1, 2 or 3 integers"),
    ({"kernel_size": ()}, TypeError, "kernel_size must be a tuple"),
    ({"kernel_size": (3, 3, 3, 3)}, TypeError, "kernel_size must be a tuple"),
    ({"kernel_size": (3, 0)}, RuntimeError, "kernel_size must be an integer >= 1"),
    ({"kernel_size": (3, 2.5)}, RuntimeError, "kernel_size must be an integer >= 1"),
    ({"stride": 0}, RuntimeError, r"stride must be an integer >= 1, or 2 of them; got stride=0"),
    ({"stride": (1, 2, 3)}, RuntimeError, "or 2 of them"),
    ({"stride": "12"}, RuntimeError, "stride must be an integer >= 1"),
    ({"stride": None}, RuntimeError, "stride must be an integer >= 1"),
    ({"dilation": -1}, RuntimeError, "dilation must be an integer >= 1"),
    ({"padding": -1}, RuntimeError, "padding must be an integer >= 0"),
    ({"padding": 1.5}, RuntimeError, "padding must be an integer >= 0"),
    ({"padding": ((1, 2, 3), (1, 1))}, RuntimeError, "padding must be an integer >= 0"),
    ({"padding": ((0, 1), (0, -1))}, RuntimeError, "padding must be an integer >= 0"),
    ({"padding": "full"}, ValueError, "'same' or 'valid'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1"),
    ({"padding": "valid", "transposed": True}, ValueError, "a transposed one: a number"),
    ({"padding_mode": "wrap"}, ValueError, "padding_mode must be one of zeros, reflect, replicate, circular"),
    ({"padding_mode": "reflect", "transposed": True}, ValueError, "pads with zeros only"),
    ({"output_padding": 1}, ValueError, "output_padding belongs to transposed"),
    ({"output_padding": 1, "transposed": True}, RuntimeError, "smaller than stride or dilation"),
    ({"output_padding": -1, "transposed": True}, RuntimeError, "output_padding must be an integer >= 0"),
]  # fmt: skip


@pytest.mark.parametrize("changes, builtin, message", BAD_SPECS, ids=lambda value: str(value)[:40])
def test_refuses_what_is_no_convolution(changes, builtin, message):
    with pytest.raises(ConvError, match=message) as caught:
        spec_of(**changes)
    assert isinstance(caught.value, builtin)
    told(caught.value)


BAD_BLOCKS = [
    (lambda: Chain(spec_of()), ValueError, "at least two blocks"),
    (lambda: Branches(spec_of()), ValueError, "at least two blocks"),
    (lambda: Branches(spec_of(), spec_of(), join="mean"), ValueError, "joined by 'concat' or 'sum'"),
    (lambda: Chain(spec_of(), "ic8oc8k1x1"), TypeError, "each part must be a block"),
    (lambda: Branches(spec_of(), nn.Conv2d(6, 8, 3)), TypeError, "each part must be a block"),
    (lambda: PixelShuffle((0,)), ValueError, "factors must be 1, 2 or 3 integers >= 1"),
    (lambda: PixelShuffle((2, 2), ((1, 0),)), ValueError, "crop must be a pair of integers >= 0 for each factor"),
    (lambda: Shuffle(0), ValueError, "groups must be an integer >= 1"),
    (lambda: Permute(0), ValueError, "channels must be an integer >= 1"),
    (lambda: Gate(-1), ValueError, "reduction must be an integer >= 1"),
    (lambda: Activation("swish"), ValueError, "name must be one of relu, .*; got name='swish'"),
    (lambda: Activation(None), ValueError, "name must be one of relu"),
    (lambda: Deform(spec_of(transposed=True)), ValueError, "must not be transposed"),
    (lambda: Deform(spec_of(), 4), ValueError, "in_channels must be divisible by offset_groups"),
    (lambda: ConvSpec.of(nn.Linear(3, 3)), TypeError, "the module must be a convolution"),
]


@pytest.mark.parametrize("make, builtin, message", BAD_BLOCKS)
def test_refuses_what_is_no_block(make, builtin, message):
    with pytest.raises(ConvError, match=message) as caught:
        make()
    assert isinstance(caught.value, builtin)
    told(caught.value)


BAD_SHAPES = [
    ("ic6oc8k3x3", (1, 6, 9), "2 spatial axes"),
    ("ic6oc8k3x3", (1, 5, 9, 9), "the input's channels must be in_channels"),
    ("ic6oc8k3x3", (1, 6, 9, 2), "at least as large as the dilated kernel"),
    ("ic6oc8k3x3p2t", (1, 6, 2, 2), "the padding must leave some of the output"),
    ("ic6oc8k3x3 -> ic6oc8k3x3", (1, 6, 9, 9), "the input's channels must be in_channels"),
    ("(ic6oc8k3x3 | ic6oc8k1x1)", (1, 6, 9, 9), "branches must give shapes that can be joined"),
    ("(ic6oc8k1x1 + ic6oc4k1x1)", (1, 6, 9, 9), "branches must give shapes that can be joined"),
    ("shuffle(4)", (1, 6, 9, 9), "the channels must fit the block"),
    ("permute(4)", (1, 6, 9, 9), "the channels must fit the block"),
    ("pixel_shuffle(2x2)", (1, 6, 9, 9), "a multiple of 4, 2 spatial axes"),
    ("pixel_shuffle(2x2)", (1, 8, 9), "a multiple of 4, 2 spatial axes"),
    ("pixel_shuffle(2x2, crop1:1x0)", (1, 8, 1, 3), "the crop must leave some of the output"),
]


@pytest.mark.parametrize("text, shape, message", BAD_SHAPES)
def test_refuses_inputs(text, shape, message):
    with pytest.raises(ConvError, match=message) as caught:
        output_shape(parse(text), shape)
    assert isinstance(caught.value, RuntimeError)
    told(caught.value)


def test_what_is_of_unknown_size_has_no_count():
    with pytest.raises(ConvError, match="a gate must know its channels"):
        params(Gate(4))
    with pytest.raises(ConvError, match="a batch norm must know its channels"):
        params(BatchNorm())
    assert params(Gate(4), 8) == params(Chain(Shuffle(2), Gate(4)), 8) == 8 * 2 + 2 + 2 * 8 + 8


def test_numbers_of_numpy_are_numbers():
    spec = spec_of(in_channels=np.int64(6), kernel_size=[np.int32(3), 3], stride=np.int64(2))
    assert spec == spec_of(stride=2)
    assert str(spec) == "ic6oc8k3x3s2"


# -- folds, against torch -------------------------------------------------------------------------
@each_case
def test_shape_parameters_and_macs_are_those_of_the_layer(case: Case):
    layer = build(case.block, channels=case.input_shape[1])
    with FlopCounterMode(display=False) as counter:
        output = layer(torch.zeros(case.input_shape))
    assert output_shape(case.block, case.input_shape) == tuple(output.shape)
    assert out_channels(case.block, case.input_shape[1]) == output.shape[1]
    assert in_channels(case.block) in (case.input_shape[1], None)
    assert params(case.block, case.input_shape[1]) == sum(p.numel() for p in layer.parameters())
    assert weight_bytes(case.block, case.input_shape[1]) == sum(p.nbytes for p in layer.parameters())
    assert macs(case.block, case.input_shape) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("case", DEFORMABLE.values(), ids=DEFORMABLE.keys())
def test_deformable_ones_count_their_offsets(case: Case):
    deform = next(part for part in parts(case.block) if isinstance(part, Deform))
    taps = int(np.prod(deform.conv.kernel_size))
    wanted = deform.offset_groups * taps * (deform.conv.spatial_dims + deform.modulated)
    assert deform.offset_conv.out_channels == wanted
    assert params(deform) == params(deform.conv) + params(deform.offset_conv)
    assert out_channels(deform, deform.conv.in_channels) == deform.conv.out_channels
    assert list(convs(deform)) == [deform.offset_conv, deform.conv]


def test_activation_bytes_count_every_tensor_that_is_written():
    shape = (2, 3, 8, 8)
    one, branches = parse("ic3oc4k3x3p1"), parse("(ic3oc4k1x1 | ic3oc2k1x1)")
    assert activation_bytes(one, shape) == 2 * 4 * 64 * 4
    assert activation_bytes(one, shape, itemsize=2) == 2 * 4 * 64 * 2
    assert activation_bytes(Chain(one, parse("ic4oc2k1x1")), shape) == 2 * (4 + 2) * 64 * 4
    assert activation_bytes(branches, shape) == 2 * (4 + 2 + 6) * 64 * 4
    deform = Deform(one, 1)
    assert activation_bytes(deform, shape) == 2 * (18 + 4) * 64 * 4


def seen(block: Block, length: int) -> int:
    """The widest extent of the input that one output really answers to, by an impulse at each position."""
    layer = build(block)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(not name.endswith("bias"))
        impulses = torch.eye(length)[:, None].expand(-1, in_channels(block), -1)
        answers = layer(impulses).sum(1)
    inputs = [column.nonzero().flatten() for column in answers.T]
    return max([1, *(int(i.max() - i.min()) + 1 for i in inputs if len(i))])


@given(st.data())
def test_receptive_field_is_what_the_outputs_depend_on(data):
    first = data.draw(conv_specs(dims=1))
    second = data.draw(conv_specs(dims=1, in_channels=first.out_channels))
    block: Block = Chain(first.replace(padding_mode="zeros"), second.replace(padding_mode="zeros"))
    if data.draw(st.booleans()):
        block = Chain(block, Branches(Permute(second.out_channels), Shuffle(1)))
    try:
        output_shape(block, (1, first.in_channels, 48))
    except ConvError:
        assume(False)
    assert receptive_field(block) == (seen(block, 48),)


RECEPTIVE = [
    ("ic3oc8k3x5", (3, 5)),
    ("ic3oc8k3x3d2x3", (5, 7)),
    ("ic3oc8k3s2 -> ic8oc8k3", (7,)),
    ("(ic3oc8k1x1 | ic3oc8k5x3p2x1)", (5, 3)),
    ("(ic3oc8k3p1:3d2 | ic3oc8k3p3:1d2)", (7,)),
    ("ic3oc8k4s2t", (2,)),
    ("ic3oc8k1s2t", (1,)),
    ("shuffle(3)", (1, 1)),
    ("ic3oc3k3x3 -> se(1)", (3, 3)),
    ("deform(ic3oc8k3x3, og1)", (3, 3)),
]


@pytest.mark.parametrize("text, wanted", RECEPTIVE)
def test_receptive_field(text, wanted):
    assert receptive_field(parse(text)) == wanted


# -- the laws that the field teaches --------------------------------------------------------------
@pytest.mark.parametrize(
    "text, weights",
    [
        ("ic64oc64k3x3nb", 36_864),
        ("ic64oc64k3x3g8nb", 4_608),
        ("ic16oc32k3x3nb", 4_608),
        ("ic16oc16k3x3g16nb -> ic16oc32k1x1nb", 144 + 512),
        ("ic16oc16k3x3g16nb", 144),
    ],
)
def test_published_counts(text, weights):
    assert params(parse(text)) == weights


@pytest.mark.parametrize("text, kind", [
    ("ic3oc8k3x3", "standard"), ("ic3oc8k1x1", "pointwise"), ("ic8oc8k3x3g8", "depthwise"),
    ("ic8oc8k3x3g2", "grouped"), ("ic8oc8k1x5", "asymmetric"), ("ic8oc8k3x3d2", "dilated"),
    ("ic8oc8k3x3g8d2", "dilated depthwise"), ("ic8oc8k2x2s2t", "transposed"),
])  # fmt: skip
def test_kind(text, kind):
    order = text.replace("g8d2", "d2g8")
    assert ConvSpec.parse(order).kind == kind


@each_case
def test_spec_is_a_value(case: Case):
    again = parse(str(case.block))
    assert again == case.block
    assert hash(again) == hash(case.block)
    assert len({again, case.block}) == 1

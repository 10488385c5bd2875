"""Deformable layers: as their papers start them, trained, counted; the mistakes of layers and functions."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from cases import Case, whole_numbers
from deform_cases import each_layer, small_offsets
from torch import nn

import reconv
from reconv import functional, layers
from reconv.errors import ConvError
from reconv.layers import DeformConv1d, DeformConv2d, DeformConv3d, block_of, build
from reconv.ops import reference
from reconv.spec import macs, parse
from reconv.surgery import find_sites

NAMES = ["deform_conv1d", "deform_conv2d", "deform_conv3d"]


def plain_twin(layer: nn.Module) -> nn.Module:
    """The plain convolution with the weights of a deformable one."""
    twin = build(layer.block.conv, dtype=torch.float64)
    twin.load_state_dict({key: value for key, value in layer.state_dict().items() if "offset_conv" not in key})
    return twin


# -- values ---------------------------------------------------------------------------------------
@each_layer
def test_starts_as_the_plain_convolution(case: Case):
    """…or its half where modulated: there are no offsets yet, and each mask is sigmoid(0)."""
    layer, x = build(case.block, dtype=torch.float64), whole_numbers(case.input_shape)
    with torch.no_grad():
        layer.weight.copy_(whole_numbers(layer.weight.shape, 1))
        twin = plain_twin(layer)
        if case.block.modulated:
            twin.weight.mul_(0.5)
        assert torch.allclose(layer(x), twin(x), rtol=0, atol=1e-12)


@each_layer
def test_offsets_that_stay_near_equal_the_reference(case: Case):
    layer, x = small_offsets(build(case.block, dtype=torch.float64)), whole_numbers(case.input_shape)
    offset, mask = layer.offset_and_mask(x)
    assert bool((offset % 1).any())  # between positions
    assert (mask is None) != case.block.modulated
    output = layer(x).detach().numpy()
    wanted = reference.run(case.block, layer.state_dict(), x)
    np.testing.assert_allclose(output, wanted, rtol=1e-12, atol=1e-12)
    assert not np.allclose(output, plain_twin(layer)(x).detach())


@each_layer
def test_a_step_of_training_equals_the_reference(case: Case):
    """The loss falls, everything moves (offsets and masks, too), and the new weights mean the same to the reference."""
    torch.manual_seed(0)
    layer, x = build(case.block, dtype=torch.float64), whole_numbers(case.input_shape)
    before = copy.deepcopy(layer.state_dict())
    step = torch.optim.SGD(layer.parameters(), lr=1e-5)

    def loss() -> torch.Tensor:
        return (layer(x) - 1).square().sum()

    first = loss()
    first.backward()
    step.step()
    assert loss() < first
    assert all(not torch.equal(before[key], value) for key, value in layer.state_dict().items())
    wanted = reference.run(case.block, layer.state_dict(), x)
    np.testing.assert_allclose(layer(x).detach(), wanted, rtol=1e-12, atol=1e-12)


def test_sees_what_the_offsets_say():
    """The layer learns to look one to the right: what a plain 1x1 convolution cannot."""
    layer = DeformConv1d(1, 1, 1, modulated=False, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.offset_conv.bias.fill_(1)
    assert layer(torch.tensor([[[1.0, 2, 3]]])).tolist() == [[[2, 3, 0]]]
    assert layer(torch.tensor([[1.0, 2, 3]])).tolist() == [[2, 3, 0]]  # without batch


# -- block, state, constructor --------------------------------------------------------------------
def test_state_and_text():
    layer = DeformConv2d(4, 6, (3, 1), 2, ((0, 1), (2, 0)), groups=2, padding_mode="circular", offset_groups=2)
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {"weight": (6, 2, 3, 1), "bias": (6,), "offset_conv.weight": (18, 4, 3, 1),
                      "offset_conv.bias": (18,)}  # fmt: skip
    assert str(layer.block) == "deform(ic4oc6k3x1s2p0:1x2:0g2mcircular, og2, mask)"
    assert repr(build(layer.block)) == repr(layer)
    assert layer.extra_repr() == ("4, 6, kernel_size=(3, 1), stride=(2, 2), padding=((0, 1), (2, 0)), groups=2, "
                                  "padding_mode=circular, offset_groups=2, modulated=True")  # fmt: skip


@pytest.mark.parametrize("kind", [DeformConv1d, DeformConv2d, DeformConv3d])
def test_constructor_begins_as_torchs(kind):
    ours = list(inspect.signature(kind).parameters.values())
    theirs = list(inspect.signature(getattr(nn, kind.__name__.removeprefix("Deform"))).parameters.values())
    assert [(p.name, p.default) for p in ours] == [
        *[(p.name, p.default) for p in theirs], ("offset_groups", 1), ("modulated", True)]  # fmt: skip


class Doubled(DeformConv2d):
    def forward(self, input):
        return 2 * super().forward(input)


def with_other_offsets() -> nn.Module:
    layer = DeformConv2d(4, 6, 3)
    layer.offset_conv = nn.Sequential(nn.Conv2d(4, 27, 3), nn.Tanh())
    return layer


def with_another_window() -> nn.Module:
    layer = DeformConv2d(4, 6, 3, padding=1)
    layer.offset_conv = layers.Conv2d(4, 27, 1)
    return layer


@pytest.mark.parametrize("make, message", [
    (lambda: Doubled(4, 6, 3), "must be a convolution of torch.nn or a layer of reconv.nn"),
    (with_other_offsets, "the offsets of a deformable layer must come from its own convolution; got offset_conv=Seq"),
    (with_another_window, "must come from its own convolution"),
])  # fmt: skip
def test_block_of_refuses_what_is_more_than_its_block(make, message):
    layer = make()
    with pytest.raises(ConvError, match=message) as caught:
        block_of(layer)
    assert isinstance(caught.value, TypeError)
    assert layer(torch.zeros(1, 4, 5, 5)).shape[1] == 6  # but it runs


# -- what it costs --------------------------------------------------------------------------------
class Network(nn.Module):
    """A deformable layer, used twice, between others; then the functional one, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.deform = DeformConv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.kernel = nn.Parameter(torch.ones(5, 4, 3, 1))

    def forward(self, x):
        x = self.norm(self.deform(self.deform(self.stem(x).relu())))
        offset = torch.zeros(len(x), 6, *[n // 2 for n in x.shape[2:]])
        first = functional.deform_conv2d(x, offset, self.kernel, stride=2, padding=(1, 0))
        return first + functional.deform_conv2d(x, offset, self.kernel, stride=2, padding=(1, 0))


def test_summary_shows_deformable_convolutions():
    summary = reconv.summary(Network(), torch.zeros(2, 3, 8, 6))
    layer, offsets = parse("deform(ic4oc4k3x3p1g2mreflect, og1, mask)"), ["deform.offset_conv", "deform"]
    assert [row.name for row in summary.rows] == ["stem", *offsets * 2, "deform_conv2d", "deform_conv2d#2"]
    rows = summary.rows
    assert [row.kind for row in rows] == ["standard", *["standard", "deformable"] * 2, "deformable", "deformable"]
    assert [row.spec for row in rows[1:5]] == [layer.offset_conv, layer.conv] * 2
    assert str(rows[5].spec) == "ic4oc5k3x1s2p1x0nb"
    assert rows[1].macs + rows[2].macs == macs(layer, (2, 4, 8, 6))
    assert rows[2].input_shape == rows[2].output_shape == (2, 4, 8, 6)
    assert rows[5].output_shape == (2, 5, 4, 3)
    assert rows[5].macs == 2 * 5 * 4 * 3 * 4 * 3
    assert summary.total.macs == summary.network.macs
    assert {row.receptive_field for row in rows[2:]} - {(5, 5), (7, 7)} == {None}  # the data decide what is seen


def test_a_subclass_is_no_more_than_its_call():
    rows = reconv.summary(Doubled(4, 6, 3), torch.zeros(1, 4, 5, 5)).rows
    assert [row.name for row in rows] == ["offset_conv", "deform_conv2d"]


def test_sites_are_the_ordinary_convolutions():
    found = find_sites(Network(), torch.zeros(2, 3, 8, 6))
    assert [site.name for site in found.sites] == ["stem", "deform.offset_conv"]
    assert dict(found.refusals) == dict.fromkeys(
        ["deform", "deform_conv2d", "deform_conv2d#2"], "deformable convolution: no rule rewrites it")  # fmt: skip


def test_nobody_is_told_of_calls_outside_of_a_trace():
    layer, x = DeformConv1d(2, 3, 3), torch.zeros(1, 2, 9)
    assert len(reconv.summary(layer, x).rows) == 2
    layer(x)
    assert len(reconv.summary(layer, x).rows) == 2


# -- signatures and errors ------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_signature_is_torchvisions(name):
    function = getattr(functional, name)
    assert [(p.name, p.default) for p in inspect.signature(function).parameters.values()] == [
        ("input", inspect.Parameter.empty), ("offset", inspect.Parameter.empty), ("weight", inspect.Parameter.empty),
        ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1), ("mask", None)]  # fmt: skip
    assert function.__name__ == name
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function
    assert getattr(reconv.functional, name) is function


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


GOOD = {"input": t(2, 6, 5, 4), "offset": t(2, 36, 3, 2), "weight": t(8, 3, 3, 3), "bias": t(8), "mask": t(2, 18, 3, 2)}
MISTAKES = {  # what is given instead, what the message says, the type in torchvision
    "input without batch": ({"input": t(6, 5, 4)},
                            r"input must be \(N, C_in, and 2 spatial axes\); got input=\(6, 5, 4\)", ValueError),
    "input of 5 axes": ({"input": t(2, 6, 5, 4, 1)}, "input must be .*2 spatial axes", ValueError),
    "weight of 3 axes": ({"weight": t(8, 3, 3)}, "weight must be .*C_in / groups", RuntimeError),
    "offset of 3 axes": ({"offset": t(2, 36, 6)}, "offset must be .* and 2 spatial axes", RuntimeError),
    "mask of 3 axes": ({"mask": t(2, 18, 6)}, "mask must be .* and 2 spatial axes", RuntimeError),
    "offset of no group": ({"offset": t(2, 17, 3, 2)},
                           r"here \(2, 18 · offset_groups, 3, 2\); got offset=\(2, 17, 3, 2\)", RuntimeError),
    "offset between groups": ({"offset": t(2, 37, 3, 2)}, "offset must be", RuntimeError),
    "offset of another kernel": ({"offset": t(2, 8, 3, 2)}, "offset must be", RuntimeError),
    "offset of another map": ({"offset": t(2, 36, 5, 4)}, r"offset must be .* 3, 2\)", RuntimeError),
    "offset of another batch": ({"offset": t(1, 36, 3, 2)}, r"offset must be .*here \(2, ", RuntimeError),
    "channels by offset groups": ({"offset": t(2, 72, 3, 2), "mask": t(2, 36, 3, 2)},
                                  "divisible by the offset groups; got in_channels=6, offset_groups=4", RuntimeError),
    "mask of another group": ({"mask": t(2, 9, 3, 2)}, r"mask must be .*here \(2, 18, 3, 2\); got mask=\(2, 9, 3, 2\)",
                              RuntimeError),
    "mask of another map": ({"mask": t(2, 18, 3, 3)}, "mask must be", RuntimeError),
    "mask of another batch": ({"mask": t(1, 18, 3, 2)}, "mask must be", RuntimeError),
    "bias of other length": ({"bias": t(6)}, r"bias must be \(C_out,\), here \(8,\); got bias=\(6,\)", RuntimeError),
    "bias of 2 axes": ({"bias": t(8, 1)}, "bias must be", RuntimeError),
    "other channels": ({"weight": t(8, 4, 3, 3)}, "channels must be a multiple of the weight's second axis; "
                       r"got input=\(2, 6, 5, 4\), weight=\(8, 4, 3, 3\)", RuntimeError),
    "more channels": ({"weight": t(8, 12, 3, 3)}, "must be a multiple", RuntimeError),
    "no channels": ({"weight": t(8, 0, 3, 3)}, "must be a multiple", RuntimeError),
    "outputs by groups": ({"weight": t(7, 3, 3, 3)}, r"deform_conv2d: out_channels must be divisible by groups; "
                          r"got out_channels=7, groups=2", RuntimeError),
    "stride 0": ({"stride": 0}, "deform_conv2d: stride must be an integer >= 1", RuntimeError),
    "stride below 0": ({"stride": (1, -1)}, "stride must be an integer >= 1", RuntimeError),
    "stride 1.5": ({"stride": 1.5}, "stride must be an integer >= 1", RuntimeError),
    "three strides": ({"stride": (1, 1, 1)}, "or 2 of them", RuntimeError),
    "dilation 0": ({"dilation": 0}, "dilation must be an integer >= 1", RuntimeError),
    "padding below 0": ({"padding": -1}, "padding must be an integer >= 0", RuntimeError),
    "uneven padding below 0": ({"padding": ((0, -1), (0, 0))}, "padding must be", RuntimeError),
    "padding of other name": ({"padding": "full"}, "'same' or 'valid'", RuntimeError),
    "same with stride": ({"padding": "same", "stride": 2}, "padding='same' needs stride 1", RuntimeError),
    "kernel above input": ({"input": t(2, 6, 5, 2)}, "deform_conv2d: the padded input must be at least as large",
                           RuntimeError),
    "dilated above input": ({"dilation": 3}, "as large as the dilated kernel", RuntimeError),
    "unlike dtypes": ({"offset": t(2, 36, 3, 2).double()}, "same dtype; .*offset=torch.float64", RuntimeError),
    "unlike mask": ({"mask": t(2, 18, 3, 2, dtype=torch.float16)}, "same dtype", RuntimeError),
    "whole numbers": ({key: value.long() for key, value in GOOD.items()}, "real floating point", RuntimeError),
    "complex numbers": ({key: value.cfloat() for key, value in GOOD.items()}, "real floating point", RuntimeError),
    "another device": ({"weight": t(8, 3, 3, 3).to("meta")}, "same device; .*weight=meta", RuntimeError),
    "no tensor": ({"weight": [[1.0]]}, "weight must be a tensor; got weight=list", TypeError),
    "no input": ({"input": None}, "input must be a tensor; got input=NoneType", TypeError),
    "no offset": ({"offset": None}, "offset must be a tensor", TypeError),
}  # fmt: skip


def test_what_is_good_is_taken():
    assert functional.deform_conv2d(**GOOD).shape == (2, 8, 3, 2)


@pytest.mark.parametrize("changes, message, kind", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_told_in_torchvisions_type(changes, message, kind):
    with pytest.raises(ConvError, match=message) as caught:
        functional.deform_conv2d(**GOOD | changes)
    assert isinstance(caught.value, kind)
    assert str(caught.value).startswith("deform_conv2d: ")


@pytest.mark.parametrize("name, dims", [("deform_conv1d", 1), ("deform_conv3d", 3)])
def test_other_dimensions_tell_their_own_name(name, dims):
    with pytest.raises(ConvError, match=f"{name}: input must be .* {dims} spatial axes"):
        getattr(functional, name)(**GOOD)


BAD_LAYERS = [
    ((6, 8, 3), {"groups": 4}, "in_channels must be divisible by groups"),
    ((6, 8, 3), {"offset_groups": 4}, "in_channels must be divisible by offset_groups"),
    ((6, 8, 3), {"offset_groups": 0}, "offset_groups must be an integer >= 1"),
    ((6, 8, 3), {"padding_mode": "wrap"}, "padding_mode must be one of"),
    ((6, 8, (3, 3, 3)), {}, "DeformConv2d: kernel_size must be an integer, or 2 of them"),
    ((6, 8, 0), {}, "kernel_size must be an integer >= 1"),
]


@pytest.mark.parametrize("arguments, keywords, message", BAD_LAYERS)
def test_layers_refuse(arguments, keywords, message):
    with pytest.raises(ConvError, match=message) as caught:
        DeformConv2d(*arguments, **keywords)
    assert isinstance(caught.value, (ValueError, RuntimeError))

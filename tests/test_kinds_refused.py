"""Mistakes in the arguments of layers: each is told, in torch's type."""

from __future__ import annotations

import pytest
import torch
from messages import told
from torch import nn
from torch.nn import functional as F

from reconv import layers
from reconv.errors import ConvError

MISTAKES = {
    "depthwise, no channels": ("DepthwiseConv2d", (0, 3), {}, "in_channels must be an integer >= 1; got in_channels=0"),
    "depthwise, no outputs": ("DepthwiseConv2d", (4, 3), {"depth_multiplier": 0}, "depth_multiplier must be an int"),
    "depthwise, half a multiplier": ("DepthwiseConv1d", (4, 3), {"depth_multiplier": 0.5}, "got depth_multiplier=0.5"),
    "depthwise, kernel of 3 axes": ("DepthwiseConv2d", (4, (3, 3, 3)), {}, "kernel_size must be an integer, or 2 of"),
    "depthwise, negative padding": ("DepthwiseConv2d", (4, 3), {"padding": -1}, "padding must be an integer >= 0"),
    "depthwise, same with stride": ("DepthwiseConv2d", (4, 3, 2, "same"), {}, "padding='same' needs stride 1"),
    "pointwise, groups": ("PointwiseConv3d", (4, 6), {"groups": 3}, "in_channels must be divisible by groups"),
    "pointwise, stride 0": ("PointwiseConv1d", (4, 6, 0), {}, "stride must be an integer >= 1"),
    "separable, no outputs": ("SeparableConv2d", (4, 0, 3), {}, "out_channels must be an integer >= 1"),
    "separable, text for channels": ("SeparableConv2d", ("4", 6, 3), {}, "in_channels must be an integer >= 1"),
    "separable, kernel of 1 axis": ("SeparableConv2d", (4, 6, (3,)), {}, "SeparableConv2d: kernel_size must be an"),
    "separable, kernel below 1": ("SeparableConv2d", (4, 6, -3), {}, "kernel_size must be an integer >= 1"),
    "separable, dilation 0": ("SeparableConv2d", (4, 6, 3), {"dilation": 0}, "dilation must be an integer >= 1"),
    "separable, padding mode": ("SeparableConv2d", (4, 6, 3), {"padding_mode": "wrap"}, "padding_mode must be one of"),
    "separable, activation": ("SeparableConv2d", (4, 6, 3), {"activation": "swish"},
                              "SeparableConv2d: activation must be one of relu, .*; got activation='swish'"),
    "separable, activation made already": ("SeparableConv2d", (4, 6, 3), {"activation": nn.ReLU()},
                                           "Give the class, not a module of it"),
    "separable, activation function": ("SeparableConv2d", (4, 6, 3), {"activation": F.relu}, "Calling it gave: relu"),
    "separable, activation of nothing": ("SeparableConv2d", (4, 6, 3), {"activation": dict}, "got activation=dict"),
    "separable, norm": ("SeparableConv2d", (4, 6, 3), {"norm": "layer"}, "norm must be None, 'batch'.*for 2D maps"),
    "separable, norm of 1D": ("SeparableConv2d", (4, 6, 3), {"norm": nn.BatchNorm1d}, "got norm=BatchNorm1d"),
    "separable, norm made already": ("SeparableConv2d", (4, 6, 3), {"norm": nn.BatchNorm2d(4)}, "Give the class"),
    "separable, norm of two": ("SeparableConv2d", (4, 6, 3), {"norm": nn.GroupNorm}, "Calling it gave: .*missing"),
    "separable, norm is a number": ("SeparableConv2d", (4, 6, 3), {"norm": 3}, "makes a module of the channels"),
    "asymmetric, mid channels": ("AsymmetricConv2d", (4, 6, 3), {"mid_channels": 0}, "mid_channels must be an integer"),
    "asymmetric, stride of 3 axes": ("AsymmetricConv2d", (4, 6, 3, (1, 1, 1)), {}, "or 2 of them"),
    "shuffled, groups": ("ShuffledGroupConv2d", (6, 8, 3), {"groups": 4}, r"in_channels must be divisible by groups; "
                         r"got in_channels=6, groups=4\. Use groups 1 or 2\. \[ic6oc8k3x3g4\]"),
    "shuffled, no groups": ("ShuffledGroupConv2d", (6, 8, 3), {"groups": 0}, "groups must be an integer >= 1"),
    "stacked, small as large": ("StackedConv2d", (4, 6, 3), {}, "kernel_size larger along some axis.*plain conv"),
    "stacked, small of 1": ("StackedConv2d", (4, 6, 5), {"small": 1}, "small must be at least 2"),
    "stacked, small below 0": ("StackedConv2d", (4, 6, 5), {"small": -3}, "small must be an integer >= 1"),
    "stacked, mid channels": ("StackedConv2d", (4, 6, 5), {"mid_channels": -2}, "mid_channels must be an integer >= 1"),
    "stacked, activation": ("StackedConv2d", (4, 6, 5), {"activation": "ReLU"}, "activation must be one of"),
    "multi-size, none": ("MultiSizeConv2d", (4, 6, ()), {}, "kernel_sizes must be a sequence of two sizes or more"),
    "multi-size, one": ("MultiSizeConv2d", (4, 6, (3,)), {}, "kernel_sizes must be a sequence of two sizes or more"),
    "multi-size, a number": ("MultiSizeConv2d", (4, 6, 3), {}, "kernel_sizes must be a sequence.*got kernel_sizes=3"),
    "multi-size, kernel of 3 axes": ("MultiSizeConv2d", (4, 6, (1, (3, 3, 3))), {}, "kernel_size must be an integer"),
    "multi-size, join": ("MultiSizeConv2d", (4, 6), {"join": "mean"}, "join must be 'concat' or 'sum'; got"),
    "multi-size, valid": ("MultiSizeConv2d", (4, 6), {"padding": "valid"}, "the branches' maps are of one size"),
    "multi-size, same with stride": ("MultiSizeConv2d", (4, 6), {"padding": "same", "stride": 2}, "needs stride 1"),
    "multi-size, few outputs": ("MultiSizeConv2d", (4, 2), {}, "out_channels must be at least one per branch"),
    "multi-size, other outputs": ("MultiSizeConv2d", (4, (2, 3)), {}, "or for join='concat' one per branch"),
    "multi-size, outputs of a sum": ("MultiSizeConv2d", (4, (2, 2, 2)), {"join": "sum"}, "must be an integer, or"),
    "multi-size, outputs of 0": ("MultiSizeConv2d", (4, (2, 0, 2)), {}, r"out_channels\[1\] must be an integer >= 1"),
    "multi-size, dilations": ("MultiSizeConv2d", (4, 6), {"dilation": (1, 2)}, "dilation must be one for all branches"),
    "multi-size, reductions": ("MultiSizeConv2d", (4, 6), {"reduction": (1,)}, "reduction must be one for all"),
    "multi-size, reduction 0": ("MultiSizeConv2d", (4, 6), {"reduction": 0}, "reduction must be an integer >= 1"),
    "squeeze, no channels": ("SqueezeExcite2d", (0,), {}, "channels must be an integer >= 1"),
    "squeeze, reduction 0": ("SqueezeExcite2d", (8, 0), {}, "reduction must be an integer >= 1; got reduction=0"),
    "squeeze, reduction 1.5": ("SqueezeExcite1d", (8, 1.5), {}, "reduction must be an integer >= 1"),
}  # fmt: skip


@pytest.mark.parametrize("name, arguments, keywords, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_arguments(name, arguments, keywords, message):
    with pytest.raises(ConvError, match=message) as caught:
        getattr(layers, name)(*arguments, **keywords)
    assert isinstance(caught.value, (ValueError, RuntimeError, TypeError))
    told(caught.value)


def test_groups_must_be_told():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'groups'"):
        layers.ShuffledGroupConv2d(4, 6, 3)


INPUTS = {  # the layer, the shape of an input, what is said of it
    "squeeze, channels": (layers.SqueezeExcite2d(8), (1, 6, 5, 5), r"SqueezeExcite2d: input must be \(N, 8, 2 spatial"),
    "squeeze, axes": (layers.SqueezeExcite2d(8), (1, 8, 5), "2 spatial axes"),
    "squeeze, any axes": (layers.SqueezeExcite(8), (1, 8), r"SqueezeExcite: input must be \(N, 8, \*spatial\)"),
    "permute, fewer channels": (layers.ChannelPermute(2), (1, 3, 5, 5), "ChannelPermute: input must have 2 channels"),
    "permute, more channels": (layers.ChannelPermute(4, 2), (3, 5, 5), "have 4 channels on axis -3"),
    "permute, a number": (layers.ChannelPermute(4), (), "have 4 channels on axis 1"),
    "shuffle, channels": (layers.ChannelShuffle(2), (1, 3, 5, 5), "have 2 times n channels on axis 1"),
    "shuffle, axes": (layers.ChannelShuffle(2, 2), (4, 5), "have 2 times n channels on axis -3"),
    "norm without batch": (layers.SeparableConv1d(4, 6, 3, norm="batch"), (4, 5), "BatchNorm1d: input must be"),
}


@pytest.mark.parametrize("layer, shape, message", INPUTS.values(), ids=INPUTS.keys())
def test_inputs(layer, shape, message):
    with pytest.raises(ConvError, match=message) as caught:
        layer(torch.zeros(shape))
    assert isinstance(caught.value, (ValueError, RuntimeError))
    told(caught.value)


TABLES = {
    "channels": (layers.Conv2d(4, 6, 3), (1, 3, 5, 5), "the input's channels must be in_channels"),
    "axes": (layers.Conv2d(4, 6, 3), (4, 5, 5), "2 spatial axes"),
    "kernel above input": (layers.StackedConv2d(4, 6, 5), (1, 4, 3, 9), "as large as the dilated kernel"),
    "channels of a gate": (layers.SqueezeExcite2d(8), (1, 6, 5, 5), r"input must be \(N, 8, 2 spatial axes\)"),
    "a gate without batch": (layers.SqueezeExcite2d(8), (8, 5, 5), "2 spatial axes"),
}


@pytest.mark.parametrize("layer, shape, message", TABLES.values(), ids=TABLES.keys())
def test_inputs_to_describe(layer, shape, message):
    with pytest.raises(ConvError, match=message) as caught:
        layer.describe(shape)
    assert isinstance(caught.value, RuntimeError)
    told(caught.value)

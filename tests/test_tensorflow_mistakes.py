"""What is wrong with a call or a layer of reconv.tensorflow is told, in the builtin type that TensorFlow raises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reconv import tensorflow as tf
from reconv.errors import ConvError
from reconv.tensorflow import constraints, initializers, layers, regularizers


# -- of the functions -----------------------------------------------------------------------------
def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


A, F2 = t(2, 8, 8, 6), t(3, 3, 6, 4)  # input, filters
CALLS = {  # function, arguments, keywords, what the message says, builtin type
    "padding of other name": ("conv2d", (A, F2, 1, "FULL"), {},
                              "padding must be \"SAME\", \"VALID\" .* got padding='FULL'", ValueError),
    "no padding": ("conv2d", (A, F2, 1), {}, "padding must be", ValueError),
    "padding that explicit ones are called": ("conv2d", (A, F2, 1, "EXPLICIT"), {}, "padding must be", ValueError),
    "padding of batch": ("conv2d", (A, F2, 1, [[1, 0], [0, 0], [0, 0], [0, 0]]), {},
                         r"padding must be \[0, 0\] along the axes of batch and channels", ValueError),
    "padding of channels": ("conv2d", (A, F2, 1, [[0, 0], [1, 1], [1, 1], [0, 0]], "NCHW"), {},
                            r"padding must be \[0, 0\] along", ValueError),
    "padding of 2 axes": ("conv2d", (A, F2, 1, [[0, 0], [0, 0]]), {}, "padding must be 4 pairs", ValueError),
    "padding below 0": ("conv2d", (A, F2, 1, [[0, 0], [0, -1], [0, 0], [0, 0]]), {}, "4 pairs of integers >= 0",
                        ValueError),
    "padding of numbers": ("conv2d", (A, F2, 1, [0, 1, 1, 0]), {}, "padding must be 4 pairs", ValueError),
    "padding one number": ("conv2d", (A, F2, 1, 1), {}, "padding must be \"SAME\"", ValueError),
    "padding 0.5": ("conv2d", (A, F2, 1, [[0, 0], [0.5, 1], [0, 0], [0, 0]]), {}, "padding must be integers",
                    TypeError),
    "stride of batch": ("conv2d", (A, F2, [2, 1, 1, 1], "SAME"), {},
                        r"strides must be 1 along the axes of batch and channels; got strides=\[2, 1, 1, 1\]",
                        ValueError),
    "stride of channels": ("conv2d", (A, F2, [1, 1, 1, 2], "SAME"), {}, "strides must be 1 along", ValueError),
    "stride of channels first": ("conv2d", (A, F2, [1, 2, 1, 1], "SAME", "NCHW"), {}, "strides must be 1 along",
                                 ValueError),
    "three strides": ("conv2d", (A, F2, [1, 1, 1], "SAME"), {}, "strides must be an integer >= 1, 2 or 4 of them",
                      ValueError),
    "stride 0": ("conv2d", (A, F2, 0, "SAME"), {}, "strides must be an integer >= 1", ValueError),
    "stride 1.5": ("conv2d", (A, F2, 1.5, "SAME"), {}, "strides must be integers; got strides=1.5", TypeError),
    "stride of a word": ("conv2d", (A, F2, "2", "SAME"), {}, "strides must be integers", TypeError),
    "dilation 0": ("conv2d", (A, F2, 1, "SAME"), {"dilations": 0}, "dilations must be an integer >= 1", ValueError),
    "dilation of batch": ("conv2d", (A, F2, 1, "SAME"), {"dilations": [2, 1, 1, 1]}, "dilations must be 1 along",
                          ValueError),
    "filter twice": ("conv2d", (A, F2, 1, "SAME"), {"filter": F2},
                     r"conv2d: only one of filters and filter must be given.*\. Use filters\.", ValueError),
    "input twice": ("conv2d", (A, F2, 1, "SAME"), {"value": A}, "only one of input and value", ValueError),
    "rate twice": ("conv2d", (A, F2, 1, "SAME"), {"dilations": 1, "rate": 2}, "only one of dilations and rate",
                   ValueError),
    "strides twice": ("conv1d", (A[0], F2[0], 1, "SAME"), {"stride": 2}, "only one of strides and stride", ValueError),
    "no filters": ("conv2d", (A,), {"padding": "SAME"}, "filters must be given", TypeError),
    "no input": ("conv2d", (), {"filters": F2, "padding": "SAME"}, "input must be given", TypeError),
    "no tensor": ("conv2d", ([[1.0]], F2, 1, "SAME"), {}, "input must be a tensor; got input=list", TypeError),
    "filters no tensor": ("conv2d", (A, 3, 1, "SAME"), {}, "filters must be a tensor; got filters=int", TypeError),
    "data format of 3D": ("conv2d", (A, F2, 1, "SAME", "NDHWC"), {},
                          "data_format must be one of NHWC, NCHW; got data_format='NDHWC'", ValueError),
    "data format in lower case": ("conv3d", (A, F2, 1, "SAME", "ndhwc"), {}, "one of NDHWC, NCDHW", ValueError),
    "data format no word": ("conv1d", (A, F2, 1, "SAME", 3), {}, "one of NWC, NCW", ValueError),
    "input of 3 axes": ("conv2d", (A[0], F2, 1, "SAME"), {},
                        r"input must be \(\*batch, \*spatial, C\) with 2 spatial axes", ValueError),
    "filters of 3 axes": ("conv2d", (A, F2[0], 1, "SAME"), {}, r"filters must be \(\*kernel, channels, channels\)",
                          ValueError),
    "filters of 5 axes": ("conv2d", (A, F2[None], 1, "SAME"), {}, "filters must be", ValueError),
    "channels by filters": ("conv2d", (A, t(3, 3, 4, 4), 1, "SAME"), {}, "a multiple of the filters' input channels",
                            ValueError),
    "fewer channels": ("conv2d", (A, t(3, 3, 12, 4), 1, "SAME"), {}, "in_channels=12", ValueError),
    "outputs by groups": ("conv2d", (A, t(3, 3, 2, 4), 1, "SAME"), {}, "of the groups that this makes", ValueError),
    "filters of no channels": ("conv2d", (A, t(3, 3, 0, 4), 1, "SAME"), {}, "in_channels=0", ValueError),
    "kernel above input": ("conv2d", (A, t(9, 3, 6, 4), 1, "VALID"), {}, "at least as large as the dilated kernel",
                           ValueError),
    "dilated above input": ("conv2d", (A, F2, 1, "VALID"), {"rate": 4}, "as large as the dilated kernel", ValueError),
    "unlike dtypes": ("conv2d", (A, F2.double(), 1, "SAME"), {},
                      "same dtype; got input=torch.float32, filters=torch.float64", TypeError),
    "depthwise, other channels": ("depthwise_conv2d", (A, t(3, 3, 4, 2), 1, "SAME"), {},
                                  "the filter must have as many input channels", ValueError),
    "depthwise, other channels first": ("depthwise_conv2d", (A, t(3, 3, 6, 2), 1, "SAME", "NCHW"), {},
                                        "as many input channels", ValueError),
    "depthwise, rate with strides": ("depthwise_conv2d", (A, t(3, 3, 6, 2), 2, "SAME"), {"dilations": [2, 1]},
                                     "dilations above 1 need strides of 1, as in TensorFlow; .* Use conv2d",
                                     ValueError),
    "depthwise, filters twice": ("depthwise_conv2d", (A, F2, 1, "SAME"), {"filters": F2}, "only one of filter and",
                                 ValueError),
    "separable, rate with strides": ("separable_conv2d", (A, t(3, 3, 6, 2), t(1, 1, 12, 4), 2, "SAME"), {"rate": 2},
                                     "separable_conv2d: dilations above 1 need", ValueError),
    "separable, pointwise of 3×3": ("separable_conv2d", (A, t(3, 3, 6, 2), t(3, 3, 12, 4), 1, "SAME"), {},
                                    r"pointwise_filter must be \(1, 1, 12, C_out\)", ValueError),
    "separable, pointwise channels": ("separable_conv2d", (A, t(3, 3, 6, 2), t(1, 1, 6, 4), 1, "SAME"), {},
                                      r"pointwise_filter must be \(1, 1, 12", ValueError),
    "separable, none pointwise": ("separable_conv2d", (A, t(3, 3, 6, 2)), {"padding": "SAME"},
                                  "pointwise_filter must be given", TypeError),
    "transposed, no output shape": ("conv2d_transpose", (A, t(3, 3, 4, 6)), {}, "output_shape must be given",
                                    TypeError),
    "transposed, too long": ("conv2d_transpose", (A, t(3, 3, 4, 6), (2, 17, 16, 4), 2, "SAME"), {},
                             "output_shape must be one of which .* Spatial axis 0 may have 15 to 16 positions",
                             ValueError),
    "transposed, too short": ("conv2d_transpose", (A, t(3, 3, 4, 6), (16, 14), 2, "SAME"), {},
                              "Spatial axis 1 may have 15 to 16", ValueError),
    "transposed, valid": ("conv2d_transpose", (A, t(3, 3, 4, 6), (17, 16), 2, "VALID"), {},
                          "Spatial axis 1 may have 17 to 18", ValueError),
    "transposed, other batch": ("conv2d_transpose", (A, t(3, 3, 4, 6), (3, 8, 8, 4)), {}, "must have the input's batch",
                                ValueError),
    "transposed, other channels": ("conv2d_transpose", (A, t(3, 3, 4, 6), (2, 8, 8, 5)), {},
                                   "the filters' output channels", ValueError),
    "transposed, groups": ("conv2d_transpose", (A, t(3, 3, 4, 6), (2, 8, 8, 16)), {}, "that makes groups", ValueError),
    "transposed, filters' channels": ("conv2d_transpose", (A, t(3, 3, 6, 4), (2, 8, 8, 6)), {},
                                      "channels of the filters' last axis", ValueError),
    "transposed, shape of 3": ("conv2d_transpose", (A, t(3, 3, 4, 6), (8, 8, 4)), {}, "output_shape as many, or 2",
                               ValueError),
    "transposed, shape of words": ("conv2d_transpose", (A, t(3, 3, 4, 6), "same"), {}, "output_shape must be integers",
                                   TypeError),
    "transposed, axes of batch": ("conv2d_transpose", (A[None], t(3, 3, 4, 6), (8, 8)), {}, "input must have 4 axes",
                                  ValueError),
    "transposed, padding": ("conv1d_transpose", (A[0], t(3, 4, 6), (8,), 1, "FULL"), {}, "padding must be", ValueError),
    "transposed, 3D": ("conv3d_transpose", (A, t(3, 3, 4, 6), (8, 8)), {}, "with 3 spatial axes", ValueError),
    "transposed, dtypes": ("conv2d_transpose", (A, t(3, 3, 4, 6).double(), (8, 8)), {}, "same dtype", TypeError),
}  # fmt: skip


@pytest.mark.parametrize("name, arguments, keywords, message, builtin", CALLS.values(), ids=CALLS.keys())
def test_mistakes_in_calls(name, arguments, keywords, message, builtin):
    with pytest.raises(ConvError, match=message) as caught:
        getattr(tf, name)(*arguments, **keywords)
    assert isinstance(caught.value, builtin)
    assert str(caught.value).startswith(f"{name}: ")


def test_each_function_has_mistakes():
    names = {name for name in tf.__all__ if "conv" in name}
    assert {mistake[0] for mistake in CALLS.values()} == names


# -- of layers, their arguments and the converters ------------------------------------------------
K = np.zeros((3, 3, 4, 2))
MISTAKES = {  # what is done, what the message says, builtin type
    "no filters": (lambda: layers.Conv2D(0, 3), "Conv2D: filters must be an integer >= 1; got filters=0", ValueError),
    "filters 1.5": (lambda: layers.Conv2D(1.5, 3), "filters must be integers", TypeError),
    "kernel size": (lambda: layers.Conv2D(2, (3, 3, 3)), "kernel_size must be an integer >= 1, or 2 of them",
                    ValueError),
    "kernel size 0": (lambda: layers.Conv1D(2, 0), "kernel_size must be an integer >= 1", ValueError),
    "strides": (lambda: layers.Conv3D(2, 3, (1, 2)), "strides must be an integer >= 1, or 3 of them", ValueError),
    "dilation": (lambda: layers.DepthwiseConv2D(3, dilation_rate=0), "dilation_rate must be", ValueError),
    "padding": (lambda: layers.Conv2D(2, 3, padding="full"), "padding must be one of valid, same; got padding='full'",
                ValueError),
    "causal in 2D": (lambda: layers.Conv2D(2, 3, padding="causal"), "padding must be one of valid, same;", ValueError),
    "causal, transposed": (lambda: layers.Conv1DTranspose(2, 3, padding="causal"), "must be one of valid, same;",
                           ValueError),
    "padding of another word in 1D": (lambda: layers.Conv1D(2, 3, padding=1), "one of valid, same, causal", ValueError),
    "data format": (lambda: layers.Conv2D(2, 3, data_format="NHWC"), "data_format must be one of channels_last, ch",
                    ValueError),
    "groups by filters": (lambda: layers.Conv2D(5, 3, groups=2), "filters must be divisible by groups", ValueError),
    "groups by channels": (lambda: layers.Conv2D(4, 3, groups=2, in_channels=3), "inputs must be divisible by groups",
                           ValueError),
    "groups 0": (lambda: layers.Conv2D(4, 3, groups=0), "groups must be an integer >= 1", ValueError),
    "multiplier": (lambda: layers.SeparableConv1D(4, 3, depth_multiplier=0), "depth_multiplier must be", ValueError),
    "output padding": (lambda: layers.Conv2DTranspose(4, 3, 2, output_padding=2), "smaller than strides", ValueError),
    "output padding below 0": (lambda: layers.Conv2DTranspose(4, 3, 2, output_padding=-1), "must be >= 0", ValueError),
    "output paddings": (lambda: layers.Conv2DTranspose(4, 3, 2, output_padding=(0, 0, 0)), "along each axis",
                        ValueError),
    "channels 0": (lambda: layers.Conv2D(4, 3, in_channels=0), "in_channels must be an integer >= 1", ValueError),
    "activation": (lambda: layers.Conv2D(4, 3, activation="rilu"),
                   "activation must be a function or one of relu, relu6",
                   ValueError),
    "initialiser": (lambda: layers.Conv2D(4, 3, kernel_initializer="he"), "initializer must be a function or one of",
                    ValueError),
    "initialiser of another shape": (lambda: layers.Conv2D(4, 3, in_channels=2, bias_initializer=lambda s, dtype: 0.0),
                                     r"the initializer of bias must give \(4,\)", ValueError),
    "regulariser": (lambda: layers.Conv2D(4, 3, bias_regularizer=0.1),
                    "regularizer must be a function or one of l1, l2",
                    ValueError),
    "constraint": (lambda: layers.Conv2D(4, 3, kernel_constraint="norm"),
                   "constraint must be a function or one of maxn",
                   ValueError),
    "factor below 0": (lambda: regularizers.L2(-1), "L2: l2 must be a number >= 0; got l2=-1", ValueError),
    "factor nan": (lambda: regularizers.L1(float("nan")), "L1: l1 must be", ValueError),
    "bounds": (lambda: constraints.MinMaxNorm(2, 1), "0 <= min_value <= max_value", ValueError),
    "scale": (lambda: initializers.VarianceScaling(0), "VarianceScaling: scale must be > 0", ValueError),
    "mode": (lambda: initializers.VarianceScaling(1, "fan"), "mode one of fan_in", ValueError),
    "distribution": (lambda: initializers.VarianceScaling(1, "fan_in", "normal"), "distribution one of", ValueError),
    "input of 3 axes": (lambda: layers.Conv2D(4, 3)(torch.zeros(4, 4, 4)), "Conv2D: input must be", ValueError),
    "no input": (lambda: layers.Conv2D(4, 3)([1]), "input must be a tensor", TypeError),
    "other channels": (lambda: layers.Conv2D(4, 3, in_channels=3)(torch.zeros(1, 4, 4, 4)),
                       "Conv2D: inputs must have 3 channels; got channels=4", ValueError),
    "other channels, separable": (lambda: layers.SeparableConv2D(4, 3, in_channels=3)(torch.zeros(1, 4, 4, 4)),
                                  "must have 3 channels", ValueError),
    "too small": (lambda: layers.Conv2D(4, 3)(torch.zeros(1, 2, 4, 4)), "at least as large as the dilated kernel",
                  ValueError),
    "other dtype": (lambda: layers.Conv2D(4, 3)(torch.zeros(1, 4, 4, 4).double()), "same dtype", TypeError),
    "weights missing": (lambda: layers.Conv2D(2, 3).set_weights([K]), "weights must be kernel, bias", ValueError),
    "weights of another shape": (lambda: layers.Conv2D(3, 3).set_weights([K, np.zeros(3)]), "the shapes of the layer",
                                 ValueError),
    "weights of other axes": (lambda: layers.Conv1D(2, 3).set_weights([K, np.zeros(2)]), "the shapes of the layer",
                              ValueError),
    "weights of other axes, groups": (lambda: layers.Conv1D(2, 3, groups=2).set_weights([K, np.zeros(2)]),
                                      "the shapes of the layer", ValueError),
    "weights of other channels": (lambda: layers.Conv2D(2, 3, in_channels=3).set_weights([K, np.zeros(2)]),
                                  "the shapes of the layer", ValueError),
    "bias of another shape": (lambda: layers.Conv2D(2, 3).set_weights([K, np.zeros(3)]), "the shapes of the layer",
                              ValueError),
    "kind": (lambda: tf.to_torch(K, "grouped"), "to_torch: kind must be one of conv, depthwise", ValueError),
    "kind back": (lambda: tf.from_torch(K, "grouped"), "from_torch: kind must be one of", ValueError),
    "axes": (lambda: tf.to_torch(K[0, 0]), "a kernel must have 3, 4 or 5 axes", ValueError),
    "no pair": (lambda: tf.to_torch(K, "separable"), "must be given as a pair", ValueError),
    "no depthwise": (lambda: tf.from_torch(np.zeros((4, 2, 3)), "depthwise"), "a depthwise weight must be", ValueError),
    "multiplier of weights": (lambda: tf.from_torch(np.zeros((4, 1, 3)), "depthwise", 3), "depth_multiplier=3",
                              ValueError),
    "multiplier 0": (lambda: tf.from_torch(np.zeros((4, 1, 3)), "depthwise", 0), "a depthwise weight", ValueError),
    "count of weights": (lambda: tf.state_from_keras([K, K, K]), "there must be 1 or 2 weights", ValueError),
    "count of separable": (lambda: tf.state_from_keras([K], "separable"), "there must be 2 or 3 weights", ValueError),
    "keys": (lambda: tf.keras_from_state({"kernel": K}), "must have the keys weight; got keys=kernel", ValueError),
}  # fmt: skip


@pytest.mark.parametrize("act, message, builtin", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(act, message, builtin):
    with pytest.raises(ConvError, match=message) as caught:
        act()
    assert isinstance(caught.value, builtin)


def test_unknown_arguments_are_pythons_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'filter'"):
        layers.Conv2D(2, 3, filter=3)

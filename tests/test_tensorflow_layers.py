"""Keras' layers, against Keras itself and its NumPy references, before and after their channels are known."""

from __future__ import annotations

import copy
import io
from importlib import import_module
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import whole_numbers
from keras_cases import CASES, CHANNELS, input_for, made
from torch import Tensor, nn

from reconv import tensorflow as tf
from reconv.tensorflow import activations, layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")


@pytest.fixture(scope="module")
def references(keras, request):
    """The loops over positions that Keras' own tests compare with; they ship in its wheel."""
    request.config.addinivalue_line("markers", "requires_trainable_backend: of Keras' tests, which are not run here")
    tests = ["conv_test", "conv_transpose_test", "depthwise_conv_test"]
    modules = [import_module(f"keras.src.layers.convolutional.{name}") for name in tests]
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items() if k.startswith("np_")})


# -- every layer ----------------------------------------------------------------------------------
each_case = pytest.mark.parametrize("kind, arguments, lengths", CASES.values(), ids=CASES.keys())


def test_every_layer_has_a_case():
    assert {kind for kind, _, _ in CASES.values()} == set(layers.__all__)


@each_case
def test_gives_and_takes_keras_weights(keras, kind, arguments, lengths):
    x = input_for(arguments, lengths)
    layer = made(kind, arguments, in_channels=CHANNELS)
    theirs = getattr(keras.layers, kind)(**arguments | {"padding": arguments.get("padding", "valid").lower()},
                                         dtype="float64")  # fmt: skip
    theirs.build(tuple(x.shape))
    theirs.set_weights(layer.get_weights())
    output = layer(x)
    assert torch.equal(output, theirs(x))
    fresh = made(kind, arguments)
    fresh.set_weights(theirs.get_weights())  # before the first call
    assert torch.equal(fresh(x), output)
    for mine, other in zip(fresh.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other, strict=True)


def with_holes(kernel: np.ndarray, dilation: tuple[int, ...]) -> np.ndarray:
    """A kernel that does undilated what this one does dilated."""
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    wide = np.zeros((*spans, *kernel.shape[-2:]))
    wide[tuple(slice(None, None, d) for d in dilation)] = kernel
    return wide


@each_case
def test_equals_keras_numpy_references(references, kind, arguments, lengths):
    layer, x = made(kind, arguments, in_channels=CHANNELS), input_for(arguments, lengths)
    if layer.padding == "causal" and layer.strides[0] > 1:
        return  # the reference pads as SAME does there, unlike Keras' layer
    kernels = [w for w in layer.get_weights() if w.ndim > 1]
    dims, bias = (
        layer.spatial_dims,
        np.zeros(arguments.get("filters", CHANNELS * getattr(layer, "depth_multiplier", 1))),
    )
    if layer.bias is not None:
        bias = layer.get_weights()[-1]
    settings = {name: getattr(layer, name) for name in ("strides", "padding", "data_format", "dilation_rate")}
    if "Separable" in kind:
        nothing = np.zeros(prod(kernels[0].shape[-2:]))
        inner = getattr(references, f"np_depthwise_conv{dims}d")(x.numpy(), kernels[0], nothing, **settings)
        plain = settings | {"strides": 1, "padding": "valid", "dilation_rate": 1}
        wanted = getattr(references, f"np_conv{dims}d")(inner, kernels[1], bias, **plain, groups=1)
    elif "Depthwise" in kind:
        wanted = getattr(references, f"np_depthwise_conv{dims}d")(x.numpy(), *kernels, bias, **settings)
    elif "Transpose" in kind:
        settings |= {"output_padding": layer.output_padding, "dilation_rate": 1}  # it places dilated kernels elsewhere
        kernel = with_holes(kernels[0], layer.dilation_rate)
        wanted = getattr(references, f"np_conv{dims}d_transpose")(x.numpy(), kernel, bias, **settings)
    else:
        wanted = getattr(references, f"np_conv{dims}d")(x.numpy(), *kernels, bias, **settings, groups=layer.groups)
    wanted = np.maximum(wanted, 0) if layer.activation else wanted
    np.testing.assert_array_equal(layer(x).detach().numpy(), wanted, strict=True)


BOTH = [
    ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "dilation_rate": (1, 2), "padding": "same"}),
    ("DepthwiseConv2D", {"kernel_size": 3, "strides": (2, 1), "dilation_rate": 2, "padding": "same"}),
    ("SeparableConv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "dilation_rate": 2}),
]


@pytest.mark.parametrize("kind, arguments", BOTH)
def test_takes_strides_with_dilation_which_keras_does_not(kind, arguments):
    layer, x = made(kind, arguments, in_channels=CHANNELS), input_for(arguments, (9, 8))
    kernel = torch.from_numpy(layer.get_weights()[0])
    if kind != "Conv2D":
        kernel = kernel.flatten(2).unsqueeze(2)
    wanted = tf.conv2d(x, kernel, layer.strides, layer.padding, dilations=layer.dilation_rate)
    if kind == "SeparableConv2D":
        wanted = tf.conv2d(wanted, layer.pointwise_kernel, 1, "SAME")
    assert torch.equal(layer(x), wanted + layer.bias)


# -- the channels become known --------------------------------------------------------------------
each_kind = pytest.mark.parametrize("kind", layers.__all__)


def smallest(kind: str, **more: object) -> layers.Layer:
    filters = {} if "Depthwise" in kind else {"filters": 2}
    return getattr(layers, kind)(**filters, kernel_size=2, **more)


def some_input(layer: layers.Layer, channels: int = 3) -> Tensor:
    return whole_numbers((2, *(5, 4, 3)[: layer.spatial_dims], channels)).float()


@each_kind
def test_first_call_makes_the_weights(kind):
    layer = smallest(kind)
    assert layer.has_uninitialized_params()
    assert layer.get_weights() == tf.losses(layer) == []
    tf.constrain(layer)
    output = layer(some_input(layer))
    assert not layer.has_uninitialized_params()
    assert torch.equal(layer(some_input(layer)), output)  # and they stay
    shapes = {name: w.shape for name, w in layer.state_dict().items()}
    assert shapes == {name: w.shape for name, w in smallest(kind, in_channels=3).state_dict().items()}


@each_kind
def test_can_be_copied_and_loaded_before_the_first_call(kind):
    layer = smallest(kind, trainable=False)
    copied = copy.deepcopy(layer)
    copied.load_state_dict(layer.state_dict())
    output = layer(some_input(layer))
    assert copied.has_uninitialized_params()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    copied.load_state_dict(torch.load(file, weights_only=True))
    again = copy.deepcopy(layer)
    for other in (copied, again):
        assert torch.equal(other(some_input(layer)), output)
        assert not any(p.requires_grad for p in other.parameters())


@each_kind
def test_dtype_and_conversion_before_the_first_call(kind):
    assert smallest(kind, dtype=torch.float64, in_channels=3).bias.dtype == torch.float64
    layer = smallest(kind).double()
    assert layer(some_input(layer).double()).dtype == torch.float64


@each_kind
def test_compiles_before_and_after_the_first_call(kind):
    torch.manual_seed(0)
    layer = smallest(kind, activation="tanh")
    x = some_input(layer)
    torch.compiler.reset()
    model = nn.Sequential(layer, nn.ReLU())
    output = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(output, model(x))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@each_kind
def test_gradients_and_functional_call(kind):
    layer = smallest(kind, in_channels=3, dtype=torch.float64, strides=2, padding="same")
    x = some_input(layer).double().requires_grad_()
    names, weights = zip(*layer.named_parameters(), strict=True)

    def compute(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(compute, (x, *weights), fast_mode=True)
    stacked = torch.stack([x.detach(), -x.detach()])
    torch.testing.assert_close(torch.func.vmap(layer)(stacked), torch.stack([layer(part) for part in stacked]))


def test_exports_as_plain_operators():
    model = nn.Sequential(smallest("Conv2D", in_channels=3), smallest("Conv2DTranspose", in_channels=2))
    x = some_input(model[0])
    exported = torch.export.export(model, (x,))
    assert {node.target.namespace for node in exported.graph.nodes if node.op == "call_function"} == {"aten"}
    torch.testing.assert_close(exported.module()(x), model(x))


def test_repr_tells_the_arguments():
    assert repr(layers.Conv2D(8, 3, 2, "same", groups=2, name="stem")) == (
        "Conv2D(filters=8, kernel_size=(3, 3), strides=(2, 2), padding='same', data_format='channels_last', "
        "dilation_rate=(1, 1), groups=2, name='stem', use_bias=True)"
    )


# -- activations ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "mish",
                                  "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "tanh", "softplus", "softsign",
                                  "exponential", "softmax", "log_softmax", "linear"])  # fmt: skip
def test_activations_are_keras(keras, name):
    x = torch.linspace(-7, 7, 30, dtype=torch.float64).view(2, 15)
    activation = activations.get(name)
    output = x if activation is None else activation(x)
    np.testing.assert_allclose(output, np.asarray(keras.activations.get(name)(x.numpy())), rtol=1e-6, atol=1e-7)
    layer = layers.Conv1D(15, 1, in_channels=15, dtype=torch.float64, activation=name)
    plain = layers.Conv1D(15, 1, in_channels=15, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x[None]), plain(x[None]) if activation is None else activation(plain(x[None])))


def test_activations_may_be_modules_and_functions():
    layer = layers.Conv1D(2, 1, in_channels=1, activation=nn.PReLU(2))
    assert "activation.weight" in layer.state_dict()
    assert layers.Conv1D(2, 1, in_channels=1, activation=torch.sin)(torch.ones(1, 3, 1)).abs().max() <= 1
    assert isinstance(activations.get(nn.ReLU), nn.ReLU)

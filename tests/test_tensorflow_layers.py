"""Keras' layers, initialisers, regularisers and constraints, against Keras itself and its NumPy references."""

from __future__ import annotations

import copy
import io
from importlib import import_module
from math import prod, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import whole_numbers
from torch import Tensor, nn

from reconv import tensorflow as tf
from reconv.tensorflow import activations, constraints, initializers, layers, regularizers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras in float64, which leaves nothing in the user's home. On PyTorch, since on JAX each small step compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = import_module("keras")
        module.config.set_floatx("float64")
        return module


@pytest.fixture(scope="module")
def references(keras, request):
    """The loops over positions that Keras' own tests compare with; they ship in its wheel."""
    request.config.addinivalue_line("markers", "requires_trainable_backend: of Keras' tests, which are not run here")
    tests = ["conv_test", "conv_transpose_test", "depthwise_conv_test"]
    modules = [import_module(f"keras.src.layers.convolutional.{name}") for name in tests]
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items() if k.startswith("np_")})


# -- every layer ----------------------------------------------------------------------------------
CASES = {  # class, its arguments (Keras' and ours alike), spatial lengths
    "1d": ("Conv1D", {"filters": 6, "kernel_size": 3}, (9,)),
    "1d same": ("Conv1D", {"filters": 6, "kernel_size": 4, "strides": 2, "padding": "same"}, (9,)),
    "1d causal": ("Conv1D", {"filters": 6, "kernel_size": 3, "padding": "causal"}, (9,)),
    "1d causal dilated": ("Conv1D", {"filters": 6, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}, (9,)),
    "1d causal strided": ("Conv1D", {"filters": 6, "kernel_size": 3, "padding": "causal", "strides": 2}, (8,)),
    "1d causal, channels first": ("Conv1D", {"filters": 2, "kernel_size": 2, "padding": "causal",
                                             "data_format": "channels_first"}, (5,)),
    "1d groups": ("Conv1D", {"filters": 6, "kernel_size": 2, "groups": 2, "use_bias": False}, (5,)),
    "1d of one": ("Conv1D", {"filters": 3, "kernel_size": 1, "strides": 3, "padding": "same"}, (7,)),
    "2d": ("Conv2D", {"filters": 6, "kernel_size": (3, 2)}, (6, 5)),
    "2d same": ("Conv2D", {"filters": 6, "kernel_size": 3, "padding": "same"}, (6, 5)),
    "2d same, even": ("Conv2D", {"filters": 6, "kernel_size": (4, 2), "padding": "SAME"}, (6, 5)),
    "2d same, strided": ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same"}, (6, 5)),
    "2d same, strides": ("Conv2D", {"filters": 6, "kernel_size": 5, "strides": (3, 2), "padding": "same"}, (7, 6)),
    "2d dilated": ("Conv2D", {"filters": 6, "kernel_size": 3, "dilation_rate": (2, 1)}, (7, 5)),
    "2d dilated, same": ("Conv2D", {"filters": 6, "kernel_size": 2, "dilation_rate": 3, "padding": "same"}, (7, 5)),
    "2d groups": ("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 2, "strides": 2}, (6, 5)),
    "2d channels first": ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same",
                                     "data_format": "channels_first"}, (6, 5)),
    "2d activation": ("Conv2D", {"filters": 6, "kernel_size": 3, "activation": "relu"}, (6, 5)),
    "2d without bias": ("Conv2D", {"filters": 6, "kernel_size": 3, "use_bias": False}, (6, 5)),
    "3d": ("Conv3D", {"filters": 4, "kernel_size": (3, 2, 1)}, (4, 5, 3)),
    "3d same": ("Conv3D", {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}, (4, 5, 3)),
    "3d groups": ("Conv3D", {"filters": 4, "kernel_size": 2, "groups": 4, "dilation_rate": (1, 2, 1)}, (3, 4, 3)),
    "3d channels first": ("Conv3D", {"filters": 4, "kernel_size": 2, "data_format": "channels_first"}, (3, 4, 3)),
    "depthwise 1d": ("DepthwiseConv1D", {"kernel_size": 3, "depth_multiplier": 2}, (7,)),
    "depthwise 1d same": ("DepthwiseConv1D", {"kernel_size": 3, "strides": 2, "padding": "same"}, (8,)),
    "depthwise": ("DepthwiseConv2D", {"kernel_size": 3}, (6, 5)),
    "depthwise same": ("DepthwiseConv2D", {"kernel_size": 3, "strides": 2, "padding": "same"}, (6, 5)),
    "depthwise multiplied": ("DepthwiseConv2D", {"kernel_size": (2, 3), "depth_multiplier": 3}, (6, 5)),
    "depthwise dilated": ("DepthwiseConv2D", {"kernel_size": 3, "dilation_rate": 2, "padding": "same"}, (7, 6)),
    "depthwise channels first": ("DepthwiseConv2D", {"kernel_size": 2, "data_format": "channels_first",
                                                     "depth_multiplier": 2, "activation": "relu"}, (4, 5)),
    "separable 1d": ("SeparableConv1D", {"filters": 5, "kernel_size": 3, "depth_multiplier": 2}, (7,)),
    "separable 1d same": ("SeparableConv1D", {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}, (8,)),
    "separable": ("SeparableConv2D", {"filters": 5, "kernel_size": 3, "use_bias": False}, (6, 5)),
    "separable multiplied": ("SeparableConv2D", {"filters": 5, "kernel_size": (2, 3), "depth_multiplier": 3,
                                                 "strides": 2, "padding": "same"}, (6, 5)),
    "separable dilated": ("SeparableConv2D", {"filters": 5, "kernel_size": 2, "dilation_rate": 2,
                                              "activation": "relu"}, (6, 5)),
    "separable channels first": ("SeparableConv2D", {"filters": 5, "kernel_size": 3,
                                                     "data_format": "channels_first"}, (6, 5)),
    "transposed 1d": ("Conv1DTranspose", {"filters": 5, "kernel_size": 3, "strides": 2}, (4,)),
    "transposed 1d same": ("Conv1DTranspose", {"filters": 5, "kernel_size": 4, "strides": 3, "padding": "same"}, (4,)),
    "transposed": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "strides": 2}, (4, 3)),
    "transposed same": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}, (4, 3)),
    "transposed even": ("Conv2DTranspose", {"filters": 5, "kernel_size": (4, 2), "strides": 2,
                                            "padding": "same"}, (4, 3)),
    "transposed stride above kernel": ("Conv2DTranspose", {"filters": 5, "kernel_size": (2, 1), "strides": (3, 4)},
                                       (4, 3)),
    "transposed stride above, same": ("Conv2DTranspose", {"filters": 5, "kernel_size": (2, 1), "strides": (3, 4),
                                                          "padding": "same"}, (4, 3)),
    "transposed output padding": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "strides": 3,
                                                      "output_padding": (2, 0)}, (4, 3)),
    "transposed output padding, same": ("Conv2DTranspose", {"filters": 5, "kernel_size": 5, "strides": (2, 3),
                                                            "output_padding": 1, "padding": "same"}, (4, 3)),
    "transposed output padding, even": ("Conv2DTranspose", {"filters": 5, "kernel_size": (4, 2), "strides": 2,
                                                            "output_padding": (0, 1), "padding": "same"}, (4, 3)),
    "transposed dilated": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "dilation_rate": (2, 1)}, (4, 3)),
    "transposed dilated, same": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "dilation_rate": 2,
                                                     "padding": "same"}, (6, 5)),
    "transposed channels first": ("Conv2DTranspose", {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same",
                                                      "data_format": "channels_first", "use_bias": False}, (4, 3)),
    "transposed 3d": ("Conv3DTranspose", {"filters": 3, "kernel_size": (3, 2, 3), "strides": 2}, (3, 2, 3)),
    "transposed 3d same": ("Conv3DTranspose", {"filters": 3, "kernel_size": 3, "strides": (2, 1, 2),
                                               "padding": "same"}, (3, 2, 3)),
}  # fmt: skip
CHANNELS = 4
each_case = pytest.mark.parametrize("kind, arguments, lengths", CASES.values(), ids=CASES.keys())


def made(kind: str, arguments: dict[str, object], **more: object) -> layers.Layer:
    """Our layer in float64, with whole numbers for weights where the channels are given."""
    layer = getattr(layers, kind)(**arguments, **more, dtype=torch.float64)
    if not layer.has_uninitialized_params():
        layer.set_weights([whole_numbers(w.shape, seed=i) for i, w in enumerate(layer.get_weights())])
    return layer


def input_for(arguments: dict[str, object], lengths: tuple[int, ...]) -> Tensor:
    first = arguments.get("data_format") == "channels_first"
    return whole_numbers((2, CHANNELS, *lengths) if first else (2, *lengths, CHANNELS), seed=9)


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


# -- initialisers ---------------------------------------------------------------------------------
KERNEL = (3, 5, 40, 60)
FANS = {"fan_in": 15 * 40, "fan_out": 15 * 60, "fan_avg": 15 * 50}
SCALED = {  # name: what the variance is, whether uniform
    "glorot_uniform": (1 / FANS["fan_avg"], True), "glorot_normal": (1 / FANS["fan_avg"], False),
    "he_uniform": (2 / FANS["fan_in"], True), "he_normal": (2 / FANS["fan_in"], False),
    "lecun_uniform": (1 / FANS["fan_in"], True), "LecunNormal": (1 / FANS["fan_in"], False),
    "variance_scaling": (1 / FANS["fan_in"], False),
    "random_normal": (0.05**2, False), "RandomUniform": (0.1**2 / 12, True),
}  # fmt: skip


@pytest.mark.parametrize("name, variance, uniform", [(name, *row) for name, row in SCALED.items()])
def test_initialisers_have_the_variance(name, variance, uniform):
    """36,000 values: the variance of a sample is within 4 % of the law's (more than five standard errors)."""
    torch.manual_seed(1)
    kernel = initializers.get(name)(KERNEL, dtype=torch.float64)
    assert tuple(kernel.shape) == KERNEL
    assert abs(kernel.var().item() / variance - 1) < 0.04
    assert abs(kernel.mean().item()) < 5 * sqrt(variance / prod(KERNEL))
    if uniform:
        assert 0.99 * sqrt(3 * variance) < kernel.abs().max() <= sqrt(3 * variance) * (1 + 1e-9)


def test_truncated_normals_end_at_two_deviations():
    kernel = initializers.TruncatedNormal(1.0, 0.5, seed=3)(KERNEL)
    assert 0 <= kernel.min() < 0.01 < 1.99 < kernel.max() <= 2
    he = initializers.HeNormal(seed=3)(KERNEL, dtype=torch.float64)
    assert he.abs().max() <= 2 * sqrt(2 / FANS["fan_in"]) / initializers.TRUNCATED_STD


def test_orthogonal_filters_are_orthogonal():
    kernel = initializers.Orthogonal(2.0)((3, 3, 4, 8), dtype=torch.float64).reshape(36, 8)
    torch.testing.assert_close(kernel.T @ kernel, 4 * torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (5,), (5, 6), (3, 5, 6), (2, 3, 5, 6)])
def test_fans_are_keras(keras, shape):
    theirs = import_module("keras.src.initializers.random_initializers").compute_fans(shape)
    assert initializers.fans(shape) == theirs


def test_initialisers_by_name_function_and_class():
    def ramp(shape, dtype=None):
        return np.arange(prod(shape)).reshape(shape)

    layer = layers.Conv2D(2, 3, in_channels=4, kernel_initializer=ramp, bias_initializer=initializers.Constant(7))
    assert torch.equal(layer.kernel.detach().flatten(), torch.arange(72.0))
    assert layer.bias.tolist() == [7, 7]
    layer = layers.DepthwiseConv2D(3, in_channels=4, depthwise_initializer=initializers.Ones, bias_initializer="ones")
    assert layer.depthwise_kernel.min() == layer.bias.min() == 1
    layer = layers.SeparableConv1D(2, 3, in_channels=4, depthwise_initializer="zeros", pointwise_initializer=None)
    assert layer.depthwise_kernel.abs().max() == layer.bias.abs().max() == 0 < layer.pointwise_kernel.abs().max()
    seeded = [initializers.GlorotNormal(seed=5)((2, 3, 4)) for _ in range(2)]
    assert torch.equal(*seeded)


# -- regularisers ---------------------------------------------------------------------------------
REGULARIZERS = {
    "l1": ("l1", "l1"), "l2": ("l2", "l2"), "both": ("l1_l2", "L1L2:0.01:0.01"), "L2": (regularizers.L2(0.5), "L2:0.5"),
    "L1": (regularizers.L1(0.25), "L1:0.25"), "L1L2": (regularizers.L1L2(0.5, 2), "L1L2:0.5:2"),
}  # fmt: skip


@pytest.mark.parametrize("ours, name", REGULARIZERS.values(), ids=REGULARIZERS.keys())
def test_regularisers_are_keras(keras, ours, name):
    x = whole_numbers((3, 4, 5))
    kind, *factors = name.split(":")
    theirs = getattr(keras.regularizers, kind)(*map(float, factors)) if factors else keras.regularizers.get(name)
    np.testing.assert_allclose(regularizers.get(ours)(x), np.asarray(theirs(x.numpy())), rtol=1e-12)


def test_losses_are_keras(keras):
    """Of kernels, biases and activities, of the weights that can be trained, in calls with gradients."""
    arguments = {"filters": 3, "kernel_size": 2, "kernel_regularizer": "l2", "bias_regularizer": "l1",
                 "activity_regularizer": "l1"}  # fmt: skip
    layer, x = made("Conv1D", arguments, in_channels=2), whole_numbers((5, 7, 2))
    theirs = keras.layers.Conv1D(**arguments, dtype="float64")
    theirs.build(tuple(x.shape))
    theirs.set_weights(layer.get_weights())
    theirs(x)
    model = nn.Sequential(nn.ReLU(), nn.Sequential(layer))
    model[1](x)
    found = tf.losses(model)
    assert len(found) == 3
    torch.testing.assert_close(sum(found), sum(theirs.losses), rtol=1e-7, atol=0)  # their factor is in float32
    sum(found).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in layer.parameters())


def test_activity_losses_are_collected_once_and_only_in_training():
    layer = layers.Conv1D(2, 1, in_channels=1, activity_regularizer=lambda y: y.square().sum())
    x = torch.ones(4, 3, 1)
    layer(x), layer(x)
    copied = copy.deepcopy(layer)  # copies no graph
    assert (len(tf.losses(layer)), len(tf.losses(layer)), len(tf.losses(copied))) == (2, 0, 0)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    assert tf.losses(layer) == []


def test_frozen_weights_are_neither_regularised_nor_constrained():
    layer = layers.Conv1D(2, 1, in_channels=1, trainable=False, kernel_regularizer="l2", kernel_constraint="non_neg",
                          kernel_initializer=initializers.Constant(-1))  # fmt: skip
    tf.constrain(layer)
    assert tf.losses(layer) == []
    assert layer.kernel.max() == -1
    assert not any(weight.requires_grad for weight in layer.parameters())


# -- constraints ----------------------------------------------------------------------------------
CONSTRAINTS = {
    "max_norm": ("max_norm", "MaxNorm", {}), "MaxNorm": ("MaxNorm", "MaxNorm", {}),
    "non_neg": ("non_neg", "NonNeg", {}), "unit_norm": ("unit_norm", "UnitNorm", {}),
    "min_max_norm": ("min_max_norm", "MinMaxNorm", {}),
    "max of filters": (None, "MaxNorm", {"max_value": 3, "axis": [0, 1]}),
    "unit of filters": (None, "UnitNorm", {"axis": [0, 1]}),
    "slowly": (None, "MinMaxNorm", {"min_value": 5, "max_value": 8, "rate": 0.5, "axis": (0, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name, kind, arguments", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
def test_constraints_are_keras(keras, name, kind, arguments):
    x = whole_numbers((3, 4, 5))
    ours = constraints.get(name or getattr(constraints, kind)(**arguments))
    theirs = getattr(keras.constraints, kind)(**arguments)
    np.testing.assert_allclose(ours(x), np.asarray(theirs(x.numpy())), rtol=1e-12)


def test_constrain_after_a_step():
    torch.manual_seed(0)
    conv = layers.Conv2D(4, 3, kernel_constraint=constraints.MaxNorm(0.5, [0, 1, 2]), bias_constraint="non_neg")
    model = nn.Sequential(conv, nn.ReLU(), layers.SeparableConv2D(2, 3, depthwise_constraint="unit_norm",
                                                                  pointwise_constraint=torch.sign))  # fmt: skip
    x = torch.randn(2, 9, 8, 3)
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (model(x).square().mean() + sum(tf.losses(model))).backward()
    optimizer.step()
    tf.constrain(model)
    assert conv.kernel.square().sum((0, 1, 2)).sqrt().max() <= 0.5
    assert conv.bias.min() >= 0
    torch.testing.assert_close(model[2].depthwise_kernel.square().sum(0).sqrt(), torch.ones(3, 4, 1))
    assert set(model[2].pointwise_kernel.flatten().tolist()) <= {-1, 0, 1}
    assert all(weight.requires_grad and weight.is_leaf for weight in model.parameters())

"""Keras' initialisers, regularisers and constraints, against Keras itself."""

from __future__ import annotations

import copy
from importlib import import_module
from math import prod, sqrt

import numpy as np
import pytest
import torch
from cases import whole_numbers
from keras_cases import made
from torch import nn

from reconv import tensorflow as tf
from reconv.tensorflow import constraints, initializers, layers, regularizers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")

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

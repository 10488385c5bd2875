"""Weights between the layouts of TensorFlow and PyTorch, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import whole_numbers
from torch import nn

import reconv
from reconv import tensorflow as tf
from reconv.tensorflow import layers

TORCHS = {  # kind: the layer of torch.nn or reconv.nn
    "conv": lambda dims: getattr(nn, f"Conv{dims}d")(6, 4, (3, 2, 2)[:dims], groups=2),
    "depthwise": lambda dims: getattr(reconv.nn, f"DepthwiseConv{dims}d")(6, (3, 2, 2)[:dims], depth_multiplier=2),
    "transposed": lambda dims: getattr(nn, f"ConvTranspose{dims}d")(6, 4, (3, 2, 2)[:dims]),
    "separable": lambda dims: getattr(reconv.nn, f"SeparableConv{dims}d")(6, 4, (3, 2, 2)[:dims], depth_multiplier=2),
}
OURS = {
    "conv": lambda dims: getattr(layers, f"Conv{dims}D")(4, (3, 2, 2)[:dims], groups=2),
    "depthwise": lambda dims: getattr(layers, f"DepthwiseConv{dims}D")((3, 2, 2)[:dims], depth_multiplier=2),
    "transposed": lambda dims: getattr(layers, f"Conv{dims}DTranspose")(4, (3, 2, 2)[:dims]),
    "separable": lambda dims: getattr(layers, f"SeparableConv{dims}D")(4, (3, 2, 2)[:dims], depth_multiplier=2),
}
KINDS = [(kind, dims) for kind in TORCHS for dims in (1, 2, 3) if dims < 3 or kind in ("conv", "transposed")]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind, dims", KINDS)
def test_weights_go_from_torch_to_keras_and_back(kind, dims, bias):
    theirs = TORCHS[kind](dims).double()
    state = {name: whole_numbers(tensor.shape, i) for i, (name, tensor) in enumerate(theirs.state_dict().items())}
    theirs.load_state_dict(state)
    ours = OURS[kind](dims).double()
    weights = tf.keras_from_state(theirs.state_dict(), kind, depth_multiplier=2)
    ours.set_weights(weights)
    x = whole_numbers((2, *(5, 4, 3)[:dims], 6))
    assert torch.equal(ours(x).movedim(-1, 1), theirs(x.movedim(-1, 1)))
    back = tf.state_from_keras(ours.get_weights()[: None if bias else -1], kind)
    assert list(back) == list(state)[: None if bias else -1]
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name])
        assert tensor.is_contiguous()


@pytest.mark.parametrize("kind", ["depthwise", "separable"])
def test_kernels_of_three_dimensions_convert_too(kind):
    depthwise, pointwise = whole_numbers((3, 2, 1, 5, 2)), whole_numbers((1, 1, 1, 10, 4))
    kernel = (depthwise, pointwise) if kind == "separable" else depthwise
    weight = tf.to_torch(kernel, kind)
    parts = weight if kind == "separable" else (weight,)
    assert [tuple(part.shape) for part in parts] == [(10, 1, 3, 2, 1), (4, 10, 1, 1, 1)][: len(parts)]
    back = tf.from_torch(weight, kind, depth_multiplier=2)
    assert torch.equal(back[0] if kind == "separable" else back, depthwise)


def test_converted_weights_are_copies():
    kernel = torch.zeros(1, 1, 1, 1, requires_grad=True)
    weight = tf.to_torch(kernel)
    weight += 1
    assert kernel.item() == 0
    assert not weight.requires_grad
    array = np.zeros((1, 1, 1))
    tf.from_torch(array).add_(1)
    assert array.item() == 0
    bias = np.zeros(1)
    tf.state_from_keras([array, bias])["bias"].add_(1)
    assert bias.item() == 0


def test_bfloat16_goes_to_numpy_as_float32():
    state = nn.Conv1d(2, 3, 1, dtype=torch.bfloat16).state_dict()
    weights = tf.keras_from_state(state)
    assert weights[0].dtype == np.float32
    assert torch.equal(tf.state_from_keras(weights)["weight"].bfloat16(), state["weight"])

"""`reconv.tensorflow`: TensorFlow's convolutions, in its own conventions, on tensors of PyTorch.

The functions are tf.nn's, `layers` are tf.layers' and Keras'; weights convert both ways.
"""

from reconv.tensorflow import constraints, initializers, layers, regularizers
from reconv.tensorflow.base import constrain, losses
from reconv.tensorflow.convert import from_torch, keras_from_state, state_from_keras, to_torch
from reconv.tensorflow.functional import (
    conv1d,
    conv1d_transpose,
    conv2d,
    conv2d_transpose,
    conv3d,
    conv3d_transpose,
    depthwise_conv2d,
    separable_conv2d,
)

__all__ = [
    "constrain",
    "constraints",
    "conv1d",
    "conv1d_transpose",
    "conv2d",
    "conv2d_transpose",
    "conv3d",
    "conv3d_transpose",
    "depthwise_conv2d",
    "from_torch",
    "initializers",
    "keras_from_state",
    "layers",
    "losses",
    "regularizers",
    "separable_conv2d",
    "state_from_keras",
    "to_torch",
]

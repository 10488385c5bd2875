"""Every layer of reconv.tensorflow with arguments that Keras' takes as well, and an input for it."""

from __future__ import annotations

import torch
from cases import whole_numbers
from torch import Tensor

from reconv.tensorflow import layers

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


def made(kind: str, arguments: dict[str, object], **more: object) -> layers.Layer:
    """Our layer in float64, with whole numbers for weights where the channels are given."""
    layer = getattr(layers, kind)(**arguments, **more, dtype=torch.float64)
    if not layer.has_uninitialized_params():
        layer.set_weights([whole_numbers(w.shape, seed=i) for i, w in enumerate(layer.get_weights())])
    return layer


def input_for(arguments: dict[str, object], lengths: tuple[int, ...]) -> Tensor:
    first = arguments.get("data_format") == "channels_first"
    return whole_numbers((2, CHANNELS, *lengths) if first else (2, *lengths, CHANNELS), seed=9)

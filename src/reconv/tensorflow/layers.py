"""tf.layers' and Keras' convolutions as modules of PyTorch, with their arguments and their layouts.

Arguments that all of them take, besides those told at each:
    kernel_size, strides, dilation_rate: a number or one per spatial axis
    padding: "valid", "same", or "causal" (1D, not transposed)
    data_format: "channels_last" (the default) or "channels_first"
    activation: a function or its name in Keras
    use_bias, bias_initializer, bias_regularizer, bias_constraint, activity_regularizer, trainable, name: as in Keras;
    a function (of a shape and dtype, or of a tensor) or its name
    in_channels: of the input; without it, the first call tells it and makes the weights (see `Layer`)
    device, dtype: of the weights

Weights are kept in TensorFlow's layout, so that initialisers, regularisers and constraints mean the same there and
here; `get_weights()` and `set_weights()` exchange them with Keras, `state_from_keras` with torch's own layers.
The regularisers are collected by `reconv.tensorflow.losses(model)`; the constraints are applied by
`reconv.tensorflow.constrain(model)`, after each step.

Example:
         >>> import torch
         >>> layer = Conv2D(8, 3, strides=2, padding="same", activation="relu", kernel_regularizer="l2")
         >>> tuple(layer(torch.ones(1, 7, 6, 4)).shape)
         (1, 4, 3, 8)
         >>> {name: tuple(weight.shape) for name, weight in layer.state_dict().items()}
         {'kernel': (3, 3, 4, 8), 'bias': (8,)}
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from reconv.tensorflow.arguments import Ints, Sizes, extents
from reconv.tensorflow.base import Common, Layer, Role
from reconv.tensorflow.compute import Settings, convolved, transposed
from reconv.tensorflow.convert import conv_view, depthwise_view

__all__ = [
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
]


class _Conv(Layer):
    """Convolution, as Keras' layer of the same name.

        y[n, p, o] = bias[o] + Σ_{k,c} kernel[k, c, o] · x[n, strides·p + dilation_rate·k − before, c]

    Args:    filters: the output's channels. groups: each sees its part of the channels alone.
    Weights: kernel (*kernel_size, C / groups, filters), bias (filters,).
    Raises:  ConvError (a ValueError or TypeError): when the arguments, or an input, do not fit each other.
    Example:
             >>> import torch
             >>> Conv2D(8, 3, padding="same", in_channels=3)(torch.zeros(1, 9, 9, 3)).shape
             torch.Size([1, 9, 9, 8])
    """

    kernel: Tensor

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        *,
        groups: int = 1,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        kernel_constraint: Any = None,
        **common: Unpack[Common],
    ) -> None:
        self.filters, self.groups = filters, groups
        role = Role.of(kernel_initializer, kernel_regularizer, kernel_constraint, "glorot_uniform")
        super().__init__({"kernel": role}, (kernel_size, strides, dilation_rate), padding, data_format, **common)

    def check_own(self) -> None:
        self.filters, self.groups = self.count("filters", self.filters), self.count("groups", self.groups)
        if self.filters % self.groups:
            raise self.wrong("filters must be divisible by groups",
                             {"filters": self.filters, "groups": self.groups})  # fmt: skip

    def shapes(self, in_channels: int) -> dict[str, Ints]:
        if in_channels % self.groups:
            raise self.wrong("the channels of inputs must be divisible by groups",
                             {"channels": in_channels, "groups": self.groups})  # fmt: skip
        return {"kernel": (*self.kernel_size, in_channels // self.groups, self.filters), "bias": (self.filters,)}

    def channels_of(self, kernel: Ints) -> int:
        return kernel[-2] * self.groups

    def computed(self, inputs: Tensor) -> Tensor:
        return convolved(self.spelling, inputs, conv_view(self.kernel), self.bias, self.settings)


class _DepthwiseConv(Layer):
    """Depthwise convolution, as Keras' layer of the same name: each channel has its own filters.

        y[n, p, c·m + q] = bias[c·m + q] + Σ_k depthwise_kernel[k, c, q] · x[n, strides·p + dilation_rate·k − before, c]

    Args:    depth_multiplier: m, the output channels of each input channel.
    Weights: depthwise_kernel (*kernel_size, C, m), bias (C·m,).
    Raises:  ConvError (a ValueError or TypeError): when the arguments, or an input, do not fit each other.
    Example:
             >>> import torch
             >>> DepthwiseConv2D(3, depth_multiplier=2)(torch.zeros(1, 9, 9, 4)).shape
             torch.Size([1, 7, 7, 8])
    """

    depthwise_kernel: Tensor

    def __init__(
        self,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        *,
        depthwise_initializer: Any = "glorot_uniform",
        depthwise_regularizer: Any = None,
        depthwise_constraint: Any = None,
        **common: Unpack[Common],
    ) -> None:
        self.depth_multiplier = depth_multiplier
        role = Role.of(depthwise_initializer, depthwise_regularizer, depthwise_constraint, "glorot_uniform")
        super().__init__({"depthwise_kernel": role}, (kernel_size, strides, dilation_rate), padding, data_format,
                         **common)  # fmt: skip

    def check_own(self) -> None:
        self.depth_multiplier = self.count("depth_multiplier", self.depth_multiplier)

    def shapes(self, in_channels: int) -> dict[str, Ints]:
        kernel = (*self.kernel_size, in_channels, self.depth_multiplier)
        return {"depthwise_kernel": kernel, "bias": (in_channels * self.depth_multiplier,)}

    def computed(self, inputs: Tensor) -> Tensor:
        return convolved(self.spelling, inputs, depthwise_view(self.depthwise_kernel), self.bias, self.settings)


class _SeparableConv(Layer):
    """A depthwise convolution, then one with kernel size 1 that mixes its channels and adds the bias.

    Args:    filters: the output's channels. depth_multiplier: channels in between for each input channel.
    Weights: depthwise_kernel (*kernel_size, C, m), pointwise_kernel (1, …, C·m, filters), bias (filters,).
    Raises:  ConvError (a ValueError or TypeError): when the arguments, or an input, do not fit each other.
    Example:
             >>> import torch
             >>> SeparableConv2D(8, 3, strides=2, padding="same")(torch.zeros(1, 9, 9, 4)).shape
             torch.Size([1, 5, 5, 8])
    """

    depthwise_kernel: Tensor
    pointwise_kernel: Tensor

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        depth_multiplier: int = 1,
        *,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        **common: Unpack[Common],
    ) -> None:
        self.filters, self.depth_multiplier = filters, depth_multiplier
        roles = {
            "depthwise_kernel":
                Role.of(depthwise_initializer, depthwise_regularizer, depthwise_constraint, "glorot_uniform"),
            "pointwise_kernel":
                Role.of(pointwise_initializer, pointwise_regularizer, pointwise_constraint, "glorot_uniform"),
        }  # fmt: skip
        super().__init__(roles, (kernel_size, strides, dilation_rate), padding, data_format, **common)

    def check_own(self) -> None:
        self.filters = self.count("filters", self.filters)
        self.depth_multiplier = self.count("depth_multiplier", self.depth_multiplier)

    def shapes(self, in_channels: int) -> dict[str, Ints]:
        ones = (1,) * self.spatial_dims
        return {
            "depthwise_kernel": (*self.kernel_size, in_channels, self.depth_multiplier),
            "pointwise_kernel": (*ones, in_channels * self.depth_multiplier, self.filters),
            "bias": (self.filters,),
        }

    def computed(self, inputs: Tensor) -> Tensor:
        mixed = convolved(self.spelling, inputs, depthwise_view(self.depthwise_kernel), None, self.settings)
        ones = (1,) * self.spatial_dims
        plain = Settings(ones, ((0, 0),) * self.spatial_dims, ones)
        return convolved(self.spelling, mixed, conv_view(self.pointwise_kernel), self.bias, plain)


class _ConvTranspose(Layer):
    """Transposed convolution, as Keras' layer of the same name: the gradient of a convolution to its input.

        y[n, strides·p + dilation_rate·k − before, o] += kernel[k, o, c] · x[n, p, c], plus bias[o]

    Args:    filters: the output's channels.
             output_padding: how much longer the output is than the shortest that "same" or "valid" allow, less than
             strides; without it "same" gives strides · length, "valid" (length − 1) · strides + max(kernel, strides).
    Weights: kernel (*kernel_size, filters, C), bias (filters,).
    Raises:  ConvError (a ValueError or TypeError): when the arguments, or an input, do not fit each other.
    Example:
             >>> import torch
             >>> Conv2DTranspose(8, 3, strides=2, padding="same")(torch.zeros(1, 5, 5, 4)).shape
             torch.Size([1, 10, 10, 8])
    """

    can_be_causal = False
    kernel: Tensor

    def __init__(
        self,
        filters: int,
        kernel_size: Sizes,
        strides: Sizes = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Sizes = 1,
        *,
        output_padding: Sizes = None,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        kernel_constraint: Any = None,
        **common: Unpack[Common],
    ) -> None:
        self.filters, self.output_padding = filters, output_padding
        role = Role.of(kernel_initializer, kernel_regularizer, kernel_constraint, "glorot_uniform")
        super().__init__({"kernel": role}, (kernel_size, strides, dilation_rate), padding, data_format, **common)

    def check_own(self) -> None:
        self.filters = self.count("filters", self.filters)
        if self.output_padding is None:
            return
        extra = self.spelling.integers("output_padding", self.output_padding)
        extra = extra * self.spatial_dims if len(extra) == 1 else extra
        if len(extra) != self.spatial_dims or not all(0 <= e < s for e, s in zip(extra, self.strides, strict=True)):
            raise self.wrong("output_padding must be >= 0 and smaller than strides, along each axis",
                             {"output_padding": self.output_padding, "strides": self.strides})  # fmt: skip
        self.output_padding = extra

    def shapes(self, in_channels: int) -> dict[str, Ints]:
        return {"kernel": (*self.kernel_size, self.filters, in_channels), "bias": (self.filters,)}

    def channels_of(self, kernel: Ints) -> int:
        return kernel[-1]

    def computed(self, inputs: Tensor) -> Tensor:
        extra = self.output_padding if isinstance(self.output_padding, tuple) else (None,) * self.spatial_dims
        spans = extents(self.kernel_size, self.dilation_rate)
        cuts = tuple([self._cut(*axis) for axis in zip(spans, self.strides, extra, strict=True)])
        kernel = conv_view(self.kernel)
        return transposed(self.spelling, inputs, kernel, self.bias, self.strides, cuts, self.dilation_rate)

    def _cut(self, extent: int, stride: int, extra: int | None) -> tuple[int, int]:
        """Off both ends of one axis; (length − 1) · stride + extent positions are uncut."""
        if self.padding == "valid":
            return 0, -(max(stride - extent, 0) if extra is None else extra)
        total = extent - (stride if extra is None else extent % 2 + extra)
        lo = max(total, 0) // 2
        return lo, total - lo


class Conv1D(_Conv):
    spatial_dims = 1


class Conv2D(_Conv):
    spatial_dims = 2


class Conv3D(_Conv):
    spatial_dims = 3


class DepthwiseConv1D(_DepthwiseConv):
    spatial_dims = 1


class DepthwiseConv2D(_DepthwiseConv):
    spatial_dims = 2


class SeparableConv1D(_SeparableConv):
    spatial_dims = 1


class SeparableConv2D(_SeparableConv):
    spatial_dims = 2


class Conv1DTranspose(_ConvTranspose):
    spatial_dims = 1


class Conv2DTranspose(_ConvTranspose):
    spatial_dims = 2


class Conv3DTranspose(_ConvTranspose):
    spatial_dims = 3

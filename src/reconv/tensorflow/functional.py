"""tf.nn's convolutions on tensors of PyTorch: TensorFlow 2's names and order, TensorFlow 1's names besides.

Spellings that all of them take:
    strides, dilations: a number, one per spatial axis, or one per axis of the tensor (1 for batch and channels)
    padding: "SAME", "VALID" (in any case), or [before, after] per axis of the tensor ([0, 0] for batch and channels)
    data_format: channels last (NWC, NHWC, NDHWC; the default) or first (NCW, NCHW, NCDHW)
    stride, rate, filter or filters, value: other names of strides, dilations, filters, input
`name` is taken and not used.

Example:
         >>> import torch
         >>> x, filters = torch.ones(1, 6, 6, 4), torch.ones(3, 3, 2, 8)  # two groups
         >>> y = conv2d(x, filters, strides=[1, 2, 2, 1], padding="SAME")
         >>> tuple(y.shape), y[0, 0, 0, 0].item(), y[0, 2, 2, 0].item()  # SAME pads behind the last row and column
         ((1, 3, 3, 8), 18.0, 8.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from reconv.ops.functional import named
from reconv.tensorflow.arguments import Call, Padding, Sizes, only
from reconv.tensorflow.compute import Settings, convolved, cuts_for, transposed
from reconv.tensorflow.convert import conv_view, depthwise_view

__all__ = [
    "conv1d",
    "conv1d_transpose",
    "conv2d",
    "conv2d_transpose",
    "conv3d",
    "conv3d_transpose",
    "depthwise_conv2d",
    "separable_conv2d",
]

Shape = Sequence[int] | Tensor | None


class Conv(Protocol):
    def __call__(
        self,
        input: Tensor | None = None,
        filters: Tensor | None = None,
        strides: Sizes = None,
        padding: Padding = None,
        data_format: str | None = None,
        dilations: Sizes = None,
        name: str | None = None,
        *,
        value: Tensor | None = None,
        filter: Tensor | None = None,
        stride: Sizes = None,
        rate: Sizes = None,
    ) -> Tensor: ...


class ConvTranspose(Protocol):
    def __call__(
        self,
        input: Tensor | None = None,
        filters: Tensor | None = None,
        output_shape: Shape = None,
        strides: Sizes = None,
        padding: Padding = "SAME",
        data_format: str | None = None,
        dilations: Sizes = None,
        name: str | None = None,
        *,
        value: Tensor | None = None,
        filter: Tensor | None = None,
        stride: Sizes = None,
        rate: Sizes = None,
    ) -> Tensor: ...


def _conv(dims: int) -> Conv:
    title = f"conv{dims}d"

    def conv(
        input: Tensor | None = None,
        filters: Tensor | None = None,
        strides: Sizes = None,
        padding: Padding = None,
        data_format: str | None = None,
        dilations: Sizes = None,
        name: str | None = None,
        *,
        value: Tensor | None = None,
        filter: Tensor | None = None,
        stride: Sizes = None,
        rate: Sizes = None,
    ) -> Tensor:
        """Convolution, as tf.nn's of the same name.

            y[n, p, o] = Σ_{k,c} filters[k, c, o] · input[n, strides·p + dilations·k − before, c]

        Args:    input: (*batch, *spatial, C), or (*batch, C, *spatial) by data_format.
                 filters: (*kernel, C / groups, C_out); where they take fewer channels than input has, it is grouped.
                 strides, dilations: one number, or one for each spatial axis. padding: "SAME", "VALID", or pairs.
                 value, filter, stride, rate: TensorFlow 1's names of input, filters, strides and dilations.
        Returns: (*batch, *out_spatial, C_out), or (*batch, C_out, *out_spatial)
        Raises:  ConvError (a ValueError or TypeError): when the arguments do not fit each other.
        Example:
                 >>> import torch
                 >>> conv1d(torch.ones(1, 4, 1), torch.ones(3, 1, 2), strides=2, padding="SAME").tolist()
                 [[[3.0, 3.0], [2.0, 2.0]]]
        """
        call = Call.of(title, dims, data_format)
        x = only(title, input=input, value=value)
        w = only(title, filters=filters, filter=filter)
        call.check(input=x, filters=w)
        settings = _settings(call, strides, stride, padding, dilations, rate)
        return convolved(call, x, conv_view(w), None, settings)

    return named(conv, title)


def _conv_transpose(dims: int) -> ConvTranspose:
    title = f"conv{dims}d_transpose"

    def conv_transpose(
        input: Tensor | None = None,
        filters: Tensor | None = None,
        output_shape: Shape = None,
        strides: Sizes = None,
        padding: Padding = "SAME",
        data_format: str | None = None,
        dilations: Sizes = None,
        name: str | None = None,
        *,
        value: Tensor | None = None,
        filter: Tensor | None = None,
        stride: Sizes = None,
        rate: Sizes = None,
    ) -> Tensor:
        """Transposed convolution, as tf.nn's of the same name: the gradient of a convolution to its input.

            y[n, strides·p + dilations·k − before, o] += filters[k, o, c] · input[n, p, c]

        Args:    input: (N, *spatial, C), or (N, C, *spatial) by data_format.
                 filters: (*kernel, C_out / groups, C).
                 output_shape: a whole shape, whose channels tell the groups, or the spatial lengths alone;
                 any of which the convolution with these settings makes the input's.
        Returns: a tensor of output_shape
        Raises:  ConvError (a ValueError or TypeError): when the arguments do not fit each other.
        Example:
                 >>> import torch
                 >>> conv1d_transpose(torch.ones(1, 2, 1), torch.ones(2, 1, 1), [1, 4, 1], strides=2).shape
                 torch.Size([1, 4, 1])
        """
        call = Call.of(title, dims, data_format)
        x = only(title, input=input, value=value)
        w = only(title, filters=filters, filter=filter)
        call.check(input=x, filters=w)
        settings = _settings(call, strides, stride, padding, dilations, rate)
        lengths, groups = _wanted(call, x, w, only(title, output_shape=output_shape))
        cuts = cuts_for(call, lengths, call.channels_first(x).shape[2:], w.shape[:-2], settings)
        return transposed(call, x, conv_view(w), None, settings.strides, cuts, settings.dilations, groups)

    return named(conv_transpose, title)


conv1d, conv2d, conv3d = _conv(1), _conv(2), _conv(3)
conv1d_transpose, conv2d_transpose, conv3d_transpose = _conv_transpose(1), _conv_transpose(2), _conv_transpose(3)


def depthwise_conv2d(
    input: Tensor | None = None,
    filter: Tensor | None = None,
    strides: Sizes = None,
    padding: Padding = None,
    data_format: str | None = None,
    dilations: Sizes = None,
    name: str | None = None,
    *,
    value: Tensor | None = None,
    filters: Tensor | None = None,
    stride: Sizes = None,
    rate: Sizes = None,
) -> Tensor:
    """Depthwise convolution, as tf.nn's: each channel has its own filters, `multiplier` of them.

        y[n, p, c·multiplier + q] = Σ_k filter[k, c, q] · input[n, strides·p + dilations·k − before, c]

    Args:    input: (*batch, H, W, C), or (*batch, C, H, W) by data_format. filter: (H_k, W_k, C, multiplier).
    Returns: (*batch, H_out, W_out, C·multiplier), or with the channels first
    Raises:  ConvError (a ValueError or TypeError): when the arguments do not fit each other. As in TensorFlow,
             dilations above 1 need strides of 1.
    Example:
             >>> import torch
             >>> x, filter = torch.ones(1, 5, 5, 3), torch.ones(3, 3, 3, 2)
             >>> tuple(depthwise_conv2d(x, filter, strides=2, padding="SAME").shape)
             (1, 3, 3, 6)
    """
    call = Call.of("depthwise_conv2d", 2, data_format)
    x = only(call.name, input=input, value=value)
    w = only(call.name, filter=filter, filters=filters)
    call.check(input=x, filter=w)
    settings = _settings(call, strides, stride, padding, dilations, rate)
    return _depthwise(call, x, w, settings)


def separable_conv2d(
    input: Tensor | None = None,
    depthwise_filter: Tensor | None = None,
    pointwise_filter: Tensor | None = None,
    strides: Sizes = None,
    padding: Padding = None,
    data_format: str | None = None,
    dilations: Sizes = None,
    name: str | None = None,
    *,
    value: Tensor | None = None,
    stride: Sizes = None,
    rate: Sizes = None,
) -> Tensor:
    """Separable convolution, as tf.nn's: `depthwise_conv2d`, then a 1×1 convolution that mixes its channels.

    Args:    input: (*batch, H, W, C), or (*batch, C, H, W) by data_format.
             depthwise_filter: (H_k, W_k, C, multiplier). pointwise_filter: (1, 1, C·multiplier, C_out).
    Returns: (*batch, H_out, W_out, C_out), or with the channels first
    Raises:  ConvError (a ValueError or TypeError): when the arguments do not fit each other. As in TensorFlow,
             dilations above 1 need strides of 1.
    Example:
             >>> import torch
             >>> x, w, v = torch.ones(1, 5, 5, 3), torch.ones(3, 3, 3, 2), torch.ones(1, 1, 6, 4)
             >>> tuple(separable_conv2d(x, w, v, strides=2, padding="SAME").shape)
             (1, 3, 3, 4)
    """
    call = Call.of("separable_conv2d", 2, data_format)
    x = only(call.name, input=input, value=value)
    depthwise = only(call.name, depthwise_filter=depthwise_filter)
    pointwise = only(call.name, pointwise_filter=pointwise_filter)
    call.check(input=x, depthwise_filter=depthwise, pointwise_filter=pointwise)
    channels = depthwise.shape[2] * depthwise.shape[3]
    if tuple(pointwise.shape[:3]) != (1, 1, channels):
        raise call.wrong(f"pointwise_filter must be (1, 1, {channels}, C_out) for this depthwise_filter",
                         {"depthwise_filter": tuple(depthwise.shape),
                          "pointwise_filter": tuple(pointwise.shape)})  # fmt: skip
    settings = _settings(call, strides, stride, padding, dilations, rate)
    mixed = _depthwise(call, x, depthwise, settings)
    return convolved(call, mixed, conv_view(pointwise), None, Settings((1, 1), ((0, 0), (0, 0)), (1, 1)))


def _depthwise(call: Call, input: Tensor, filter: Tensor, settings: Settings) -> Tensor:
    if filter.shape[-2] != call.channels(input.shape):
        raise call.wrong("the filter must have as many input channels as input",
                         {"input": tuple(input.shape), "filter": tuple(filter.shape)})  # fmt: skip
    if max(settings.dilations) > 1 and max(settings.strides) > 1:
        raise call.wrong("dilations above 1 need strides of 1, as in TensorFlow",
                         {"strides": settings.strides, "dilations": settings.dilations},
                         do="Use conv2d with a filter (H, W, 1, C·multiplier), which takes both.")  # fmt: skip
    return convolved(call, input, depthwise_view(filter), None, settings)


def _settings(call: Call, strides: Sizes, stride: Sizes, padding: Padding, dilations: Sizes, rate: Sizes) -> Settings:
    steps = only(call.name, required=False, strides=strides, stride=stride)
    rates = only(call.name, required=False, dilations=dilations, rate=rate)
    return Settings(call.sizes("strides", steps), call.pads(padding), call.sizes("dilations", rates))


def _wanted(call: Call, input: Tensor, filters: Tensor, output_shape: Any) -> tuple[tuple[int, ...], int]:
    """The lengths of the output and the groups."""
    shape = call.integers("output_shape", output_shape)
    if input.ndim != call.dims + 2 or len(shape) not in (call.dims, call.dims + 2):
        raise call.wrong(f"input must have {call.dims + 2} axes and output_shape as many, or {call.dims} spatial ones",
                         {"input": tuple(input.shape), "output_shape": shape})  # fmt: skip
    if call.channels(input.shape) != filters.shape[-1]:
        raise call.wrong("input must have the channels of the filters' last axis",
                         {"input": tuple(input.shape), "filters": tuple(filters.shape)})  # fmt: skip
    if len(shape) == call.dims:
        return shape, 1
    batch, channels, lengths = call.full(shape)
    per_group = filters.shape[-2]
    groups = channels // max(per_group, 1)
    if batch != input.shape[0] or groups < 1 or channels % per_group or filters.shape[-1] % groups:
        raise call.wrong("output_shape must have the input's batch and the filters' output channels, or a multiple "
                         "that makes groups",
                         {"input": tuple(input.shape), "filters": tuple(filters.shape),
                          "output_shape": shape})  # fmt: skip
    return lengths, groups

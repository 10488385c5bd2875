"""What every entrance and layer comes down to: reconv's convolution with TensorFlow's paddings and output shapes.

Weights are in PyTorch's layout here, inputs and outputs in the data format of the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from reconv.ops.dispatch import autocasts
from reconv.ops.functional import conv_nd
from reconv.tensorflow.arguments import Call, Ints, Pairs, extents, same_pads


class Settings(NamedTuple):
    """One value for each spatial axis; padding None is SAME."""

    strides: Ints
    padding: Pairs | None
    dilations: Ints


def convolved(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """A convolution; the groups follow from the shapes.

    Args:    weight: (out, in / groups, *kernel).
    """
    strides, padding, dilations = settings
    x = call.channels_first(input)
    channels, outputs, per_group = x.shape[1], weight.shape[0], weight.shape[1]
    _check_dtypes(call, input, weight)
    if per_group < 1 or channels % per_group or outputs % max(channels // per_group, 1):
        raise call.wrong("the channels of input must be a multiple of the filters' input channels, and the filters' "
                         "output channels of the groups that this makes",
                         {"input": tuple(input.shape), "in_channels": per_group, "out_channels": outputs})  # fmt: skip
    spans = extents(weight.shape[2:], dilations)
    if padding is None:
        padding = tuple([same_pads(*axis) for axis in zip(x.shape[2:], spans, strides, strict=True)])
    for length, (lo, hi), span in zip(x.shape[2:], padding, spans, strict=True):
        if lo + length + hi < span:
            raise call.wrong("the padded input must be at least as large as the dilated kernel",
                             {"input": tuple(input.shape), "kernel": tuple(weight.shape[2:]), "dilations": dilations,
                              "padding": padding})  # fmt: skip
    even = all(lo == hi for lo, hi in padding)
    pads = tuple([lo for lo, _ in padding]) if even else padding  # an even one needs no padded copy
    output = conv_nd(call.dims, x, weight, bias, strides, pads, dilations, channels // per_group)
    return call.restored(output, input)


def transposed(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, cuts: Pairs,
               dilations: Ints, groups: int = 1) -> Tensor:  # fmt: skip
    """A transposed convolution, of which the cuts are taken off.

    Args:    weight: (in, out / groups, *kernel).
             cuts: before and after each axis; behind it less than 0 for zeros that no input reaches.
    """
    _check_dtypes(call, input, weight)
    padding = [(lo, max(hi, 0)) for lo, hi in cuts]
    extra = [max(-hi, 0) for _, hi in cuts]
    x = call.channels_first(input)
    output = conv_nd(call.dims, x, weight, bias, strides, padding, dilations, groups, extra, transposed=True)
    return call.restored(output, input)


def cuts_for(call: Call, lengths: Ints, given: Sequence[int], kernel: Sequence[int], settings: Settings) -> Pairs:
    """What to cut off a transposed convolution of the `given` lengths for one of `lengths`.

    Raises:  ConvError (a ValueError): when the convolution with these settings does not make the given lengths of them.
    """
    strides, padding, dilations = settings
    cuts = []
    for axis, (n, span, stride) in enumerate(zip(given, extents(kernel, dilations), strides, strict=True)):
        length = lengths[axis]
        lo, hi = padding[axis] if padding else same_pads(length, span, stride)
        over = int(length + lo + hi - span - (n - 1) * stride)  # positions that the kernel steps over at the end
        if length < 1 or not 0 <= over < stride:
            least = (n - 1) * stride + (span - lo - hi if padding else 1)
            allowed = f"{max(least, 1)} to {least + stride - 1}"
            raise call.wrong("output_shape must be one of which the convolution makes the input's shape",
                             {"output_shape": lengths, "input": tuple(given), "strides": strides},
                             do=f"Spatial axis {axis} may have {allowed} positions.")  # fmt: skip
        cuts.append((lo, hi - over))
    return tuple(cuts)


def _check_dtypes(call: Call, input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype and not autocasts(input):
        raise call.wrong("input and filters must have the same dtype", {"input": input.dtype, "filters": weight.dtype},
                         also=TypeError)  # fmt: skip

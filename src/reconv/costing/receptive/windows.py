"""Rules of the operators that slide a window: convolutions, pooling, interpolation, padding, folds."""

import re
from collections.abc import Sequence
from fractions import Fraction

from reconv.costing.receptive.call import Call, Rules
from reconv.costing.receptive.combine import concatenate, everywhere, hull
from reconv.costing.receptive.field import Field
from reconv.costing.receptive.layout import KIND, labelled
from reconv.costing.receptive.taps import LostError, adaptive, interpolation, transposed, window

WINDOWS = Rules()


@WINDOWS.rule("convolution")
def _convolution(call: Call) -> Field:
    field, weight, groups = call.field("input"), call["weight"], call["groups"]
    batch, channels, *space = field.shape
    field = field.view((batch, groups, channels // groups, *space)).reduce([2])
    field = field.expand((batch, groups, call.shape[1] // groups, *space)).view((batch, call.shape[1], *space))
    kind = transposed if call["transposed"] else window
    for i, (kernel, size) in enumerate(zip(weight.shape[2:], call.shape[2:], strict=True)):
        stride, padding, dilation = (_each(call[name], i) for name in ("stride", "padding", "dilation"))
        field = field.through(2 + i, kind(kernel, stride, padding, dilation), size, convolution=True)
    return hull([field, *map(everywhere, call.fields("weight", "bias"))]).expand(call.shape)


@WINDOWS.rule("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices")
@WINDOWS.rule("avg_pool1d avg_pool2d avg_pool3d")
def _pool(call: Call) -> Field:
    field, dims = call.field(), _dims(call)
    for i in range(dims):
        kernel = _each(call["kernel_size"], i)
        stride = _each(call["stride"], i) if call["stride"] else kernel
        taps = window(kernel, stride, _each(call["padding"], i), _each(call.get("dilation") or 1, i))
        field = field.through(len(field.axes) - dims + i, taps, call.shape[i - dims])
    return field


@WINDOWS.rule("_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
@WINDOWS.rule("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
def _adaptive_pool(call: Call) -> Field:
    field, dims = call.field(), _dims(call)
    for axis in range(len(field.axes) - dims, len(field.axes)):
        field = field.through(axis, adaptive(field.shape[axis], call.shape[axis]), call.shape[axis])
    return field


@WINDOWS.rule("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d")
@WINDOWS.rule("upsample_trilinear3d upsample_bicubic2d")
@WINDOWS.rule("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d")
def _upsample(call: Call) -> Field:
    field, dims = call.field(), _dims(call)
    mode = next(mode for mode in ("nearest_exact", "nearest", "linear", "cubic") if mode in call.name)
    corners = bool(call.get("align_corners"))
    factors = call.get("scale_factors", "scales") or [call.get(name) for name in ("scales_d", "scales_h", "scales_w")]
    for i in range(dims):
        axis = len(field.axes) - dims + i
        scale = factors[i - dims] if isinstance(factors, list) else factors
        ratio = _ratio(field.shape[axis], call.shape[axis], corners, scale)
        field = field.through(axis, interpolation(mode, ratio, corners), call.shape[axis])
    return field


def _ratio(size: int, out_size: int, align_corners: bool, scale: float | None) -> Fraction:
    """The step in the input from one output to the next."""
    if align_corners:
        return Fraction(size - 1, out_size - 1) if out_size > 1 else Fraction(0)
    if not scale:
        return Fraction(size, out_size)
    exact = Fraction(scale).limit_denominator(1024)
    if abs(exact - Fraction(scale)) > exact / 10**6:
        raise LostError(f"a scale factor of {scale}")
    return 1 / exact


@WINDOWS.rule("constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d")
@WINDOWS.rule("replication_pad1d replication_pad2d replication_pad3d")
def _pad(call: Call) -> Field:
    field, pad = call.field(), call.get("pad", "padding")
    for axis, (low, high) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        if field.axes[-axis] and field.axes[-axis][0].label is KIND and min(low, high) >= 0:
            sizes = [
                [n if i == len(field.axes) - axis else old for i, old in enumerate(field.shape)] for n in (low, high)
            ]
            before, after = map(Field.of_constant, sizes)
            field = concatenate([before, field, after], -axis)
        else:
            field = field.slice(-axis, -low, 1, call.shape[-axis])
    return field


@WINDOWS.rule("im2col")
def _im2col(call: Call) -> Field:
    field = call.field()
    for i, axis in enumerate((-2, -1)):
        padding = _each(call["padding"], i)
        field = field.slice(axis, -padding, 1, field.shape[axis] + 2 * padding)
    rank = len(field.axes)
    for i, axis in enumerate((rank - 2, rank - 1)):
        field = field.unfold(axis, *(_each(call[name], i) for name in ("kernel_size", "stride", "dilation")))
    return field.permute([*range(rank - 2), rank, rank + 1, rank - 2, rank - 1]).view(call.shape)


@WINDOWS.rule("col2im")
def _col2im(call: Call) -> Field:
    field = call.field()
    steps = [[_each(call[name], i) for name in ("kernel_size", "stride", "padding", "dilation")] for i in range(2)]
    sizes = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, (kernel, stride, padding, dilation) in zip(call.shape[-2:], steps, strict=True)
    ]
    if labelled(field.axes[-2]):
        raise LostError("a fold of windows that still tell their places apart")
    field = field.blur(-2, call.shape[-3]).view((*call.shape[:-2], *sizes))
    for axis, step in zip((-2, -1), steps, strict=True):
        field = field.through(axis, transposed(*step), call.shape[axis])
    return field


def _dims(call: Call) -> int:
    """The spatial dimensions in the operator's name."""
    found = re.search(r"(\d)d", call.name)
    return int(found[1]) if found else 0


def _each(setting: int | Sequence[int], i: int) -> int:
    """A setting of the i-th spatial axis, of which one may stand for all."""
    if isinstance(setting, int):
        return setting
    return setting[i] if len(setting) > 1 else setting[0]

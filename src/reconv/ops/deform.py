"""Deformable convolution of 1, 2 and 3 dimensions: torchvision.ops.deform_conv2d's signature and results.

In eager mode two dimensions are computed by a native kernel (deform_native.py). Here are plain operators: the map is
sampled where the offsets say, by gathering the corners of each point's cell, and the samples meet the weights in one
product of matrices. So derivatives of every order, torch.func, torch.compile and export are PyTorch's own. Where a file
of ONNX is written, two dimensions are its operator DeformConv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, reduce
from itertools import product
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from reconv.errors import ConvError, conv_error, error_type
from reconv.ops import deform_native
from reconv.ops.dispatch import autocasts
from reconv.ops.problem import Padding, Size, are_numbers
from reconv.spec import ConvSpec, output_shape
from reconv.spec.geometry import axis_length

Sides = list[tuple[Tensor, Tensor]]
Shapes = dict[str, torch.Size]
Watcher = Callable[[ConvSpec, Tensor, Tensor, Tensor | None, Tensor], None]  # spec, input, weight, bias, output

_WATCHER: ContextVar[Watcher | None] = ContextVar("_WATCHER", default=None)
_AS_DEFORM_CONV: ContextVar[bool] = ContextVar("_AS_DEFORM_CONV", default=False)
DEFORM_CONV_OPSET = 19  # the first that has the operator
FARTHEST = 2**30  # an offset beyond it leads outside of every map, and is still exact in float32


class DeformConv(Protocol):
    def __call__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        mask: Tensor | None = None,
    ) -> Tensor: ...


def _deform_conv(dims: int) -> DeformConv:
    def deform_conv(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Deformable convolution: each point of the kernel is moved by an offset of its own at every position.

            y[n, o, p] = bias[o] + Σ_{c,k} weight[o, c, k] · mask[n, k, p] · x[n, c, s·p + d·k − lo + offset[n, k, p]]

        Between positions x is interpolated linearly along each axis; outside of the map it is 0. The channels of an
        offset group share their offsets and mask. Groups and offset groups follow from the shapes.

        Args:    input: (N, C_in, *spatial), floating; N may be 0.
                 offset: (N, offset_groups · prod(kernel) · dims, *out), in samples of the input; the coordinates of a
                 kernel point are innermost, in axis order (2D: y, x).
                 weight: (C_out, C_in / groups, *kernel). bias: (C_out,).
                 mask: (N, offset_groups · prod(kernel), *out); without it all ones.
                 padding: a number, one per axis, a (lo, hi) pair per axis, "same" or "valid".
        Returns: (N, C_out, *out); under autocast it is computed in float32, and has the dtype of the input.
        Raises:  ConvError, of the builtin type that torchvision raises: when the arguments do not fit each other.
        Source:  Dai et al. 2017, arXiv:1703.06211, equations 2 to 4; with mask Zhu et al. 2018, arXiv:1811.11168
        Example:
                 >>> x, offset = torch.tensor([[[0.0, 10, 20, 30]]]), torch.tensor([[[0.0, 0.5, -1, 9]]])
                 >>> deform_conv1d(x, offset, torch.ones(1, 1, 1))
                 tensor([[[ 0., 15., 10.,  0.]]])
        """
        return deform_nd(dims, input, offset, weight, bias, stride, padding, dilation, mask)

    deform_conv.__name__ = deform_conv.__qualname__ = f"deform_conv{dims}d"
    return deform_conv


deform_conv1d, deform_conv2d, deform_conv3d = _deform_conv(1), _deform_conv(2), _deform_conv(3)


def deform_nd(
    dims: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """The entrances above, in any number of dimensions."""
    given = {"input": input, "offset": offset, "weight": weight}
    given |= {key: value for key, value in (("bias", bias), ("mask", mask)) if value is not None}
    spec = _checked(dims, given, {"stride": stride, "padding": padding, "dilation": dilation})
    if autocasts(input):  # offsets need float32, and so does torchvision
        with torch.autocast(input.device.type, enabled=False):
            output = _convolved(spec, **{key: _single(value) for key, value in given.items()}).to(input.dtype)
    else:
        output = _convolved(spec, **given)
    if not torch.compiler.is_compiling() and (watch := _WATCHER.get()):
        watch(spec, input, weight, bias, output)
    return output


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tells the watcher of every deformable convolution: its plain operators do not show what they are."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


@contextmanager
def exported_as_deform_conv(wanted: bool = True) -> Iterator[None]:
    """Within, torch.export sees ONNX's operator DeformConv where there are two dimensions: the engines know no more."""
    token = _AS_DEFORM_CONV.set(wanted)
    try:
        yield
    finally:
        _AS_DEFORM_CONV.reset(token)


def _single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# -- the computation ------------------------------------------------------------------------------
def _convolved(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None,
               mask: Tensor | None = None) -> Tensor:  # fmt: skip
    tensors = (input, offset, weight, bias, mask)
    if spec.spatial_dims == 2 and torch.compiler.is_exporting() and _AS_DEFORM_CONV.get():
        return _onnx_operator(spec, *tensors)
    if deform_native.refuse(spec, *tensors) is None:
        return deform_native.convolve(_by_operators, spec, *tensors)
    return _by_operators(spec, *tensors)


def _by_operators(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None,
                  mask: Tensor | None = None) -> Tensor:  # fmt: skip
    """One product of matrices for each group: its weights and the samples that they meet."""
    batch, lengths, rows = input.shape[0], offset.shape[2:], spec.in_channels // spec.groups * prod(spec.kernel_size)
    samples = _sampled(spec, input, offset, mask).to(weight.dtype)
    samples = samples.reshape(spec.groups, rows, batch * prod(lengths))
    weight = weight.reshape(spec.groups, spec.out_channels // spec.groups, rows)
    if bias is None:
        output = torch.bmm(weight, samples)
    else:
        output = torch.baddbmm(bias.reshape(*weight.shape[:2], 1), weight, samples)
    return output.reshape(spec.out_channels, batch, *lengths).transpose(0, 1).contiguous()


def _onnx_operator(spec: ConvSpec, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
                   mask: Tensor | None) -> Tensor:  # fmt: skip
    los, his = zip(*spec.padding, strict=True)
    settings = {"kernel_shape": spec.kernel_size, "strides": spec.stride, "pads": (*los, *his),
                "dilations": spec.dilation, "group": spec.groups,
                "offset_group": int(offset.shape[1]) // (2 * prod(spec.kernel_size))}  # fmt: skip
    return torch.onnx.ops.symbolic(
        "DeformConv", (input, weight, offset, bias, mask), settings, dtype=input.dtype,
        shape=(input.shape[0], spec.out_channels, *offset.shape[2:]), version=DEFORM_CONV_OPSET,
    )  # fmt: skip


def _sampled(spec: ConvSpec, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
    """What each kernel point sees at each position: (offset groups, channels of one, points · batch · positions)."""
    batch, dims, taps = input.shape[0], spec.spatial_dims, prod(spec.kernel_size)
    groups = int(offset.shape[1]) // (taps * dims)
    maps = F.pad(input.transpose(0, 1), [2] * (2 * dims))
    steps = [prod(maps.shape[axis + 1 :]) for axis in range(1, dims + 2)]
    images = torch.arange(batch, device=input.device).reshape(batch, *[1] * dims) * steps[0]
    offset = offset.unflatten(1, (groups, taps, dims)).movedim((3, 0), (0, 3)).contiguous()
    sides = []
    for axis, size in enumerate(input.shape[2:]):
        places = _places(spec, axis, offset.shape[4 + axis], input.device)
        low, fraction = _cells(offset[axis], places, size)
        low = (low * steps[axis + 1] + (0 if axis else images)).flatten(1)
        sides.append([(low, 1 - fraction), (low + steps[axis + 1], fraction)])
    if mask is not None:
        mask = mask.unflatten(1, (groups, taps)).movedim(0, 2).flatten(1)
        sides[0] = [(index, share * mask) for index, share in sides[0]]
    maps = maps.reshape(groups, spec.in_channels // groups, batch * steps[0])
    return reduce(torch.add, _corners(maps, sides))


def _cells(offset: Tensor, places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The lower neighbour of each point along an axis, as an index into a map with two zeros around it; and how far
    the point lies above it: a fraction of the offset alone, so that it is as exact far from the origin.
    """
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32)).clamp(-FARTHEST, FARTHEST)
    low = offset.floor()
    return (low.long() + places).clamp_min(-2).clamp_max(size) + 2, (offset - low).flatten(1)


def _places(spec: ConvSpec, axis: int, length: int, device: torch.device) -> Tensor:
    """Where the kernel's points are along an axis, at each position, without offsets: (points, 1, *out)."""
    dims, (lo, _) = spec.spatial_dims, spec.padding[axis]
    point = torch.arange(prod(spec.kernel_size), device=device) // prod(spec.kernel_size[axis + 1 :])
    taps = point % spec.kernel_size[axis] * spec.dilation[axis] - lo
    along = torch.arange(length, device=device) * spec.stride[axis]
    return taps.reshape(-1, *[1] * (dims + 1)) + along.reshape(length, *[1] * (dims - 1 - axis))


def _corners(maps: Tensor, sides: Sequence[Sides]) -> Iterator[Tensor]:
    """What each corner of the points' cells adds to the samples."""
    for corner in product(*sides):
        indices, shares = zip(*corner, strict=True)
        index, share = reduce(torch.add, indices), reduce(torch.mul, shares)
        yield maps.gather(2, index[:, None].expand(-1, maps.shape[1], -1)) * share[:, None]


# -- what must hold -------------------------------------------------------------------------------
def _checked(dims: int, tensors: dict[str, Tensor], settings: dict[str, Any]) -> ConvSpec:
    """The convolution that the arguments describe, once they fit each other."""
    _check_tensors(dims, tensors)
    shapes = {key: value.shape for key, value in tensors.items()}
    if torch.compiler.is_compiling() or not are_numbers([*shapes.values(), *settings.values()]):
        return _described(dims, shapes, settings)
    return _described_before(dims, tuple(shapes.items()), tuple(settings.items()))


@lru_cache(maxsize=4096)
def _described_before(dims: int, shapes: tuple[Any, ...], settings: tuple[Any, ...]) -> ConvSpec:
    return _described(dims, dict(shapes), dict(settings))


def _described(dims: int, shapes: Shapes, settings: dict[str, Any]) -> ConvSpec:
    (_, channels, *sizes), (out_channels, width, *kernel) = shapes["input"], map(int, shapes["weight"])
    channels = int(channels)  # a tensor, while tracing
    groups = channels // width if width else 0
    if not groups or groups * width != channels:
        raise _error(dims, "the input's channels must be a multiple of the weight's second axis",
                     _chosen(shapes, "input", "weight"))  # fmt: skip
    try:
        spec = ConvSpec(in_channels=channels, out_channels=out_channels, kernel_size=tuple(kernel),
                        groups=groups, bias="bias" in shapes, **settings)  # fmt: skip
        lengths = [axis_length(spec, axis, size) for axis, size in enumerate(sizes)]
        if min(lengths) < 1:
            output_shape(spec, tuple(shapes["input"]))  # says so
    except ConvError as broken:
        raise error_type(RuntimeError)(f"deform_conv{dims}d: {str(broken).partition(': ')[2]}") from None
    _check_shapes(spec, lengths, shapes)
    return spec


FORMS = {"input": "(N, C_in", "offset": "(N, offset_groups · prod(kernel) · dims", "weight": "(C_out, C_in / groups",
         "mask": "(N, offset_groups · prod(kernel)"}  # fmt: skip


def _check_tensors(dims: int, tensors: dict[str, Any]) -> None:
    """What is given are tensors of the right number of axes, of one floating dtype and one device."""
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise _error(dims, f"{key} must be a tensor", {key: type(value).__name__}, also=TypeError)
    for key, form in FORMS.items():
        if key in tensors and tensors[key].ndim != dims + 2:
            raise _error(dims, f"{key} must be {form}, and {dims} spatial axes)", {key: tuple(tensors[key].shape)},
                         also=ValueError if key == "input" else RuntimeError)  # fmt: skip
    dtypes, devices = ({key: getattr(value, what) for key, value in tensors.items()} for what in ("dtype", "device"))
    if len(set(devices.values())) > 1:
        raise _error(dims, "all tensors must have the same device", devices)
    if len(set(dtypes.values())) > 1 and not autocasts(tensors["input"]):
        raise _error(dims, "all tensors must have the same dtype", dtypes)
    if not all(dtype.is_floating_point for dtype in dtypes.values()):
        raise _error(dims, "all tensors must be real floating point", dtypes)


def _check_shapes(spec: ConvSpec, lengths: Sequence[int], shapes: Shapes) -> None:
    """Offset, mask and bias fit the input and the weight."""
    batch, dims, taps = shapes["input"][0], spec.spatial_dims, prod(spec.kernel_size)
    groups = int(shapes["offset"][1]) // (taps * dims)
    if not groups or tuple(shapes["offset"]) != (batch, groups * taps * dims, *lengths):
        here = ", ".join(map(str, (batch, f"{taps * dims} · offset_groups", *lengths)))
        raise _error(dims, f"offset must be (N, offset_groups · prod(kernel) · dims, *out), here ({here})",
                     _chosen(shapes, "offset"), spec)  # fmt: skip
    if spec.in_channels % groups:
        raise _error(dims, "the input's channels must be divisible by the offset groups",
                     {"in_channels": spec.in_channels, "offset_groups": groups}, spec)  # fmt: skip
    wanted = {"mask": ("(N, offset_groups · prod(kernel), *out)", (batch, groups * taps, *lengths)),
              "bias": ("(C_out,)", (spec.out_channels,))}  # fmt: skip
    for key, (form, shape) in wanted.items():
        if key in shapes and tuple(shapes[key]) != shape:
            raise _error(dims, f"{key} must be {form}, here {shape}", _chosen(shapes, key), spec)


def _error(dims: int, must: str, got: dict[str, Any], spec: ConvSpec | None = None,
           also: type[Exception] = RuntimeError) -> ConvError:  # fmt: skip
    return conv_error(f"deform_conv{dims}d", must, got=got, spec=spec, also=also)


def _chosen(shapes: Shapes, *names: str) -> dict[str, Any]:
    return {name: tuple(shapes[name]) for name in names}

"""The entrances: torch.nn.functional's own signatures and results, with a padding per side besides.

Plain arguments go straight to PyTorch. Only where it refuses is the reason looked for and told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from torch import Tensor

from reconv.errors import ConvError, conv_error, error_type
from reconv.ops.convolve import convolve, convolve_transposed, separable
from reconv.ops.deform import deform_conv1d, deform_conv2d, deform_conv3d
from reconv.ops.problem import Padding, Size
from reconv.spec import ConvSpec, output_shape

__all__ = [
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "separable_conv1d",
    "separable_conv2d",
    "separable_conv3d",
]


_TRANSLATED = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


class Conv(Protocol):
    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Tensor: ...


class ConvTranspose(Protocol):
    def __call__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
    ) -> Tensor: ...


class SeparableConv(Protocol):
    def __call__(
        self,
        input: Tensor,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
    ) -> Tensor: ...


def _conv(dims: int) -> Conv:
    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Tensor:
        """Convolution, as torch.nn.functional's of the same name.

            y[n, o, p] = bias[o] + Σ_{c,k} weight[o, c, k] · input[n, c, stride·p + dilation·k − lo]

        Args:    input: (N, C_in, *spatial) or (C_in, *spatial); N may be 0.
                 weight: (C_out, C_in / groups, *kernel). bias: (C_out,).
                 padding: a number, one per axis, a (lo, hi) pair per axis, "same" or "valid".
        Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial)
        Raises:  ConvError, of the builtin type that torch raises: when the arguments do not fit each other.
        Example:
                 >>> import torch
                 >>> conv1d(torch.tensor([[[1.0, 2, 3, 4]]]), torch.ones(1, 1, 3), padding=[(2, 0)])  # causal
                 tensor([[[1., 3., 6., 9.]]])
        """
        return conv_nd(dims, input, weight, bias, stride, padding, dilation, groups)

    return named(conv, f"conv{dims}d")


def _conv_transpose(dims: int) -> ConvTranspose:
    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
    ) -> Tensor:
        """Transposed convolution, as torch.nn.functional's of the same name.

            y[n, o, stride·p + dilation·k − lo] += weight[c, o, k] · input[n, c, p], plus bias[o]

        Args:    input: (N, C_in, *spatial) or (C_in, *spatial); N may be 0.
                 weight: (C_in, C_out / groups, *kernel). bias: (C_out,).
                 padding: what is cut off the output: a number, one per axis or a (lo, hi) pair per axis.
        Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial)
        Raises:  ConvError, of the builtin type that torch raises: when the arguments do not fit each other.
        Example:
                 >>> import torch
                 >>> conv_transpose1d(torch.tensor([[[1.0, 2, 3]]]), torch.ones(1, 1, 2), stride=2)
                 tensor([[[1., 1., 2., 2., 3., 3.]]])
        """
        return conv_nd(dims, input, weight, bias, stride, padding, dilation, groups, output_padding, transposed=True)

    return named(conv_transpose, f"conv_transpose{dims}d")


def _separable_conv(dims: int) -> SeparableConv:
    name = f"separable_conv{dims}d"

    def separable_conv(
        input: Tensor,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
    ) -> Tensor:
        """A depthwise convolution, then a pointwise one.

            y[n, o, p] = bias[o] + Σ_{c,j} v[o, m·c + j] · Σ_k w[m·c + j, k] · input[n, c, stride·p + dilation·k − lo]

        Args:    input: (N, C_in, *spatial) or (C_in, *spatial); N may be 0.
                 depthwise_weight: w, (m · C_in, 1, *kernel). pointwise_weight: v, (C_out, m · C_in, 1, …).
                 bias: (C_out,). stride, padding, dilation: of the depthwise one, as conv1d … conv3d take them.
        Returns: (N, C_out, *out_spatial) or (C_out, *out_spatial)
        Raises:  ConvError, of the builtin type that torch raises: when the arguments do not fit each other.
        Source:  Chollet 2017, arXiv:1610.02357
        Example:
                 >>> import torch
                 >>> x, w, v = torch.ones(1, 2, 4), torch.ones(4, 1, 3), torch.ones(1, 4, 1)
                 >>> separable_conv1d(x, w, v)
                 tensor([[[12., 12.]]])
        """
        _check_separable(name, dims, input, depthwise_weight, pointwise_weight)
        with suppress(*_TRANSLATED):  # what is wrong is told below
            pads = padding if type(padding) is int else _pairs(padding, dims) or padding
            fused = separable(dims, input, depthwise_weight, pointwise_weight, bias, stride, pads, dilation)
            if fused is not None:
                return fused
        channels = input.shape[-dims - 1]
        inner = conv_nd(dims, input, depthwise_weight, None, stride, padding, dilation, channels, name=name)
        return conv_nd(dims, inner, pointwise_weight, bias, name=name)

    return named(separable_conv, name)


def _check_separable(name: str, dims: int, input: Any, depthwise: Any, pointwise: Any) -> None:
    tensors = {"input": input, "depthwise_weight": depthwise, "pointwise_weight": pointwise}
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise conv_error(name, f"{key} must be a tensor", got={key: type(value).__name__}, also=TypeError)
    got = {key: _shape(value) for key, value in tensors.items()}
    if input.ndim not in (dims + 1, dims + 2):
        raise conv_error(name, f"input must be (N, C_in, *spatial) or (C_in, *spatial) with {dims} spatial axes",
                         got=got, also=RuntimeError)  # fmt: skip
    channels = input.shape[-dims - 1]
    if depthwise.ndim != dims + 2 or depthwise.shape[1] != 1 or not channels or depthwise.shape[0] % channels:
        must = f"depthwise_weight must be (a multiple of C_in, 1, and {dims} spatial axes)"
        raise conv_error(name, must, got=got, also=RuntimeError)
    if pointwise.ndim != dims + 2 or tuple(pointwise.shape[1:]) != (depthwise.shape[0], *[1] * dims):
        must = f"pointwise_weight must be (C_out, {depthwise.shape[0]}{', 1' * dims})"
        raise conv_error(name, must, got=got, also=RuntimeError)


def named(function: Any, name: str) -> Any:
    function.__name__ = function.__qualname__ = name
    return function


conv1d, conv2d, conv3d = _conv(1), _conv(2), _conv(3)
conv_transpose1d, conv_transpose2d, conv_transpose3d = _conv_transpose(1), _conv_transpose(2), _conv_transpose(3)
separable_conv1d, separable_conv2d, separable_conv3d = _separable_conv(1), _separable_conv(2), _separable_conv(3)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Makes channels of different groups neighbours.

        y[n, j·groups + i] = x[n, i·(C / groups) + j]

    Args:    input: (N, C, …), any number of further axes.
    Raises:  ConvError: a RuntimeError when groups does not divide the channels; a TypeError for other types.
    Source:  Zhang et al. 2017, arXiv:1707.01083
    Example:
             >>> import torch
             >>> channel_shuffle(torch.arange(6).view(1, 6), 2)
             tensor([[0, 3, 1, 4, 2, 5]])
    """
    if not isinstance(input, Tensor):
        raise conv_error("channel_shuffle", "input must be a tensor", got={"input": type(input).__name__},
                         also=TypeError)  # fmt: skip
    if not isinstance(groups, int):
        raise conv_error("channel_shuffle", "groups must be an integer >= 1", got={"groups": repr(groups)},
                         also=TypeError)  # fmt: skip
    if input.ndim < 2 or groups < 1 or input.shape[1] % groups:
        raise conv_error("channel_shuffle", "input must be (N, C, …) with channels divisible by groups >= 1",
                         got={"input": tuple(input.shape), "groups": groups}, also=RuntimeError)  # fmt: skip
    return shuffled(input, groups, 1)


def shuffled(input: Tensor, groups: int, dim: int) -> Tensor:
    """channel_shuffle with the channels on the axis `dim` >= 0."""
    grouped = input.unflatten(dim, (groups, input.shape[dim] // groups))
    return grouped.transpose(dim, dim + 1).flatten(dim, dim + 1)


def conv_nd(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    output_padding: Size = 0,
    *,
    transposed: bool = False,
    name: str = "",
) -> Tensor:
    """Every entrance above: any number of dimensions, transposed or not; `name` stands in errors."""
    try:
        pads = padding if type(padding) is int else _pairs(padding, dims) or padding
        if transposed:
            return convolve_transposed(dims, input, weight, bias, stride, pads, output_padding, groups, dilation)
        return convolve(dims, input, weight, bias, stride, pads, dilation, groups)
    except _TRANSLATED as error:
        if type(error) not in _TRANSLATED:  # subclasses steer torch itself: out of memory, tracing, …
            raise
        settings_ = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
                     "output_padding": output_padding, "transposed": transposed}  # fmt: skip
        name = name or f"conv{'_transpose' * transposed}{dims}d"
        raise _explained(error, name, dims, input, weight, bias, settings_) from error


def _pairs(padding: Any, dims: int) -> tuple[tuple[int, int], ...] | None:
    """A (lo, hi) pair for each axis where padding has pairs; None where torch itself understands it."""
    if not isinstance(padding, (tuple, list)) or not any(isinstance(p, (tuple, list)) for p in padding):
        return None
    pairs = [tuple(p) if isinstance(p, (tuple, list)) else (p, p) for p in padding]
    pairs = pairs * dims if len(pairs) == 1 else pairs
    if len(pairs) != dims or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise RuntimeError("padding must be a (lo, hi) pair of numbers >= 0 for each axis")
    return tuple(pairs)


# -- why torch refused ----------------------------------------------------------------------------
def _explained(error: Exception, name: str, dims: int, input: Any, weight: Any, bias: Any,
               settings: dict[str, Any]) -> ConvError:  # fmt: skip
    """What must hold, in our words where a rule is broken and else in torch's; always of torch's error type."""
    try:
        for broken in _broken(name, dims, input, weight, bias, settings):
            return error_type(type(error))(str(broken))
    except ConvError as broken:  # from ConvSpec or output_shape
        return error_type(type(error))(f"{name}: {str(broken).partition(': ')[2]}")
    reason = str(error).strip().split("\n")[0].rstrip(".")
    got = {"input": _shape(input), "weight": _shape(weight), "bias": _shape(bias), **settings}
    return conv_error(name, reason, got=got, also=type(error))


def _broken(name: str, dims: int, input: Any, weight: Any, bias: Any, settings: dict[str, Any]) -> Iterator[ConvError]:
    """The rules that the arguments break, the most basic first."""
    tensors = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            yield conv_error(name, f"{key} must be a tensor", got={key: type(value).__name__})
    order = "(C_in, C_out / groups" if settings["transposed"] else "(C_out, C_in / groups"
    if weight.ndim != dims + 2:
        yield conv_error(name, f"weight must be {order}, and {dims} spatial axes)", got={"weight": _shape(weight)})
    if input.ndim not in (dims + 1, dims + 2):
        yield conv_error(name, f"input must be (N, C_in, *spatial) or (C_in, *spatial) with {dims} spatial axes",
                         got={"input": _shape(input)})  # fmt: skip
    groups, channels = settings["groups"], input.shape[-dims - 1]
    if not hasattr(groups, "__index__"):
        yield conv_error(name, "groups must be an integer", got={"groups": groups})
    out_channels = weight.shape[1] * groups if settings["transposed"] else weight.shape[0]
    spec = ConvSpec(in_channels=channels, out_channels=out_channels, kernel_size=tuple(weight.shape[2:]),
                    bias=bias is not None, **settings)  # fmt: skip
    if tuple(weight.shape) != spec.weight_shape:
        got = {"input": _shape(input), "weight": _shape(weight), "groups": groups}
        yield conv_error(name, f"weight must be {order}, *kernel), here {spec.weight_shape}", got=got, spec=spec)
    if bias is not None and tuple(bias.shape) != (out_channels,):
        yield conv_error(name, f"bias must be (C_out,), here ({out_channels},)", got={"bias": _shape(bias)}, spec=spec)
    for what in ("dtype", "device"):
        values = {key: getattr(value, what) for key, value in tensors.items()}
        if len(set(values.values())) > 1:
            yield conv_error(name, f"all tensors must have the same {what}", got=values, spec=spec)
    output_shape(spec, (1, *input.shape[-dims - 1 :]))


def _shape(value: Any) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else value

"""Every block, slow and plain: the truth in tests. NumPy, float64, a loop over the points of the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from reconv.spec import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    ConvSpec,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
)
from reconv.spec.geometry import axis_length

Array = NDArray[np.float64]
_MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "identity": lambda x: x,
}


def run(block: Block, tensors: Mapping[str, Any], x: Any) -> Array:
    """What `layers.build(block)` gives with the state dict `tensors` (tensors or arrays) for x: (N, C, *spatial).

    Example:
             >>> spec = ConvSpec(in_channels=1, out_channels=1, kernel_size=(2,), bias=False)
             >>> run(spec, {"weight": [[[1, 10]]]}, [[[1, 2, 3]]])
             array([[[21., 32.]]])
    """
    x = _array(x)
    match block:
        case ConvSpec():
            bias = _array(tensors["bias"]) if block.bias else np.zeros(block.out_channels)
            compute = conv_transpose if block.transposed else conv
            return compute(block, x, _array(tensors["weight"]), bias)
        case Chain():
            for i, part in enumerate(block.blocks):
                x = run(part, _inner(tensors, i), x)
            return x
        case Branches():
            outputs = [run(part, _inner(tensors, i), x) for i, part in enumerate(block.blocks)]
            return np.concatenate(outputs, axis=1) if block.join == "concat" else np.sum(outputs, axis=0)
        case Shuffle():
            size = x.shape[1] // block.groups
            return np.stack([x[:, g * size + j] for j in range(size) for g in range(block.groups)], axis=1)
        case PixelShuffle():
            return pixel_shuffle(block, x)
        case Permute():
            return x[:, _array(tensors["index"]).astype(int)]
        case Gate():
            return gate(x, {name: _array(tensor) for name, tensor in tensors.items()})
        case Activation():
            return ACTIVATIONS[block.name](x)
        case BatchNorm():
            return batch_norm(x, {name: _array(tensor) for name, tensor in tensors.items()})
        case Deform():
            return _deformed(block, {name: _array(tensor) for name, tensor in tensors.items()}, x)
        case _:
            assert_never(block)


def pixel_shuffle(block: PixelShuffle, x: Array) -> Array:
    """y[n, c, s·p + r] = x[n, c·∏s + i, p], where r is the i-th of all places below s; then the crop."""
    every = math.prod(block.factors)
    y = np.zeros((len(x), x.shape[1] // every, *np.multiply(block.factors, x.shape[2:])))
    for i, r in enumerate(np.ndindex(*block.factors)):
        places: tuple[Any, ...] = tuple(slice(at, None, s) for at, s in zip(r, block.factors, strict=True))
        y[(..., *places)] = x[:, i::every]
    kept: tuple[Any, ...] = tuple(slice(lo, n - hi) for (lo, hi), n in zip(block.crop, y.shape[2:], strict=True))
    return y[(..., *kept)]


def conv(spec: ConvSpec, x: Array, weight: Array, bias: Array) -> Array:
    """y[n, o, p] = b[o] + Σ_{c,k} w[o, c, k] · x[n, c, s·p + d·k], where x is padded and c runs over o's group."""
    lengths = [axis_length(spec, axis, n) for axis, n in enumerate(x.shape[2:])]
    x = np.pad(x, [(0, 0), (0, 0), *spec.padding], mode=_MODES[spec.padding_mode])
    y = np.zeros((len(x), spec.out_channels, *lengths)) + _per_channel(bias, lengths)
    for k in np.ndindex(*spec.kernel_size):
        points = _points(spec, k, lengths)
        for outs, ins in _groups(spec):
            y[:, outs] += np.einsum("nc...,oc->no...", x[:, ins][points], weight[(outs, ..., *k)])
    return y


def conv_transpose(spec: ConvSpec, x: Array, weight: Array, bias: Array) -> Array:
    """y[n, o, s·p + d·k] += w[c, o, k] · x[n, c, p], where o runs over c's group; then the padding is cut off y."""
    lengths = [axis_length(spec, axis, n) for axis, n in enumerate(x.shape[2:])]
    uncut = [lo + n + hi for (lo, hi), n in zip(spec.padding, lengths, strict=True)]
    y = np.zeros((len(x), spec.out_channels, *uncut))
    for k in np.ndindex(*spec.kernel_size):
        points = _points(spec, k, x.shape[2:])
        for outs, ins in _groups(spec):
            y[:, outs][points] += np.einsum("nc...,co->no...", x[:, ins], weight[(ins, ..., *k)])
    kept: tuple[Any, ...] = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, lengths, strict=True))
    return y[(..., *kept)] + _per_channel(bias, lengths)


def batch_norm(x: Array, tensors: Mapping[str, Array]) -> Array:
    """(x − mean) / √(var + 1e-5) · weight + bias with the running mean and variance, as in evaluation."""
    mean, var, weight, bias = (
        _per_channel(tensors[name], x.shape[2:]) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def deform_conv(spec: ConvSpec, x: Array, offset: Array, weight: Array, bias: Array, mask: Array | None) -> Array:
    """y[n, o, p] = b[o] + Σ_{c,k} w[o, c, k] · m[n, k, p] · x[n, c, s·p + d·k + Δ[n, k, p]], where x is padded.

    With K kernel points and G groups of channels: offset is (N, G·K·axes, *out), mask (N, G·K, *out).
    """
    x = np.pad(x, [(0, 0), (0, 0), *spec.padding], mode=_MODES[spec.padding_mode])
    batch, lengths, taps = len(x), offset.shape[2:], list(np.ndindex(*spec.kernel_size))
    groups = offset.shape[1] // (len(taps) * spec.spatial_dims)
    offset = offset.reshape(batch, groups, len(taps), spec.spatial_dims, *lengths)
    mask = np.ones((batch, groups, len(taps), *lengths)) if mask is None else mask.reshape(*offset.shape[:3], *lengths)
    size = spec.in_channels // groups
    seen = np.zeros((*x.shape[:2], len(taps), *lengths))
    for n, g, t, *p in np.ndindex(batch, groups, len(taps), *lengths):
        point = np.multiply(spec.stride, p) + np.multiply(spec.dilation, taps[t]) + offset[(n, g, t, slice(None), *p)]
        channels = slice(g * size, (g + 1) * size)
        seen[(n, channels, t, *p)] = mask[(n, g, t, *p)] * between(x[n, channels], point)
    y = np.zeros((batch, spec.out_channels, *lengths)) + _per_channel(bias, lengths)
    for outs, ins in _groups(spec):
        weights = weight[outs].reshape(-1, spec.in_channels // spec.groups, len(taps))
        y[:, outs] += np.einsum("nct...,oct->no...", seen[:, ins], weights)
    return y


def between(x: Array, point: Array) -> Array:
    """x: (C, *spatial) at a point between its positions: linear along each axis, 0 outside."""
    value, low = np.zeros(len(x)), np.floor(point).astype(int)
    for corner in np.ndindex(*[2] * len(low)):
        at = low + corner
        if np.all((at >= 0) & (at < x.shape[1:])):
            value += np.prod(1 - np.abs(point - at)) * x[(slice(None), *at)]
    return value


def _deformed(block: Deform, tensors: Mapping[str, Array], x: Array) -> Array:
    """The offsets, and the mask where there is one, come from a convolution of x, in this order."""
    moves = conv(block.offset_conv, x, tensors["offset_conv.weight"], tensors["offset_conv.bias"])
    count = moves.shape[1] - block.modulated * moves.shape[1] // (block.conv.spatial_dims + 1)
    mask = 1 / (1 + np.exp(-moves[:, count:])) if block.modulated else None
    bias = tensors["bias"] if block.conv.bias else np.zeros(block.conv.out_channels)
    return deform_conv(block.conv, x, moves[:, :count], tensors["weight"], bias, mask)


def gate(x: Array, tensors: Mapping[str, Array]) -> Array:
    """x · sigmoid(expand(relu(reduce(mean of x over space)))), a number per channel."""
    mean = x.reshape(*x.shape[:2], -1).mean(-1)
    hidden = np.maximum(mean @ tensors["reduce.weight"].T + tensors["reduce.bias"], 0)
    scale = 1 / (1 + np.exp(-(hidden @ tensors["expand.weight"].T + tensors["expand.bias"])))
    return x * _per_channel(scale, x.shape[2:])


def _groups(spec: ConvSpec) -> list[tuple[slice, slice]]:
    """The output and input channels of each group; the transposed weight has its input channels first."""
    out, into = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    return [(slice(g * out, (g + 1) * out), slice(g * into, (g + 1) * into)) for g in range(spec.groups)]


def _points(spec: ConvSpec, k: tuple[int, ...], counts: Sequence[int]) -> tuple[Any, ...]:
    """Index of the spatial positions s·p + d·k for p = 0 … count − 1."""
    axes = zip(spec.stride, spec.dilation, k, counts, strict=True)
    return (..., *[slice(d * t, d * t + s * (n - 1) + 1, s) for s, d, t, n in axes])


def _per_channel(values: Array, spatial: Sequence[int]) -> Array:
    return values.reshape(*values.shape, *[1] * len(spatial))


def _inner(tensors: Mapping[str, Any], part: int) -> dict[str, Any]:
    """The tensors of one part: those that begin with its number."""
    start = f"{part}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().double().cpu().numpy()
    return np.asarray(value, dtype=np.float64)

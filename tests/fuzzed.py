"""Random calls of every op and kernel, described: fuzzed_folds.py computes them in each way and compares.

A `Call` is drawn from a `random.Random`: Hypothesis drives one (`st.randoms()`), and so does trust/fuzz.py, which tries
hundreds of thousands. Its text is its own repro: `check(Call(...))` of fuzzed_folds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from random import Random

import torch
from torch import Tensor

from reconv.errors import ConvError
from reconv.ops.problem import dense_strides
from reconv.spec import Block, Chain, ConvSpec, Deform, convs, output_shape, parse

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_MACS = 100_000
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """What is computed, and on what.

    kind: the fold, one of `KINDS`. block: its text. views: how input, weight, the gradient and the bias lie in memory.
    whole: whether the numbers are whole. grads: whether all gradients are asked for, too.
    """

    kind: str
    block: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    views: tuple[str, str, str, str] = ("contiguous",) * 4
    threads: int = 1
    whole: bool = True
    grads: bool = False
    seed: int = 0


# -- how a tensor lies in memory ------------------------------------------------------------------
def _dense(last: bool) -> Callable[[Tensor], Tensor]:
    def laid(t: Tensor) -> Tensor:  # 1D channels-last: the same strides, as no memory format is named so
        return t.new_empty_strided(t.shape, dense_strides(tuple(t.shape), last and t.ndim > 2)).copy_(t)

    return laid


def _within(t: Tensor) -> Tensor:
    """In a larger tensor whose other values are NaN: whoever reads one of them is found out."""
    whole = t.new_full([n + 3 for n in t.shape], torch.nan)
    return whole[tuple(slice(1 + n % 2, 1 + n % 2 + n) for n in t.shape)].copy_(t)


def _every_second(t: Tensor) -> Tensor:
    return t.new_full((*t.shape, 2), torch.nan)[..., 1].copy_(t)


def _of_more_channels(t: Tensor) -> Tensor:
    axis = min(1, t.ndim - 1)
    shape = [*t.shape]
    shape[axis] = 2 * shape[axis] + 1
    return t.new_full(shape, torch.nan).narrow(axis, 1, t.shape[axis]).copy_(t)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _dense(False),
    "channels_last": _dense(True),
    "channels_last within": lambda t: _within(t.movedim(1, -1)).movedim(-1, 1) if t.ndim > 2 else _within(t),
    "one element further": lambda t: torch.cat([t.new_full((1,), torch.nan), t.flatten()])[1:].view(t.shape),
    "within": _within,
    "every second": _every_second,
    "some of more channels": _of_more_channels,
    "axes swapped": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 2 else t,
    "the batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.ndim > 2 else t,
    "one for all": lambda t: t[:1].expand(t.shape),
}
USUAL = ("contiguous", "contiguous", "channels_last")


# -- drawing a call -------------------------------------------------------------------------------
CHANNELS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 18, 24, 31, 32, 33, 48, 63, 65)
KERNEL = {1: (1, 2, 3, 3, 4, 5, 7, 9, 16, 31), 2: (1, 1, 2, 3, 3, 3, 4, 5, 7), 3: (1, 2, 3, 3)}
RULED = (11, 12, 13)  # sizes of the input for a rule
LONGEST = {1: 150, 2: 24, 3: 9}


def drawn(r: Random, kind: str | None = None) -> Call:
    """Any call that must succeed."""
    kind = kind or r.choice(OFTEN)
    block, shape = BLOCKS[kind](r)
    dtype = r.choice(_DTYPES[kind])
    views = tuple(r.choice(USUAL if r.random() < 0.6 else tuple(VIEWS)) for _ in range(4))
    if kind == "call" and DTYPES[dtype].itemsize < 4:  # on other weights PyTorch 2.13 may not come to an end
        views = (views[0], "contiguous", *views[2:])
    threads = r.choice((1,) * 14 + (2, 3))
    whole = DTYPES[dtype].itemsize < 4 or kind == "mistake" or r.random() < 0.8
    # PyTorch 2.13's own gradients in bfloat16 and channels_last may be memory that nothing wrote; that of a deformable
    # convolution to its offsets is a difference, which no sum of sizes bounds
    grads = r.random() < 0.5 and DTYPES[dtype].itemsize >= 4 and (whole or kind != "deform")
    batch = 0 if kind == "call" and r.random() < 0.02 else shape[0]
    return Call(kind, str(block), (batch, *shape[1:]), dtype, views, threads, whole, grads, r.randint(0, 999))


_DTYPES = {
    "call": ("float32", "float32", "float64", "bfloat16", "float16"),
    "kernels": ("float32", "float32", "float64", "bfloat16"),
    "separable": ("float32", "float32", "float64", "bfloat16"),
    "deform": ("float32", "float64"),
    "layer": ("float32", "float64"),
    "mistake": ("float32", "float64"),
    "rule": ("float64",),
}


def spec_of(r: Random, dims: int | None = None, transposed: bool | None = None, plain: bool = False) -> ConvSpec:
    """Any convolution. plain: of zeros as padding."""
    dims = dims or r.choice((1, 2, 2, 2, 3))
    transposed = r.random() < 0.25 if transposed is None else transposed
    long = dims == 1 and not transposed and r.random() < 0.02
    kernel = tuple(r.randint(512, 600) if long else r.choice(KERNEL[dims]) for _ in range(dims))
    stride, dilation = (tuple(_mostly_one(r) for _ in range(dims)) for _ in range(2))
    # in 3D, beyond the kernel, PyTorch's own (oneDNN's) channels_last convolutions of groups end the process
    most = [min(6, d * (k - 1) + (dims < 3)) for k, d in zip(kernel, dilation, strict=True)]
    low = [r.randint(0, n) for n in most]
    high = low if r.random() < 0.7 else [r.randint(0, n) for n in most]
    groups, into, out = _channels(r, long)
    mode = "zeros" if transposed or plain or r.random() < 0.8 else r.choice(("reflect", "replicate", "circular"))
    extra = [r.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    return ConvSpec(
        in_channels=into, out_channels=out, kernel_size=kernel, stride=stride, dilation=dilation, groups=groups,
        padding=tuple(zip(low, high, strict=True)), bias=r.random() < 0.7, padding_mode=mode, transposed=transposed,
        output_padding=extra if transposed else 0,
    )  # fmt: skip


def _mostly_one(r: Random) -> int:
    return r.choice((1, 1, 1, 2, 2, 3))


def _channels(r: Random, few: bool) -> tuple[int, int, int]:
    """Groups, input and output channels: depthwise, of few channels a group, or one group."""
    first = r.choice(CHANNELS[:6] if few else CHANNELS)
    kind = r.choice(("depthwise", "groups", "one"))
    if kind == "depthwise":
        return first, first, first * r.choice((1, 1, 1, 2, 3))
    if kind == "groups":
        groups = r.choice((2, 3, 4))
        return groups, groups * r.choice(CHANNELS[:14]), groups * r.choice(CHANNELS[:14])
    return 1, first, r.choice(CHANNELS[:6] if few else CHANNELS)


def sized(r: Random, make: Callable[[Random], Block]) -> tuple[Block, tuple[int, ...]]:
    """A block and an input that it runs on, not too large for many to be tried."""
    while True:
        block = make(r)
        spec = next(convs(block))
        dims = spec.spatial_dims
        least = [_least(spec, axis) for axis in range(dims)]
        lengths = [r.randint(low, max(low, LONGEST[dims] // (3 if spec.transposed else 1))) for low in least]
        shape = (r.choice((1, 1, 2, 3)), spec.in_channels, *lengths)
        try:
            out = output_shape(block, shape)
        except ConvError:
            continue
        if min(out) > 0 and _work(block, shape) <= MOST_MACS and prod(out) <= 100_000:
            return block, shape


def _least(spec: ConvSpec, axis: int) -> int:
    """The shortest input along an axis."""
    (lo, hi), k, d = spec.padding[axis], spec.kernel_size[axis], spec.dilation[axis]
    if spec.transposed:
        return max(1, -(-(lo + hi - d * (k - 1) - spec.output_padding[axis]) // spec.stride[axis]) + 1)
    of_mode = {"zeros": 1, "replicate": 1, "reflect": max(lo, hi) + 1, "circular": max(lo, hi, 1)}
    return max(d * (k - 1) + 1 - lo - hi, of_mode[spec.padding_mode])


def _work(block: Block, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates, or about as many."""
    every = list(convs(block))
    if len(every) > 1:
        return sum(prod(s.weight_shape) for s in every) * prod(shape[2:]) * shape[0]
    (spec,) = every
    maps = shape if spec.transposed else output_shape(spec, shape)
    return prod(spec.weight_shape) * maps[0] * prod(maps[2:])


def _pair(r: Random) -> Chain:
    """A depthwise convolution and a pointwise one; the texts end in `relu` where one follows them."""
    first = spec_of(r, transposed=False, plain=True)
    channels, more = r.choice(CHANNELS), r.choice((1, 1, 1, 2))
    first = first.replace(in_channels=channels, out_channels=channels * more, groups=channels, bias=False)
    ones = (1,) * first.spatial_dims
    then = ConvSpec(in_channels=channels * more, out_channels=r.choice(CHANNELS), kernel_size=ones,
                    bias=r.random() < 0.7)  # fmt: skip
    return Chain(first, then)


def _deform(r: Random) -> Deform:
    spec = spec_of(r, transposed=False, plain=True)
    groups = r.choice([g for g in (1, 2, 3, 4, spec.in_channels) if spec.in_channels % g == 0])
    return Deform(spec, groups, r.random() < 0.5)


def _layer(r: Random) -> Block:
    """A chain of parts that fit each other; sums and concatenations among them."""
    dims = r.choice((1, 2, 2, 2, 3))
    first = spec_of(r, dims).replace(groups=1)
    parts, channels = [str(first)], first.out_channels
    for _ in range(r.randint(0, 3)):
        text, channels = _part(r, dims, channels)
        parts.append(text)
    return parse(" -> ".join(parts))


def _part(r: Random, dims: int, channels: int) -> tuple[str, int]:
    if r.random() < 0.3 and channels <= 24:
        pairs = [_same(r, dims, channels) for _ in range(r.choice((2, 2, 3)))]
        if r.random() < 0.5:
            return "(" + " | ".join(text for text, _ in pairs) + ")", sum(out for _, out in pairs)
        texts = [f"ic{channels}oc{channels}k{'x'.join('1' * dims)}", "identity", "relu"]
        return f"({r.choice(texts)} + {r.choice(texts)})", channels
    factors = [g for g in (1, 2, 3, 4) if channels % g == 0]
    smooth = ("silu", "gelu", "hardswish", "tanh", "relu6", "leaky_relu", "elu", "sigmoid", "hardsigmoid")
    mixed = (f"shuffle({r.choice(factors)})", f"permute({channels})", "relu", "bn", "identity",
             f"se({r.randint(1, 4)})", r.choice(smooth))  # fmt: skip
    if r.random() < 0.15 and channels % 2**dims == 0:
        return f"pixel_shuffle({'x'.join('2' * dims)})", channels // 2**dims
    return (r.choice(mixed), channels) if r.random() < 0.5 else _same(r, dims, channels)


def _same(r: Random, dims: int, channels: int) -> tuple[str, int]:
    """A convolution that leaves the map's sizes as they are."""
    kernel = r.choice((1, 3, 3, 5)) if dims < 3 else r.choice((1, 3))
    groups = r.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = groups * r.randint(1, max(1, 12 // groups))
    spec = ConvSpec(in_channels=channels, out_channels=out, kernel_size=(kernel,) * dims, padding=kernel // 2,
                    groups=groups, bias=r.random() < 0.6)  # fmt: skip
    return str(spec), out


def _for_rules(r: Random) -> tuple[Block, tuple[int, ...]]:
    """So small that a rule can try all that it offers."""
    while True:
        spec = spec_of(r)
        if r.random() < 0.7:  # numbers that rules divide
            into, out = r.choice((4, 6, 8, 12)), r.choice((4, 6, 8, 12))
            spec = spec.replace(in_channels=into, out_channels=out, groups=r.choice((1, 1, 2)))
        shape = (2, spec.in_channels, *RULED[: spec.spatial_dims])
        small = max(spec.in_channels, spec.out_channels) <= 18 and prod(spec.kernel_size) <= 30
        small = small and max(max(pair) for pair in spec.padding) <= 3  # a site for `trim` has more
        with suppress(ConvError):
            small = small and all(_least(spec, axis) <= 7 for axis in range(spec.spatial_dims))
            if small and prod(spec.weight_shape) <= 3000 and min(output_shape(spec, shape)) > 0:
                return spec, shape


BLOCKS: dict[str, Callable[[Random], tuple[Block, tuple[int, ...]]]] = {
    "call": lambda r: sized(r, lambda r: spec_of(r, plain=r.random() < 0.8)),
    "kernels": lambda r: sized(r, lambda r: spec_of(r, plain=True)),
    "separable": lambda r: sized(r, _pair),
    "deform": lambda r: sized(r, _deform),
    "layer": lambda r: sized(r, _layer),
    "mistake": lambda r: sized(r, lambda r: spec_of(r, plain=True)),
    "rule": _for_rules,
}
KINDS = tuple(BLOCKS)
OFTEN = ("call",) * 4 + ("kernels",) * 4 + ("separable", "deform", "layer", "mistake")

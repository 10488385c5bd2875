"""The law of a block in one line a part, its terms named, so that a page can point at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import assert_never

from reconv.drawing.figure import same, times
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

Terms = tuple[tuple[str, str], ...]  # (text, role): read, weight, made, stride, dilation, padding, sum, bias, moved


def formula(block: Block) -> list[Terms]:
    """A line for each part, in the order in which they run.

    Example:
             >>> spec = ConvSpec(in_channels=4, out_channels=8, kernel_size=(3, 3), stride=2, padding=1)
             >>> print(text(formula(spec)[0]))
             y[o, p] = b[o] + Σ over 4 channels c, 3×3 taps k of w[o, c, k] · x[c, 2·p + k − 1]
    """
    return list(_lines(block))


def text(terms: Terms) -> str:
    return "".join(part for part, _ in terms)


def _lines(block: Block) -> Iterator[Terms]:
    match block:
        case Chain():
            for part in block.blocks:
                yield from _lines(part)
        case Branches():
            for part in block.blocks:
                yield from _lines(part)
            sign = " + " if block.join == "sum" else " | "
            names = sign.join(f"y{i}" for i in range(1, len(block.blocks) + 1))
            yield (("y", "made"), (f" = {names}" if block.join == "sum" else f" = channels of {names}", ""))
        case ConvSpec():
            yield _transposed(block) if block.transposed else _conv(block)
        case Deform():
            yield _conv(block.conv, moved=True, weighed=block.modulated)
        case Shuffle():
            yield ((f"y[i·{block.groups} + j]", "made"), (" = ", ""), ("x[j·n + i]", "read"),
                   (f", {block.groups} groups j of n channels i", ""))  # fmt: skip
        case Permute():
            yield (("y[c, p]", "made"), (" = ", ""), ("x[order[c], p]", "read"))
        case PixelShuffle():
            yield (("y[c, s·p + r]", "made"), (" = ", ""), ("x[(c, r), p]", "read"),
                   (f", r below s = {same(block.factors)}", "stride"))  # fmt: skip
        case Gate():
            yield (("y[c, p]", "made"), (" = ", ""), ("x[c, p]", "read"), (" · ", ""),
                   ("sigmoid(W₂ · relu(W₁ · mean(x)))[c]", "weight"),
                   (f", W₁ to 1/{block.reduction} of the channels" if block.reduction > 1 else "", ""))  # fmt: skip
        case BatchNorm():
            yield (("y[c, p]", "made"), (" = ", ""), ("γ[c]", "weight"), (" · (", ""), ("x[c, p]", "read"),
                   (" − mean[c]) / √(var[c] + 1e-5) + ", ""), ("β[c]", "bias"))  # fmt: skip
        case Activation():
            yield (("y", "made"), (f" = {block.name}(", ""), ("x", "read"), (")", ""))
        case _:
            assert_never(block)


def _conv(spec: ConvSpec, moved: bool = False, weighed: bool = False) -> Terms:
    one = spec.in_channels == spec.groups  # a single channel in a group
    made, c = ("c", "c") if spec.depthwise and spec.out_channels == spec.in_channels else ("o", "c")
    bias = ((f"b[{made}]", "bias"), (" + ", "")) if spec.bias else ()
    k = "" if spec.pointwise else ", k"
    weight = f"w[{made}{k}]" if one else f"w[{made}, {c}{k}]"
    read_channel = "0" if spec.in_channels == 1 else c if made == c or not one else "group of o"
    place = [*_place(spec), *([(" + Δ[k, p]", "moved")] if moved else [])]
    mask = ((" · ", ""), ("m[k, p]", "moved")) if weighed else ()
    return ((f"y[{made}, p]", "made"), (" = ", ""), *bias, *_sum(spec), (weight, "weight"), *mask,
            (" · ", ""), (f"x[{read_channel}, ", "read"), *place, ("]", "read"))  # fmt: skip


def _place(spec: ConvSpec) -> list[tuple[str, str]]:
    """s·p + d·k − lo, without what does nothing."""
    stride, dilation = same(spec.stride), same(spec.dilation)
    out = [(f"{_factor(stride)}·", "stride")] if stride != "1" else []
    out.append(("p", "read"))
    if not spec.pointwise:
        out += [(" + ", "read"), *([(f"{_factor(dilation)}·", "dilation")] if dilation != "1" else []), ("k", "read")]
    lows = [lo for lo, _ in spec.padding]
    if any(lows):
        out.append((f" − {_factor(same(lows))}", "padding"))
    return out


def _factor(number: str) -> str:
    return f"({number.replace('×', ', ')})" if "×" in number else number


def _sum(spec: ConvSpec) -> Sequence[tuple[str, str]]:
    over = []
    each = spec.in_channels // spec.groups
    if each > 1:
        which = " of o's group" if spec.groups > 1 else ""
        over.append(f"{each} channels c{which}")
    if prod(spec.kernel_size) > 1:
        over.append(f"{times(spec.kernel_size)} taps k")
    return ((f"Σ over {', '.join(over)} of ", "sum"),) if over else ()


def _transposed(spec: ConvSpec) -> Terms:
    bias = ((" + ", ""), ("b[o]", "bias")) if spec.bias else ()
    lows = [lo for lo, _ in spec.padding]
    place = [(f"{_factor(same(spec.stride))}·", "stride"), ("p", "read"), (" + ", "")]
    if set(spec.dilation) != {1}:
        place.append((f"{_factor(same(spec.dilation))}·", "dilation"))
    place.append(("k", "weight"))
    if any(lows):
        place.append((f" − {_factor(same(lows))}", "padding"))
    each = spec.in_channels // spec.groups
    which = f"{each} channels c, " if each > 1 else ""
    return (("y[o, q]", "made"), (" = ", ""), (f"Σ over {which}all p and k with ", "sum"), *place,
            (" = q of ", "sum"), ("w[c, o, k]", "weight"), (" · ", ""), ("x[c, p]", "read"), *bias)  # fmt: skip

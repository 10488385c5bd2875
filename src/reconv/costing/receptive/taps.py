"""Which positions along one axis an operator reads: one periodic table for every kind of window."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor


class LostError(Exception):
    """The way of the samples cannot be followed any further; whatever depends on it is unknown."""


@dataclass(frozen=True)
class Taps:
    """Output `r + len(rows)·k` reads the inputs `rows[r] + advance·k`; an empty row reads nothing.

    Example:
             >>> window(3, stride=2, padding=1)
             Taps(rows=((-1, 0, 1),), advance=2)
    """

    rows: tuple[tuple[int, ...], ...]
    advance: int


def window(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Taps:
    """A convolution or a pooling: x[stride·i - padding + dilation·t]."""
    return Taps((tuple(dilation * t - padding for t in range(kernel)),), stride)


def transposed(kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """A transposed convolution: output i reads (i + padding - dilation·t) / stride where that is whole."""
    reached = [[i + padding - dilation * t for t in range(kernel)] for i in range(stride)]
    return Taps(tuple(tuple(at // stride for at in row if at % stride == 0) for row in reached), 1)


def shift(start: int, step: int = 1) -> Taps:
    """A slice, or with start < 0 a padding: x[start + step·i]."""
    return Taps(((start,),), step)


def mirror(size: int) -> Taps:
    """x[size - 1 - i]."""
    return Taps(((size - 1,),), -1)


def repeat(times: int) -> Taps:
    """Each input `times` times in a row: x[i // times]."""
    return Taps(((0,),) * times, 1)


def cycle(size: int) -> Taps:
    """The first `size` inputs over and over: x[i % size]."""
    return Taps(tuple((i,) for i in range(size)), 0)


def adaptive(size: int, out_size: int) -> Taps:
    """Adaptive pooling: output i reads ⌊i·size/out_size⌋ … ⌈(i+1)·size/out_size⌉ - 1."""
    ratio = Fraction(size, out_size)
    ends = ((floor(i * ratio), ceil((i + 1) * ratio)) for i in range(ratio.denominator))
    return Taps(tuple(tuple(range(*end)) for end in ends), ratio.numerator)


def interpolation(mode: str, ratio: Fraction, align_corners: bool) -> Taps:
    """Upsampling and downsampling; `ratio` is the step in the input from one output to the next."""
    half = Fraction(0) if align_corners else Fraction(1, 2)
    places = [(i + half) * ratio - half for i in range(ratio.denominator)]
    if mode == "nearest":
        places = [i * ratio for i in range(ratio.denominator)]
    elif mode == "nearest_exact":
        places = [(i + half) * ratio for i in range(ratio.denominator)]
    return Taps(tuple(_READS[mode](place) for place in places), ratio.numerator)


def _nearest(place: Fraction) -> tuple[int, ...]:
    return (floor(place),)


def _linear(place: Fraction) -> tuple[int, ...]:
    return (floor(place), ceil(place))


def _cubic(place: Fraction) -> tuple[int, ...]:
    at = floor(place)
    return (at,) if place == at else (at - 1, at, at + 1, at + 2)


_READS: dict[str, Callable[[Fraction], tuple[int, ...]]] = {
    "nearest": _nearest,
    "nearest_exact": _nearest,
    "linear": _linear,
    "cubic": _cubic,
}

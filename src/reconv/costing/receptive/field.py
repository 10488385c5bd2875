"""The receptive field of every element of a tensor, symbolically: how its axes place it in the input."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from math import gcd, prod

import numpy as np

from reconv.costing.receptive.layout import Axis, Factor, Label, cut, joined, labelled, plain
from reconv.costing.receptive.span import IDENTITY, Ints, Span
from reconv.costing.receptive.taps import LostError, Taps, repeat, shift

Spans = Mapping[Label, Span | None]


@dataclass(frozen=True)
class Field:
    """What each element of a tensor sees of the inputs.

    The element at an index has, for each label, the position Σ stride·index over the factors with that label, and
    sees `spans[label]` at that position; a span of None is unknown. Convolutions slid along the labels `slid`.
    """

    axes: tuple[Axis, ...]
    spans: Spans
    slid: frozenset[Label] = frozenset()

    @classmethod
    def of_input(cls, shape: Sequence[int]) -> "Field":
        """Every element sees itself."""
        labels = [Label(len(shape), axis, size) for axis, size in enumerate(shape)]
        return cls(tuple((Factor(label.size, label),) for label in labels), dict.fromkeys(labels, IDENTITY))

    @classmethod
    def of_constant(cls, shape: Sequence[int]) -> "Field":
        """No element sees anything of the input."""
        return cls(tuple(map(plain, shape)), {})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(factor.size for factor in axis) for axis in self.axes)

    def factors(self, label: Label) -> list[Factor]:
        return [factor for factor in chain(*self.axes) if factor.label == label]

    def size(self, label: Label) -> int | None:
        """Input samples along `label` in the largest receptive field of any element; None where unknown."""
        span = self.spans[label]
        return span.size(_positions(self.factors(label))) if span else None

    def with_axes(self, axes: Iterable[Axis], spans: Spans | None = None) -> "Field":
        """With these axes, and these spans in place of its own, in normal form: strides of a label have no common
        divisor, a label of which no factor is left is the same everywhere, and factors are as large as can be.
        """
        field = replace(self, axes=tuple(axes), spans=self.spans if spans is None else {**self.spans, **spans})
        scale, kept = {}, {}
        for label, span in field.spans.items():
            factors = field.factors(label)
            scale[label] = gcd(*(factor.stride for factor in factors if factor.size > 1)) or 1
            if span and not factors:
                span = span.constant()
            elif span and scale[label] > 1:
                span = span.through(shift(0, scale[label]))
            kept[label] = span
        return replace(field, axes=tuple(map(joined, _tidy(field.axes, scale))), spans=kept)

    # nothing but the layout changes

    def permute(self, order: Sequence[int]) -> "Field":
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def insert(self, axis: int) -> "Field":
        """With a new axis of size 1."""
        at = axis % (len(self.axes) + 1)
        return replace(self, axes=(*self.axes[:at], (), *self.axes[at:]))

    def drop(self, axes: Collection[int]) -> "Field":
        """Without these axes, all of size 1."""
        gone = {axis % len(self.axes) for axis in axes}
        return self.with_axes(axis for i, axis in enumerate(self.axes) if i not in gone)

    def view(self, shape: Sequence[int]) -> "Field":
        """The same elements, in row-major order, in another shape. Axes that fit from either end stay as they are."""
        old = self.shape
        if 0 in old:
            raise LostError("an empty tensor")
        most = min(len(old), len(shape))
        end = next((i for i in range(most) if old[-1 - i] != shape[-1 - i]), most)
        start = next((i for i in range(most - end) if old[i] != shape[i]), most - end)
        middle = cut(chain(*self.axes[start : len(old) - end]), shape[start : len(shape) - end])
        return self.with_axes([*self.axes[:start], *middle, *self.axes[len(old) - end :]])

    def expand(self, shape: Sequence[int]) -> "Field":
        """Broadcast to `shape`; along an axis that is stretched all elements are alike."""
        if tuple(shape) == self.shape:
            return self
        field = replace(self, axes=((),) * (len(shape) - len(self.axes)) + self.axes)
        stretched = {i for i, (old, new) in enumerate(zip(field.shape, shape, strict=True)) if old != new}
        if any(field.shape[i] != 1 for i in stretched):
            raise LostError("operands that do not broadcast")
        field = field.reduce(stretched)
        return field.with_axes(plain(shape[i]) if i in stretched else axis for i, axis in enumerate(field.axes))

    # what an element sees changes

    def reduce(self, axes: Iterable[int]) -> "Field":
        """Each element becomes the hull over these axes, which stay with size 1."""
        gone = {axis % len(self.axes) for axis in axes}
        spans = dict(self.spans)
        for factor in chain(*(self.axes[i] for i in gone)):
            if factor.label in spans and (span := spans[factor.label]):
                # the extremes lie in the first or the last period
                n, period = factor.size, span.period
                places = chain(range(min(n, period)), range(max(period, n - period), n))
                spans[factor.label] = span.through(Taps((tuple(factor.stride * i for i in places),), 1))
        return self.with_axes((() if i in gone else axis for i, axis in enumerate(self.axes)), spans)

    def through(self, axis: int, taps: Taps, size: int, convolution: bool = False) -> "Field":
        """After an operator that reads along one axis as `taps` says and leaves `size` positions."""
        factors = self.axes[axis]
        if not labelled(factors):
            return self._with_axis(axis, plain(size))
        label, times = self._only_label(axis)
        span = self.spans[label]
        span = span and span.through(repeat(times)).through(taps)
        slid = self.slid | {label} if convolution else self.slid
        return replace(self, slid=slid)._with_axis(axis, (Factor(size, label),), {label: span})

    def slice(self, axis: int, start: int, step: int, size: int) -> "Field":
        """x[start + step·i] for i < size."""
        axis %= len(self.axes)
        factors = self.axes[axis]
        if start == 0 and size == self.shape[axis]:
            return self
        if len(factors) != 1 or not labelled(factors):
            return self.through(axis, shift(start, step), size)
        label, stride, span = self._moving(factors)
        kept = Factor(size, label, stride * step)
        return self._with_axis(axis, (kept,), {label: span and span.through(shift(stride * start))})

    def unfold(self, axis: int, kernel: int, stride: int, dilation: int = 1) -> "Field":
        """Windows along one axis; the place within the window becomes the last axis."""
        axis %= len(self.axes)
        factors, size = self.axes[axis], (self.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1
        field = self.insert(len(self.axes))
        if not labelled(factors):
            return field._with_axis(axis, plain(size))._with_axis(-1, plain(kernel))
        label, step, _ = self._moving(factors)
        axes = [*field.axes[:-1], (Factor(kernel, label, step * dilation),)]
        axes[axis] = (Factor(size, label, step * stride),)
        return self.with_axes(axes)

    def blur(self, axis: int, size: int) -> "Field":
        """After an operator that may have moved anything along this axis: unknown, should it ever be asked for."""
        labels = list(dict.fromkeys(factor.label for factor in self.axes[axis] if factor.label is not None))
        if not labels:
            return self._with_axis(axis, plain(size))
        kept = tuple(Factor(1 if i else size, label) for i, label in enumerate(labels))
        return self._with_axis(axis, kept, {label: None for label in labels if label in self.spans})

    # inner

    def _with_axis(self, axis: int, factors: Axis, spans: Spans | None = None) -> "Field":
        at = axis % len(self.axes)
        return self.with_axes([factors if i == at else old for i, old in enumerate(self.axes)], spans)

    def _only_label(self, axis: int) -> tuple[Label, int]:
        """The label that this axis alone follows, and how many equal elements in a row each position has."""
        factors = self.axes[axis]
        if any(factor.size > 1 and factor.label for factor in factors):  # a batch of one may be merged with it
            factors = tuple(f for f in factors if f.size > 1 or f.label in self.slid)
        match factors:
            case (Factor(label=Label() as label),):
                times = 1
            case (Factor(label=Label() as label), Factor(size=times, label=None)):
                pass
            case _:
                raise LostError("a window along an axis that is merged from several")
        if label not in self.spans or len(self.factors(label)) > 1:
            raise LostError("a window along an axis that holds a part of the positions")
        return label, times

    def _moving(self, factors: Axis) -> tuple[Label, int, Span | None]:
        match factors:
            case (Factor(label=Label() as label, stride=stride),) if label in self.spans:
                return label, stride, self.spans[label]
        raise LostError("a slice of an axis that is merged from several")


def _tidy(axes: Iterable[Axis], scale: Mapping[Label, int]) -> Iterable[Axis]:
    """Strides scaled down; of factors of size 1 only the first of a label that has no larger one."""
    axes = list(axes)
    seen = {factor.label for factor in chain(*axes) if factor.size > 1}
    for axis in axes:
        kept = []
        for factor in axis:
            if factor.label is None or factor.size > 1:
                kept.append(replace(factor, stride=factor.stride // scale.get(factor.label, 1) if factor.label else 1))
            elif factor.label not in seen:
                seen.add(factor.label)
                kept.append(replace(factor, stride=1))
        yield tuple(kept)


def _positions(factors: Iterable[Factor]) -> Ints:
    strided = (np.arange(factor.size) * factor.stride for factor in factors)
    return reduce(lambda total, part: np.add.outer(total, part).ravel(), strided, np.zeros(1, np.int64))

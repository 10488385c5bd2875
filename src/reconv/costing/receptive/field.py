"""The receptive field of every element of a tensor, symbolically: how its axes place it in the input."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from math import gcd, prod

import numpy as np

from reconv.costing.receptive.kinds import Kinds, hull, labels_of, update
from reconv.costing.receptive.layout import (
    KIND,
    MIXED,
    UNPLACED,
    Axis,
    Factor,
    Label,
    cut,
    joined,
    labelled,
    labels_on,
    plain,
)
from reconv.costing.receptive.span import EMPTY, IDENTITY, Ints, Span
from reconv.costing.receptive.taps import LostError, Taps, repeat, shift


@dataclass(frozen=True)
class Field:
    """What each element of a tensor sees of the inputs.

    The element at an index has, for each label, the position Σ stride·index over the factors with that label. It sees,
    along each label of `kinds[its position along KIND]`, what the span there says at its position along that label; a
    span of None is unknown. Convolutions slid along the labels `slid`.
    """

    axes: tuple[Axis, ...]
    kinds: Kinds = ({},)
    slid: frozenset[Label] = frozenset()

    @classmethod
    def of_input(cls, shape: Sequence[int]) -> "Field":
        """Every element sees itself."""
        labels = [Label(len(shape), axis, size) for axis, size in enumerate(shape)]
        return cls(tuple((Factor(label.size, label),) for label in labels), (dict.fromkeys(labels, IDENTITY),))

    @classmethod
    def of_constant(cls, shape: Sequence[int]) -> "Field":
        """No element sees anything of the input."""
        return cls(tuple(map(plain, shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(factor.size for factor in axis) for axis in self.axes)

    @property
    def tracked(self) -> bool:
        """Whether any element sees anything."""
        return any(self.kinds)

    def factors(self, label: Label) -> list[Factor]:
        return [factor for factor in chain(*self.axes) if factor.label == label]

    def size(self, label: Label) -> int | None:
        """Input samples along `label` in the largest receptive field of any element; None where unknown."""
        if self.factors(MIXED):
            return None
        places, largest = positions(self.factors(label)), 0
        for spans in {id(spans): spans for spans in self.kinds}.values():
            span = spans.get(label, EMPTY)
            if span is None:
                return None
            largest = max(largest, span.size(places))
        return largest or None

    def at_middle(self, label: Label) -> tuple[int, int] | None:
        """The first input sample along `label` that the middle of all axes sees, in any kind, and the one behind the
        last; None where unknown.
        """
        if self.factors(MIXED):
            return None
        position = _middle(self.axes, label)
        ends: list[tuple[float, float]] = []
        for spans in self.kinds:
            span = spans.get(label, EMPTY)
            if span is None:
                return None
            ends.append(span.at(position))
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return (int(low), int(high) + 1) if low <= high else None

    def with_axes(self, axes: Iterable[Axis], kinds: Kinds | None = None) -> "Field":
        """With these axes and kinds, in normal form: strides of a label have no common divisor, a label of which no
        factor is left has one position, kinds differ, and factors are as large as can be.
        """
        field = replace(self, axes=tuple(axes), kinds=self.kinds if kinds is None else kinds)
        field = field._with_few_kinds()
        kinds, scale = field.kinds, {}
        for label in labels_of(kinds):
            factors = field.factors(label)
            scale[label] = gcd(*(factor.stride for factor in factors if factor.size > 1)) or 1
            if not factors:
                kinds = update(kinds, label, Span.constant)
            elif scale[label] > 1:
                kinds = _through(kinds, label, shift(0, scale[label]))
        return replace(field, axes=tuple(map(joined, _tidy(field.axes, scale))), kinds=kinds)

    def with_axis(self, axis: int, factors: Axis, kinds: Kinds | None = None) -> "Field":
        """With other factors along one axis."""
        at = axis % len(self.axes)
        return self.with_axes([factors if i == at else old for i, old in enumerate(self.axes)], kinds)

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
        if 0 in old or prod(old) != prod(shape):
            raise LostError("an empty tensor, or a view of another size")
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
        kinds = self.kinds
        for factor in chain(*(self.axes[i] for i in gone)):
            if factor.label is KIND:
                places = range(0, factor.size * factor.stride, factor.stride)
                kinds = tuple(hull(kinds[i + j] for j in places) for i in range(len(kinds) - places[-1]))
            elif factor.label is not None:
                kinds = update(kinds, factor.label, _over(factor))
        return self.with_axes((() if i in gone else axis for i, axis in enumerate(self.axes)), kinds)

    def through(self, axis: int, taps: Taps, size: int, convolution: bool = False) -> "Field":
        """After an operator that reads along one axis as `taps` says and leaves `size` positions."""
        factors = self.axes[axis]
        if not labelled(factors):
            return self.with_axis(axis, plain(size))
        if taps == shift(0) and size == self.shape[axis]:
            moved = labels_on(tuple(factor for factor in factors if factor.size > 1 or len(factors) == 1))
            return replace(self, slid=self.slid.union(moved)) if convolution else self
        label, times = self._only_label(axis)
        kinds = _through(_through(self.kinds, label, repeat(times)), label, taps)
        slid = self.slid | {label} if convolution else self.slid
        return replace(self, slid=slid).with_axis(axis, (Factor(size, label),), kinds)

    def slice(self, axis: int, start: int, step: int, size: int) -> "Field":
        """x[start + step·i] for i < size; outside of x lies more of the same."""
        axis %= len(self.axes)
        factors = self.axes[axis]
        if start == 0 and size == self.shape[axis]:
            return self
        if size == 0:
            raise LostError("an empty tensor")
        if not labelled(factors):
            return self.with_axis(axis, plain(size))
        inner = prod(factor.size for factor in factors[1:])
        if step == 1 and start % inner == size % inner == 0:  # whole places of the first factor
            return self._slice_first(axis, start // inner, 1, size // inner)
        if len(factors) == 1:
            return self._slice_first(axis, start, step, size)
        if factors[0].label is KIND and not labelled(factors[1:]):
            return self._apart(axis)._slice_first(axis, start, step, size)
        return self.through(axis, shift(start, step), size)

    def _slice_first(self, axis: int, start: int, step: int, size: int) -> "Field":
        """A slice of the places of the first factor of an axis."""
        (first, *rest), kinds = self.axes[axis], self.kinds
        if first.label in UNPLACED:
            raise LostError("some of the places that are not told apart")
        if first.label is KIND:
            if start < 0 or start + step * (size - 1) >= first.size:
                raise LostError("more places of unknown kind")
            kinds = kinds[start * first.stride :]
        elif first.label is not None:
            kinds = _through(kinds, first.label, shift(first.stride * start))
        kept = replace(first, size=size, stride=first.stride * step)
        return self.with_axis(axis, (kept, *rest) if first.label else (*plain(size), *rest), kinds)

    def _apart(self, axis: int) -> "Field":
        """With a position along KIND of its own for each place on an axis of [kinds, alike], not in normal form."""
        first, *rest = self.axes[axis]
        if len(self.factors(KIND)) > 1:
            raise LostError("kinds along several axes")
        times = prod(factor.size for factor in rest)
        kinds = tuple(spans for spans in self.kinds for _ in range(times))
        axes = [(Factor(first.size * times, KIND),) if i == axis else old for i, old in enumerate(self.axes)]
        return replace(self, axes=tuple(axes), kinds=kinds)

    def unfold(self, axis: int, kernel: int, stride: int, dilation: int = 1) -> "Field":
        """Windows along one axis; the place within the window becomes the last axis."""
        axis %= len(self.axes)
        factors, size = self.axes[axis], (self.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1
        field = self.insert(len(self.axes))
        if not labelled(factors):
            return field.with_axis(axis, plain(size)).with_axis(-1, plain(kernel))
        if len(factors) > 1 or factors[0].label in UNPLACED:
            raise LostError("windows along an axis that is merged from several")
        axes = [*field.axes[:-1], (replace(factors[0], size=kernel, stride=factors[0].stride * dilation),)]
        axes[axis] = (replace(factors[0], size=size, stride=factors[0].stride * stride),)
        return self.with_axes(axes)

    def blur(self, axis: int, size: int) -> "Field":
        """After an operator that may have moved anything along this axis: unknown, should it ever be asked for."""
        if not labelled(self.axes[axis]):
            return self.with_axis(axis, plain(size))
        labels = labels_on(self.axes[axis])
        if any(factor.label in (KIND, *UNPLACED) for factor in self.axes[axis]):
            raise LostError("places that are moved and see different things")
        kept = tuple(Factor(1 if i else size, label) for i, label in enumerate(labels))
        kinds = self.kinds
        for label in labels:
            kinds = update(kinds, label, lambda span: None)
        return self.with_axis(axis, kept, kinds)

    def without_kinds(self) -> "Field":
        """With all kinds taken together, and their places not told apart."""
        axes = [tuple(replace(f, label=MIXED) if f.label is KIND else f for f in axis) for axis in self.axes]
        return replace(self, axes=tuple(axes), kinds=(hull(self.kinds),))

    # inner

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
        if label in (KIND, *UNPLACED) or len(self.factors(label)) > 1:
            raise LostError("a window along an axis that holds a part of the positions")
        return label, times

    def _with_few_kinds(self) -> "Field":
        """With as few kinds as there must be."""
        factors, kinds = self.factors(KIND), self.kinds
        step = gcd(*(factor.stride for factor in factors if factor.size > 1)) or 1
        kinds = kinds[: reach(factors) + 1 : step]
        axes = _tidy(self.axes, {KIND: step}) if step > 1 else self.axes
        if factors and all(spans is kinds[0] or spans == kinds[0] for spans in kinds):
            axes, kinds = (tuple(Factor(f.size) if f.label is KIND else f for f in axis) for axis in axes), kinds[:1]
        return replace(self, axes=tuple(axes), kinds=kinds)


def _through(kinds: Kinds, label: Label, taps: Taps) -> Kinds:
    return update(kinds, label, lambda span: span.through(taps))


def _over(factor: Factor) -> Callable[[Span], Span]:
    """The hull over all places of a factor. The extremes lie in the first or the last period of the span."""

    def change(span: Span) -> Span:
        n, period = factor.size, span.period
        places = chain(range(min(n, period)), range(max(period, n - period), n))
        return span.through(Taps((tuple(factor.stride * i for i in places),), 1))

    return change


def _tidy(axes: Iterable[Axis], scale: Mapping[Label, int]) -> Iterable[Axis]:
    """Strides scaled down; of factors of size 1 only the first of a label that has no larger one."""
    axes = list(axes)
    seen = {factor.label for factor in chain(*axes) if factor.size > 1}
    for axis in axes:
        kept = []
        for factor in axis:
            if factor.label is None or factor.size > 1:
                kept.append(replace(factor, stride=factor.stride // scale.get(factor.label, 1) if factor.label else 1))
            elif factor.label not in seen and factor.label not in (KIND, *UNPLACED):
                seen.add(factor.label)
                kept.append(replace(factor, stride=1))
        yield tuple(kept)


def positions(factors: Iterable[Factor]) -> Ints:
    strided = (np.arange(factor.size) * factor.stride for factor in factors)
    return reduce(lambda total, part: np.add.outer(total, part).ravel(), strided, np.zeros(1, np.int64))


def _middle(axes: Iterable[Axis], label: Label) -> int:
    """The position along `label` of the element in the middle of each axis."""
    position = 0
    for axis in axes:
        index = prod(factor.size for factor in axis) // 2
        for factor in reversed(axis):
            index, place = divmod(index, factor.size)
            position += place * factor.stride if factor.label == label else 0
    return position


def reach(factors: Iterable[Factor]) -> int:
    """The largest position that the factors can make."""
    return sum(factor.stride * (factor.size - 1) for factor in factors)

"""Axes of a tensor as products of factors, so that a view can merge them and a later view split them again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from reconv.costing.receptive.taps import LostError


class Label(NamedTuple):
    """An axis of an input. Inputs of one rank share an axis where its size is the same."""

    rank: int
    axis: int
    size: int


KIND = Label(-1, -1, 0)  # places that see different things for another reason than their position in the input
PAIRED = Label(-1, -1, 1)  # the second place of a pair of places, as in attention scores: some pair sees all of it
MIXED = Label(-1, -1, 2)  # places that see different things and are not told apart: together they see what is said
UNPLACED = (PAIRED, MIXED)


@dataclass(frozen=True)
class Factor:
    """`size` places along an axis, `stride` positions of `label` apart; without a label they are all alike."""

    size: int
    label: Label | None = None
    stride: int = 1

    def split(self, outer: int) -> tuple["Factor", "Factor"]:
        """Into `outer` places and those within each."""
        inner = self.size // outer
        return replace(self, size=outer, stride=self.stride * inner), replace(self, size=inner)


Axis = tuple[Factor, ...]  # row-major: the last factor runs fastest


def plain(size: int) -> Axis:
    return () if size == 1 else (Factor(size),)


def labelled(axis: Axis) -> bool:
    return any(factor.label is not None for factor in axis)


def labels_on(axis: Axis) -> list[Label]:
    """The axes of an input that a position along this one decides on."""
    labels = dict.fromkeys(factor.label for factor in axis)
    return [label for label in labels if label not in (None, KIND, *UNPLACED)]


def joined(factors: Iterable[Factor]) -> Axis:
    """Neighbours that run on into each other become one factor."""
    axis: list[Factor] = []
    for factor in factors:
        last = axis[-1] if axis else None
        if last and last.label == factor.label and (factor.label is None or last.stride == factor.size * factor.stride):
            axis[-1] = replace(factor, size=last.size * factor.size)
        elif factor.label is not None or factor.size > 1:
            axis.append(factor)
    return tuple(axis)


def cut(factors: Iterable[Factor], sizes: Sequence[int]) -> list[Axis]:
    """The row-major factors dealt out to new axes of these sizes."""
    todo = list(reversed(joined(factors)))
    axes: list[list[Factor]] = []
    for size in sizes:
        axis: list[Factor] = []
        if size == 1 and todo and todo[-1].size == 1:
            axis.append(todo.pop())
        while size > 1:
            factor = todo.pop()
            if factor.size > size:
                factor, rest = _split(factor, size)
                todo.append(rest)
            elif size % factor.size:
                raise LostError("a view that cuts across the axes")
            axis.append(factor)
            size //= factor.size
        axes.append(axis)
    if axes:
        axes[-1].extend(reversed(todo))  # factors of size 1; without any axis to stay on they go
    return [joined(axis) for axis in axes]


def refine(axes: Sequence[Axis]) -> list[list[Factor]]:
    """Axes of one size, cut at the same places: for each axis its factors, as many as every other's."""
    rest = [list(reversed(axis)) for axis in axes]
    cuts: list[list[Factor]] = [[] for _ in axes]
    while any(rest):
        heads = [todo[-1].size if todo else 1 for todo in rest]
        size = min(heads)
        for todo, head, done in zip(rest, heads, cuts, strict=True):
            if head == size:
                done.append(todo.pop() if todo else Factor(1))
            elif size == 1:
                done.append(Factor(1))
            else:
                outer, inner = _split(todo.pop(), size)
                done.append(outer)
                todo.append(inner)
    return cuts


def _split(factor: Factor, outer: int) -> tuple[Factor, Factor]:
    if factor.size % outer:
        raise LostError("axes that are cut at different places")
    return factor.split(outer)

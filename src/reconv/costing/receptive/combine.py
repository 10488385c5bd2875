"""Several fields into one: what the elements of an elementwise result see."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import gcd

from reconv.costing.receptive.field import Field
from reconv.costing.receptive.layout import OTHER, Factor, Label, refine
from reconv.costing.receptive.span import Span
from reconv.costing.receptive.span import hull as hull_of_spans
from reconv.costing.receptive.taps import LostError, cycle, repeat

Place = tuple[int, int]  # an axis, and a factor in it


def hull(fields: Sequence[Field]) -> Field:
    """Broadcast, then each element sees what any operand's element sees."""
    if len(fields) == 1:
        return fields[0]
    rank = max(len(field.axes) for field in fields)
    shapes = [(1,) * (rank - len(field.axes)) + field.shape for field in fields]
    shape = [next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True)]
    parts = [field.expand(shape) for field in fields]
    labels = list(dict.fromkeys(chain(*(part.spans for part in parts))))
    slid = frozenset().union(*(part.slid for part in parts))
    if all(part.axes == parts[0].axes for part in parts):
        spans = {label: hull_of_spans(part.spans[label] for part in parts if label in part.spans) for label in labels}
        return replace(parts[0], spans=spans, slid=slid)
    parts = _refined(_paired(parts))
    strides: dict[Label, dict[Place, int]] = {OTHER: {}}
    spans = {}
    for label in labels:
        holders = [part for part in parts if label in part.spans]
        owner = max(holders, key=lambda part: len(_places(part, label)))
        strides[label] = {place: factor.stride for place, factor in _places(owner, label).items()}
        spans[label] = hull_of_spans(_aligned(part, owner, label) for part in holders)
    axes = [
        tuple(_shared(factors, (i, j), strides) for j, factors in enumerate(zip(*column, strict=True)))
        for i, column in enumerate(zip(*(part.axes for part in parts), strict=True))
    ]
    return replace(parts[0], slid=slid).with_axes(axes, spans)


def mix(field: Field, axes: Iterable[int]) -> Field:
    """Each element also sees what all others along these axes see, as in a softmax or a norm over them."""
    return hull([field, field.reduce(axes)])


def matmul(left: Field, right: Field) -> Field:
    """(…, m, k) @ (…, k, n)."""
    return hull([left.reduce([-1]), right.reduce([-2])])


def everywhere(field: Field) -> Field:
    """A weight, as seen from every output: what its elements see must not depend on the element."""
    moving = {factor.label: None for axis in field.axes for factor in axis if factor.label and factor.size > 1}
    field = field.reduce(range(len(field.axes)))
    return field.with_axes(field.axes, {label: None for label in moving if label in field.spans})


def _places(field: Field, label: Label) -> dict[Place, Factor]:
    return {(i, j): f for i, axis in enumerate(field.axes) for j, f in enumerate(axis) if f.label == label}


def _refined(fields: Sequence[Field]) -> list[Field]:
    """The fields, all of one shape, with the factors of each axis cut at the same places."""
    columns = [refine(axes) for axes in zip(*(field.axes for field in fields), strict=True)]
    return [replace(f, axes=tuple(tuple(column[i]) for column in columns)) for i, f in enumerate(fields)]


def _paired(fields: Sequence[Field]) -> list[Field]:
    """Where two operands hold positions of one label on different axes, each element belongs to a pair of positions.

    The first operand keeps its place; of the second every position is taken, since some pair has it.
    """
    paired: list[Field] = []
    for field in fields:
        for other in paired:
            for label in field.spans:
                mine, theirs = ({axis for axis, _ in _places(each, label)} for each in (field, other))
                if mine - theirs and theirs - mine:
                    field = _all_places(field, mine - theirs)
        paired.append(field)
    return paired


def _all_places(field: Field, axes: set[int]) -> Field:
    """Every element sees what all along these axes see; their factors stay, without a place of their own."""
    renamed = {i: tuple(replace(factor, label=OTHER) for factor in field.axes[i]) for i in axes}
    return field.reduce(axes).with_axes(renamed.get(i, axis) for i, axis in enumerate(field.reduce(axes).axes))


def _aligned(part: Field, owner: Field, label: Label) -> Span | None:
    """The span of `part` over the positions of `owner`, which may tell more of them apart."""
    span, mine, own = part.spans[label], _places(part, label), _places(owner, label)
    if span is None or not mine or mine == own:
        return span
    if not mine.keys() <= own.keys():
        raise LostError("positions of one input axis on different axes")
    shared = [(own[place].stride, factor.stride) for place, factor in mine.items() if factor.size > 1]
    rest = [factor for place, factor in own.items() if place not in mine]
    coarse = shared[0][0] // shared[0][1] if shared else 0
    if all(fine == coarse * mine for fine, mine in shared) and _reach(rest) < coarse:
        return span.through(repeat(coarse))
    turn = gcd(*(factor.stride for factor in rest))
    if all(fine == mine for fine, mine in shared) and _reach(mine.values()) < turn:
        return span.through(cycle(turn))
    raise LostError("positions of one input axis in different orders")


def _reach(factors: Iterable[Factor]) -> int:
    """The largest position that the factors can make."""
    return sum(factor.stride * (factor.size - 1) for factor in factors)


def _shared(factors: Sequence[Factor], place: Place, strides: dict[Label, dict[Place, int]]) -> Factor:
    """What the operands' factors at one place have in common: one label, or none."""
    labels = {factor.label for factor in factors if factor.label is not None}
    if not labels:
        return Factor(factors[0].size)
    label = labels.pop()
    if labels or (label is not OTHER and place not in strides[label]):
        raise LostError("positions of two input axes along one axis")
    return Factor(factors[0].size, label, strides[label].get(place, 1))

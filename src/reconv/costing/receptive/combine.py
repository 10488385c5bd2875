"""Several fields into one."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import gcd

from reconv.costing.receptive.field import Field, positions, reach
from reconv.costing.receptive.kinds import Kinds, Spans, labels_of, update
from reconv.costing.receptive.kinds import hull as hull_of_kinds
from reconv.costing.receptive.layout import KIND, MIXED, PAIRED, UNPLACED, Axis, Factor, Label, labels_on, plain, refine
from reconv.costing.receptive.taps import LostError, Taps, cycle, repeat

Place = tuple[int, int]  # an axis, and a factor in it


def hull(fields: Sequence[Field]) -> Field:
    """Broadcast, then each element sees what any operand's element sees, as in an elementwise operator."""
    if len(fields) == 1:
        return fields[0]
    rank = max(len(field.axes) for field in fields)
    shapes = [(1,) * (rank - len(field.axes)) + field.shape for field in fields]
    shape = [next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True)]
    parts = [field.expand(shape) for field in fields]
    slid = frozenset[Label]().union(*(part.slid for part in parts))
    if all(part.axes == parts[0].axes for part in parts):
        return replace(parts[0], slid=slid).with_axes(parts[0].axes, _together([part.kinds for part in parts]))
    try:
        return _hull_of_shape(parts, slid)
    except LostError:
        if not any(part.factors(KIND) for part in parts):
            raise
        return _hull_of_shape([part.without_kinds() for part in parts], slid)


def mix(field: Field, axes: Iterable[int]) -> Field:
    """Each element also sees what all others along these axes see, as in a softmax or a norm over them."""
    return hull([field, field.reduce(axes)])


def matmul(left: Field, right: Field) -> Field:
    """(…, m, k) @ (…, k, n)."""
    return hull([left.reduce([-1]), right.reduce([-2])])


def everywhere(field: Field) -> Field:
    """A weight, as seen from every output: what its elements see must not depend on the element."""
    moving = [label for axis in field.axes for label in labels_on(tuple(f for f in axis if f.size > 1))]
    return _unknown_along(field.reduce(range(len(field.axes))), moving)


def concatenate(fields: Sequence[Field], axis: int) -> Field:
    """The parts one after the other along an axis: places of different kinds."""
    axis %= len(fields[0].axes)
    fields = [field if _kinds_along(field, {axis}) else field.without_kinds() for field in fields]
    axes = [field.axes[axis] for field in fields]
    if labels_on(axes[0]) and all(each == axes[0] for each in axes) and not any(f.factors(KIND) for f in fields):
        return _side_by_side(fields, axis, [field.kinds for field in fields], axes[0])
    if any(field.slid.intersection(labels_on(field.axes[axis])) for field in fields):
        raise LostError("a concatenation along a spatial axis")
    fields = [_unknown_along(field, labels_on(field.axes[axis])) for field in fields]
    if any(factor.label in UNPLACED for each in axes for factor in each):
        total = sum(field.shape[axis] for field in fields)
        return hull([field.without_kinds().with_axis(axis, (Factor(total, MIXED),)) for field in fields])
    unit = gcd(*map(_alike, axes))
    runs = [_runs(field, axis, unit) for field in fields]
    return _side_by_side(fields, axis, runs, plain(unit))


def _side_by_side(fields: Sequence[Field], axis: int, runs: Sequence[Kinds], inner: Axis) -> Field:
    """The hull of the parts, of which each sees nothing beyond its own run of kinds along the axis."""
    count, start, parts = sum(map(len, runs)), 0, []
    for field, run in zip(fields, runs, strict=True):
        kinds = (*[_NOTHING] * start, *run, *[_NOTHING] * (count - start - len(run)))
        parts.append(field.with_axis(axis, (Factor(count, KIND), *inner), kinds))
        start += len(run)
    return hull(parts)


_NOTHING: Spans = {}


def _alike(axis: Axis) -> int:
    """How many neighbours along an axis always see the same."""
    if not axis or labels_on(axis):
        return 1
    return axis[-1].size if axis[-1].label is None else 1


def _runs(field: Field, axis: int, unit: int) -> Kinds:
    """The kind of every unit-th place along an axis."""
    factors = [replace(f, stride=f.stride if f.label is KIND else 0) for f in field.axes[axis]]
    return tuple(field.kinds[place] for place in positions(factors)[::unit])


def _kinds_along(field: Field, axes: set[int]) -> bool:
    return {axis for axis, _ in _places(field, KIND)} <= axes


def _unknown_along(field: Field, labels: Iterable[Label]) -> Field:
    kinds = field.kinds
    for label in labels:
        kinds = update(kinds, label, lambda span: None)
    return replace(field, kinds=kinds)


def _hull_of_shape(parts: Sequence[Field], slid: frozenset[Label]) -> Field:
    parts = _refined(_paired(parts))
    strides: dict[Label, dict[Place, int]] = {label: {} for label in UNPLACED}
    for label in (*labels_of(chain(*(part.kinds for part in parts))), KIND):
        owner = max(parts, key=lambda part: len(_places(part, label)))
        strides[label] = {place: factor.stride for place, factor in _places(owner, label).items()}
        parts = [_aligned(part, owner, label) for part in parts]
    axes = [
        tuple(_shared(factors, (i, j), strides, slid) for j, factors in enumerate(zip(*column, strict=True)))
        for i, column in enumerate(zip(*(part.axes for part in parts), strict=True))
    ]
    return Field((), slid=slid).with_axes(axes, _together([part.kinds for part in parts]))


def _together(tables: Sequence[Kinds]) -> Kinds:
    """The hull of each position's kinds; a table of one kind has it at every position."""
    done: dict[tuple[int, ...], Spans] = {}
    kinds = []
    for i in range(max(map(len, tables))):
        row = [table[i if len(table) > 1 else 0] for table in tables]
        kinds.append(done.setdefault(tuple(map(id, row)), hull_of_kinds(row)))
    return tuple(kinds)


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
            for label in (*labels_of(field.kinds), KIND):
                mine, theirs = ({axis for axis, _ in _places(each, label)} for each in (field, other))
                if mine - theirs and theirs - mine:
                    field = _all_places(field, mine - theirs)
        paired.append(field)
    return paired


def _all_places(field: Field, axes: set[int]) -> Field:
    """Every element sees what all along these axes see; their factors stay, without a place of their own."""
    renamed = {i: tuple(replace(factor, label=PAIRED) for factor in field.axes[i]) for i in axes}
    return field.reduce(axes).with_axes(renamed.get(i, axis) for i, axis in enumerate(field.reduce(axes).axes))


def _aligned(part: Field, owner: Field, label: Label) -> Field:
    """`part` with what it sees along a label over the positions of `owner`, which may tell more of them apart."""
    mine, own = _places(part, label), _places(owner, label)
    if not mine or mine == own:
        return part
    taps = _between(mine, own)
    if label is not KIND:
        return replace(part, kinds=update(part.kinds, label, lambda span: span.through(taps)))
    rows, count = len(taps.rows), reach(own.values()) + 1
    reads = (taps.rows[i % rows][0] + taps.advance * (i // rows) for i in range(count))
    return replace(part, kinds=tuple(part.kinds[i] for i in reads))


def _between(mine: dict[Place, Factor], own: dict[Place, Factor]) -> Taps:
    """From positions that `own` makes to those that `mine` makes of the same index."""
    if not mine.keys() <= own.keys():
        raise LostError("positions of one input axis on different axes")
    shared = [(own[place].stride, factor.stride) for place, factor in mine.items() if factor.size > 1]
    rest = [factor for place, factor in own.items() if place not in mine]
    coarse = shared[0][0] // shared[0][1] if shared else 0
    if all(fine == coarse * stride for fine, stride in shared) and reach(rest) < coarse:
        return repeat(coarse)
    turn = gcd(*(factor.stride for factor in rest))
    if all(fine == stride for fine, stride in shared) and reach(mine.values()) < turn:
        return cycle(turn)
    raise LostError("positions of one input axis in different orders")


def _shared(
    factors: Sequence[Factor], place: Place, strides: dict[Label, dict[Place, int]], slid: frozenset[Label]
) -> Factor:
    """What the operands' factors at one place have in common: one label, or none."""
    size = factors[0].size
    labels = {factor.label for factor in factors if factor.label is not None}
    if size == 1 and len(labels) > 1:  # channels of two inputs, say: only what is slid along must keep its label
        labels &= slid
    if not labels:
        return Factor(size)
    label = labels.pop()
    if labels or (label not in UNPLACED and place not in strides[label]):
        raise LostError("positions of two input axes along one axis")
    return Factor(size, label, strides[label].get(place, 1))

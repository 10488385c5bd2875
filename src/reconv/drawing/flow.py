"""What a block does, step by step: the maps between its parts, and which of their cells an output cell needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import floor, prod
from typing import assert_never

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
    output_shape,
)
from reconv.spec.geometry import taps_at

Ints = tuple[int, ...]
Cell = tuple[int, ...]  # (channel, *position)
Point = tuple[float, ...]  # where a deformable convolution looks: (channel, *position)
Moves = tuple[tuple[float, ...], ...]  # by which each tap is moved, one number an axis


@dataclass(frozen=True)
class Map:
    """A feature map of one sample.

    Args:    shape: (C, *spatial). colours: of each channel, 0 where channels have nothing of their own.
             border: (lo, hi) of the padding that the next convolution sees, each axis; zeros: how many zeros a
             transposed convolution puts between neighbours, each axis.
    """

    shape: Ints
    colours: Ints
    border: tuple[tuple[int, int], ...]
    zeros: Ints = ()
    mode: str = "zeros"


@dataclass
class Step:
    """One part of the block. Indices are into `Flow.maps`; a join has several sources.

    Args:    after: what is done with each value of the target, which gets no map of its own.
    """

    block: Block | None  # None: a join
    sources: Ints
    target: int
    join: str = ""
    after: list[str] = field(default_factory=list)


Lanes = tuple[list[list["Tree"]], Step]  # rows side by side, and their join
Tree = Step | Lanes


@dataclass
class Flow:
    """All maps and steps of a block, the steps in the order in which they run; `tree` is how they are nested."""

    maps: list[Map] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    tree: list[Tree] = field(default_factory=list)
    moves: Moves = ()
    kept: list[Sequence[int]] | None = None  # the channels of each map that are looked at; None: all

    def needed(self, cell: Cell) -> dict[int, set[Cell]]:
        """The cells of every map on which a cell of the last one depends, padding left out."""
        found: dict[int, set[Cell]] = {len(self.maps) - 1: {cell}}
        for step in reversed(self.steps):
            cells = found.get(step.target, set())
            for place, source in enumerate(step.sources):
                found.setdefault(source, set()).update(self.before(step, place, cells))
        return found

    def looked_at(self, index: int) -> Sequence[int]:
        return range(self.maps[index].shape[0]) if self.kept is None else self.kept[index]

    def before(self, step: Step, place: int, cells: set[Cell]) -> Iterator[Cell]:
        shape = self.maps[step.sources[place]].shape
        if step.block is not None:
            for cell in cells:
                found = _sources(step.block, shape, cell, self.moves, self.looked_at(step.sources[place]))
                yield from inside(shape, found, step.block)
        elif step.join == "sum":
            yield from cells
        else:
            first = sum(self.maps[source].shape[0] for source in step.sources[:place])
            yield from ((c - first, *rest) for c, *rest in cells if first <= c < first + shape[0])


def flow_of(block: Block, shape: Sequence[int], moves: Moves = ()) -> Flow:
    """The flow of a block on a sample (C, *spatial)."""
    output_shape(block, (1, *shape))  # raises where it does not fit
    flow = Flow(moves=moves)
    plain = ((0, 0),) * (len(shape) - 1)
    flow.maps.append(Map(tuple(shape), _first_colours(block, shape[0]), plain))
    flow.tree = _row(flow, block, 0)
    return flow


# -- the maps in their order --------------------------------------------------------------------------------
def _row(flow: Flow, block: Block, source: int) -> list[Tree]:
    """Adds a block's steps, from a map on; the last map of the flow is what it gives."""
    match block:
        case Chain():
            row: list[Tree] = []
            for part in block.blocks:
                if isinstance(part, Activation | BatchNorm) and row:
                    _last(row).after.append(part.name if isinstance(part, Activation) else "batch norm")
                    continue
                row += _row(flow, part, source)
                source = len(flow.maps) - 1 if row else source
            return row
        case Branches():
            lanes, ends = [], []
            for part in block.blocks:
                lane = _row(flow, part, source)
                lanes.append(lane)
                ends.append(len(flow.maps) - 1 if lane else source)
            return [(lanes, _joined(flow, block, ends))]
        case Activation(name="identity"):
            return []
        case _:
            return [_step(flow, block, source)]


def _last(row: list[Tree]) -> Step:
    part = row[-1]
    return part if isinstance(part, Step) else part[1]


def _step(flow: Flow, block: Block, source: int) -> Step:
    given = flow.maps[source]
    shape = output_shape(block, (1, *given.shape))[1:]
    conv = block.conv if isinstance(block, Deform) else block
    if isinstance(conv, ConvSpec):
        flow.maps[source] = _bordered(given, conv, shape[1:])
    plain = ((0, 0),) * (len(shape) - 1)
    flow.maps.append(Map(shape, _colours(block, given, shape[0]), plain))
    step = Step(block, (source,), len(flow.maps) - 1)
    flow.steps.append(step)
    return step


def _joined(flow: Flow, block: Branches, ends: Sequence[int]) -> Step:
    shapes = [flow.maps[end].shape for end in ends]
    if block.join == "sum":
        shape, colours = shapes[0], flow.maps[ends[0]].colours
    else:
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        colours = tuple(1 + lane % 6 for lane, s in enumerate(shapes) for _ in range(s[0]))
    flow.maps.append(Map(shape, colours, ((0, 0),) * (len(shape) - 1)))
    step = Step(None, tuple(ends), len(flow.maps) - 1, block.join)
    flow.steps.append(step)
    return step


# -- channels that belong together -------------------------------------------------------------------------
def _first_colours(block: Block, channels: int) -> Ints:
    """Those of the first part that tells channels apart."""
    match block:
        case ConvSpec() if block.groups > 1:
            return _by_group(channels, block.groups)
        case Deform() if block.conv.groups > 1:
            return _by_group(channels, block.conv.groups)
        case Shuffle():
            return _by_group(channels, block.groups)
        case PixelShuffle():
            return tuple(1 + c % prod(block.factors) % 6 for c in range(channels))
        case Permute():
            return tuple(1 + c % 6 for c in range(channels))
        case Chain():
            return _first_colours(block.blocks[0], channels)
        case _:
            return (0,) * channels


def _by_group(channels: int, groups: int) -> Ints:
    return tuple(1 + c * groups // channels % 6 for c in range(channels))


def _colours(block: Block, given: Map, channels: int) -> Ints:
    match block:
        case ConvSpec() | Deform():
            spec = block.conv if isinstance(block, Deform) else block
            if spec.groups == 1:
                return (0,) * channels
            return _by_group(channels, spec.groups)
        case Shuffle() | Permute():
            return tuple(given.colours[c] for c in order_of(block, channels))
        case PixelShuffle():
            return (0,) * channels
        case _:
            return given.colours


def order_of(block: Shuffle | Permute, channels: int) -> Ints:
    """Which channel comes to each place. A permutation's order is data: the picture takes every second one first."""
    groups = block.groups if isinstance(block, Shuffle) else (channels + 1) // 2
    if channels % groups:
        return (*range(0, channels, 2), *range(1, channels, 2))
    each = channels // groups
    return tuple((i % groups) * each + i // groups for i in range(channels))


# -- which cells a cell needs --------------------------------------------------------------------------------
def _sources(block: Block, shape: Ints, cell: Cell, moves: Moves, kept: Sequence[int]) -> Iterable[Cell]:
    """The cells of a part's input that one cell of its output needs, of channels kept; some may lie in the padding."""
    channel, position = cell[0], cell[1:]
    match block:
        case ConvSpec():
            at = window(block, position)
            return [(c, *p) for c in group_of(block, channel) if c in kept for _, p in at]
        case Deform():
            channels = [c for c in group_of(block.conv, channel) if c in kept]
            return [cell for point in points(block, position, moves) for cell in _around(channels, point)]
        case Shuffle() | Permute():
            return [(order_of(block, shape[0])[channel], *position)]
        case PixelShuffle():
            whole = [p + lo for p, (lo, _) in zip(position, block.crop, strict=True)]
            part = 0
            for p, s in zip(whole, block.factors, strict=True):
                part = part * s + p % s
            return [
                (channel * prod(block.factors) + part, *(p // s for p, s in zip(whole, block.factors, strict=True)))
            ]
        case Gate() | Activation() | BatchNorm():
            return [cell]
        case Chain() | Branches():
            raise TypeError("a composite is no step")
        case _:
            assert_never(block)


def window(spec: ConvSpec, position: Sequence[int]) -> list[tuple[Ints, Ints]]:
    """(tap, input position) of every tap that meets the input's grid at an output position, inside the input or not."""
    axes = [taps_at(spec, axis, p) for axis, p in enumerate(position)]
    return [(tuple(t for t, _ in at), tuple(p for _, p in at)) for at in product(*axes)]


def group_of(spec: ConvSpec, channel: int) -> range:
    """The input channels that an output channel reads."""
    each, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    return range(channel // outs * each, (channel // outs + 1) * each)


def points(block: Deform, position: Sequence[int], moves: Moves) -> list[Point]:
    """Where each tap looks, moved."""
    at = window(block.conv, position)
    each = moves or ((0.0,) * block.conv.spatial_dims,) * len(at)
    return [tuple(p + m for p, m in zip(place, move, strict=True)) for (_, place), move in zip(at, each, strict=True)]


def _around(channels: Sequence[int], point: Point) -> list[Cell]:
    """The cells between which a value is interpolated, those with no weight left out."""
    axes = [[floor(p)] if p == floor(p) else [floor(p), floor(p) + 1] for p in point]
    return [(c, *at) for c in channels for at in product(*axes)]


def inside(shape: Ints, cells: Iterable[Cell], block: Block) -> Iterator[Cell]:
    """The cells that are in the map; those in a padding that repeats it are where their values come from."""
    conv = block.conv if isinstance(block, Deform) else block
    mode = conv.padding_mode if isinstance(conv, ConvSpec) else "zeros"
    for channel, *position in cells:
        if mode != "zeros":
            position = [_repeated(p, n, mode) for p, n in zip(position, shape[1:], strict=True)]
        if all(0 <= p < n for p, n in zip(position, shape[1:], strict=True)):
            yield (channel, *position)


def _repeated(p: int, n: int, mode: str) -> int:
    if mode == "circular":
        return p % n
    if mode == "replicate":
        return min(max(p, 0), n - 1)
    return -p if p < 0 else 2 * (n - 1) - p if p >= n else p


def _bordered(given: Map, spec: ConvSpec, gives: Ints) -> Map:
    """With the padding of the convolution that reads it, the largest where several do; transposed ones read a grid."""
    border = spec.padding
    if spec.transposed:
        given = replace(given, zeros=tuple(s - 1 for s in spec.stride) if max(spec.stride) > 1 else ())
        border = tuple(_grid_border(spec, axis, n, out)
                       for axis, (n, out) in enumerate(zip(given.shape[1:], gives, strict=True)))  # fmt: skip
    border = tuple((max(a, lo), max(b, hi)) for (a, b), (lo, hi) in zip(given.border, border, strict=True))
    return replace(given, border=border, mode=spec.padding_mode)


def _grid_border(spec: ConvSpec, axis: int, length: int, out: int) -> tuple[int, int]:
    """How far the turned kernel looks beyond the grid of a transposed convolution."""
    reach, lo = spec.dilation[axis] * (spec.kernel_size[axis] - 1), spec.padding[axis][0]
    last = (length - 1) * spec.stride[axis]
    return max(0, reach - lo), max(0, out - 1 + lo - last)


def voids(given: Map, spec: ConvSpec, cell: Cell, kept: Sequence[int]) -> Iterator[Cell]:
    """The places of the map's grid that a convolution reads for an output cell without finding a value of the map."""
    channels = [c for c in group_of(spec, cell[0]) if c in kept]
    if not spec.transposed:
        yield from ((c, *p) for c in channels for _, p in window(spec, cell[1:])
                    if not all(0 <= q < n for q, n in zip(p, given.shape[1:], strict=True)))  # fmt: skip
        return
    axes = [[p + lo - d * t for t in range(k)] for p, (lo, _), d, k in
            zip(cell[1:], spec.padding, spec.dilation, spec.kernel_size, strict=True)]  # fmt: skip
    for place in product(*axes):
        real = all(q % s == 0 and 0 <= q // s < n for q, s, n in
                   zip(place, spec.stride, given.shape[1:], strict=True))  # fmt: skip
        if not real:
            yield from ((c, *place) for c in channels)


# -- the grid of a map: its cells, and the zeros between them -------------------------------------------------
def stretched(given: Map) -> Ints:
    """Lengths with the zeros that a transposed convolution puts in."""
    zeros = given.zeros or (0,) * (len(given.shape) - 1)
    return tuple((n - 1) * (z + 1) + 1 for n, z in zip(given.shape[1:], zeros, strict=True))


def grid_of(given: Map, cell: Cell) -> Cell:
    """Where a cell of the map lies on its grid."""
    zeros = given.zeros or (0,) * (len(given.shape) - 1)
    return (cell[0], *(p * (z + 1) for p, z in zip(cell[1:], zeros, strict=True)))


def on_grid(given: Map, axis: int, place: int) -> bool:
    return not given.zeros or place % (given.zeros[axis] + 1) == 0

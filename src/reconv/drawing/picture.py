"""A block as volumes: input, kernels, what lies between, output, and which cells an output cell needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from reconv.drawing import example
from reconv.drawing.figure import (
    CHARACTER,
    Figure,
    arrow,
    document,
    lanes,
    length,
    line,
    row,
    same,
    strides,
    times,
    words,
)
from reconv.drawing.flow import (
    Cell,
    Flow,
    Map,
    Moves,
    Step,
    Tree,
    flow_of,
    grid_of,
    group_of,
    order_of,
    points,
    stretched,
    voids,
    window,
)
from reconv.drawing.formula import Terms, formula
from reconv.drawing.sheets import Look, Marks, Sheets, draw
from reconv.plain import escape
from reconv.spec import Block, ConvSpec, Deform, Gate, Permute, PixelShuffle, Shuffle, describe

MOST_FRAMES = 49
MOST_READ, MOST_MARKED, MOST_TRIED = 20_000, 25_000, 60_000  # cells: of a frame, of all frames, looked at for frames
SECONDS = 0.35  # that a frame is shown
GAP, MARGIN, LINE = 26, 16, 17
MONOSPACED = 8.0  # pixels of a letter of 13 px


@dataclass(frozen=True)
class Wanted:
    """How a picture is wanted.

    Args:    at: the output cell (channel, *position) that is marked; None: one in the middle.
             animated: one output cell after the other. numbers: a worked example. moves: of a deformable
             convolution's taps.
    """

    at: Cell | None = None
    animated: bool = False
    numbers: bool = False
    moves: Moves = ()


def picture(block: Block, shape: Sequence[int], wanted: Wanted) -> str:
    """The SVG of a block on a sample (C, *spatial)."""
    return Drawing(block, tuple(shape), wanted).svg()


class Drawing:
    """One picture on its way."""

    seconds = SECONDS

    def __init__(self, block: Block, shape: tuple[int, ...], wanted: Wanted) -> None:
        self.block, self.wanted = block, wanted
        self.flow: Flow = flow_of(block, shape, wanted.moves)
        longest = max(n for each in self.flow.maps for n in self._lengths(each))
        look = Look(cell=max(5.0, min(17.0, 210 / min(longest, 40))), apart=wanted.numbers)
        if wanted.numbers:
            look = Look(cell=22, most=12, apart=True)
        self.values = example.worked(self.flow) if wanted.numbers else None
        self.sheets = [Sheets(each, look) for each in self.flow.maps]
        self.is_whole = _reads(self.flow) <= MOST_READ
        if not self.is_whole:
            self.flow.kept = [each.channels for each in self.sheets]
        self.cells = [wanted.at] if wanted.at is not None else self._cells()
        self.frames = [self.flow.needed(cell) for cell in self.cells]

    @staticmethod
    def _lengths(each: Map) -> list[int]:
        return [n + lo + hi for n, (lo, hi) in zip(stretched(each), each.border, strict=True)]

    # -- which output cells ------------------------------------------------------------------------------
    def _cells(self) -> list[Cell]:
        """Those that are drawn whole; of one channel, or of each that reads others."""
        last = self.sheets[-1]
        channels = last.channels if len(set(last.given.colours)) > 1 else last.channels[:1]
        lengths = [range(min(n, last.look.most)) for n in last.given.shape[1:]]
        cells = [(c, *p) for c in channels for p in product(*lengths)]
        tried = max(1, min(6 * MOST_FRAMES, MOST_TRIED // max(1, sum(map(len, self.flow.needed(cells[0]).values())))))
        whole = [cell for cell in spread(cells, tried) if self._is_drawn(cell)] or cells[:1]
        if self.wanted.animated:
            marked = sum(map(len, self.flow.needed(whole[len(whole) // 2]).values()))
            return spread(whole, max(1, min(MOST_FRAMES, MOST_MARKED // marked)))
        one = [cell for cell in whole if cell[0] == channels[0]] or whole
        middle = [max(p) / 2 for p in zip(*(cell[1:] for cell in one), strict=True)]
        return [min(one, key=lambda cell: (self._looks_outside(cell), math.dist(cell[1:], middle)))]

    def _looks_outside(self, cell: Cell) -> bool:
        step = self.flow.steps[-1] if self.flow.steps else None
        if step is None or not isinstance(step.block, ConvSpec) or step.block.transposed:
            return False
        source = step.sources[0]
        return any(True for _ in voids(self.flow.maps[source], step.block, cell, self.flow.looked_at(source)))

    def _is_drawn(self, cell: Cell) -> bool:
        found = self.flow.needed(cell)
        return all(self.sheets[i].draws(grid_of(self.flow.maps[i], c) for c in cells) for i, cells in found.items())

    # -- what is marked ----------------------------------------------------------------------------------
    def _marks(self, index: int) -> list[Marks]:
        given, readers = self.flow.maps[index], [s for s in self.flow.steps if index in s.sources]
        is_last = index == len(self.flow.maps) - 1
        out = []
        for found in self.frames:
            cells = [grid_of(given, c) for c in sorted(found.get(index, ()))]
            empty: set[Cell] = set()
            moved: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
            for step in readers:
                for cell in found.get(step.target, ()):
                    if isinstance(step.block, ConvSpec):
                        empty.update(voids(given, step.block, cell, self.flow.looked_at(index)))
                    elif isinstance(step.block, Deform):
                        moved += self._moved(step.block, cell)
            out.append(Marks("made" if is_last else "read", cells, sorted(empty), moved))
        return out

    def _moved(self, block: Deform, cell: Cell) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        regular = [place for _, place in window(block.conv, cell[1:])]
        there = points(block, cell[1:], self.flow.moves)
        return [((c, *a), (c, *b)) for c in group_of(block.conv, cell[0]) for a, b in zip(regular, there, strict=True)]

    # -- parts -------------------------------------------------------------------------------------------
    def _map(self, index: int, name: str, after: Sequence[str] = ()) -> Figure:
        given, sheets = self.flow.maps[index], self.sheets[index]
        values = self.values[index] if self.values is not None else None
        figure = draw(sheets, self._marks(index), self.wanted.animated, values)
        below = [" · ".join([times(given.shape), *after]), *_notes(given, sheets)]
        return _captioned(figure, name, below, f'class="map" data-map="{index}" data-shape="{times(given.shape)}"')

    def _step(self, step: Step) -> Figure:
        match step.block:
            case ConvSpec():
                part = self._kernel(step, step.block)
            case Deform():
                part = self._kernel(step, step.block.conv, step.block)
            case Shuffle() | Permute():
                part = _crossing(order_of(step.block, self.flow.maps[step.target].shape[0]),
                                 self.flow.maps[step.sources[0]].colours)  # fmt: skip
                part = _captioned(part, "shuffle" if isinstance(step.block, Shuffle) else "other order", [])
            case Gate():
                part = _captioned(
                    _bars(), "channel weights", ["mean → squeeze → excite", f"reduction {step.block.reduction}"]
                )
            case PixelShuffle():
                part = _captioned(_box(f"×{same(step.block.factors)}"), "pixel shuffle", ["channels to space"])
            case _:
                part = _captioned(_box(str(step.block)), "", [])
        return _between(part)

    def _kernel(self, step: Step, spec: ConvSpec, moved: Deform | None = None) -> Figure:
        """The weights of the marked output channel."""
        deep = spec.in_channels // spec.groups
        extents = tuple(d * (k - 1) + 1 for k, d in zip(spec.kernel_size, spec.dilation, strict=True))
        given = Map((deep, *extents), (0,) * deep, ((0, 0),) * spec.spatial_dims)
        sheets = Sheets(given, self.sheets[0].look)
        taps = [(c, *(d * t for d, t in zip(spec.dilation, tap, strict=True))) for c in range(deep)
                for tap in product(*map(range, spec.kernel_size))]  # fmt: skip
        values = self._weights(spec, step, taps) if self.values is not None else None
        figure = draw(sheets, [Marks("weight", taps)], False, values)
        count = spec.out_channels
        below = [f"{count} of {times((deep, *spec.kernel_size))}", *_particulars(spec)]
        if moved is not None:
            below.append(f"offsets from {moved.offset_conv.out_channels} channels")
        return _captioned(figure, _kernel_name(spec, moved), below, 'class="kernel"')

    def _weights(self, spec: ConvSpec, step: Step, taps: Sequence[Cell]) -> dict[Cell, float]:
        """Of a transposed convolution turned, as it meets the stretched input."""
        out = self.cells[0][0] if step is self.flow.steps[-1] else 0
        found = {}
        for c, *place in taps:
            tap = [p // d for p, d in zip(place, spec.dilation, strict=True)]
            if spec.transposed:
                tap = [k - 1 - t for k, t in zip(spec.kernel_size, tap, strict=True)]
            found[c, *place] = float(example.weight(out, c, tap))
        return found

    # -- all together ------------------------------------------------------------------------------------
    def _trees(self, trees: Sequence[Tree], last: int) -> list[Figure]:
        out = []
        for tree in trees:
            step = tree if isinstance(tree, Step) else tree[1]
            if isinstance(tree, Step):
                out.append(self._step(tree))
            else:
                parts = [row(figures, 0) if (figures := self._trees(lane, last)) else _wire() for lane in tree[0]]
                out.append(lanes(parts, "+" if step.join == "sum" else "cat", 14, _straight))
                out.append(_arrow())
            out.append(self._map(step.target, "output" if step.target == last else "", step.after))
        return out

    def still(self, frame: int) -> str:
        """One frame by itself."""
        return Drawing(
            self.block, self.flow.maps[0].shape, replace(self.wanted, at=self.cells[frame], animated=False)
        ).svg()

    def svg(self) -> str:
        last = len(self.flow.maps) - 1
        body = row([self._map(0, "input"), *self._trees(self.flow.tree, last)], 0)
        told = describe(self.block, (1, *self.flow.maps[0].shape))
        lines = formula(self.block)
        y = MARGIN + body.height + 26
        parts = [body.at(MARGIN, MARGIN), self._frame_names(y)]
        written = []
        for i, terms in enumerate(lines[:7]):
            written.append(MONOSPACED * sum(len(part) for part, _ in terms))
            parts.append(_terms(MARGIN, y + LINE * (i + 1), terms))
        y += LINE * (min(len(lines), 7) + 1)
        costs = f"{told.params:,} parameters · {told.macs:,} multiply-accumulates"
        parts.append(words(MARGIN, y + 4, costs, "soft"))
        width = max(body.width, *written, length(costs), length(self._sum_text(0))) + 2 * MARGIN
        return document(width, y + 4 + MARGIN, self.alt(), "\n".join(parts), self._style(), self._kind())

    def _frame_names(self, y: float) -> str:
        """Which output cell is marked, and the sum that makes it."""
        out = []
        for i in range(len(self.cells)):
            frame = f" f f{i}" if self.wanted.animated else ""
            out.append(words(MARGIN, y, self._sum_text(i), "made-text" + frame))
        return "".join(out)

    def _sum_text(self, frame: int) -> str:
        cell = self.cells[frame]
        text = f"y[{', '.join(map(str, cell))}]"
        step = self.flow.steps[-1] if self.flow.steps else None
        if not self.is_whole:
            return text
        if self.values is None or step is None or not isinstance(step.block, ConvSpec):
            needed = self.frames[frame].get(0, ())
            means = any(isinstance(each.block, Gate) for each in self.flow.steps)
            more = ", and the mean of every channel" if means else ""
            return f"{text} needs {len(needed)} of {math.prod(self.flow.maps[0].shape)} input values{more}"
        parts = [f"{w}·{x}" for w, x in example.terms(step, cell, self.values) if w and x]
        shown = " + ".join(parts[:12]) + (f" + {len(parts) - 12} more" if len(parts) > 12 else "")
        total = sum(w * x for w, x in example.terms(step, cell, self.values))
        return f"{text} = {shown + ' = ' if shown else ''}{total}".replace("+ -", "− ").replace("= -", "= −")

    def _style(self) -> str:
        if not self.wanted.animated:
            return ""
        count = len(self.cells)
        mine = f".reconv.{self._kind()}"
        delays = "".join(f"{mine} .f{i}{{animation-delay:{i * SECONDS:.2f}s}}" for i in range(count))
        shown, last = ".reconv .f0 { visibility: visible }", 100 / count
        return (
            f"{mine} .f {{ animation: reconv-{count} {count * SECONDS:.2f}s step-end infinite }}\n"
            f"@keyframes reconv-{count} {{ 0% {{ visibility: visible }} {last:.3f}% {{ visibility: hidden }} }}\n"
            f".reconv .f {{ visibility: hidden }}\n{delays}\n"
            f"@media (prefers-reduced-motion: reduce) {{ .reconv .f {{ animation: none !important }} {shown} }}"
        )

    def _kind(self) -> str:
        """One page may hold animations of different lengths."""
        return f"n{len(self.cells)}" if self.wanted.animated else ""

    def alt(self) -> str:
        shapes = self.flow.maps[0].shape, self.flow.maps[-1].shape
        cut = [s for s in self.sheets if any(s.cut) or len(s.channels) < s.given.shape[0]]
        part = "; maps that are too large are drawn in part" if cut else ""
        return f"{self.block}: from {times(shapes[0])} to {times(shapes[1])}, one output cell and what it needs{part}"


def _reads(flow: Flow) -> int:
    """How many input cells one output cell reads, counted along every way."""
    counts = {len(flow.maps) - 1: 1}
    for step in reversed(flow.steps):
        conv = step.block.conv if isinstance(step.block, Deform) else step.block
        each = math.prod(conv.kernel_size) * conv.in_channels // conv.groups if isinstance(conv, ConvSpec) else 1
        for source in step.sources:
            counts[source] = counts.get(source, 0) + counts.get(step.target, 0) * each
    return max(counts.values())


def spread(cells: Sequence[Cell], most: int) -> list[Cell]:
    """At most so many of them, evenly."""
    if len(cells) <= most:
        return list(cells)
    return [cells[i * len(cells) // most] for i in range(most)]


# -- small parts ---------------------------------------------------------------------------------------------
def _captioned(figure: Figure, above: str, below: Sequence[str], attributes: str = "") -> Figure:
    """With words above and below, in the middle."""
    width = max([figure.width, length(above), *map(length, below)])
    left, top = (width - figure.width) / 2, 20 if above else 0
    drawn = [words(width / 2, 12, above, "bold", "middle")] if above else []
    drawn.append(figure.at(left, top))
    drawn += [
        words(width / 2, top + figure.height + 15 * (i + 1), text, "soft", "middle") for i, text in enumerate(below)
    ]
    height = top + figure.height + 15 * len(below) + 4
    return Figure(width, height, top + figure.axis, f"<g {attributes}>{''.join(drawn)}</g>")


def _between(part: Figure) -> Figure:
    return row([_arrow(), part, _arrow()], 0)


def _arrow() -> Figure:
    return Figure(GAP + 8, 8, 4, arrow(2, GAP + 4, 4))


def _straight(start: float, end: float, y: float) -> str:
    return line(start, y, end + 3, y)


def _wire() -> Figure:
    return Figure(60, 8, 4, line(0, 4, 60, 4))


def _box(text: str) -> Figure:
    width = max(40.0, CHARACTER * len(text) + 18)
    return Figure(width, 40, 20, f'<rect class="box" width="{width:.1f}" height="40" rx="5"/>'
                  + words(width / 2, 24, text, "bold", "middle"))  # fmt: skip


def _bars() -> Figure:
    """Weights of channels, of different heights."""
    heights = (18, 34, 9, 26, 40)
    drawn = "".join(
        f'<rect class="weight" x="{11 * i}" y="{40 - h}" width="8" height="{h}"/>' for i, h in enumerate(heights)
    )
    return Figure(11 * len(heights), 40, 20, drawn)


def _crossing(order: Sequence[int], colours: Sequence[int]) -> Figure:
    """A line from where each channel was to where it goes; of many channels the first."""
    count = min(len(order), 12)
    drawn, pitch = [], 13
    for to, was in enumerate(order[:count]):
        if was < count:
            drawn.append(f'<path class="crossing s{colours[was]}" d="M4 {pitch * was + 6}C34 {pitch * was + 6} 34 '
                         f'{pitch * to + 6} 64 {pitch * to + 6}" data-from="{was}" data-to="{to}"/>')  # fmt: skip
            drawn.append(f'<circle class="k{colours[was]} dot" cx="64" cy="{pitch * to + 6}" r="4"/>')
            drawn.append(f'<circle class="k{colours[was]} dot" cx="4" cy="{pitch * was + 6}" r="4"/>')
    return Figure(68, pitch * count, pitch * count / 2, "".join(drawn))


def _kernel_name(spec: ConvSpec, moved: Deform | None) -> str:
    if moved is not None:
        return "deformable kernel"
    name = f"{spec.kind} kernel" if spec.kind != "standard" else "kernel"
    return f"{name}, turned" if spec.transposed else name


def _particulars(spec: ConvSpec) -> list[str]:
    out = strides(spec)
    if spec.groups > 1 and not spec.depthwise:
        out.append(f"{spec.groups} groups")
    return [", ".join(out)] if out else []


def _notes(given: Map, sheets: Sheets) -> list[str]:
    """What a reader has to know beside the shape."""
    out = []
    if len(sheets.channels) < given.shape[0]:
        out.append(f"{len(sheets.channels)} of {given.shape[0]} channels drawn")
    if any(sheets.cut):
        out.append(f"the first {sheets.look.most} cells drawn")
    if given.zeros:
        out.append("zeros put in")
    if any(map(any, given.border)) and not given.zeros:
        out.append(f"padding: {given.mode}")
    return out


def _terms(x: float, y: float, terms: Terms) -> str:
    spans = "".join(f'<tspan class="t-{role}" data-term="{role}">{escape(text)}</tspan>' if role else escape(text)
                    for text, role in terms)  # fmt: skip
    return f'<text class="formula" xml:space="preserve" x="{x}" y="{y:.1f}">{spans}</text>'

"""A feature map or a kernel as sheets: channels one behind the other, cells as squares, what is read in colour.

Inside a sheet's group the unit is one cell and the origin its first one, so that the numbers of a path are positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconv.drawing.figure import Figure
from reconv.drawing.flow import Cell, Ints, Map, grid_of, on_grid, stretched

MOST_CHANNELS, MOST_STACKS = 6, 4  # drawn of a map of 1 or 2 axes, of 3 axes
Point = tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """cell: pixels. most: cells drawn along an axis at most. apart: sheets one below the other, for numbers."""

    cell: float
    most: int = 40
    apart: bool = False


@dataclass(frozen=True)
class Marks:
    """What is marked in one frame, on the map's grid (see `grid_of`).

    Args:    kind: "read", "made" or "weight", the colour. points: (tap's place, where it is moved to).
    """

    kind: str
    cells: Sequence[Cell] = ()
    voids: Sequence[Cell] = ()
    points: Sequence[tuple[Point, Point]] = ()


@dataclass(frozen=True)
class Sheet:
    """One plane of cells: rows and columns from a first to one past the last, padding below 0 and from `real` on."""

    key: Ints  # (channel,), (channel, depth), or () where rows are channels
    rows: tuple[int, int]
    columns: tuple[int, int]
    real: tuple[int, int]
    colours: tuple[int, ...]  # of the sheet, or of each row
    is_void: bool = False


class Sheets:
    """All sheets of a map, and where its cells lie on them."""

    def __init__(self, given: Map, look: Look) -> None:
        self.given, self.look = given, look
        lengths = stretched(given)
        self.cut = tuple(n > look.most for n in lengths)
        self.ends = [(-lo, min(n, look.most) + (0 if cut else hi))
                     for n, cut, (lo, hi) in zip(lengths, self.cut, given.border, strict=True)]  # fmt: skip
        self.real = [min(n, look.most) for n in lengths]
        deep = len(lengths) == 3
        self.channels = shown(given.shape[0], MOST_STACKS if deep else MOST_CHANNELS)
        self.sheets = [self._one_row_each()] if len(lengths) == 1 else list(self._planes(deep))
        self.place = {sheet.key: i for i, sheet in enumerate(self.sheets)}

    def _one_row_each(self) -> Sheet:
        colours = tuple(self.given.colours[c] for c in self.channels)
        rows = (0, len(self.channels))
        return Sheet((), rows, self.ends[0], (rows[1], self.real[0]), colours)

    def _planes(self, deep: bool) -> Iterable[Sheet]:
        for c in self.channels:
            for z in range(self.real[0]) if deep else (None,):
                is_void = z is not None and not on_grid(self.given, 0, z)
                yield Sheet((c,) if z is None else (c, z), self.ends[-2], self.ends[-1],
                            (self.real[-2], self.real[-1]), (self.given.colours[c],), is_void)  # fmt: skip

    def locate(self, cell: Sequence[Any]) -> tuple[int, Any, Any] | None:
        """(sheet, row, column) of a cell of the grid; None where it is not drawn."""
        channel, *position = cell
        if channel not in self.channels or not all(
            lo <= p < hi for p, (lo, hi) in zip(position, self.ends, strict=True)
        ):
            return None
        if len(position) == 1:
            return 0, self.channels.index(channel), position[0]
        sheet = self.place.get((channel, *position[:-2]))  # padding before the first and behind the last has none
        return None if sheet is None else (sheet, position[-2], position[-1])

    def draws(self, cells: Iterable[Cell]) -> bool:
        """Whether all these positions are drawn, of channels that are."""
        return all(self.locate((self.channels[0], *position)) is not None for _, *position in cells)


def shown(count: int, most: int) -> list[int]:
    """The indices that are drawn: all, or the first and the last."""
    return list(range(count)) if count <= most else [*range(most - 1), count - 1]


# -- drawing -----------------------------------------------------------------------------------------------
def draw(sheets: Sheets, frames: Sequence[Marks], animated: bool,
         values: Mapping[Cell, float] | None = None) -> Figure:  # fmt: skip
    """The figure of a map; its axis is the middle of its sheets."""
    places, width, height = _places(sheets)
    marked = [_by_sheet(sheets, marks) for marks in frames]
    drawn = []
    for i in reversed(range(len(sheets.sheets))):
        sheet, (x, y) = sheets.sheets[i], places[i]
        inner = [_paper(sheets, sheet, bordered=i == 0 or sheets.look.apart)]
        for frame, marks in enumerate(marked):
            inner.append(_marks(frames[frame].kind, marks.get(i, {}), f" f f{frame}" if animated else ""))
        if values is not None:
            inner.append(_numbers(sheets, sheet, values))
        deep = " deep" if len(sheet.key) == 2 else ""
        names = "".join(f' data-{name}="{n}"' for name, n in zip(("channel", "depth"), sheet.key, strict=False))
        moved = f"translate({x:.1f} {y:.1f}) scale({sheets.look.cell:g})"
        drawn.append(f'<g class="plane{deep}"{names} transform="{moved}">{"".join(inner)}</g>')
    return Figure(width, height, height / 2, "".join(drawn))


def _places(sheets: Sheets) -> tuple[list[tuple[float, float]], float, float]:
    """Top left corners of the first cells, and the size of all."""
    cell, first = sheets.look.cell, sheets.sheets[0]
    wide, tall = (cell * (hi - lo) for lo, hi in (first.columns, first.rows))
    count, deep = len(sheets.sheets), len(first.key) == 2
    stack = count // len(sheets.channels) if deep else count
    shift = max(5.0, min(0.75 * cell, 60 / max(1, stack - 1)))
    places = []
    for i in range(count):
        pile, level = (i // stack, i % stack) if deep else (0, i)
        if sheets.look.apart:
            x, y = pile * (wide + 18), level * (tall + 10)
        else:
            x, y = pile * (wide + shift * (stack - 1) + 18) + level * shift, (stack - 1 - level) * shift
        places.append((x - cell * first.columns[0], y - cell * first.rows[0]))
    width = max(x for x, _ in places) + wide + cell * first.columns[0]
    height = max(y for _, y in places) + tall + cell * first.rows[0]
    return places, width, height


def _paper(sheets: Sheets, sheet: Sheet, bordered: bool) -> str:
    """Padding (in front only, so that lines stay readable), the sheet itself, its lines, the zeros that were put in."""
    rows, columns = sheet.real
    (top, bottom), (left, right) = (sheet.rows, sheet.columns) if bordered else ((0, rows), (0, columns))
    out = []
    if (top, bottom, left, right) != (0, rows, 0, columns) or sheet.is_void:
        out.append(f'<rect class="pad" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>')
    if not sheet.is_void:
        each = bottom - top if sheet.key else 1
        for i, colour in enumerate(sheet.colours):
            tall = rows if sheet.key else each
            for kind in dict.fromkeys((0, colour)):  # a tint lies on what hides the sheets behind it
                out.append(f'<rect class="sheet k{kind}" x="0" y="{i}" width="{columns}" height="{tall}"/>')
        if sheets.given.zeros:
            out.append(f'<path class="zero" d="{_squares(_zeros(sheets.given, sheet))}"/>')
    lines = [f"M{left} {y}H{right}" for y in range(top, bottom + 1)]
    lines += [f"M{x} {top}V{bottom}" for x in range(left, right + 1)]
    return "".join(out) + f'<path class="grid" d="{"".join(lines)}"/>'


def _zeros(given: Map, sheet: Sheet) -> list[tuple[int, int]]:
    rows_are_positions = bool(sheet.key)
    return [(y, x) for y in range(sheet.real[0]) for x in range(sheet.real[1])
            if not (on_grid(given, -1, x) and (not rows_are_positions or on_grid(given, -2, y)))]  # fmt: skip


def _by_sheet(sheets: Sheets, marks: Marks) -> dict[int, dict[str, list[Any]]]:
    found: dict[int, dict[str, list[Any]]] = {}
    for name, cells in (("cells", marks.cells), ("voids", marks.voids)):
        for cell in cells:
            if (at := sheets.locate(cell)) is not None:
                found.setdefault(at[0], {}).setdefault(name, []).append(at[1:])
    for before, after in marks.points:
        if (at := sheets.locate(before)) is not None:
            found.setdefault(at[0], {}).setdefault("points", []).append((at[1:], _last_two(sheets, after)))
    return found


def _last_two(sheets: Sheets, place: Point) -> tuple[float, float]:
    channel, *position = place
    if len(position) == 1:
        return float(sheets.channels.index(int(channel))), position[0]
    return position[-2], position[-1]


def _marks(kind: str, marks: Mapping[str, list[Any]], frame: str) -> str:
    out = []
    if cells := marks.get("cells"):
        near = " near" if "points" in marks else ""
        out.append(f'<path class="{kind}{near}{frame}" d="{_squares(cells)}"/>')
    if voids := marks.get("voids"):
        out.append(f'<path class="void{frame}" d="{_squares(voids)}"/>')
    if points := marks.get("points"):
        ways = "".join(f"M{a[1] + 0.5:g} {a[0] + 0.5:g}L{b[1] + 0.5:g} {b[0] + 0.5:g}" for a, b in points)
        dots = "".join(f"M{b[1] + 0.25:g} {b[0] + 0.25:g}h.5v.5h-.5z" for _, b in points)
        out.append(f'<path class="way{frame}" d="{ways}"/><path class="{kind} point{frame}" d="{dots}"/>')
    return "".join(out)


def _squares(cells: Iterable[tuple[Any, Any]]) -> str:
    return "".join(f"M{x} {y}h1v1h-1z" for y, x in sorted(cells))


def _numbers(sheets: Sheets, sheet: Sheet, values: Mapping[Cell, float]) -> str:
    out = []
    for cell, value in values.items():
        at = sheets.locate(grid_of(sheets.given, cell))
        if at is not None and sheets.sheets[at[0]] is sheet:
            out.append(f'<text class="number" x="{at[2] + 0.5}" y="{at[1] + 0.68}">{value:g}</text>')
    return "".join(out)

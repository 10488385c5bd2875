"""Networks as strips of layers, one below the other: the area of a layer is its cost, on one scale for all strips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reconv.drawing.figure import COLOURS
from reconv.plain import escape

WIDTH, HEIGHT, TITLE, LEGEND = 1000, 52, 24, 24  # of the picture; of a strip, the line above it, a row of the legend
THIN = 3  # what is narrower is drawn with its neighbours
CHARACTER = 7.2  # width of one, on average
KINDS = {  # what is looked for in the name of a kind, in this order, and an index into COLOURS
    "deformable": 5, "transposed": 5, "depthwise": 2, "grouped": 3, "dilated": 5, "pointwise": 1, "asymmetric": 4,
    "standard": 0,
}  # fmt: skip
SHARED = "dilated, transposed, deformable"  # they share a colour
SEVERAL, REST = "several kinds", "all that is no convolution"
STYLE = """
.strip text { font: 13px system-ui, sans-serif; fill: currentColor } .strip .on { font-size: 12px; fill: #fff }
.strip .dark { fill: #1b1f24 } .strip .head { font-weight: 600 } .strip rect { stroke: #fff; stroke-width: .6 }
.strip .other { fill: #8c959f } .strip .saved { fill: none; stroke: #8c959f; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { .strip rect { stroke: #0d1117 } }
"""


@dataclass(frozen=True)
class Cell:
    """One layer.

    Args:    kind: as `ConvSpec.kind` has it, or what is no convolution. cost: its area. short: what stands in it where
             its name does not fit; told: what a pointer over it says besides its name.
    """

    name: str
    kind: str
    cost: float
    short: str = ""
    told: str = ""


@dataclass(frozen=True)
class Strip:
    """One network. Args: title: what stands above it, before its cost."""

    title: str
    cells: Sequence[Cell]

    @property
    def cost(self) -> float:
        return sum(cell.cost for cell in self.cells)


def strip(strips: Sequence[Strip], label: str, unit: str = "") -> str:
    """The SVG text. What the first strip is longer than another one is marked as saved there.

    Args:    label: what the picture shows, for those who hear it. unit: of the costs, as in "ms".
    Example:
             >>> strip([Strip("a", [Cell("conv", "standard", 2.0)])], "one layer", "ms").count("<title>")
             1
    """
    longest = max((one.cost for one in strips), default=0.0) or 1.0
    drawn, y = [], 0.0
    for one in strips:
        drawn += [_head(one, strips[0], unit, y), *_cells(one, WIDTH / longest, unit, y + TITLE)]
        drawn += _saved(one, strips[0], WIDTH / longest, y + TITLE)
        y += TITLE + HEIGHT + 14
    kinds = [cell.kind for one in strips for cell in one.cells]
    legend, rows = _legend(sorted({_family(kind) for kind in kinds}, key=_place), y)
    note = _note(strips, longest / WIDTH * THIN)
    y += LEGEND * rows
    if note:
        legend.append(_text(0, y + 16, note))
        y += LEGEND
    return "\n".join([f'<svg class="strip" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 4:.0f}" '
                      f'role="img" aria-label="{escape(label)}">', f"<style>{STYLE}</style>", *drawn, *legend,
                      "</svg>", ""])  # fmt: skip


def pieces(cells: Sequence[Cell], least: float) -> Iterator[list[Cell]]:
    """The cells, with those that cost less than `least` gathered with such neighbours until they are twice that.

    Example:
             >>> [len(piece) for piece in pieces([Cell("", "", cost) for cost in (5, 1, 1, 5, 2, 2, 2)], 3)]
             [1, 2, 1, 3]
    """
    thin: list[Cell] = []
    for cell in cells:
        if cell.cost >= least:
            yield from [thin] if thin else []
            yield [cell]
            thin = []
            continue
        thin.append(cell)
        if sum(each.cost for each in thin) >= 2 * least:
            yield thin
            thin = []
    yield from [thin] if thin else []


# -- parts of the picture -----------------------------------------------------------------------------------
def _head(one: Strip, first: Strip, unit: str, y: float) -> str:
    share = f", {one.cost / first.cost:.0%} of {first.title}" if one is not first and first.cost else ""
    return _text(0, y + 16, f"{one.title}: {amount(one.cost, unit)}{share}", "head")


def _cells(one: Strip, scale: float, unit: str, y: float) -> Iterator[str]:
    x = 0.0
    for piece in pieces(one.cells, THIN / scale):
        width = scale * sum(cell.cost for cell in piece)
        kinds = {_family(cell.kind) for cell in piece}
        kind = kinds.pop() if len(kinds) == 1 else SEVERAL
        look, ink = _look(kind)
        words = next((w for w in _labels(piece) if CHARACTER * len(w) + 6 <= width), "")
        text = _text(x + width / 2, y + HEIGHT / 2 + 4, words, ink, "middle") if words else ""
        yield (f"<g><title>{escape(_told(piece, unit))}</title>"
               f'<rect {look} x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{HEIGHT}"/>{text}</g>')  # fmt: skip
        x += width


def _labels(piece: Sequence[Cell]) -> list[str]:
    """What may stand in it, the best first."""
    if len(piece) > 1:
        return [f"{len(piece)} layers", str(len(piece))]
    return [f"{piece[0].name} {piece[0].short}".strip(), piece[0].name, piece[0].short]


def _told(piece: Sequence[Cell], unit: str) -> str:
    """All that a pointer over it says."""
    if len(piece) == 1:
        cell = piece[0]
        return ": ".join(filter(None, (cell.name, cell.told or amount(cell.cost, unit))))
    names = [cell.name for cell in piece]
    listed = ", ".join(names if len(names) < 8 else [*names[:4], "…", *names[-2:]])
    return f"{len(piece)} layers, {amount(sum(cell.cost for cell in piece), unit)} together: {listed}"


def _saved(one: Strip, first: Strip, scale: float, y: float) -> Iterator[str]:
    """An empty frame as long as what was saved."""
    start, end = one.cost * scale, first.cost * scale
    if end - start >= THIN:
        words = f"saved {1 - one.cost / first.cost:.0%}"
        yield (f'<rect class="saved" x="{start + 1:.2f}" y="{y + 1:.1f}" width="{end - start - 2:.2f}" '
               f'height="{HEIGHT - 2}"/>')  # fmt: skip
        if CHARACTER * len(words) + 6 <= end - start:
            yield _text((start + end) / 2, y + HEIGHT / 2 + 4, words, "", "middle")


def _legend(kinds: Sequence[str], y: float) -> tuple[list[str], int]:
    """A square and a word for each kind; and how many rows they take."""
    drawn, x, row = [], 0.0, 0
    for kind in kinds:
        width = 18 + CHARACTER * len(kind) + 22
        if x + width > WIDTH and x:
            x, row = 0.0, row + 1
        top = y + LEGEND * row
        drawn += [f'<rect {_look(kind)[0]} x="{x:.1f}" y="{top + 5:.1f}" width="13" height="13"/>',
                  _text(x + 18, top + 16, kind)]  # fmt: skip
        x += width
    return drawn, row + 1 if kinds else 0


def _note(strips: Sequence[Strip], least: float) -> str:
    gathered = [piece for one in strips for piece in pieces(one.cells, least) if len(piece) > 1]
    if not gathered:
        return ""
    return (f"{sum(map(len, gathered))} layers too thin to be seen by themselves are drawn together, in "
            f"{len(gathered)} {'piece' if len(gathered) == 1 else 'pieces'}.")  # fmt: skip


# -- kinds ------------------------------------------------------------------------------------------------
def _family(kind: str) -> str:
    """The kind that has a colour: `dilated depthwise` is drawn as depthwise."""
    word = next((word for word in KINDS if word in kind), None)
    if word is None:
        return REST if kind == REST else SEVERAL
    return SHARED if KINDS[word] == KINDS["dilated"] else word


def _place(kind: str) -> int:
    order = ("standard", "pointwise", "depthwise", "grouped", "asymmetric", SHARED, SEVERAL, REST)
    return order.index(kind)


def _look(kind: str) -> tuple[str, str]:
    """Attributes of its area, and the class of text on it."""
    if kind in (SEVERAL, REST):
        return 'class="other"', "on dark"
    colour = KINDS["dilated" if kind == SHARED else kind]
    return f'fill="{COLOURS[colour]}"', "on" if colour == 0 else "on dark"


# -- text -------------------------------------------------------------------------------------------------
def amount(cost: float, unit: str) -> str:
    """As in `1.23 G MACs`, `0.512 ms` and `1,234 ms`."""
    for prefix, size in (("G ", 1e9), ("M ", 1e6), ("k ", 1e3)):
        if cost >= size and unit != "ms":
            return f"{cost / size:.3g} {prefix}{unit}".strip()
    return f"{cost:,.0f} {unit}".strip() if cost >= 1000 else f"{cost:.3g} {unit}".strip()


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    look = f' class="{kind}"' if kind else ""
    end = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{look} x="{x:.1f}" y="{y:.1f}"{end}>{escape(text)}</text>'

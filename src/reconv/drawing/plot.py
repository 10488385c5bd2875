"""A plot as SVG: series of points over two linear axes, one panel beside the other. Nothing is fetched or scripted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reconv.drawing.figure import COLOURS
from reconv.plain import escape

WIDTH, HEIGHT = 400, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 44
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .small { fill: #57606a; font-size: 11px }
.grid { stroke: #d0d7de } .faint { fill: #8c959f; opacity: .6 } path { fill: none; stroke-width: 1.5 }
.ring { fill: none; stroke: #24292f; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9da7b1 } .grid { stroke: #30363d }
.ring { stroke: #e6edf3 } }
"""


@dataclass(frozen=True)
class Series:
    """Points (x, y, what a pointer over them says).

    Args:    joined: whether a line joins them. colour: an index into COLOURS; None: faint, for the background.
             ringed: indices of points that are marked.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    joined: bool = False
    colour: int | None = 0
    ringed: Sequence[int] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str
    y: str
    series: Sequence[Series]


def plot(panels: Sequence[Panel], label: str) -> str:
    """The SVG text.

    Example:
             >>> plot([Panel("a", "x", "y", [Series("s", [(0.0, 1.0, "here")])])], "one point").count("<circle")
             1
    """
    size = (WIDTH * len(panels), HEIGHT)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" '
             f'aria-label="{escape(label)}">', f"<style>{STYLE}</style>"]  # fmt: skip
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({place * WIDTH} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    points = [point for series in panel.series for point in series.points]
    across, up = _Axis.over([x for x, _, _ in points]), _Axis.over([y for _, y, _ in points])

    def at(point: tuple[float, float, str]) -> tuple[float, float]:
        return (LEFT + across.part(point[0]) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - up.part(point[1]) * (HEIGHT - TOP - BOTTOM))  # fmt: skip

    out = [f"<text x='{LEFT}' y='16' font-weight='600'>{escape(panel.title)}</text>"]
    for tick in across.ticks:
        x, below = at((tick, up.low, ""))[0], HEIGHT - BOTTOM + 15
        out += [_line(x, x, TOP, HEIGHT - BOTTOM),
                f"<text class='small' x='{x:.1f}' y='{below}' text-anchor='middle'>{tick:g}</text>"]  # fmt: skip
    for tick in up.ticks:
        y = at((across.low, tick, ""))[1]
        out += [_line(LEFT, WIDTH - RIGHT, y, y),
                f"<text class='small' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:g}</text>"]  # fmt: skip
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    out += [f"<text class='small' x='{middle[0]}' y='{HEIGHT - 8}' text-anchor='middle'>{escape(panel.x)}</text>",
            f"<text class='small' transform='translate(14 {middle[1]}) rotate(-90)' text-anchor='middle'>"
            f"{escape(panel.y)}</text>"]  # fmt: skip
    named = [s for s in panel.series if s.colour is not None and s.name]
    for row, series in enumerate(named if len(named) > 1 else ()):
        x, y = WIDTH - RIGHT - 8, TOP + 12 + 15 * row
        out += [f"<circle cx='{x}' cy='{y - 4}' r='4' fill='{_colour(series)}'/>",
                f"<text class='small' x='{x - 9}' y='{y}' text-anchor='end'>{escape(series.name)}</text>"]  # fmt: skip
    for series in panel.series:
        spots = [at(point) for point in series.points]
        if series.joined and len(spots) > 1:
            way = " L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            out.append(f"<path d='M{way}' stroke='{_colour(series)}'/>")
        look = "class='faint' r='3'" if series.colour is None else f"fill='{_colour(series)}' r='4'"
        out += [f"<circle cx='{x:.1f}' cy='{y:.1f}' {look}><title>{escape(text)}</title></circle>"
                for (x, y), (_, _, text) in zip(spots, series.points, strict=True)]  # fmt: skip
        out += [f"<circle class='ring' cx='{spots[i][0]:.1f}' cy='{spots[i][1]:.1f}' r='8'/>" for i in series.ringed]
    return out


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        """Ends at round numbers around the values, about five steps apart."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        wide = (high - low) or abs(high) or 1.0
        power = 10.0 ** math.floor(math.log10(wide / 4))
        step = next(power * n for n in (1, 2, 5, 10) if power * n * 5 >= wide)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last += first == last
        return cls(first * step, last * step, tuple(round(n * step, 12) for n in range(first, last + 1)))

    def part(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _colour(series: Series) -> str:
    return COLOURS[(series.colour or 0) % len(COLOURS)]


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f"<line class='grid' x1='{x1:.1f}' x2='{x2:.1f}' y1='{y1:.1f}' y2='{y2:.1f}'/>"

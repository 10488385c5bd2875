"""A picture of results: one dot a problem, on a logarithmic axis of ratios, one strip a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reconv.benching.report import LOSING, geometric_mean
from reconv.plain import escape

WIDTH, LABEL, RIGHT = 820, 150, 30
DOT, STEP, GAP = 3.5, 8, 14  # radius of a dot, from one to the next above it, and between strips
LEGEND = "A dot is a problem; the bar and the number are a file's geometric mean."
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .small { fill: #57606a; font-size: 11px }
.axis { stroke: #d0d7de } .even { stroke: #57606a } .mean { stroke: #24292f; stroke-width: 2 }
.won { fill: #0072b2 } .even-dot { fill: #8c959f } .lost { fill: #d55e00 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9da7b1 } .axis { stroke: #30363d }
.even { stroke: #9da7b1 } .mean { stroke: #e6edf3 } .won { fill: #56b4e9 } .lost { fill: #e69f00 } }
"""


def svg(results: Sequence[Mapping[str, Any]], title: str = "") -> str:
    """Args:    results: as in the JSON of `reconv bench`; those without a ratio are left out."""
    strips: dict[str, list[tuple[float, str]]] = {}
    for result in results:
        if result["ratio"] is not None:
            text = f"{result['problem']} · threads: {result['threads']} · ratio {result['ratio']:.2f}"
            strips.setdefault(result["group"] or "given lines", []).append((result["ratio"], text))
    ratios = [ratio for strip in strips.values() for ratio, _ in strip]
    low, high = _ends(ratios)
    body, y = list[str](), 48.0
    for name, strip in strips.items():
        dots, height = _dots(strip, low, high)
        mean = geometric_mean([ratio for ratio, _ in strip])
        base = y + height
        body.append(f"<text x='0' y='{base:.1f}'>{escape(name)}</text>")
        body.append(f"<text class='small' x='{LABEL - 12}' y='{base:.1f}' text-anchor='end'>{mean:.2f}</text>")
        for x, up, kind, text in dots:
            hint = f"<title>{escape(text)}</title>"
            body.append(f"<circle class='{kind}' cx='{x:.1f}' cy='{base - up:.1f}' r='{DOT}'>{hint}</circle>")
        body.append(_line(_place(mean, low, high), base + 3, base - height - 3, "mean"))
        y = base + GAP
    head = title or "PyTorch's time over reconv's, each in its best memory format: right of 1 reconv is faster"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20:.0f}" role="img" '
           f'aria-label="{escape(head)}">', f"<style>{STYLE}</style>",
           f"<text x='0' y='16' font-weight='600'>{escape(head)}</text>",
           f"<text class='small' x='0' y='34'>{LEGEND}</text>"]  # fmt: skip
    for tick in _ticks(low, high):
        x = _place(tick, low, high)
        out += [_line(x, 44, y, "even" if tick == 1 else "axis"),
                f"<text class='small' x='{x:.1f}' y='{y + 14:.1f}' text-anchor='middle'>{tick:g}</text>"]  # fmt: skip
    return "\n".join([*out, *body, "</svg>", ""])


def _dots(
    strip: Sequence[tuple[float, str]], low: float, high: float
) -> tuple[list[tuple[float, float, str, str]], float]:
    """(x, height above the strip's base, class, text) of each dot; and the height of the strip."""
    stacked: dict[int, int] = {}
    dots = []
    for ratio, text in sorted(strip):
        x = _place(ratio, low, high)
        column = round(x / STEP)
        level = stacked[column] = stacked.get(column, -1) + 1
        kind = "lost" if ratio < LOSING else "won" if ratio > 1 / LOSING else "even-dot"
        dots.append((column * float(STEP), DOT + level * STEP, kind, text))
    return dots, STEP * (1.0 + max(stacked.values()))


def _place(ratio: float, low: float, high: float) -> float:
    return LABEL + (WIDTH - LABEL - RIGHT) * math.log(ratio / low) / math.log(high / low)


def _ends(ratios: Sequence[float]) -> tuple[float, float]:
    return min([0.5, *ratios]) / 1.1, max([2.0, *ratios]) * 1.1


def _ticks(low: float, high: float) -> list[float]:
    every = (mantissa * 10.0**power for power in range(-3, 5) for mantissa in (1, 2, 5))
    return [tick for tick in every if low <= tick <= high]


def _line(x: float, top: float, bottom: float, kind: str) -> str:
    return f"<line class='{kind}' x1='{x:.1f}' x2='{x:.1f}' y1='{top:.1f}' y2='{bottom:.1f}'/>"

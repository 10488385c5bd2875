"""A picture of the comparison: a panel a network and engine, latency across, points of accuracy lost downwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape

PANEL, HEIGHT, LEFT, TOP, GAP = 380, 210, 44, 64, 56
SLOWEST, FASTEST = 1.4, 0.12  # ratios at the ends of the axis
MOST_LOST, LEAST_LOST = 12.0, -2.0  # what lost more lies on the edge
TICKS = ((1, 0.75, 0.5, 0.33, 0.25, 0.15), (0, 1, 2, 4, 8))
COLOURS = {"reconv": "#0072b2", "tensorly-torch": "#e69f00", "fasterai": "#cc79a7", "Torch-Pruning": "#009e73",
           "AIMET": "#d55e00"}  # fmt: skip
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .small { fill: #57606a; font-size: 11px }
.axis { stroke: #d0d7de } .front { fill: none; stroke-width: 2 } .dot { fill-opacity: 0.75 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9da7b1 } .axis { stroke: #30363d } }
"""


def svg(panels: Sequence[tuple[str, Sequence[Any]]], front: Callable[[Iterable[Any]], list[Any]], ours: str) -> str:
    """Args:    panels: title and points, two in a row. front: the best of some points, which a line joins."""
    rows = math.ceil(len(panels) / 2)
    width, height = 2 * (PANEL + LEFT) + 20, TOP + rows * (HEIGHT + GAP)
    head = "Latency over the trained network's (logarithmic, faster to the right) and points of accuracy lost"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
           f'aria-label="{escape(head)}">', f"<style>{STYLE}</style>",
           f"<text x='0' y='16' font-weight='600'>{escape(head)}</text>", *legend()]  # fmt: skip
    for place, (title, points) in enumerate(panels):
        left, top = LEFT + place % 2 * (PANEL + LEFT), TOP + place // 2 * (HEIGHT + GAP)
        shown = [p for p in points if p.tool in COLOURS]
        out.append(f"<g transform='translate({left} {top})'><text x='0' y='-6'>{escape(title)}</text>")
        out += [*axes(), *lines(shown, front, ours), *dots(shown), "</g>"]
    return "\n".join([*out, "</svg>", ""])


def across(ratio: float) -> float:
    inside = min(max(ratio, FASTEST), SLOWEST)
    return PANEL * math.log(SLOWEST / inside) / math.log(SLOWEST / FASTEST)


def down(lost: float) -> float:
    """Linear up to one point, logarithmic beyond, where only the order of magnitude matters."""
    inside = min(max(lost, LEAST_LOST), MOST_LOST)
    bent = inside if inside <= 1 else 1 + math.log2(inside)
    return HEIGHT * (bent - LEAST_LOST) / (1 + math.log2(MOST_LOST) - LEAST_LOST)


def legend() -> list[str]:
    out, x = list[str](), 0
    for tool, colour in COLOURS.items():
        out.append(f"<circle cx='{x + 6}' cy='34' r='4.5' fill='{colour}'/><text x='{x + 16}' y='38'>{tool}</text>")
        x += 36 + 7 * len(tool)
    return [*out, f"<text class='small' x='{x}' y='38'>lines: the best of reconv, and of all peers together</text>"]


def axes() -> list[str]:
    ratios, losses = TICKS
    out = [f"<line class='axis' x1='{across(r):.1f}' y1='0' x2='{across(r):.1f}' y2='{HEIGHT}'/>"
           f"<text class='small' x='{across(r):.1f}' y='{HEIGHT + 14}' text-anchor='middle'>{r:g}</text>"
           for r in ratios]  # fmt: skip
    return out + [f"<line class='axis' x1='0' y1='{down(n):.1f}' x2='{PANEL}' y2='{down(n):.1f}'/>"
                  f"<text class='small' x='-6' y='{down(n) + 4:.1f}' text-anchor='end'>{n:g}</text>"
                  for n in losses]  # fmt: skip


def lines(points: Sequence[Any], front: Callable[[Iterable[Any]], list[Any]], ours: str) -> list[str]:
    sides = (([p for p in points if p.tool == ours], f"stroke='{COLOURS[ours]}'"),
             ([p for p in points if p.tool != ours], "stroke='#8c959f' stroke-dasharray='4 3'"))  # fmt: skip
    return [f"<polyline class='front' {style} points='"
            + " ".join(f"{across(p.ratio):.1f},{down(p.loss):.1f}" for p in front(side)) + "'/>"
            for side, style in sides if side]  # fmt: skip


def dots(points: Sequence[Any]) -> list[str]:
    return [f"<circle class='dot' cx='{across(p.ratio):.1f}' cy='{down(p.loss):.1f}' r='4' fill='{COLOURS[p.tool]}'>"
            f"<title>{escape(f'{p.method}, {p.setting}: latency {p.ratio:.2f}, {p.loss:.2f} points lost')}</title>"
            "</circle>" for p in points]  # fmt: skip

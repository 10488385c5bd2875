"""What every drawing is put together from: colours that are told apart by all, parts with a size, lines and words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reconv.plain import escape
from reconv.spec import ConvSpec

# Okabe and Ito 2008
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LIGHT = {"ink": "#24292f", "soft": "#57606a", "paper": "#ffffff", "sheet": "#eef2f6", "line": "#afb8c1",
         "read": "#0072b2", "weight": "#d55e00", "made": "#009e73"}  # fmt: skip
DARK = {"ink": "#e6edf3", "soft": "#9da7b1", "paper": "#0d1117", "sheet": "#1f2733", "line": "#4c5866",
        "read": "#56b4e9", "weight": "#e69f00", "made": "#2fc79a"}  # fmt: skip
CHARACTER = 7.4  # pixels, of a word of 12 px on average
Between = Callable[[float, float, float], str]  # from x to x at a height: SVG


@dataclass(frozen=True)
class Figure:
    """A part of the picture: its size, the height at which the data comes in and goes out, and its SVG."""

    width: float
    height: float
    axis: float
    svg: str

    def at(self, x: float, y: float) -> str:
        return f'<g transform="translate({x:.1f} {y:.1f})">{self.svg}</g>'


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def line(*points: float, kind: str = "wire") -> str:
    joined = " ".join(f"{value:.1f}" for value in points)
    return f'<polyline class="{kind}" points="{joined}"/>'


def arrow(start: float, end: float, y: float) -> str:
    tip = f'<polygon class="tip" points="{end - 7:.1f},{y - 4:.1f} {end:.1f},{y:.1f} {end - 7:.1f},{y + 4:.1f}"/>'
    return line(start, y, max(start, end - 6), y) + tip


def times(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def same(values: Sequence[int]) -> str:
    """One number where all are alike."""
    return str(values[0]) if len(set(values)) == 1 else times(values)


def strides(spec: ConvSpec) -> list[str]:
    """What is to be said of the steps of a convolution, where they are not 1."""
    lines = [] if set(spec.stride) == {1} else [f"stride {same(spec.stride)}"]
    return lines if set(spec.dilation) == {1} or spec.pointwise else [*lines, f"dilation {same(spec.dilation)}"]


def length(text: str) -> float:
    """Pixels of a word, more or less; characters of Chinese are twice as wide."""
    return CHARACTER * sum(1.75 if "\u2e80" <= letter <= "\uffef" else 1 for letter in text)


def row(parts: Sequence[Figure], gap: float, between: Between | None = None) -> Figure:
    """Side by side, where the data comes in at one height; `between` draws what leads from one to the next."""
    axis = max(part.axis for part in parts)
    height = axis + max(part.height - part.axis for part in parts)
    x = 0.0
    drawn: list[str] = []
    for part in parts:
        if drawn and between is not None:
            drawn.append(between(x - gap, x, axis))
        drawn.append(part.at(x, axis - part.axis))
        x += part.width + gap
    return Figure(x - gap, height, axis, "".join(drawn))


def lanes(parts: Sequence[Figure], sign: str, gap: float, into: Between) -> Figure:
    """One below the other on the same data, joined at the right end; `into` draws what leads into each."""
    lead = 30
    widest, tops, y = max(part.width for part in parts), [], 0.0
    for part in parts:
        tops.append(y)
        y += part.height + gap
    height, radius = y - gap, 11
    axis = (tops[0] + parts[0].axis + tops[-1] + parts[-1].axis) / 2
    end = lead + widest + lead
    drawn = []
    for part, top in zip(parts, tops, strict=True):
        level, left = top + part.axis, lead + (widest - part.width) / 2
        drawn += [line(0, axis, 8, axis, 8, level), into(8, left, level), part.at(left, top),
                  line(left + part.width, level, end - 4, level, end - 4, axis)]  # fmt: skip
    drawn.append(f'<ellipse class="box" cx="{end + 8}" cy="{axis:.1f}" rx="{radius + 3}" ry="{radius}"/>'
                 + words(end + 8, axis + 4, sign, "bold", "middle"))  # fmt: skip
    return Figure(end + 8 + radius + 3, max(height, axis + radius), axis, "".join(drawn))


def document(width: float, height: float, alt: str, body: str, style: str = "", kind: str = "") -> str:
    """The whole SVG; `alt` is for those who hear it, `kind` a class of the outermost element."""
    told, name = escape(alt), f"reconv {kind}".strip()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{name}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img" aria-label="{told}"><title>{told}</title><style>{STYLE}{style}</style>\n'
        f"{body}\n</svg>\n"
    )


def palette(colours: dict[str, str]) -> str:
    return "; ".join(f"--rc-{name}: {value}" for name, value in colours.items())


_GROUPS = "".join(f".reconv .k{i + 1} {{ fill: {c} }} .reconv .s{i + 1} {{ stroke: {c} }} .reconv .sheet.k{i + 1} "
                  f"{{ fill-opacity: .22 }}\n" for i, c in enumerate(COLOURS))  # fmt: skip
_RULES = f"""
.reconv {{ {palette(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ .reconv {{ {palette(DARK)} }} }}
.reconv text {{ font: 12px system-ui, sans-serif; fill: var(--rc-ink) }} .reconv .bold {{ font-weight: 600 }}
.reconv .soft {{ fill: var(--rc-soft) }} .reconv text.number {{ font-size: .55px; text-anchor: middle }}
.reconv text.formula {{ font: 13px ui-monospace, monospace }}
.reconv .sheet {{ fill: var(--rc-sheet); fill-opacity: .8 }} .reconv .deep .sheet {{ fill-opacity: .5 }}
.reconv .k0 {{ fill: var(--rc-sheet) }}
.reconv .s0 {{ stroke: var(--rc-soft) }} .reconv .dot {{ fill-opacity: 1 }}
.reconv .grid {{ fill: none; stroke: var(--rc-line); stroke-width: .05 }}
.reconv .pad {{ fill: none; stroke: var(--rc-line); stroke-width: .06;
stroke-dasharray: .3 .2 }}
.reconv .zero {{ fill: var(--rc-paper); fill-opacity: .85 }}
.reconv .read, .reconv .t-read {{ fill: var(--rc-read) }}
.reconv .weight, .reconv .t-weight {{ fill: var(--rc-weight) }}
.reconv .made, .reconv .t-made, .reconv .made-text {{ fill: var(--rc-made) }}
.reconv path.read, .reconv path.made, .reconv path.weight {{ fill-opacity: .8 }}
.reconv path.near {{ fill-opacity: .3 }}
.reconv path.point {{ fill-opacity: 1 }} .reconv .way {{ fill: none; stroke: var(--rc-ink); stroke-width: .06 }}
.reconv .void {{ fill: var(--rc-read); fill-opacity: .22 }}
.reconv .frame {{ fill: none; stroke: var(--rc-line); stroke-width: .6 }}
.reconv .box {{ fill: var(--rc-sheet); stroke: var(--rc-line) }} .reconv .crossing {{ fill: none; stroke-width: 2 }}
.reconv .wire {{ fill: none; stroke: var(--rc-soft); stroke-width: 1.4 }} .reconv .tip {{ fill: var(--rc-soft) }}
.reconv .t-stride, .reconv .t-dilation, .reconv .t-padding, .reconv .t-moved {{ font-weight: 700 }}
{_GROUPS}"""
# for viewers that do not know colours by name: those of light mode, before
STYLE = re.sub(r"(fill|stroke): var\(--rc-(\w+)\)", lambda m: f"{m[1]}: {LIGHT[m[2]]}; {m[0]}", _RULES)

"""A block as a picture: a fold over Block to SVG. Left to right as the data runs, branches one below the other."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never
from xml.sax.saxutils import escape

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

GLYPH, PAD, LINE, GAP, MARGIN = 44, 10, 15, 30, 16  # pixels: of a kernel's picture, inside boxes, between things
CHARACTER = 7.4  # width of one, on average
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .bold { font-weight: 600 } .soft { fill: #57606a }
.box { fill: #f6f8fa; stroke: #afb8c1 } .wire { fill: none; stroke: #57606a; stroke-width: 1.4 } .tip { fill: #57606a }
.tap { fill: #0072b2 } .mixed { fill: #d55e00 } .cell { fill: none; stroke: #d0d7de; stroke-width: .6 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .soft { fill: #9da7b1 } .box { fill: #161b22; stroke:
#444c56 } .wire { stroke: #9da7b1 } .tip { fill: #9da7b1 } .tap { fill: #56b4e9 } .mixed { fill: #e69f00 } .cell
{ stroke: #444c56 } }
"""


@dataclass(frozen=True)
class Figure:
    """A part of the picture: its size, the height at which the data comes in and goes out, and its SVG."""

    width: float
    height: float
    axis: float
    svg: str

    def at(self, x: float, y: float) -> str:
        return f'<g transform="translate({x:.1f} {y:.1f})">{self.svg}</g>'


def svg(blocks: Sequence[tuple[str, Block, Sequence[int] | None]], label: str) -> str:
    """A picture of blocks, one below the other, each with its title and the shapes that go in and come out.

    Args:    blocks: (title, block, input shape (N, C, *spatial), or None where it is not known).
             label: what the picture shows, for those who hear it.
    Example:
             >>> svg([("before", ConvSpec(in_channels=4, out_channels=8, kernel_size=(3, 3)), (1, 4, 9, 9))], "")[:4]
             '<svg'
    """
    rows, y, width = [], float(MARGIN), 0.0
    for title, block, shape in blocks:
        figure = figure_of(block)
        if shape is not None:
            figure = _ended(figure, shape, output_shape(block, shape))
        rows += [_text(MARGIN, y + 12, title, "bold"), figure.at(MARGIN, y + 22)]
        width, y = max(width, figure.width), y + 22 + figure.height + MARGIN
    size = f"{width + 2 * MARGIN:.0f} {y:.0f}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width + 2 * MARGIN:.0f}" role="img" '
            f'aria-label="{html.escape(label)}"><style>{STYLE}</style>\n' + "\n".join(rows) + "\n</svg>\n")  # fmt: skip


def figure_of(block: Block) -> Figure:
    match block:
        case Chain():
            return _chain([figure_of(part) for part in block.blocks])
        case Branches():
            return _branches([figure_of(part) for part in block.blocks], block.join)
        case ConvSpec():
            return _box(_conv_lines(block), _kernel(block))
        case Deform():
            moved = "offsets, weights" if block.modulated else "offsets"
            return _box([*_conv_lines(block.conv), f"deformable: {moved}"], _kernel(block.conv, moved=True))
        case Shuffle():
            return _box(["channel shuffle", f"{block.groups} groups"], _crossed())
        case Permute():
            return _box(["permutation", f"{block.channels} channels"], _crossed())
        case PixelShuffle():
            crop = [f"crop {_ends(block.crop)}"] if any(map(any, block.crop)) else []
            return _box(["pixel shuffle", f"by {_times(block.factors)}", *crop])
        case Gate():
            return _box(["channel weights", "squeeze, excite", f"reduction {block.reduction}"])
        case BatchNorm():
            return _box(["batch norm"])
        case Activation():
            return _box([block.name]) if block.name != "identity" else _wire()
        case _:
            assert_never(block)


# -- how parts are put together -------------------------------------------------------------------------
def _chain(parts: Sequence[Figure]) -> Figure:
    axis = max(part.axis for part in parts)
    height = axis + max(part.height - part.axis for part in parts)
    x, drawn = 0.0, []
    for i, part in enumerate(parts):
        if i:
            drawn.append(_arrow(x, x + GAP, axis))
            x += GAP
        drawn.append(part.at(x, axis - part.axis))
        x += part.width
    return Figure(x, height, axis, "".join(drawn))


def _branches(parts: Sequence[Figure], join: str) -> Figure:
    widest, tops, y = max(part.width for part in parts), [], 0.0
    for part in parts:
        tops.append(y)
        y += part.height + PAD
    height, radius = y - PAD, 11
    axis = (tops[0] + parts[0].axis + tops[-1] + parts[-1].axis) / 2
    end = GAP + widest + GAP
    drawn = []
    for part, top in zip(parts, tops, strict=True):
        level, left = top + part.axis, GAP + (widest - part.width) / 2
        drawn += [_path(0, axis, 8, axis, 8, level), _arrow(8, left, level), part.at(left, top),
                  _path(left + part.width, level, end - 4, level, end - 4, axis)]  # fmt: skip
    sign = "+" if join == "sum" else "cat"
    drawn.append(f'<ellipse class="box" cx="{end + 8}" cy="{axis:.1f}" rx="{radius + 3}" ry="{radius}"/>'
                 + _text(end + 8, axis + 4, sign, "bold", "middle"))  # fmt: skip
    return Figure(end + 8 + radius + 3, max(height, axis + radius), axis, "".join(drawn))


def _ended(figure: Figure, given: Sequence[int], gives: Sequence[int]) -> Figure:
    """With the shapes of one sample at both ends."""
    before, after = _times(given[1:]), _times(gives[1:])
    first = CHARACTER * len(before) + 8
    end = first + GAP + figure.width + GAP
    drawn = [_text(0, figure.axis + 4, before, "soft"), _arrow(first, first + GAP, figure.axis),
             figure.at(first + GAP, 0), _arrow(end - GAP, end, figure.axis),
             _text(end + 4, figure.axis + 4, after, "soft")]  # fmt: skip
    return Figure(end + 4 + CHARACTER * len(after), figure.height, figure.axis, "".join(drawn))


def _box(lines: Sequence[str], glyph: str = "") -> Figure:
    """Lines of text, the first of them bold, with a small picture to their left."""
    left = PAD + (GLYPH + PAD if glyph else 0)
    width = left + CHARACTER * max(map(len, lines)) + PAD
    height = max(GLYPH if glyph else 0, LINE * len(lines)) + 2 * PAD
    top = (height - LINE * len(lines)) / 2 + 11
    drawn = [f'<rect class="box" width="{width:.1f}" height="{height}" rx="5"/>']
    if glyph:
        drawn.append(f'<g transform="translate({PAD} {(height - GLYPH) / 2:.1f})">{glyph}</g>')
    drawn += [_text(left, top + LINE * i, line, "soft" if i else "bold") for i, line in enumerate(lines)]
    return Figure(width, height, height / 2, "".join(drawn))


def _wire() -> Figure:
    return Figure(40, 16, 8, _path(0, 8, 40, 8))


# -- what stands in a box ---------------------------------------------------------------------------------
def _conv_lines(spec: ConvSpec) -> list[str]:
    lines = [("transposed " if spec.transposed else "") + _times(spec.kernel_size),
             f"{spec.in_channels} → {spec.out_channels}"]  # fmt: skip
    extras = []
    if set(spec.stride) != {1}:
        extras.append(f"stride {_same(spec.stride)}")
    if set(spec.dilation) != {1} and not spec.pointwise:
        extras.append(f"dilation {_same(spec.dilation)}")
    if spec.groups > 1:
        extras.append("depthwise" if spec.depthwise else f"{spec.groups} groups")
    return lines + extras


def _kernel(spec: ConvSpec, moved: bool = False) -> str:
    """The taps of the last two axes, where they lie; those of a 1×1 in another colour."""
    taps, steps = (1, 1, *spec.kernel_size)[-2:], (1, 1, *spec.dilation)[-2:]
    extents = [d * (k - 1) + 1 for k, d in zip(taps, steps, strict=True)]
    pitch = 1.4 if moved else 1.0  # room to move in
    cells = max(*extents, 3) * pitch
    if cells > 33:
        return ""
    size = GLYPH / cells
    kind = "mixed" if spec.pointwise else "tap"
    drawn = [f'<rect class="cell" width="{GLYPH}" height="{GLYPH}"/>']
    for i in range(taps[0]):
        for j in range(taps[1]):
            x = (cells - pitch * extents[1]) / 2 + pitch * steps[1] * j + (pitch - 1) * ((i + 2 * j) % 3) / 2
            y = (cells - pitch * extents[0]) / 2 + pitch * steps[0] * i + (pitch - 1) * ((2 * i + j) % 3) / 2
            drawn.append(f'<rect class="{kind}" x="{x * size + 0.4:.1f}" y="{y * size + 0.4:.1f}" '
                         f'width="{max(0.8, size - 0.8):.1f}" height="{max(0.8, size - 0.8):.1f}"/>')  # fmt: skip
    return "".join(drawn)


def _crossed() -> str:
    """Channels that change their places."""
    count = 6
    step = GLYPH / (count - 1)
    turned = [(i % 2) * (count // 2) + i // 2 for i in range(count)]
    return "".join(_path(0, i * step, GLYPH, to * step) for i, to in enumerate(turned))


# -- svg --------------------------------------------------------------------------------------------------
def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(*points: float) -> str:
    joined = " ".join(f"{value:.1f}" for value in points)
    return f'<polyline class="wire" points="{joined}"/>'


def _arrow(start: float, end: float, y: float) -> str:
    tip = f'<polygon class="tip" points="{end - 7:.1f},{y - 4:.1f} {end:.1f},{y:.1f} {end - 7:.1f},{y + 4:.1f}"/>'
    return _path(start, y, max(start, end - 6), y) + tip


def _times(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def _same(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else _times(values)


def _ends(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in dict.fromkeys(pairs))

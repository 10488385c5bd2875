"""A block as a picture: a fold over Block to SVG. Left to right as the data runs, branches one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from reconv.drawing.figure import CHARACTER, Figure, arrow, document, lanes, line, row, strides, times, words
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
        rows += [words(MARGIN, y + 12, title, "bold"), figure.at(MARGIN, y + 22)]
        width, y = max(width, figure.width), y + 22 + figure.height + MARGIN
    return document(width + 2 * MARGIN, y, label, "\n".join(rows))


def block_svg(block: Block) -> str:
    """How a block shows itself in a notebook, where no input is known."""
    return svg([(str(block), block, None)], f"A picture of {block}")


def figure_of(block: Block) -> Figure:
    match block:
        case Chain():
            return row([figure_of(part) for part in block.blocks], GAP, arrow)
        case Branches():
            parts = [figure_of(part) for part in block.blocks]
            return lanes(parts, "+" if block.join == "sum" else "cat", PAD, arrow)
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
            return _box(["pixel shuffle", f"by {times(block.factors)}", *crop])
        case Gate():
            return _box(["channel weights", "squeeze, excite", f"reduction {block.reduction}"])
        case BatchNorm():
            return _box(["batch norm"])
        case Activation():
            return _box([block.name]) if block.name != "identity" else _wire()
        case _:
            assert_never(block)


# -- how parts are put together -------------------------------------------------------------------------
def _ended(figure: Figure, given: Sequence[int], gives: Sequence[int]) -> Figure:
    """With the shapes of one sample at both ends."""
    before, after = times(given[1:]), times(gives[1:])
    first = CHARACTER * len(before) + 8
    end = first + GAP + figure.width + GAP
    drawn = [words(0, figure.axis + 4, before, "soft"), arrow(first, first + GAP, figure.axis),
             figure.at(first + GAP, 0), arrow(end - GAP, end, figure.axis),
             words(end + 4, figure.axis + 4, after, "soft")]  # fmt: skip
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
    drawn += [words(left, top + LINE * i, line, "soft" if i else "bold") for i, line in enumerate(lines)]
    return Figure(width, height, height / 2, "".join(drawn))


def _wire() -> Figure:
    return Figure(40, 16, 8, line(0, 8, 40, 8))


# -- what stands in a box ---------------------------------------------------------------------------------
def _conv_lines(spec: ConvSpec) -> list[str]:
    lines = [("transposed " if spec.transposed else "") + times(spec.kernel_size),
             f"{spec.in_channels} → {spec.out_channels}"]  # fmt: skip
    extras = strides(spec)
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
    kind = "read" if not spec.pointwise else "weight"
    drawn = [f'<rect class="frame" width="{GLYPH}" height="{GLYPH}"/>']
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
    return "".join(line(0, i * step, GLYPH, to * step) for i, to in enumerate(turned))


def _ends(pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(str(lo) if lo == hi else f"{lo}:{hi}" for lo, hi in dict.fromkeys(pairs))

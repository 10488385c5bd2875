"""The table of a block: a row for each part, with its shapes and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reconv.spec.block import (
    Activation,
    BatchNorm,
    Block,
    Branches,
    Chain,
    Deform,
    Gate,
    Permute,
    PixelShuffle,
    Shuffle,
    no_block,
)
from reconv.spec.conv import ConvSpec, Ints
from reconv.spec.cost import macs, params
from reconv.spec.geometry import given_shape, output_shape


@dataclass(frozen=True)
class Part:
    """One part of a block, and what it does to an input of this shape."""

    text: str
    input_shape: Ints
    weight_shapes: tuple[Ints, ...]
    output_shape: Ints
    params: int
    macs: int


@dataclass(frozen=True, repr=False)
class Description:
    """The parts of a block in the order in which they run. Prints as a table; iterates over its rows."""

    title: str
    input_shape: Ints
    output_shape: Ints
    rows: tuple[Part, ...]

    @property
    def params(self) -> int:
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [["part", "input", "weight", "output", "params", "macs"]]
        for row in self.rows:
            weights = " ".join(map(_shape_text, row.weight_shapes))
            cells.append([row.text, _shape_text(row.input_shape), weights, _shape_text(row.output_shape),
                          f"{row.params:,}", f"{row.macs:,}"])  # fmt: skip
        cells.append(["total", _shape_text(self.input_shape), "", _shape_text(self.output_shape),
                      f"{self.params:,}", f"{self.macs:,}"])  # fmt: skip
        return "\n".join([self.title, *_aligned(cells)])

    __repr__ = __str__


def describe(block: Block, input_shape: Sequence[int], title: str = "") -> Description:
    """What each part of a block does to an input (N, C, *spatial), and what it costs.

    Args:    input_shape: (N, C, *spatial). title: of the table; the block's text without it.
    Raises:  ConvError: when the block does not take such an input.
    Example:
             >>> from reconv.spec import parse
             >>> describe(parse("ic16oc16k3x3p1g16nb -> ic16oc32k1x1nb"), (1, 16, 28, 28))
             ic16oc16k3x3p1g16nb -> ic16oc32k1x1nb
             part                 input       weight      output      params     macs
             ic16oc16k3x3p1g16nb  1×16×28×28  16×1×3×3    1×16×28×28     144  112,896
             ic16oc32k1x1nb       1×16×28×28  32×16×1×1   1×32×28×28     512  401,408
             total                1×16×28×28              1×32×28×28     656  514,304
    """
    shape = given_shape(input_shape)
    return Description(title or str(block), shape, output_shape(block, shape), tuple(_parts(block, shape)))


def _parts(block: Block, shape: Ints) -> Iterator[Part]:
    match block:
        case Chain():
            for part in block.blocks:
                yield from _parts(part, shape)
                shape = output_shape(part, shape)
        case Branches():
            for part in block.blocks:
                yield from _parts(part, shape)
        case Deform():
            yield from _parts(block.offset_conv, shape)
            yield _part(block, block.conv, shape, (block.conv.weight_shape,))
        case ConvSpec():
            yield _part(block, block, shape, (block.weight_shape,))
        case Gate():
            hidden = max(1, shape[1] // block.reduction)
            yield _part(block, block, shape, ((hidden, shape[1]), (shape[1], hidden)))
        case BatchNorm():
            yield _part(block, block, shape, ((shape[1],),))
        case Shuffle() | Permute() | PixelShuffle() | Activation():
            yield _part(block, block, shape, ())
        case _:
            no_block(block)


def _part(block: Block, costed: Block, shape: Ints, weights: tuple[Ints, ...]) -> Part:
    return Part(str(block), shape, weights, output_shape(block, shape), params(costed, shape[1]), macs(costed, shape))


def _shape_text(shape: Ints) -> str:
    return "×".join(map(str, shape))


def _aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of one width each; the last two, which hold numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        sides = "<<<<>>"
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()

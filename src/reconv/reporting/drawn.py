"""`reconv.draw`: a convolution as a picture or an animation, in a file or as SVG text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from reconv.drawing.flow import Moves
from reconv.drawing.picture import Drawing, Wanted
from reconv.errors import conv_error
from reconv.spec import Block, Chain, ConvSpec, Deform, PixelShuffle, Shuffle, in_channels, output_shape, parse
from reconv.spec.geometry import dimensions, receptive_field
from reconv.writing import write_bytes

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = (".svg", ".png", ".gif")
OFFSETS = ("none", "scale", "rotate", "random")
LONGEST = 4096  # cells along an axis of an input that is drawn
USUAL = {1: 12, 2: 7, 3: 5}  # input length, unless the kernels ask for more
TURN = math.radians(30)


def draw(
    what: str | Block | nn.Module,
    path: str | Path | None = None,
    *,
    input_size: int | Sequence[int] | None = None,
    at: Sequence[int] | None = None,
    animate: bool = False,
    numbers: bool = False,
    offsets: str | Sequence[Sequence[float]] = "random",
    channels: int | None = None,
) -> str:
    """Draws a convolution, or a block of several, on one sample: all maps as volumes, and what one output cell needs.

    Args:    what: a spec's or block's text, a ConvSpec or Block, or a layer (torch.nn's or reconv.nn's).
             path: .svg (colours follow the reader's dark or light mode), .png or .gif; None: nothing is written.
             input_size: the input's length, along each axis; None: a small one that the kernels fit into.
             at: the output cell (channel, *position) to show; None: one in the middle. animate: one cell after the
             other, which a .gif always does. numbers: a worked example in small whole numbers.
             offsets: how a deformable convolution's taps are moved: "none", "scale", "rotate", "random", or
             a displacement for each tap, in the order of its axes.
             channels: of the input, where no part of the block tells them.
    Returns: the SVG text. What is too large is drawn in part, and says so.
    Raises:  ConvError: when it cannot be read, does not fit the size, or has no such output cell; (an ImportError) when
             a .png or .gif is asked for without the extra `pictures`.
    Example:
             >>> draw("ic4oc8k3x3p1", input_size=7).count('class="map"')
             2
    """
    suffix = _suffix(path)
    block = _block(what)
    shape = _shape(block, input_size, channels)
    out = output_shape(block, (1, *shape))[1:]
    wanted = Wanted(_cell(at, out), animate or suffix == ".gif", numbers, moves_of(block, offsets))
    drawing = Drawing(block, shape, wanted)
    text = drawing.svg()
    if path is not None:
        write_bytes(path, _encoded(drawing, text, suffix), "draw")
    return text


def _encoded(drawing: Drawing, text: str, suffix: str) -> bytes:
    from reconv.drawing import raster

    if suffix == ".png":
        return raster.png(drawing.still(0))
    if suffix == ".gif":
        return raster.gif([drawing.still(i) for i in range(len(drawing.cells))], drawing.seconds)
    return text.encode()


def _suffix(path: str | Path | None) -> str:
    suffix = "" if path is None else Path(path).suffix.lower()
    if path is not None and suffix not in SUFFIXES:
        raise conv_error("draw", f"path must end in {', '.join(SUFFIXES)}", got={"path": path}, also=ValueError)
    return suffix


def _block(what: str | Block | nn.Module) -> Block:
    if isinstance(what, str):
        return parse(what)
    if isinstance(what, Block):
        return what
    from reconv.layers.compose import block_of

    return block_of(what)


def _shape(block: Block, size: int | Sequence[int] | None, channels: int | None) -> tuple[int, ...]:
    """(C, *spatial) of the input."""
    given = (size,) if isinstance(size, int) else tuple(size or ())
    dims = dimensions(block) or (len(given) if len(given) > 1 else 2)
    channels = in_channels(block) or channels or _channels(block)
    lengths = given * dims if len(given) == 1 else given or usual_size(block, dims)
    if len(lengths) != dims or not all(isinstance(n, int) and 1 <= n <= LONGEST for n in lengths):
        raise conv_error("draw", f"input_size must be an integer from 1 to {LONGEST}, or {dims} of them",
                         got={"input_size": size}, spec=block, also=ValueError)  # fmt: skip
    return (channels, *lengths)


def usual_size(block: Block, dims: int) -> tuple[int, ...]:
    """Small, and large enough that the kernels have room to move; of transposed ones smaller."""
    grows = isinstance(block, PixelShuffle) or (isinstance(block, ConvSpec) and block.transposed)
    seen = receptive_field(block, dims)
    return tuple(4 if grows else max(USUAL[dims], n + 4 if n > 3 else n) for n in seen)


def _channels(block: Block) -> int:
    """Where no part tells how many there are."""
    if isinstance(block, Chain):
        return _channels(block.blocks[0])
    if isinstance(block, Shuffle):
        return 2 * block.groups
    return math.prod(block.factors) if isinstance(block, PixelShuffle) else 4


def _cell(at: Sequence[int] | None, out: Sequence[int]) -> tuple[int, ...] | None:
    if at is None:
        return None
    cell = tuple(at) if isinstance(at, Sequence) else (at,)
    if len(cell) != len(out) or not all(isinstance(i, int) and 0 <= i < n for i, n in zip(cell, out, strict=True)):
        raise conv_error("draw", "at must be (channel, *position) inside the output",
                         got={"at": cell, "output": tuple(out)}, also=ValueError)  # fmt: skip
    return cell


# -- how the taps of a deformable convolution are moved -------------------------------------------------------
def moves_of(block: Block, offsets: str | Sequence[Sequence[float]]) -> Moves:
    """A displacement for each tap of the first deformable convolution; empty where there is none."""
    spec = _deformed(block)
    if spec is None:
        return ()
    taps = list(product(*map(range, spec.kernel_size)))
    if not isinstance(offsets, str):
        given = tuple(tuple(float(n) for n in move) for move in offsets)
        if len(given) != len(taps) or any(len(move) != spec.spatial_dims for move in given):
            raise conv_error("draw", f"offsets must be {len(taps)} displacements of {spec.spatial_dims} numbers",
                             got={"displacements": len(given)}, spec=spec, also=ValueError)  # fmt: skip
        return given
    if offsets not in OFFSETS:
        raise conv_error("draw", f"offsets must be one of {', '.join(OFFSETS)}, or numbers",
                         got={"offsets": repr(offsets)}, also=ValueError)  # fmt: skip
    chance = random.Random(7)
    return tuple(_move(spec, tap, offsets, chance) for tap in taps)


def _move(spec: ConvSpec, tap: Sequence[int], way: str, chance: random.Random) -> tuple[float, ...]:
    from_middle = [d * (t - (k - 1) / 2) for t, k, d in zip(tap, spec.kernel_size, spec.dilation, strict=True)]
    if way == "scale":
        return tuple(0.5 * n for n in from_middle)
    if way == "rotate":
        if len(from_middle) == 1:
            raise conv_error("draw", "one axis cannot be rotated", got={"offsets": "'rotate'"}, spec=spec,
                             do="Use scale or random.", also=ValueError)  # fmt: skip
        *others, y, x = from_middle
        turned = (y * math.cos(TURN) - x * math.sin(TURN), y * math.sin(TURN) + x * math.cos(TURN))
        return (*(0.0 for _ in others), turned[0] - y, turned[1] - x)
    return tuple(round(chance.uniform(-0.8, 0.8), 2) if way == "random" else 0.0 for _ in from_middle)


def _deformed(block: Block) -> ConvSpec | None:
    if isinstance(block, Deform):
        return block.conv
    parts = getattr(block, "blocks", ())
    return next((spec for part in parts if (spec := _deformed(part)) is not None), None)

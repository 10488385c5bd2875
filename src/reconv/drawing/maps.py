"""Feature maps as one picture: a row for each convolution, its channels as grey tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reconv.errors import conv_error

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]

TILE = 112  # the longer side in pixels; 7, 14, 28 and 56 divide it, so that small maps keep square pixels
CURVE, THIN = 48, 8  # the height of the tile of a map with one axis; the least one of any tile
TONES = 64  # of a row of small tiles
GAP, MARGIN, LABEL = 6, 24, 224
INK, SOFT, PAPER, EDGE = (28, 32, 38), (116, 122, 132), (255, 255, 255), (232, 234, 238)


@dataclass(frozen=True)
class Row:
    """One row of the picture.

    Args:    title, notes: what stands to the left of the tiles.
             tiles: (caption, map) each; a map has 1 to 3 axes, or is an image (height, width, 3) in [0, 1] where
             `colour` says so.
    """

    title: str
    notes: tuple[str, ...]
    tiles: tuple[tuple[str, Array], ...]
    colour: bool = False


def png(rows: Sequence[Row], heading: str, legend: str = "") -> bytes:
    """The picture as a PNG file's bytes.

    Of a map of 3 axes the middle slice is shown; one of 1 axis is a curve. Each tile has its own scale, from its
    least value (black) to its largest (white), but for the outermost hundredth at either end.

    Raises:  ConvError (an ImportError): when Pillow is missing.
    """
    image = pillow("Image")
    tiles = [[_tile(array, row.colour) for _, array in row.tiles] for row in rows]
    heights = [max(20 + max(tile.height for tile in line), 26 + 16 * len(row.notes))
               for row, line in zip(rows, tiles, strict=True)]  # fmt: skip
    wide = LABEL + max(sum(tile.width + GAP for tile in line) - GAP for line in tiles)
    wide = max(wide, _length(heading, 20), _length(legend, 12))
    page = image.new("RGB", (2 * MARGIN + wide, 2 * MARGIN + 44 + sum(h + 2 * GAP for h in heights)), PAPER)
    _write(page, (MARGIN, MARGIN - 4), heading, 20, INK)
    _write(page, (MARGIN, MARGIN + 22), legend, 12, SOFT)
    top = MARGIN + 44
    for row, line, height in zip(rows, tiles, heights, strict=True):
        _place(page, top, row, line)
        top += height + 2 * GAP
    file = BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def tiles(arrays: Sequence[Array], size: int = 72) -> bytes:
    """Maps side by side, as a PNG file's bytes, each on its own scale.

    Raises:  ConvError (an ImportError): when Pillow is missing.
    """
    drawn = [_tile(array, False, size) for array in arrays]
    width, height = sum(tile.width + 2 for tile in drawn) - 2, max(tile.height for tile in drawn)
    row = pillow("Image").new("L", (width, height), 255)
    left = 0
    for tile in drawn:
        row.paste(tile.convert("L"), (left, 0))
        left += tile.width + 2
    file = BytesIO()
    row.quantize(TONES).save(file, "PNG", optimize=True)
    return file.getvalue()


def _place(page: Image, top: int, row: Row, tiles: Sequence[Image]) -> None:
    """One row: a hairline, what it is, its tiles with a caption below each."""
    frame = pillow("ImageDraw").Draw(page)
    frame.line([(MARGIN, top), (page.width - MARGIN, top)], fill=EDGE)
    _write(page, (MARGIN, top + GAP), _shortened(row.title, 15), 15, INK)
    for i, note in enumerate(row.notes):
        _write(page, (MARGIN, top + GAP + 22 + 16 * i), _shortened(note, 12), 12, SOFT)
    left = MARGIN + LABEL
    for (caption, _), tile in zip(row.tiles, tiles, strict=True):
        page.paste(tile, (left, top + GAP))
        frame.rectangle((left - 1, top + GAP - 1, left + tile.width, top + GAP + tile.height), outline=EDGE)
        _write(page, (left, top + GAP + tile.height + 2), caption, 11, SOFT)
        left += tile.width + GAP


def _tile(array: Array, colour: bool, side: int = TILE) -> Image:
    image = pillow("Image")
    if colour:
        picture = image.fromarray(np.round(255 * np.clip(array, 0, 1)).astype(np.uint8), "RGB")
    elif array.ndim == 1:
        return _curve(array)
    else:
        picture = image.fromarray(grey(array if array.ndim == 2 else array[len(array) // 2]), "L")
    scale = side / max(picture.size)
    size = tuple(max(THIN, round(scale * n)) for n in picture.size)
    return picture.resize(size, image.Resampling.NEAREST if scale > 1 else image.Resampling.BOX).convert("RGB")


def grey(array: Array) -> Array:
    """Values as 0 … 255; of all the same value mid grey."""
    values = np.nan_to_num(np.asarray(array, dtype=np.float64))
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _curve(array: Array) -> Image:
    """A map of one axis as a line, its values upwards."""
    tile = pillow("Image").new("RGB", (TILE, CURVE), (246, 247, 249))
    heights = CURVE - 3 - (CURVE - 6) * (grey(array) / 255.0)
    xs = np.linspace(2, TILE - 3, len(array)) if len(array) > 1 else np.array([2.0, TILE - 3.0])
    points = list(zip(xs.tolist(), np.resize(heights, len(xs)).tolist(), strict=True))
    pillow("ImageDraw").Draw(tile).line(points, fill=INK, width=1)
    return tile


def _write(page: Image, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    pillow("ImageDraw").Draw(page).text(at, text, fill=colour, font=pillow("ImageFont").load_default(size))


def _length(text: str, size: int) -> int:
    return round(pillow("ImageFont").load_default(size).getlength(text))


def _shortened(text: str, size: int) -> str:
    """Cut in the middle, where it would run into the tiles."""
    kept, shown = len(text), text
    while kept > 2 and _length(shown, size) > LABEL - 12:
        kept -= 1
        shown = text[: kept // 2] + "..." + text[kept // 2 - kept :]
    return shown


def pillow(module: str) -> Any:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise conv_error("draw", "pictures are made with the package Pillow", got={"error": repr(str(error))},
                         do="pip install 'reconv[pictures]'.", also=ImportError) from error  # fmt: skip
    return {"Image": Image, "ImageDraw": ImageDraw, "ImageFont": ImageFont}[module]

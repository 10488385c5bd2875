"""Where a layer looks, drawn over the image that it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from reconv.drawing.maps import Array, grey, pillow

SIDE, THIN = 192, 24  # pixels of the longer side, and the least of the other one
WARM, FRAME, EDGE = (213, 94, 0), (0, 114, 178), (255, 255, 255)  # of what counts, the box, the window
TONES = 96  # of the picture's palette: a photograph in full colours would be four times the size


def over(
    image: Array, heat: Array, box: Sequence[tuple[int, int]] = (), window: Sequence[tuple[int, int]] = ()
) -> bytes:
    """A PNG of the image in grey, coloured where it counts, with a frame around the box and one around the window.

    Args:    image: (C, *spatial), of one to three axes; of three the middle slice is shown. heat: (*spatial), >= 0,
             summed over the first of three axes.
             box, window: per axis of heat, (first, last + 1), also where that is outside of the image.
    Raises:  ConvError (an ImportError): when Pillow is missing.
    """
    base = grey(_flat(np.asarray(image, dtype=np.float64).mean(0), np.take)) / 255.0
    warmth = _flat(np.nan_to_num(np.asarray(heat, dtype=np.float64)), _summed)
    part = np.sqrt(warmth / warmth.max()) if warmth.max() > 0 else warmth
    tones = 255 * (0.35 + 0.55 * base)[..., None] * (1 - part[..., None]) + np.array(WARM) * part[..., None]
    picture = pillow("Image").fromarray(np.round(tones).astype(np.uint8), "RGB")
    scale = SIDE / max(picture.size)
    size = tuple(max(THIN, round(scale * n)) for n in picture.size)
    picture = picture.resize(size, pillow("Image").Resampling.NEAREST if scale > 1 else pillow("Image").Resampling.BOX)
    across, down = size[0] / base.shape[1], size[1] / base.shape[0]
    for ends, colour, width in ((window, EDGE, 1), (box, FRAME, 2)):
        if ends:
            (top, bottom), (left, right) = [(0, 1), *ends][-2:]
            corners = (left * across, top * down, right * across - 1, bottom * down - 1)
            pillow("ImageDraw").Draw(picture).rectangle(_ordered(corners), outline=colour, width=width)
    file = BytesIO()
    picture.quantize(TONES).save(file, "PNG", optimize=True)
    return file.getvalue()


def _ordered(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """With no side of less than a pixel."""
    left, top, right, bottom = corners
    return left, top, max(left, right), max(top, bottom)


def _flat(array: Array, shrink: Any) -> Array:
    """Two axes: a row of one, and what `shrink` makes of three."""
    if array.ndim == 1:
        return array[None]
    return array if array.ndim == 2 else shrink(array, len(array) // 2, 0)


def _summed(array: Array, index: int, axis: int) -> Array:
    return np.sum(array, axis=axis)

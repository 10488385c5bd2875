"""Where a layer looks, drawn over the image that it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from reconv.drawing.maps import Array, grey, pillow

SIDE, THIN = 192, 24  # pixels of the longer side, and the least of the other one
WARM, FRAME = (213, 94, 0), (0, 114, 178)  # of what counts, and of the box
TONES = 96  # of the picture's palette: a photograph in full colours would be four times the size


def over(image: Array, heat: Array, box: Sequence[tuple[int, int]] = ()) -> bytes:
    """A PNG of the image in grey, coloured where it counts, with a frame around the box.

    Args:    image: (C, *spatial), of one to three axes; of three the middle slice is shown. heat: (*spatial), >= 0,
             summed over the first of three axes. box: per axis of heat, (first, last + 1).
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
    if box:
        (top, bottom), (left, right) = ([(0, 1), *box])[-2:]
        across, down = size[0] / base.shape[1], size[1] / base.shape[0]
        pillow("ImageDraw").Draw(picture).rectangle(
            (left * across, top * down, max(left * across, right * across - 1), max(top * down, bottom * down - 1)),
            outline=FRAME, width=2)  # fmt: skip
    file = BytesIO()
    picture.quantize(TONES).save(file, "PNG", optimize=True)
    return file.getvalue()


def _flat(array: Array, shrink: Any) -> Array:
    """Two axes: a row of one, and what `shrink` makes of three."""
    if array.ndim == 1:
        return array[None]
    return array if array.ndim == 2 else shrink(array, len(array) // 2, 0)


def _summed(array: Array, index: int, axis: int) -> Array:
    return np.sum(array, axis=axis)

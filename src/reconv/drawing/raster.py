"""SVG to PNG and GIF, by resvg and Pillow (the extra `pictures`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from io import BytesIO
from typing import Any

from reconv.drawing.figure import LIGHT
from reconv.errors import conv_error

FONTS = ("DejaVu Sans", "Noto Sans", "Liberation Sans", "Arial", "Helvetica", "Segoe UI", "Ubuntu", "Cantarell")
_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><text y="15">H</text></svg>'


def png(svg: str, zoom: float = 2) -> bytes:
    """A PNG of a drawing on white paper.

    Raises:  ConvError (an ImportError): when resvg_py is missing. ConvError: when the machine has no font.
    """
    font, paper = _font(), LIGHT["paper"]
    return bytes(_resvg().svg_to_bytes(svg_string=plain(svg), zoom=zoom, background=paper, font_family=font,
                                       sans_serif_family=font, monospace_family=font))  # fmt: skip


def gif(frames: Sequence[str], seconds: float) -> bytes:
    """An animated GIF that repeats, a frame an SVG."""
    image = _module("PIL.Image", "Pillow")
    pages = [image.open(BytesIO(png(svg))).convert("RGB").quantize(128) for svg in frames]
    file = BytesIO()
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 * seconds), loop=0)
    return file.getvalue()


def plain(svg: str) -> str:
    """Without what only browsers know: media queries, and colours by name."""
    svg = re.sub(r"@media [^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", svg)
    return re.sub(r"var\(--rc-(\w+)\)", lambda name: LIGHT[name[1]], svg)


@cache
def _font() -> str:
    """The first font that leaves ink on paper."""
    for name in FONTS:
        drawn = bytes(_resvg().svg_to_bytes(svg_string=_PROBE, font_family=name))
        if drawn != bytes(_resvg().svg_to_bytes(svg_string=_PROBE.replace("H", " "), font_family=name)):
            return name
    raise conv_error("draw", f"pictures need one of the fonts {', '.join(FONTS)}",
                     do="Install one, such as Debian's package fonts-dejavu-core, or write .svg.")  # fmt: skip


def _resvg() -> Any:
    return _module("resvg_py", "resvg_py")


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise conv_error("draw", f"PNG and GIF files are made with the package {package}",
                         got={"error": repr(str(error))}, do="pip install 'reconv[pictures]', or write .svg.",
                         also=ImportError) from error  # fmt: skip

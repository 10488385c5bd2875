"""Who shows what in notebooks. What a thing is does not know what it looks like: the rooms that draw stand above it.
`reconv` itself, the face of the package, knows both and says here who shows what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_PAINTERS: dict[str, Callable[[Any], str | None]] = {}


def shown_by(kind: str, painter: Callable[[Any], str | None]) -> None:
    """Things of this kind show themselves by `painter` from now on."""
    _PAINTERS[kind] = painter


def show(kind: str, thing: object) -> str | None:
    """The SVG or HTML of a thing; None, by which a notebook takes its repr, where nobody shows such things."""
    painter = _PAINTERS.get(kind)
    return painter(thing) if painter else None

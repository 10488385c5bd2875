"""Names that others chose, such as those of layers, where they are shown: on a terminal, in HTML, SVG and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from unicodedata import category

KEPT = "\n\t"


def plain(text: str) -> str:
    r"""The text with what steers a terminal, or turns the direction of writing, spelled out; lines stay.

    Example:
             >>> print(plain("conv\x1b[2J"))
             conv\x1b[2J
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(sign: str) -> str:
    kind = category(sign)
    hidden = kind.startswith("C") or kind in ("Zl", "Zp")
    return sign.encode("unicode_escape").decode() if hidden and sign not in KEPT else sign


def listed(names: Sequence[str], most: int) -> str:
    """So many of the names, and how many more there are.

    Example:
             >>> listed(["a", "b", "c"], most=2)
             'a, b, … 1 more'
    """
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")


def escape(text: str) -> str:
    """The text within HTML or SVG, in an attribute as well."""
    return html.escape(plain(text))


def cell(text: str) -> str:
    r"""The text within a row of a Markdown table, where it begins neither a cell, nor a line, nor a tag.

    Example:
             >>> print(cell("a|b <c>"))
             a\|b &lt;c>
    """
    text = " ".join(plain(text).split("\n")).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"\\*\|", lambda found: 2 * found[0][:-1] + r"\|", text)

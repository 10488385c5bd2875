"""The parts that the report is made of: tables, folds, figures. What comes from outside is escaped here."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence

from reconv.costing.render import human
from reconv.plain import escape


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), codes: Sequence[int] = (),
          long: Sequence[int] = ()) -> str:  # fmt: skip
    """`numbers`, `codes` and `long` are columns; the long ones may break their text."""

    def cell(column: int, text: str, tag: str = "td") -> str:
        shown = f"<code>{escape(text)}</code>" if column in codes and text and tag == "td" else escape(text)
        kind = "number" if column in numbers else "long" if column in long else ""
        return f'<{tag} class="{kind}">{shown}</{tag}>' if kind else f"<{tag}>{shown}</{tag}>"

    head = "".join(cell(i, text, "th") for i, text in enumerate(heads))
    body = "\n".join("<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def fold(title: str, body: str, kind: str = "", name: str = "") -> str:
    """What is hidden until it is asked for, or printed. Title and body are HTML already."""
    look = (f' class="{kind}"' if kind else "") + (f' id="{name}"' if name else "")
    return f"<details{look}><summary>{title}</summary>{body}</details>"


def codes(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{escape(named(name))}</code>" for name in names)


def named(site: str) -> str:
    """A layer's name; that of a network which is one layer is empty."""
    return site or "the network itself"


def number(value: float | None) -> str:
    """A count with its thousands, a measure to three digits, or "unknown"."""
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return human(value)
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def measured(value: float | None, spread: float | None) -> str:
    """A measure with its spread, where that is known."""
    return number(value) + (f" ± {spread / 2:.1g}" if value is not None and spread else "")


def inline(svg: str) -> str:
    """A picture inside of a page, which needs no namespace."""
    return svg.strip().replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def image(png: bytes, says: str) -> str:
    return f'<img alt="{escape(says)}" src="data:image/png;base64,{b64encode(png).decode()}">'

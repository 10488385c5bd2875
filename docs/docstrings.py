"""For mkdocstrings: the sections of a docstring (Args, Returns, Raises, Source, Example) as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Returns|Raises|Source|Example|Gives|Yields):[ \t]*", re.MULTILINE)


class Sections(griffe.Extension):
    """A bold name, then what stands there: prose as a list of lines, an example as code."""

    def on_instance(self, *, node: Any, obj: Any, **_: Any) -> None:
        if obj.is_alias or not isinstance(node, griffe.ObjectNode) or obj.is_module:
            return
        for parameter in obj.parameters if obj.is_function else ():
            if " object at 0x" in str(parameter.default):
                parameter.default = "..."
        text = inspect.getdoc(node.obj) or ""  # a layer has that of the class for all dimensions
        if obj.is_class and text:
            text = f"{called(obj.name, node.obj)}\n\n{markdown(text)}"
        elif text:
            text = markdown(text)
        obj.docstring = griffe.Docstring(text, parent=obj) if text else None


def called(name: str, made: type) -> str:
    """How an object of this class is made, without the types."""
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):
        return ""
    given = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = f"{name}{signature.replace(parameters=given, return_annotation=signature.empty)}"
    return "```python\n" + textwrap.fill(text, 88, subsequent_indent="    ") + "\n```"


def markdown(text: str) -> str:
    first, *rest = SECTION.split(inspect.cleandoc(text))
    parts = [lawful(first.strip())]
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        lines = [line.strip() for line in body.strip().splitlines()]
        if ">>>" in body:
            parts.append(f"**{name}**\n\n```python\n{inspect.cleandoc(body)}\n```")
        else:
            parts.append(f"**{name}**\n\n" + "\n".join(items(lines)))
    return "\n\n".join(parts)


def lawful(text: str) -> str:
    """Indented formulas as plain text, with nothing to highlight."""
    return re.sub(
        r"(?:^    .*\n?)+", lambda m: "```text\n" + inspect.cleandoc(m[0]) + "\n```\n", text, flags=re.MULTILINE
    )


def items(lines: list[str]) -> list[str]:
    """`name: what` begins an item, other lines go on with the last."""
    found: list[str] = []
    for line in lines:
        if re.match(r"[\w, .*…]+: ", line) or not found:
            found.append(
                re.sub(r"^([\w, .*…]+):", r"- `\1`:", line) if re.match(r"[\w, .*…]+: ", line) else f"- {line}"
            )
        else:
            found[-1] += f" {line}"
    return found

"""All that other people's code may rely on, one line each: names, signatures, commands, flags, plug-in groups.

    python tests/api.py            shows what differs from tests/api.txt
    python tests/api.py --write    accepts it: a change that breaks nobody, or one that CHANGELOG.md tells of

What is public: `__all__` of reconv and its public modules, and whatever docs/reference.md shows.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from typer.main import get_command

SNAPSHOT = Path(__file__).with_name("api.txt")
REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"
MODULES = ("reconv", "reconv.nn", "reconv.functional", "reconv.classic", "reconv.networks", "reconv.tensorflow",
           "reconv.tensorflow.layers")  # fmt: skip


def lines() -> list[str]:
    """The surface as it is now."""
    found = {line for name in MODULES for line in of_module(name)}
    for path in re.findall(r"^::: (\S+)", REFERENCE.read_text(encoding="utf-8"), re.M):
        found |= set(told(path, resolved(path)))
    return [*sorted(found), *commands(), *plugins()]


def of_module(name: str) -> Iterator[str]:
    module = import_module(name)
    for public in module.__all__:
        yield from told(f"{name}.{public}", getattr(module, public))


def resolved(path: str) -> Any:
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise LookupError(path)


def told(path: str, thing: Any) -> Iterator[str]:
    """The line of a thing, and those of what a class has of its own."""
    if inspect.ismodule(thing):
        return
    if not inspect.isclass(thing):
        yield path + (signature(thing) if callable(thing) else f": {type(thing).__name__}")
        return
    yield path + signature(thing)
    for name, member in sorted(members(thing).items()):
        yield f"{path}.{name}" + (signature(member) if callable(member) else "")


def members(kind: type) -> dict[str, Any]:
    """Public methods, properties and fields that reconv's own classes give it."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("reconv"):
            found |= {name: getattr(base, name, None) for name in vars(base) if not name.startswith("_")}
            if is_dataclass(base):
                found |= dict.fromkeys(n for n in base.__dataclass_fields__ if not n.startswith("_"))
    if issubclass(kind, nn.Module):
        found.pop("forward", None)
    return found


def signature(thing: Any) -> str:
    """Parameters and defaults; annotations are checked elsewhere."""
    try:
        given = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(…)"
    shown = given.replace(
        return_annotation=inspect.Signature.empty,
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in given.parameters.values()],
    )
    return re.sub(r" at 0x[0-9a-f]+", "", str(shown))  # fmt: skip


def commands() -> Iterator[str]:
    """`reconv NAME`, and each flag with its value's kind and default."""
    from reconv.cli import app

    group = get_command(app)
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        yield f"$ reconv {name}"
        for one in command.params:
            value = "" if getattr(one, "is_flag", False) else f" {one.metavar or 'VALUE'}"
            default = "" if one.default is None else f" = {one.default}"
            is_option = one.opts[0].startswith("-")
            several = " …" * bool(getattr(one, "multiple", False))
            shown = ", ".join(one.opts) + value if is_option else one.metavar
            yield f"$ reconv {name} {shown}{default}{several}{' required' * one.required}"


def plugins() -> list[str]:
    """The groups of entry points that are looked up."""
    from reconv.ruleset.plugins import PLUGINS as RULES
    from reconv.targets.engine import PLUGINS as TARGETS

    return sorted(f'[project.entry-points."{each.group}"]' for each in (RULES, TARGETS))


def difference() -> str:
    """What was, and what is now; empty where nothing changed."""
    before = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    return "\n".join(difflib.unified_diff(before, lines(), "tests/api.txt", "now", lineterm="", n=0))


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        SNAPSHOT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    else:
        print(difference() or "as in tests/api.txt")

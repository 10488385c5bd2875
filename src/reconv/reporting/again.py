"""How to do a run again: the command to copy, the settings and the versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from reconv.plain import escape
from reconv.reporting.html import table

ARGUMENTS = ("budget", "target", "rules", "epochs", "holdout", "seed")  # of reconv.rewrite, that a run notes


def again(settings: Mapping[str, Any]) -> str:
    rows = [[name, value] for name, value in _flat(settings) if not name.startswith("model.sites.")]  # told above
    lines = commands(settings)
    shown = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
    return "<h2>Settings and versions</h2>" + shown + table(("setting", "value"), rows, codes=(1,), long=(1,))


def commands(settings: Mapping[str, Any]) -> list[str]:
    """What to type into a shell, or into Python where the run was begun there.

    Example:
             >>> commands({"model": {"ref": "a b.py:net"}, "settings": {"input": ["1x3x9x9"], "budget": "latency=0.5"}})
             ["reconv rewrite 'a b.py:net' --input 1x3x9x9 --budget latency=0.5"]
             >>> commands({"budget": "macs=0.5", "seed": 0})
             ["reconv.rewrite(model, example_inputs, budget='macs=0.5', seed=0)"]
    """
    began, given = settings.get("model"), settings.get("settings")
    ref = began.get("ref") if isinstance(began, Mapping) else None
    if isinstance(given, Mapping) and ref is not None:
        known = {"weights": began.get("weights") if isinstance(began, Mapping) else None, **given}
        lines = [_line(["reconv", "rewrite", str(ref)], known)]
        if isinstance(settings.get("recovered"), Mapping):
            lines.append(_line(["reconv", "recover", "RUN_FOLDER"], settings["recovered"]))
        return lines
    asked = {name: settings[name] for name in ARGUMENTS if settings.get(name) is not None}
    if not asked:
        return []
    return [f"reconv.rewrite(model, example_inputs, {', '.join(f'{name}={value!r}' for name, value in asked.items())})"]


def _line(words: list[str], flags: Mapping[str, Any]) -> str:
    for name, value in flags.items():
        if value is None:
            continue
        values = list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]
        for text in values if name == "input" else [",".join(values)]:  # an input once for each
            words = [*words, f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)

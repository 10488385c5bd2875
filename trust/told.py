"""What the scripts of this folder found out, as files: `trust/results/NAME.json`, a row a line."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]  # "what", a phrase that a user understands; "tried" and "failures"; whatever else is worth knowing


def versions(*others: str) -> dict[str, str]:
    """Of reconv, Python, torch, and other packages by name."""
    found = {"reconv": version("reconv"), "python": platform.python_version(),
             "torch": version("torch").partition("+")[0]}  # fmt: skip
    return found | {name: version(name) for name in others}


def keep(name: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Writes the rows and what else the file should say; the file is whole at any moment. Returns its path."""
    for row in rows:
        if missing := {"what", "tried", "failures"} - set(row):
            raise ValueError(f"keep: a row must say {', '.join(sorted(missing))}, too; got {dict(row)}.")
    head = {"versions": versions(), **more}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    text = "{" + ",\n".join(lines) + ', "rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n"
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".part").write_text(text, encoding="utf-8")
    path.with_suffix(".part").replace(path)
    return path


def held(name: str) -> dict[str, Any]:
    """What the file says, or nothing, where it is not there or of other versions of reconv and torch."""
    path = RESULTS / f"{name}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data if all(data.get("versions", {}).get(key) == value for key, value in versions().items()) else {}

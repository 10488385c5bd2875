"""Writes what the scripts of this folder found into docs/trust.md, between its marks.

python trust/page.py
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from marks import fill
from told import RESULTS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "trust.md"


def pages() -> dict[str, str]:
    """Each marked place with its text: one for each file of results."""
    return {path.stem: _part(path.stem, json.loads(path.read_text(encoding="utf-8")))
            for path in sorted(RESULTS.glob("*.json"))}  # fmt: skip


def _part(name: str, data: Mapping[str, Any]) -> str:
    of = ", ".join(f"{package} {version}" for package, version in data["versions"].items())
    lines = [("what was tried", "times", "failures"), ("---", "---:", "---:"), *map(_cells, data["rows"])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"`{command(name)}` ({of})\n\n{table}\n"


def _cells(row: Mapping[str, Any]) -> Iterable[str]:
    isa = row.get("isa", "avx512")
    of = "" if isa == "avx512" or isa in row["what"] else f" (kernels for {isa})"
    return f"{row['what']}{of}", f"{row['tried']:,}", str(row["failures"])


def command(name: str) -> str:
    """The script's own line of how it is run."""
    said = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return next(
        "python trust/" + line.partition("python trust/")[2] for line in said.splitlines() if "python trust/" in line
    )


if __name__ == "__main__":
    fill(PAGE, pages())

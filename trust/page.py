"""Writes what the scripts of this folder found into docs/trust.md, between its marks.

python trust/page.py
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
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
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    return {name: _part(name, data) for name, data in results.items()} | {"stated": _stated(results["fuzz"]["rows"])}


def _part(name: str, data: Mapping[str, Any]) -> str:
    of = ", ".join(f"{package} {version}" for package, version in data["versions"].items())
    lines = [("what was tried", "times", "failures"), ("---", "---:", "---:"), *map(_cells, data["rows"])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"`{command(name)}` ({of})\n\n{table}\n"


def _stated(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many networks came how near to the error that their plan states."""
    found: Counter[str] = Counter()
    for row in rows:
        for step, times in row.get("compared", {}).items():
            if near := re.search(r"at most ([\d.]+) of the stated$", step):
                found[near[1]] += times
    lines = [("the error, over the stated one", "networks"), ("---", "---:")]
    lines += [(f"at most {near}", f"{found[near]:,}") for near in sorted(found, key=float)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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

"""Writes the results into docs/benchmarks.md, between its marks, and draws docs/benchmarks.svg.

python benchmarks/page.py benchmarks/results/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import HEADS, PEER_HEADS, ROOFLINE_HEADS, beside_peers, best_ms, figures, losing, of_roofline, read
from marks import fill

from reconv.benching.chart import svg
from reconv.benching.report import summary_of

DOCS = Path(__file__).parents[1] / "docs"
PEERS = ("torch.compile", "onnxruntime", "openvino")


def write(files: Sequence[str]) -> None:
    results = read(files)
    machines = [json.loads(Path(file).read_text(encoding="utf-8"))["machine"] for file in files]
    parts = {
        "machine": machine(machines), "summary": summary(results), "figures": asked(results),
        "peers": table(PEER_HEADS, beside_peers(results)), "roofline": table(ROOFLINE_HEADS, of_roofline(results)),
        "problems": problems(results),
    }  # fmt: skip
    fill(DOCS / "benchmarks.md", parts)
    (DOCS / "benchmarks.svg").write_text(svg(results), encoding="utf-8")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *rows))


def machine(machines: Sequence[Mapping[str, Any]]) -> str:
    """What the figures were measured on; the limits are those of the last file with so many threads."""
    last, limits = machines[-1], {limit["threads"]: limit for m in machines for limit in m["limits"]}
    rows = [
        [str(threads), *(f"{limit['macs_per_s'][dtype] / 1e9:.0f}" for dtype in ("float32", "float64")),
         *(f"{list(limit['bytes_per_s'].values())[place] / 1e9:.0f}" for place in (0, -1))]
        for threads, limit in sorted(limits.items())
    ]  # fmt: skip
    heads = ["threads", "GMAC/s float32", "GMAC/s float64", "GB/s of a copy in the caches", "GB/s in memory"]
    return f"{last['cpu']}, torch {last['torch']}, {last['kernels']}.\n\n{table(heads, rows)}"


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each file and number of threads."""
    rows = []
    for group in [*dict.fromkeys(result["group"] for result in results), None]:
        for threads in sorted({result["threads"] for result in results}):
            ratios = [r["ratio"] for r in results
                      if r["ratio"] and r["threads"] == threads and group in (None, r["group"])]  # fmt: skip
            if ratios:
                rows.append([group or "all", str(threads), summary_of(ratios)])
    return table(["file", "threads", "PyTorch's time over reconv's"], rows)


def asked(results: Sequence[Mapping[str, Any]]) -> str:
    lost = "".join(f"- {text}\n" for text in losing(results))
    return table(HEADS, [line.cells() for line in figures(results)]) + (
        f"\nWhere PyTorch is faster:\n\n{lost}" if lost else ""
    )


def problems(results: Sequence[Mapping[str, Any]]) -> str:
    """Every problem, folded by file."""
    peers = [peer for peer in PEERS if any(peer in result["engines"] for result in results)]
    heads = ["problem", "threads", "torch ms", "reconv ms", "ratio", "% of roofline", *(f"{peer} ms" for peer in peers)]
    parts = []
    for group in dict.fromkeys(result["group"] for result in results):
        rows = [
            [f"`{r['problem']}`", str(r["threads"]), best(r, "torch"), best(r, "reconv"), number(r["ratio"], "{:.2f}"),
             number(r["of_roofline"], "{:.0%}"), *(best(r, peer) for peer in peers)]
            for r in results if r["group"] == group
        ]  # fmt: skip
        name = group or "given lines"
        parts.append(f"<details><summary>{name}</summary>\n\n{table(heads, rows)}\n</details>\n")
    return "\n".join(parts)


def best(result: Mapping[str, Any], family: str) -> str:
    """Milliseconds of the family's faster memory format."""
    return number(best_ms(result, family), "{:.3g}")


def number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    write(sys.argv[1:])

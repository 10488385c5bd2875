"""Every trained network of the tests on the whole way: summary, rewrite, recover, save, load, export, run elsewhere.

    python benchmarks/journey.py [NAME ...] [--budget latency=0.5] [--epochs 3] [-o FILE.json]
    python benchmarks/journey.py --page benchmarks/results/journey.json    # writes docs/journeys.md

Each is recovered on data of its own kind and scored on what that does not hold: a share of right answers, or for
networks without labels the mean cosine with the outputs of the network as it came.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reconv
from reconv.errors import ConvError

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
from marks import fill  # noqa: E402
from nets import NETS, SCRIPTED, Net, outputs  # noqa: E402

PAGE = ROOT / "docs" / "journeys.md"
FORMATS = (".onnx", ".pt2")
MORE = {"silero_vad": "latency=0.95,error=0.3"}  # asked as well, where the first budget is out of reach


def journey(net: Net, budget: str, epochs: int) -> dict[str, Any]:
    """One row. A step that fails says so in its cell, and the others go on."""
    started = time.perf_counter()
    model, example = net.load(), net.example()
    assert net.data is not None
    assert net.score is not None
    data = net.data()
    result = reconv.rewrite(model, example, budget=budget, data=data, epochs=epochs, seed=0)
    before, after = result.before.network, result.after.network
    row: dict[str, Any] = {
        "name": net.name, "asked": budget, "macs": [before.macs, after.macs], "params": [before.params, after.params],
        "ratio": result.latency_ratio, "met": result.met, "reason": result.reason,
        "scores": [net.score(model), net.score(result.model)],
        "rules": dict(Counter(edit.rule for edit in result.plan.edits)),
    }  # fmt: skip
    inputs = data if isinstance(data, torch.Tensor) else data.tensors[0]
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder, "run"))
        loaded = reconv.load(Path(folder, "run"), base=net.load)
        row["reloads"] = bool(torch.equal(outputs(loaded, inputs[:4]), outputs(result.model, inputs[:4])))
        for suffix in FORMATS:
            row[suffix] = told(lambda suffix=suffix: exported(loaded, example, Path(folder, f"net{suffix}")))
    return {**row, "seconds": time.perf_counter() - started}


def exported(model: nn.Module, example: tuple[Any, ...], path: Path) -> str:
    report = reconv.export(model, example, path)
    batch = "any batch" if report.dynamic_batch else "one batch size"
    return f"{report.max_abs_error:.0e} apart, {batch}"


def told(do: Callable[[], str]) -> str:
    try:
        return do()
    except ConvError as error:
        return str(error)


def refused(net: Net) -> str:
    """Why a network cannot be rewritten."""
    plan = reconv.plan(net.load(), net.example(), rules="exact")
    return "; ".join(sorted({refusal.reason for refusal in plan.refusals}))


# -- the table ---------------------------------------------------------------------------------------------
HEADS = ("network", "asked", "MACs, M", "parameters, k", "latency, of 1", "score", "rules", "reloads", "ONNX Runtime",
         "torch.export", "seconds")  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "|" + " --- |" * len(HEADS)]
    for row in rows:
        rules = ", ".join(f"{name} {count}×" for name, count in sorted(row["rules"].items()))
        cells = (row["name"], row["asked"], pair(row["macs"], 1e6, ".2f"), pair(row["params"], 1e3, ".0f"),
                 f"{row['ratio']:.2f}" + ("" if row["met"] else f" ({row['reason']})"),
                 pair(row["scores"], 0.01, ".1f") + " %", rules or "none", "bit for bit" if row["reloads"] else "no",
                 row[".onnx"], row[".pt2"], f"{row['seconds']:.0f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pair(values: Sequence[float], unit: float, form: str) -> str:
    return " → ".join(f"{value / unit:{form}}" for value in values)


def write(file: Path) -> None:
    held = json.loads(file.read_text(encoding="utf-8"))
    fill(PAGE, {"asked": f"{held['asked']}\n", "table": table(held["rows"]), "refused": f"> {held['refused']}\n"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[net.name for net in NETS])
    parser.add_argument("--budget", default="latency=0.5")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--page", type=Path, help="a result that was written before: only writes the page")
    given = parser.parse_args()
    if given.page:
        write(given.page)
        return
    torch.set_num_threads(1)
    rows = []
    for net in NETS:
        if net.name in given.names:
            for budget in filter(None, (given.budget, MORE.get(net.name))):
                rows.append(journey(net, budget, given.epochs))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    if given.out:
        asked = f"{given.epochs} epochs; torch {torch.__version__}, 1 thread, batch 1."
        held = {"asked": asked, "refused": refused(SCRIPTED), "rows": rows}
        given.out.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

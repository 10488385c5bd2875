"""Every kernel of the dispatcher on every problem, interleaved: the table that dispatch reads.

    python benchmarks/kernels.py [FILES] [--threads 1,2] [--write]

A problem is a line of benchmarks/problems/*.txt. Each kernel that serves it is checked against float64, then timed in
both layouts. --write puts the milliseconds into the table of this instruction set, src/reconv/ops/results/: problems
that were not measured now keep their rows. The ratio is PyTorch's time over that of what dispatch then takes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconv.benching.problem import problem_of
from reconv.benching.roofline import measured
from reconv.benching.task import Task, read_tasks
from reconv.ops import results
from reconv.ops.dispatch import CLEARLY, DIRECT, KERNELS
from reconv.ops.kernel import torch_run
from reconv.ops.problem import Problem
from reconv.spec import ConvSpec
from reconv.targets import interleave

FOLDER = Path(__file__).parent
TABLES = FOLDER.parent / "src" / "reconv" / "ops" / "results"
LAYOUTS = ("contiguous", "channels_last")
SECONDS, ROUNDS, HOPELESS = 0.25, 40, 2.5  # of a problem; a kernel that takes so many times the best is timed once


def tensors_of(problem: Problem) -> list[Tensor | None]:
    """x, w, bias and y of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def tensor(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        empty = torch.empty_strided(shape, strides, dtype=problem.dtype)
        return empty.copy_(torch.randn(shape, generator=generator))

    channels = problem.x[1] if problem.op == "input_gradient" else problem.y[1]
    bias = tensor((channels,), (1,)) if problem.bias else None
    return [tensor(problem.x, problem.x_stride), tensor(problem.w, problem.w_stride), bias,
            tensor(problem.y, problem.y_stride)]  # fmt: skip


def measure(problem: Problem, tensors: list[Tensor | None], seconds: float) -> dict[str, float]:
    """Milliseconds of each kernel that serves; one that is wrong is told and left out."""
    exact = torch_run(problem._replace(dtype=torch.float64))(*(None if t is None else t.double() for t in tensors))
    kernels = [kernel for kernel in KERNELS[problem.op] if kernel.refuse(problem) is None or kernel is DIRECT]
    runs, once = {}, {}
    for kernel in kernels:
        if kernel is DIRECT and not direct_serves(problem):
            continue
        run = kernel.prepare(problem)
        if not right(run(*tensors), exact, problem):
            print(f"  WRONG: {kernel.name} on {problem}")
            continue
        start = time.perf_counter()
        run(*tensors)
        once[kernel.name] = (time.perf_counter() - start) * 1e3
        runs[kernel.name] = run
    best = min(once.values())
    close = [name for name in runs if once[name] <= HOPELESS * best or name == "torch"]
    timings = interleave([lambda run=runs[name]: run(*tensors) for name in close], seconds, 4, ROUNDS)
    return once | {name: timing.median_ms for name, timing in zip(close, timings, strict=True)}


def direct_serves(problem: Problem) -> bool:
    """Whether the direct kernel could compute it, whatever its limits say."""
    small = problem._replace(w=(1, 1, 1, 1), y=(1, 1, 1, 1))
    return problem.dims == 2 and problem.op == "forward" and DIRECT.refuse(small._replace(x=problem.x)) is None


def right(got: Tensor, exact: Tensor, problem: Problem) -> bool:
    """Within what rounding gives: it grows with the square root of the number of summands."""
    summands = max(1.0, problem.macs / exact.numel())
    unit = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[problem.dtype]
    bound = 4 * unit * math.sqrt(summands) * max(1.0, float(exact.abs().max()))
    return got.shape == exact.shape and float((got.double() - exact).abs().max()) <= bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", default=sorted(map(str, (FOLDER / "problems").glob("*.txt"))))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    threads = [int(n) for n in given.threads.split(",")]
    isa = results.results_isa()
    table = dict(results.table(isa)) or {"format": 1, "isa": isa, "kinds": {}}
    if given.write:
        table["machine"] = machine(threads)
    ratios = []
    for task in read_tasks(given.files):
        if not isinstance(task.block, ConvSpec) or task.direction == "training":
            continue
        for layout in LAYOUTS:
            for count in threads:
                torch.set_num_threads(count)
                problem = problem_of(task, layout, count)
                with torch.inference_mode():
                    ms = measure(problem, tensors_of(problem), given.seconds)
                ratios.append(show(task, layout, count, ms))
                record(table, problem, str(task), ms)
        if given.write:
            write(table, isa)
    print(f"geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, least {min(ratios):.2f}")


def machine(threads: list[int]) -> dict[str, Any]:
    """Its limits, for the predicted roofline."""
    found = {str(n): measured(n) for n in threads}
    return {"gmacs": {n: round(m.peak["float32"] / 1e9, 1) for n, m in found.items()},
            "gbytes": {n: round(m.bandwidth_of(2**22) / 1e9, 1) for n, m in found.items()}}  # fmt: skip


def show(task: Task, layout: str, threads: int, ms: dict[str, float]) -> float:
    best = min(ms, key=lambda name: ms[name])
    if ms[best] > CLEARLY * ms["torch"]:
        best = "torch"
    each = "  ".join(f"{name} {value:.3f}" for name, value in sorted(ms.items(), key=lambda pair: pair[1]))
    print(f"{task!s:58} {layout[:4]} {threads}  {ms['torch'] / ms[best]:7.2f}  {each}", flush=True)
    return ms["torch"] / ms[best]


def record(table: dict[str, Any], problem: Problem, line: str, ms: dict[str, float]) -> None:
    rows = table["kinds"].setdefault(results.kind(problem), {}).setdefault(str(problem.threads), [])
    rows[:] = [row for row in rows if row["problem"] != line]
    rows.append({"problem": line, "features": [round(f, 2) for f in results.features(problem)],
                 "ms": {name: float(f"{value:.4g}") for name, value in sorted(ms.items())}})  # fmt: skip


def write(table: dict[str, Any], isa: str) -> None:
    """A row a line, in a fixed order: differences can be read."""
    kinds = []
    for kind, of in sorted(table["kinds"].items()):
        counts = []
        for n, rows in sorted(of.items()):
            lines = [json.dumps(row) for row in sorted(rows, key=lambda row: row["problem"])]
            counts.append(f'   "{n}": [\n    ' + ",\n    ".join(lines) + "\n   ]")
        kinds.append(f'  "{kind}": {{\n' + ",\n".join(counts) + "\n  }")
    head = f' "format": 1,\n "isa": "{isa}",\n "machine": {json.dumps(table["machine"])},\n "kinds": {{\n'
    (TABLES / f"{isa}.json").write_text("{\n" + head + ",\n".join(kinds) + "\n }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

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

from reconv.benching.memory import keep_memory
from reconv.benching.problem import problem_of
from reconv.benching.roofline import measured
from reconv.benching.task import Task, read_tasks
from reconv.ops import results
from reconv.ops.dispatch import DIRECT, KERNELS, fastest
from reconv.ops.fft import FFT
from reconv.ops.kernel import TORCH, Run, torch_run
from reconv.ops.problem import Problem
from reconv.spec import ConvSpec
from reconv.targets import interleave

FOLDER = Path(__file__).parent
TABLES = FOLDER.parent / "src" / "reconv" / "ops" / "results"
LAYOUTS = ("contiguous", "channels_last")
SECONDS, ROUNDS = 0.25, 40  # of a problem
HOPELESS, FAR = 2.5, 20  # a kernel that takes so many times the best is timed once; torch, where it takes so many
WARM_MS, MOST_CALLS = 3, 5  # a kernel is called again for so long: in a network, too, its input has just been written
SLOW = 300  # ms: what takes longer, and far longer than the best, is called once


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
    exact = reference(problem)(*(None if t is None else t.double() for t in tensors))
    serving = [kernel for kernel in KERNELS[problem.op] if kernel.refuse(problem) is None]
    serving += [DIRECT] if DIRECT not in serving and direct_serves(problem) else []
    runs, once = {}, {}
    for kernel in sorted(serving, key=lambda kernel: (kernel.foreign, kernel is not TORCH)):
        if kernel.foreign and once.get("torch", 0) > max(SLOW, FAR * min(once.values(), default=0)):
            continue  # PyTorch's detours are of its kind
        run = kernel.prepare(problem)
        start = time.perf_counter()
        output = run(*tensors)
        once[kernel.name] = (time.perf_counter() - start) * 1e3
        if not right(output, exact, problem):
            print(f"  WRONG: {kernel.name} on {problem}")
            del once[kernel.name]
            continue
        if once[kernel.name] < max(SLOW, FAR * min(once.values(), default=0)):
            start = time.perf_counter()
            run(*tensors)
            once[kernel.name] = (time.perf_counter() - start) * 1e3
        runs[kernel.name] = run
    best = min(once.values())
    close = [name for name in runs if once[name] <= (FAR if name == "torch" else HOPELESS) * best]
    bursts = [max(1, min(MOST_CALLS, int(WARM_MS / once[name]))) for name in close]
    timings = interleave([lambda run=runs[name]: run(*tensors) for name in close], seconds, 4, ROUNDS, bursts)
    return once | {name: timing.low_ms for name, timing in zip(close, timings, strict=True)}


def reference(problem: Problem) -> Run:
    """In float64: PyTorch's own, or by transform where that takes minutes."""
    wide = problem._replace(dtype=torch.float64)
    return torch_run(wide) if FFT.refuse(wide) else FFT.prepare(wide)


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
    parser.add_argument("--missing", action="store_true", help="only what the table does not have")
    given = parser.parse_args()
    keep_memory()
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
                if given.missing and has(table, problem, str(task)):
                    continue
                with torch.inference_mode():
                    ms = measure(problem, tensors_of(problem), given.seconds)
                ratios.append(show(task, layout, problem, ms))
                record(table, problem, str(task), ms)
        if given.write:
            write(table, isa)
    print(f"geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, least {min(ratios):.2f}")


def machine(threads: list[int]) -> dict[str, Any]:
    """Its limits, for the predicted roofline."""
    found = {str(n): measured(n) for n in threads}
    return {"gmacs": {n: round(m.peak["float32"] / 1e9, 1) for n, m in found.items()},
            "gbytes": {n: round(m.bandwidth_of(2**22) / 1e9, 1) for n, m in found.items()}}  # fmt: skip


def show(task: Task, layout: str, problem: Problem, ms: dict[str, float]) -> float:
    best = fastest(ms, problem)
    each = "  ".join(f"{name} {value:.3f}" for name, value in sorted(ms.items(), key=lambda pair: pair[1]))
    print(f"{task!s:58} {layout[:4]} {problem.threads}  {ms['torch'] / ms[best]:7.2f}  {each}", flush=True)
    return ms["torch"] / ms[best]


def has(table: dict[str, Any], problem: Problem, line: str) -> bool:
    rows = table["kinds"].get(results.kind(problem), {}).get(str(problem.threads), [])
    return any(row["problem"] == line for row in rows)


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

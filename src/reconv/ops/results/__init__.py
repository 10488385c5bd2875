"""What was measured: one table for each instruction set, written by `python benchmarks/kernels.py --write`.

A table holds, for each problem of benchmarks/problems, layout and number of threads, the milliseconds of every kernel
that serves it. The choice for another problem is that of the nearest one that was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import log2, prod
from typing import Any

import numpy as np
import torch

from reconv.ops.native import native_isa
from reconv.ops.problem import Problem

FARTHEST = 8.0  # doublings of sizes that a measured problem may be away


@dataclass(frozen=True)
class Measured:
    """A measured problem: its line, what tells it from others of its kind, and the milliseconds of each kernel."""

    line: str
    features: tuple[float, ...]
    ms: dict[str, float]


def results_isa() -> str:
    """The instruction set whose table counts here."""
    return native_isa() or {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")


def kind(problem: Problem) -> str:
    """What problems must have in common to be compared."""
    group = "depthwise" if problem.w[1] == 1 and problem.groups > 1 else "grouped" if problem.groups > 1 else "dense"
    words = (group, f"{problem.dims}D", problem.op, "transposed" * problem.transposed, str(problem.dtype)[6:],
             "channels_last" if problem.is_channels_last() else "contiguous")  # fmt: skip
    return " ".join(filter(None, words))


def features(problem: Problem) -> tuple[float, ...]:
    """Sizes in doublings, so that distances are ratios; stride and dilation count more than twice as much."""
    spread = (1,) * (3 - problem.dims)
    sizes = (problem.x[0], problem.groups, problem.w[1], problem.w[0] // problem.groups, prod(problem.y[2:]),
             problem.y[-1], *spread, *problem.w[2:])  # fmt: skip
    steps = (prod(problem.stride), prod(problem.dilation))
    return (*map(log2, sizes), *(2.5 * log2(step) for step in steps))


def nearest(problem: Problem) -> Measured | None:
    """The measured problem of the same kind that is most like this one, if any is near enough."""
    rows, sizes = _rows(results_isa(), kind(problem), problem.threads)
    if not rows:
        return None
    apart = np.abs(sizes - features(problem)).sum(1)
    at = int(apart.argmin())
    return rows[at] if apart[at] <= FARTHEST else None


@cache
def _rows(isa: str, kind: str, threads: int) -> tuple[tuple[Measured, ...], np.ndarray]:
    """What was measured, and the features of each as a row."""
    found = table(isa).get("kinds", {}).get(kind, {})
    if not found:
        return (), np.zeros((0, 0))
    known = sorted(map(int, found))
    which = max([n for n in known if n <= threads], default=known[0])
    rows = tuple(Measured(row["problem"], tuple(row["features"]), row["ms"]) for row in found[str(which)])
    return rows, np.array([row.features for row in rows], dtype=float)


def roofline_ms(problem: Problem) -> float | None:
    """What the machine of the table needs at least: for its multiply-accumulates, and to move each tensor once."""
    machine = table(results_isa()).get("machine")
    if machine is None:
        return None
    size = torch.finfo(problem.dtype).bits // 8
    threads = str(min(problem.threads, max(map(int, machine["gmacs"]))))
    gmacs = machine["gmacs"][threads] * (0.5 if problem.dtype == torch.float64 else 1)
    moved = size * (prod(problem.x) + prod(problem.w) + prod(problem.y))
    return max(problem.macs / gmacs / 1e6, moved / machine["gbytes"][threads] / 1e6)


@cache
def table(isa: str) -> dict[str, Any]:
    """{"format", "machine", "kinds": {kind: {threads: [{"problem", "features", "ms"}]}}}; empty where there is none."""
    return json.loads(_file(isa).read_text(encoding="utf-8")) if has_table(isa) else {}


def has_table(isa: str) -> bool:
    """Whether there is one, without reading it."""
    return _file(isa).is_file()


def _file(isa: str) -> Traversable:
    return files(__name__) / f"{isa}.json"

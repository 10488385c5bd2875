"""Whether kernels are still as much faster than PyTorch as they were: part of `make test`, in seconds.

    python benchmarks/gate.py            fails where a ratio stays below its floor in every try
    python benchmarks/gate.py --write    measures anew and puts the floors into benchmarks/floors.json

A row is a problem, a layout, the kernel that dispatch takes, PyTorch's time over that kernel's, both on one thread and
called in turn (the least of five), and the floor: half of it. Where the ratio is below its floor it is measured again,
longer, up to six times: a busy machine slows both sides, and what it slows by chance is not slow each time. Only the
instruction set of the floors is measured; on any other the gate says so and looks at the choice of kernels alone. On
another processor of that instruction set, whose ratios are others, half of each floor counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kernels import tensors_of

from reconv import functional
from reconv.benching.memory import keep_memory
from reconv.benching.problem import problem_of
from reconv.benching.task import Task
from reconv.ops import results
from reconv.ops.dispatch import choose
from reconv.ops.kernel import torch_run
from reconv.ops.problem import Problem
from reconv.targets import interleave
from reconv.targets.engine import machine

FLOORS = Path(__file__).with_name("floors.json")
SHARE, ELSEWHERE = 0.5, 0.5  # of the ratio that was measured, and of the floor on another processor
TRIES, SECONDS = 6, 0.15  # the first try's; each next one is longer by as much
CASES = (
    ("ic96oc96k7x7p3g96 1x96x28x28", "contiguous"),
    ("ic384oc384k3x3p1g384 1x384x14x14", "channels_last"),
    ("ic96oc96k7x7p3g96 1x96x28x28 bfloat16", "contiguous"),
    ("ic144oc144k31p15g144 1x144x250", "contiguous"),
    ("ic256oc256k4s2p1g256t 1x256x500", "contiguous"),
    ("ic1oc32k7p3 1x1x24000", "contiguous"),
    ("ic8oc8k5x5p2 1x8x28x28", "channels_last"),
    ("ic3oc64k3x3p1 1x3x64x64", "channels_last"),
    ("ic1oc16k3x3x3p1 1x1x32x32x32", "contiguous"),
    ("ic64oc64k3p1 1x64x2000", "channels_last"),
    ("ic256oc256k4p3g256 1x256x512 weight bfloat16", "contiguous"),
)
UNMEASURED = ("torch", "direct")  # what may compute a problem where nothing was measured
CALL = "a call of the entrance with a map so small that PyTorch computes it"  # what choosing costs


@dataclass(frozen=True)
class Row:
    problem: str
    layout: str
    kernel: str
    measured: float
    floor: float


def asked(line: str, layout: str) -> Problem:
    return problem_of(Task.parse(line), layout, 1)


def pair(line: str, layout: str) -> list[Callable[[], object]]:
    """PyTorch, and what dispatch takes."""
    if line == CALL:
        x, w = torch.rand(1, 8, 6, 6), torch.rand(8, 8, 3, 3)
        return [lambda: torch.nn.functional.conv2d(x, w), lambda: functional.conv2d(x, w)]
    problem = asked(line, layout)
    tensors = tensors_of(problem)
    theirs, ours = torch_run(problem), choose(problem).prepare(problem)
    return [lambda: theirs(*tensors), lambda: ours(*tensors)]


@torch.inference_mode()
def ratio(line: str, layout: str, seconds: float) -> float:
    """PyTorch's time over ours: medians of calls in turn."""
    theirs, ours = interleave(pair(line, layout), seconds, burst=5)
    return theirs.median_ms / ours.median_ms


def best(line: str, layout: str, floor: float) -> float:
    """The first ratio that reaches the floor, or the best of all tries."""
    found: list[float] = []
    for number in range(1, TRIES + 1):
        found.append(ratio(line, layout, number * SECONDS))
        if found[-1] >= floor:
            break
    return max(found)


def chosen(line: str, layout: str) -> str:
    return "torch" if line == CALL else choose(asked(line, layout)).name


def read() -> tuple[str, str, list[Row]]:
    """Instruction set and processor of the floors, and the floors."""
    held = json.loads(FLOORS.read_text(encoding="utf-8"))
    return held["isa"], held["processor"], [Row(**row) for row in held["rows"]]


def write() -> None:
    rows = []
    for line, layout in (*CASES, (CALL, "contiguous")):
        value = round(min(ratio(line, layout, 1.0) for _ in range(5)), 2)
        rows.append(Row(line, layout, chosen(line, layout), value, round(SHARE * value, 2)))
        print(rows[-1], flush=True)
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    known = {"isa": results.results_isa(), "processor": machine(), "torch": torch.__version__.partition("+")[0]}
    head = ",\n ".join(f'"{name}": {json.dumps(value)}' for name, value in known.items())
    FLOORS.write_text(f'{{\n {head},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def check() -> list[str]:
    """What is slower than it may be, or computed by another kernel than it was."""
    isa, processor, rows = read()
    here, wrong = results.results_isa(), []
    share = 1.0 if machine() == processor else ELSEWHERE
    if here != isa:
        print(f"gate: the floors are of {isa}, and this machine has {here}: there is nothing to compare times with. "
              "The choice of kernels alone is looked at.")  # fmt: skip
    elif share < 1:
        print(f"gate: the floors are of {processor}, and this is {machine()}: {share:g} of each counts.")
    for row in rows:
        kernel = chosen(row.problem, row.layout)
        expected = (row.kernel,) if here == isa else UNMEASURED
        if kernel not in expected and (here == isa or not results.has_table(here)):
            wrong.append(f"{row.problem} {row.layout}: {kernel} computes it, and not {' or '.join(expected)}")
        elif here == isa:
            floor = share * row.floor
            got = best(row.problem, row.layout, floor)
            print(f"{row.problem:68} {row.layout[:4]}  {kernel:10} {got:7.2f}  floor {floor:.2f}", flush=True)
            if got < floor:
                wrong.append(f"{row.problem} {row.layout}: {got:.2f} times as fast as PyTorch in the best of {TRIES} "
                             f"tries; the floor is {floor:.2f}, {row.measured} was measured")  # fmt: skip
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if given.write:
        write()
    elif wrong := check():
        sys.exit("\n".join(["gate: slower than it was.", *wrong, "If it is meant: python benchmarks/gate.py --write"]))


if __name__ == "__main__":
    main()

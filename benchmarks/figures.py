"""What the kernels are asked for, kind by kind, beside what results of `reconv bench` show.

    reconv bench benchmarks/problems/*.txt --threads 1,2 -o results.json
    python benchmarks/figures.py results.json [more.json …]

A figure is a geometric mean of ratios, PyTorch's time over reconv's, each in its best memory format. The worst one
may have 5 µs of overhead where a call takes less than 100 µs. Then the kinds beside ONNX Runtime and OpenVINO, and what
the native kernels reach of the roofline. Exit status 1 where a figure is not reached.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconv.benching import Task
from reconv.benching.problem import problem_of
from reconv.benching.report import LOSING, geometric_mean
from reconv.benching.task import specs_of
from reconv.ops.dispatch import choose
from reconv.spec import Chain, ConvSpec, Deform
from reconv.targets.layout import LAYOUTS

OVERALL = 2.5
OVERHEAD_MS, SHORT_MS = 0.005, 0.1  # what a call that is shorter may have on top
DIRECTIONS = ("forward", "input", "weight", "training")
ALL = "all"  # directions together


@dataclass(frozen=True)
class Kind:
    """Problems that one figure is asked for; the first kind that fits a problem has it.

    Args:    asked: the geometric mean for each direction, or for ALL together. least: for every single problem.
    """

    name: str
    fits: Callable[[Task], bool]
    asked: Mapping[str, float]
    least: float = LOSING


def plain(test: Callable[[ConvSpec, Task], bool]) -> Callable[[Task], bool]:
    """Of single convolutions."""
    return lambda task: isinstance(task.block, ConvSpec) and test(task.block, task)


def depthwise(test: Callable[[ConvSpec, Task], bool]) -> Callable[[Task], bool]:
    """Of plain depthwise convolutions: not transposed, and as many channels out as in."""
    return plain(lambda s, t: s.depthwise and s.out_channels == s.in_channels and not s.transposed and test(s, t))


def side(task: Task) -> int:
    """The shortest side of the map."""
    return min(task.input_shape[2:])


def large(spec: ConvSpec) -> bool:
    return spec.spatial_dims == 2 and min(spec.kernel_size) >= 7


def groups_of_4(spec: ConvSpec, task: Task) -> bool:
    each = (spec.in_channels // spec.groups, spec.out_channels // spec.groups)
    return each == (4, 4) and spec.spatial_dims == 2 and not spec.pointwise and side(task) >= 28


KINDS = (
    Kind("deformable", lambda t: isinstance(t.block, Deform), {"forward": 2, "training": 2}),
    Kind("separable, from 56²", lambda t: isinstance(t.block, Chain) and len(t.input_shape) == 4 and side(t) >= 56,
         {"forward": 1.2}),
    Kind("separable, others", lambda t: isinstance(t.block, Chain), {}),
    Kind("depthwise float64", plain(lambda s, t: s.depthwise and t.dtype == "float64"), {ALL: 10}, least=4),
    Kind("depthwise bfloat16", plain(lambda s, t: s.depthwise and t.dtype == "bfloat16"), {}),
    Kind("depth multiplier 2", plain(lambda s, t: s.depthwise and s.out_channels == 2 * s.in_channels), {"forward": 5}),
    Kind("depth multiplier, others", plain(lambda s, t: s.depthwise and s.out_channels > s.in_channels), {}),
    Kind("one channel, 11×11", plain(lambda s, t: s.in_channels == 1 and s.kernel_size == (11, 11)),
         {"forward": 8, "input": 50}),
    Kind("depthwise transposed", plain(lambda s, t: s.depthwise and s.transposed),
         {"forward": 2, "input": 5, "weight": 5}),
    Kind("depthwise 3D", depthwise(lambda s, t: s.spatial_dims == 3), {"forward": 1, "input": 7, "weight": 7}),
    Kind("depthwise 1D, 4 taps", depthwise(lambda s, t: s.kernel_size == (4,)), {"forward": 2, "weight": 8}),
    Kind("depthwise 1D, 31 taps", depthwise(lambda s, t: s.kernel_size == (31,)), {"forward": 15, "weight": 8}),
    Kind("depthwise 1D, others", depthwise(lambda s, t: s.spatial_dims == 1), {}),
    Kind("depthwise from 7×7, dilated", depthwise(lambda s, t: large(s) and max(s.dilation) > 1),
         {"forward": 10, "input": 10, "weight": 10}),
    Kind("depthwise from 7×7", depthwise(lambda s, t: large(s)), {"forward": 1.2, "weight": 5}),
    Kind("depthwise 3×3, 14² to 112²",
         depthwise(lambda s, t: (s.kernel_size, *s.dilation) == ((3, 3), 1, 1) and 14 <= side(t) <= 112),
         {"forward": 1}),
    Kind("depthwise 2D, others", depthwise(lambda s, t: True), {}),
    Kind("groups of 4, from 28²", plain(groups_of_4), {"forward": 3, "weight": 3}),
    Kind("dense 3D, batch 1", plain(lambda s, t: (s.spatial_dims, s.groups, s.transposed, t.input_shape[0])
                                    == (3, 1, False, 1) and t.direction == "forward"), {"forward": 4}),
    Kind("others", lambda t: True, {}),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A figure: what was asked (None: only that nothing loses), and what was measured."""

    kind: str
    direction: str
    threads: int
    asked: float | None
    least: float
    ratios: tuple[float, ...]
    worst: float  # of the ratios, less what may be overhead

    @property
    def mean(self) -> float:
        return geometric_mean(self.ratios)

    @property
    def met(self) -> bool:
        return self.mean >= (self.asked or 0) and self.worst >= self.least

    def cells(self) -> list[str]:
        asked = "–" if self.asked is None else f"{self.asked:g}"
        measured = [f"{self.mean:.2f}", f"{self.worst:.2f}", str(len(self.ratios)), "yes" if self.met else "no"]
        return [self.kind, self.direction, str(self.threads), asked, *measured]


HEADS = ("kind", "direction", "threads", "asked", "geometric mean", "worst", "problems", "reached")


def kind_of(task: Task) -> Kind:
    return next(kind for kind in KINDS if kind.fits(task))


def figures(results: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Args:    results: as in the JSON of `reconv bench`; those without a ratio are left out."""
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for result in results:
        if result["ratio"] is not None:
            task = Task.parse(result["problem"])
            kind = kind_of(task)
            direction = ALL if ALL in kind.asked else task.direction
            found.setdefault((kind.name, direction, result["threads"]), []).append(result)
            found.setdefault(("everything", ALL, result["threads"]), []).append(result)
    return list(_lines(found))


def _lines(found: Mapping[tuple[str, str, int], list[Mapping[str, Any]]]) -> Iterator[Line]:
    for kind in (*KINDS, Kind("everything", lambda task: True, {ALL: OVERALL})):
        for direction in (*DIRECTIONS, ALL):
            for threads in sorted({key[2] for key in found}):
                if of := found.get((kind.name, direction, threads)):
                    yield Line(kind.name, direction, threads, kind.asked.get(direction), kind.least,
                               tuple(result["ratio"] for result in of), min(map(without_overhead, of)))  # fmt: skip


def best_ms(result: Mapping[str, Any], family: str) -> float | None:
    """Of a family's memory formats."""
    engines = result["engines"].items()
    found = [figure["ms"] for name, figure in engines if name.split()[0] == family and "ms" in figure]
    return min(found, default=None)


def without_overhead(result: Mapping[str, Any]) -> float:
    """The ratio, less the overhead that a short call may have."""
    ratio, ours = float(result["ratio"]), best_ms(result, "reconv") or 0.0
    return ratio * ours / (ours - OVERHEAD_MS) if ratio < 1 and ours < SHORT_MS else ratio


def losing(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The problems that PyTorch computes faster."""
    with_ratio = [result for result in results if result["ratio"]]
    lost = sorted((r["ratio"], r["threads"], r["problem"]) for r in with_ratio if without_overhead(r) < LOSING)
    return [f"{ratio:.2f} {problem} ({threads} threads)" for ratio, threads, problem in lost]


# -- beside other engines, and beside the machine -------------------------------------------------
PEERS = ("onnxruntime", "openvino")
PEER_HEADS = ("forward, 1 thread", "problems", *(f"{peer}'s time over reconv's" for peer in PEERS), "behind both")
ROOFLINE_HEADS = ("native, forward, 1 thread", "asked", "of the roofline", "least", "problems", "of them reached")
ASKED_OF_ROOFLINE = {True: 0.6, False: 0.4}  # kernels from 5 taps along an axis; others


def is_native(task: Task) -> bool:
    """Whether a kernel of ours computes it, in either memory format on one thread."""
    if not isinstance(task.block, ConvSpec):
        return True
    return any(not choose(problem_of(task, layout, 1)).foreign for layout in LAYOUTS)


def natives(results: Sequence[Mapping[str, Any]]) -> list[tuple[Task, Mapping[str, Any]]]:
    """Forward passes on one thread that kernels of ours compute."""
    each = [(Task.parse(result["problem"]), result) for result in results if result["threads"] == 1]
    return [(task, result) for task, result in each if task.direction == "forward" and is_native(task)]


def beside_peers(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each kind: how much longer other engines take."""
    rows, each_native = [], natives(results)
    for kind in KINDS:
        of = [result for task, result in each_native if kind_of(task) is kind]
        each = {peer: [ms / ours for r in of if (ms := best_ms(r, peer)) and (ours := best_ms(r, "reconv"))]
                for peer in PEERS}  # fmt: skip
        if all(each.values()):
            means = [geometric_mean(ratios) for ratios in each.values()]
            rows.append([kind.name, str(len(of)), *(f"{mean:.2f}" for mean in means),
                         "yes" if max(means) < 1 else "no"])  # fmt: skip
    return rows


def of_roofline(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each kind, kernels from 5 taps apart: what share of the machine's limit they reach."""
    rows, each_native = [], natives(results)
    for kind in KINDS:
        for large, asked in ASKED_OF_ROOFLINE.items():
            of = [result["of_roofline"] for task, result in each_native
                  if kind_of(task) is kind and result["of_roofline"] and (widest(task) >= 5) == large]  # fmt: skip
            if of:
                name = f"{kind.name}, {'from 5 taps' if large else 'under 5 taps'}"
                reached = str(sum(share >= asked for share in of))
                rows.append(
                    [name, f"{asked:.0%}", f"{geometric_mean(of):.0%}", f"{min(of):.0%}", str(len(of)), reached]
                )
    return rows


def widest(task: Task) -> int:
    """Taps along the longest axis of its first kernel."""
    return max(specs_of(task.block)[0].kernel_size)


def read(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The results of several files; of a problem that stands in two, the later one."""
    held: dict[tuple[str, int], dict[str, Any]] = {}
    for file in files:
        for result in json.loads(Path(file).read_text(encoding="utf-8"))["results"]:
            held[result["problem"], result["threads"]] = result
    return list(held.values())


def show(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def main(files: Sequence[str]) -> int:
    results = read(files)
    lines = figures(results)
    show([HEADS, *(line.cells() for line in lines)])
    for text in losing(results):
        print(f"slower than PyTorch: {text}")
    show([PEER_HEADS, *beside_peers(results)])
    show([ROOFLINE_HEADS, *of_roofline(results)])
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the committed table of an instruction set says: PyTorch's time over that of the chosen kernel, by kind.

    python benchmarks/table.py [avx512]

Each side in the memory format in which it is faster. Times are those of the kernels alone, as benchmarks/kernels.py
measured them: `reconv bench` times whole calls. Means are geometric.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict

from reconv.benching.problem import problem_of
from reconv.benching.task import Task
from reconv.ops import results
from reconv.ops.dispatch import DIRECT, fastest

LAYOUTS = ("contiguous", "channels_last")


def ratios(isa: str) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """Of each kind and number of threads: ratios and their problems."""
    torch: dict[tuple[str, str, str], float] = defaultdict(lambda: math.inf)
    ours: dict[tuple[str, str, str], float] = defaultdict(lambda: math.inf)
    for kind, counts in results.table(isa)["kinds"].items():
        *words, layout = kind.split()
        for threads, rows in counts.items():
            for row in rows:
                key, ms = (" ".join(words), threads, row["problem"]), row["ms"]
                problem = problem_of(Task.parse(row["problem"]), layout, int(threads))
                chosen = "direct" if DIRECT.refuse(problem) is None else fastest(ms, problem)
                torch[key], ours[key] = min(torch[key], ms["torch"]), min(ours[key], ms[chosen])
    found = defaultdict(list)
    for (kind, threads, line), ms in torch.items():
        found[kind, threads].append((ms / ours[kind, threads, line], line))
    return found


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main(isa: str) -> None:
    found = ratios(isa)
    print(f"{'kind':46} threads problems  mean   least  of")
    for (kind, threads), each in sorted(found.items()):
        least, line = min(each)
        print(f"{kind:46} {threads:>7} {len(each):>8} {mean([r for r, _ in each]):6.2f} {least:6.2f}  {line}")
    for threads in sorted({threads for _, threads in found}):
        every = [ratio for (_, n), each in found.items() if n == threads for ratio, _ in each]
        print(
            f"all, {threads} thread(s): {len(every)} problems, geometric mean {mean(every):.2f}, least {min(every):.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["avx512"])

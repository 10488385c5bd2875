"""The native kernels against PyTorch in its best memory format, interleaved call by call.

    python benchmarks/kernels.py benchmarks/problems/small_maps.txt [threads]

A problem is a line: a spec and the shape of its input. The ratio is PyTorch's best time over ours; above 1 we win.
`direct` is the native kernel whether or not dispatch would choose it: where it loses, dispatch must route to torch.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from reconv.ops import direct
from reconv.ops.dispatch import choose
from reconv.ops.problem import Problem
from reconv.spec import ConvSpec, macs
from reconv.targets import interleave, laid_out

ROUNDS = 60


def measure(spec: ConvSpec, shape: tuple[int, ...]) -> tuple[float, float, float, str]:
    """Milliseconds of torch in NCHW, torch channels_last and the native kernel; and which one dispatch chooses."""
    x, weight = torch.rand(shape), torch.rand(spec.weight_shape)
    bias = torch.rand(spec.out_channels) if spec.bias else None
    settings = (spec.stride, spec.even_padding, spec.dilation, spec.groups)
    last = (laid_out(x, "channels_last"), laid_out(weight, "channels_last"), bias)
    problem = Problem.of(*last, *settings)
    run = direct.prepare(problem)
    with torch.inference_mode():
        timings = interleave([lambda: F.conv2d(x, weight, bias, *settings), lambda: F.conv2d(*last, *settings),
                              lambda: run(*last)], 60, ROUNDS, ROUNDS)  # fmt: skip
    return (*(t.median_ms for t in timings), choose("conv", problem).name)


def main(file: str, threads: int) -> None:
    torch.set_num_threads(threads)
    ratios: dict[str, list[float]] = {}
    print(
        f"{'problem':44}{'MMACs':>8}{'NCHW':>9}{'NHWC':>9}{'direct':>9}  {'ratio':>6}  chosen     ({threads} threads)"
    )
    for line in Path(file).read_text().split("\n"):
        if not (line := line.partition("#")[0].strip()):
            continue
        text, size = line.split()
        spec, shape = ConvSpec.parse(text), tuple(map(int, size.split("x")))
        nchw, nhwc, ours, chosen = measure(spec, shape)
        ratio = min(nchw, nhwc) / ours
        ratios.setdefault(chosen, []).append(ratio)
        print(f"{line:44}{macs(spec, shape) / 1e6:8.2f}{nchw:9.3f}{nhwc:9.3f}{ours:9.3f}  {ratio:6.2f}  {chosen}")
    for chosen, each in ratios.items():
        mean, low, high = math.exp(sum(map(math.log, each)) / len(each)), min(each), max(each)
        print(f"where {chosen} is chosen: geometric mean {mean:.2f}, {low:.2f} to {high:.2f}, {len(each)} problems")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else torch.get_num_threads())

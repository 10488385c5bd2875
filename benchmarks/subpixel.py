"""What the rule `subpixel` gains: transposed convolutions beside their plain form, one thread, both memory formats.

OMP_NUM_THREADS=1 python benchmarks/subpixel.py
"""

import time

import torch

from reconv.layers import build
from reconv.ruleset import rules_named
from reconv.spec import parse
from reconv.surgery import find_sites

CASES = [
    ("ic64oc32k2x2s2t", 28), ("ic128oc64k2x2s2t", 14), ("ic32oc8k4x4s4t", 28), ("ic64oc32k4x4s2p1t", 28),
    ("ic16oc3k4x4s2p1t", 56), ("ic64oc32k3x3s2p1top1", 28), ("ic32oc32k8x8s4p2t", 14), ("ic64oc64k4x4s2p1g64t", 28),
]  # fmt: skip
ROUNDS = 15


def interleaved(models: list[torch.nn.Module], x: torch.Tensor) -> list[float]:
    """Median milliseconds of each, called in turns."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS + 2):
        for model, mine in zip(models, times, strict=True):
            start = time.perf_counter()
            model(x)
            mine.append(time.perf_counter() - start)
    return [1e3 * sorted(mine[2:])[ROUNDS // 2] for mine in times]


def main() -> None:
    torch.set_num_threads(1)
    (rule,) = rules_named("subpixel")
    print(f"{'transposed':24} {'map':>4}  {'plain form':52} {'NCHW':>22}  channels_last")
    for text, length in CASES:
        block = parse(text)
        x = torch.randn(1, block.in_channels, length, length)
        (site,) = find_sites(build(block), x).sites
        (proposal,) = rule.propose(site)
        cells = []
        for layout in (torch.contiguous_format, torch.channels_last):
            models = [build(block), build(proposal.block)]
            models[1].load_state_dict(rule.init(site, proposal).tensors)
            with torch.inference_mode():
                before, after = interleaved([m.eval().to(memory_format=layout) for m in models],
                                            x.contiguous(memory_format=layout))  # fmt: skip
            cells.append(f"{before:6.3f} → {after:6.3f} ({after / before:.2f})")
        print(f"{text:24} {length:4}  {proposal.block!s:52} {cells[0]:>22}  {cells[1]}")


if __name__ == "__main__":
    main()

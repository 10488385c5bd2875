"""Problems around the edges of every kernel: vectors, tiles, strides, pads; one row a case, and how it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cases import CONVS, Case
from torch import Tensor

from reconv.ops.kernel import Kernel
from reconv.ops.problem import Problem
from reconv.spec import ConvSpec, parse

ROWS = [
    # depthwise: channels around the lanes of a vector, every number of dimensions
    ("ic1oc1k3x3p1", (1, 1, 5, 5)),
    ("ic3oc3k3x3p1g3", (2, 3, 9, 7)),
    ("ic15oc15k3x3p1g15", (1, 15, 14, 14)),
    ("ic16oc16k3x3p1g16nb", (1, 16, 7, 7)),
    ("ic17oc17k3x3s2p1g17", (2, 17, 13, 15)),
    ("ic33oc33k3x3s2p0:1g33", (1, 33, 14, 14)),
    ("ic40oc40k5x5p2g40", (1, 40, 9, 20)),
    ("ic8oc8k5x5s2p2g8", (1, 8, 11, 12)),
    ("ic19oc19k7x7p3g19", (1, 19, 10, 9)),
    ("ic20oc20k7x7p9d3g20", (1, 20, 12, 11)),
    ("ic5oc5k13x13p12d2g5", (1, 5, 17, 19)),
    ("ic9oc9k31x31p15g9", (1, 9, 12, 14)),
    ("ic4oc4k9x5p4x2g4", (1, 4, 3, 2)),
    ("ic6oc6k4x2p2:1x0:1g6", (2, 6, 9, 8)),
    ("ic6oc6k2x2s5g6", (1, 6, 13, 12)),
    ("ic6oc6k3x3s2p2d2g6", (1, 6, 11, 13)),
    ("ic6oc6k3x3s3x2p2x4d1x4g6", (1, 6, 14, 13)),
    ("ic6oc6k1x1s2g6", (1, 6, 7, 8)),
    ("ic6oc6k1x11p0x5g6", (1, 6, 6, 23)),
    ("ic6oc6k11x1p5x0g6", (1, 6, 23, 6)),
    ("ic5oc10k3x3p1g5", (2, 5, 8, 9)),
    ("ic18oc54k3x3s2p1g18", (1, 18, 9, 10)),
    ("ic3oc24k5x5p2g3", (1, 3, 12, 18)),
    ("ic7oc7k4p3:0g7", (2, 7, 37)),
    ("ic18oc18k31p15g18", (1, 18, 50)),
    ("ic18oc18k3s2p1g18", (1, 18, 33)),
    ("ic4oc8k5p8d4g4nb", (1, 4, 41)),
    ("ic6oc6k3x3x3p1g6", (1, 6, 5, 6, 7)),
    ("ic17oc17k3x3x3s2p1g17", (1, 17, 5, 6, 7)),
    ("ic4oc4k5x1x3p2x0x1d2x1x1g4", (1, 4, 9, 4, 5)),
    ("ic4oc8k2x3x2s1x2x1p0x1x1:0g4", (2, 4, 4, 5, 6)),
    # depthwise transposed
    ("ic5oc5k4x4s2p1g5t", (1, 5, 7, 6)),
    ("ic17oc17k16x16s8p4g17t", (1, 17, 3, 4)),
    ("ic6oc6k3x3s2p1g6top1", (1, 6, 5, 4)),
    ("ic6oc12k3s3p1g6t", (2, 6, 9)),
    ("ic3oc3k2x3x2s2x1x2g3t", (1, 3, 3, 4, 5)),
    # few channels a group
    ("ic8oc8k3x3p1g4", (1, 8, 28, 28)),
    ("ic12oc12k3x3p1g3", (2, 12, 14, 15)),
    ("ic12oc12k3x3s2p1g3", (1, 12, 17, 33)),
    ("ic16oc16k3x3p2d2g2", (1, 16, 11, 40)),
    ("ic9oc6k3x3p1g3", (1, 9, 8, 31)),
    ("ic6oc9k5x5p2g3", (1, 6, 9, 9)),
    ("ic10oc20k1x1g5", (1, 10, 6, 7)),
    ("ic8oc8k65p32g4", (1, 8, 90)),
    ("ic16oc16k128p64g4", (1, 16, 70)),
    ("ic12oc8k9s3p4g4", (2, 12, 65)),
    ("ic8oc4k3x2x3p1x0x1g2", (1, 8, 4, 5, 6)),
    ("ic8oc8k4x4s2p1g2t", (1, 8, 6, 5)),
    # one channel, and few: stems
    ("ic1oc16k11x11p5", (1, 1, 20, 33)),
    ("ic1oc1k11x11p5", (2, 1, 19, 40)),
    ("ic1oc5k7x7s2p3", (1, 1, 21, 22)),
    ("ic3oc19k7x7s2p3", (1, 3, 23, 20)),
    ("ic3oc8k4x4s4", (1, 3, 16, 18)),
    ("ic3oc10k11x11s4p2", (1, 3, 31, 30)),
    ("ic16oc1k9x9p4", (1, 16, 12, 17)),
    ("ic1oc6k10s5", (1, 1, 101)),
    ("ic1oc4k3x3x3p1", (1, 1, 5, 6, 18)),
    # dense, in every number of dimensions
    ("ic16oc16k3x3x3p1", (1, 16, 4, 5, 6)),
    ("ic17oc33k3x3x3p2d2", (1, 17, 6, 5, 7)),
    ("ic5oc18k3x3x3s2p1", (2, 5, 5, 6, 7)),
    ("ic3oc7k1x3x3s1x2x2p0x1x1", (1, 3, 4, 9, 11)),
    ("ic8oc5k2x2x2s2t", (1, 8, 3, 4, 5)),
    ("ic9oc17k3x3x3s2p1top1", (1, 9, 3, 4, 3)),
    ("ic31oc18k3s2", (1, 31, 40)),
    ("ic20oc12k16s8p4t", (1, 20, 11)),
    ("ic15oc20k3x3p1", (2, 15, 9, 17)),
    ("ic16oc40k1x1", (1, 16, 5, 6)),
    ("ic6oc7k2x3p1:0x2", (1, 6, 7, 6)),
]


def _known() -> dict[str, Case]:
    found = {f"{text} on {'x'.join(map(str, shape))}": Case(parse(text), shape) for text, shape in ROWS}
    plain = {name: case for name, case in CONVS.items() if _spec(case).padding_mode == "zeros"}
    return found | plain


def _spec(case: Case) -> ConvSpec:
    assert isinstance(case.block, ConvSpec)
    return case.block


KERNEL_CASES = _known()


def computed(kernel: Kernel, known: Problem, tensors: Sequence[Tensor | None]) -> Tensor:
    """What is to be computed is not there yet: a kernel that reads it gets NaN."""
    hidden = {"forward": 3, "input_gradient": 0, "weight_gradient": 1}[known.op]
    given = [torch.full_like(t, torch.nan) if i == hidden and t is not None else t for i, t in enumerate(tensors)]
    return kernel.prepare(known)(*given)

"""Latencies of blocks and of whole networks on a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reconv.data import seeded
from reconv.layers import build
from reconv.spec import Block
from reconv.surgery import fresh
from reconv.targets.cache import LatencyCache
from reconv.targets.engine import Job, Target
from reconv.targets.layout import laid_out, to_layout
from reconv.targets.timing import Timing

SECONDS_PER_BLOCK = 0.03
BURST = 5  # calls of a whole network one after the other


@dataclass(frozen=True)
class Problem:
    """A block on an input, to be timed."""

    block: Block
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    layout: str = "contiguous"

    def key(self, target: Target) -> str:
        shape = "x".join(str(n) for n in self.input_shape)
        where = (
            f"{self.device} {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else self.device
        )
        return f"{self.block} | {shape} | {self.dtype} | {where} | {self.layout} | {target.fingerprint()}"


def time_blocks(target: Target, problems: Sequence[Problem], cache: LatencyCache | None = None) -> list[Timing]:
    """Timings of the problems, interleaved; known ones come from the cache."""
    known: dict[Problem, Timing | None] = {p: cache.get(p.key(target)) if cache else None for p in problems}
    missing = [p for p, timing in known.items() if timing is None]
    if missing:
        timings = target.measure([_job(p) for p in missing], SECONDS_PER_BLOCK * len(missing))
        for problem, timing in zip(missing, timings, strict=True):
            known[problem] = timing
            if cache:
                cache.put(problem.key(target), timing)
    return [found for p in problems if (found := known[p]) is not None]


@seeded(0)  # the user's random numbers stay as they are
def _job(problem: Problem) -> Job:
    layer = build(problem.block, device=problem.device, dtype=problem.dtype, channels=problem.input_shape[1]).eval()
    x = torch.randn(problem.input_shape, dtype=torch.float32, device=problem.device).to(problem.dtype)
    return to_layout(layer, problem.layout), (laid_out(x, problem.layout),)


def time_networks(
    target: Target, models: Sequence[nn.Module], inputs: tuple[Any, ...], seconds: float = 2.0
) -> list[Timing]:
    """Timings of whole networks in evaluation mode, interleaved. Modes are left as they were."""
    modes = [[(m, m.training) for m in model.modules()] for model in models]
    try:
        return target.measure([(model.eval(), fresh(inputs)) for model in models], seconds, BURST)
    finally:
        for module, training in (pair for mode in modes for pair in mode):
            module.training = training

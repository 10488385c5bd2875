"""Latencies of blocks and of whole networks on a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reconv.data import seeded
from reconv.errors import ConvError, conv_error
from reconv.layers import build
from reconv.spec import Block
from reconv.surgery import fresh
from reconv.surgery.norms import evaluating
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


def time_blocks(
    target: Target, problems: Sequence[Problem], cache: LatencyCache | None = None, keep: bool = True
) -> list[Timing | str]:
    """Timings of the problems, interleaved, or from the cache; of what the engine cannot run, the reason.

    Args:    keep: whether the cache is to know what was measured.
    """
    known: dict[Problem, Timing | str | None] = {p: cache.get(p.key(target)) if cache else None for p in problems}
    missing = [p for p, timing in known.items() if timing is None]
    if missing:
        timings = measured(target, [_job(p) for p in missing], SECONDS_PER_BLOCK * len(missing))
        for problem, timing in zip(missing, timings, strict=True):
            known[problem] = timing
            if cache and keep:
                cache.put(problem.key(target), timing)
    return [found for p in problems if (found := known[p]) is not None]


def measured(target: Target, jobs: Sequence[Job], seconds: float, burst: int = 1) -> list[Timing | str]:
    """Timings of the jobs, interleaved; of one that the engine cannot run, the reason, and the others are timed."""
    try:
        return list(target.measure(jobs, seconds, burst))
    except Exception as error:  # whatever an engine may raise
        alone = [_reason(error)] if len(jobs) == 1 else [why_not(target, job) for job in jobs]
        able = [job for job, reason in zip(jobs, alone, strict=True) if reason is None]
        if len(able) == len(jobs):
            raise
    timings = iter(target.measure(able, seconds, burst) if able else ())
    return [next(timings) if reason is None else reason for reason in alone]


def why_not(target: Target, job: Job) -> str | None:
    """Why an engine cannot run a network; None where it can."""
    try:
        target.measure([job], 0.0)
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ConvError) else f"{type(error).__name__}: {text}"


@seeded(0)  # the user's random numbers stay as they are
def _job(problem: Problem) -> Job:
    layer = build(problem.block, device=problem.device, dtype=problem.dtype, channels=problem.input_shape[1]).eval()
    x = torch.randn(problem.input_shape, dtype=torch.float32, device=problem.device).to(problem.dtype)
    return to_layout(layer, problem.layout), (laid_out(x, problem.layout),)


def time_networks(
    target: Target, models: Sequence[nn.Module], inputs: tuple[Any, ...], seconds: float = 2.0
) -> list[Timing]:
    """Timings of whole networks in evaluation mode, interleaved. Modes are left as they were."""
    with _evaluating(models):
        return target.measure([(model, fresh(inputs)) for model in models], seconds, BURST)


def try_networks(
    target: Target, models: Sequence[nn.Module], inputs: tuple[Any, ...], seconds: float = 2.0
) -> list[Timing | str]:
    """The same; of a network that the engine cannot run, the reason."""
    with _evaluating(models):
        return measured(target, [(model, fresh(inputs)) for model in models], seconds, BURST)


def check_runs(target: Target, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raises ConvError (a RuntimeError) where an engine cannot run a network."""
    with _evaluating([model]):
        reason = why_not(target, (model, fresh(inputs)))
    if reason is not None:
        raise conv_error("target", "the engine must be able to run the network as it is", also=RuntimeError,
                         got={"target": target.name, "model": type(model).__name__, "reason": repr(reason)},
                         do="Choose another engine, or change what it cannot run.")  # fmt: skip


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        yield

"""Times the engines on a task: each is checked first, then all are called in turns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from reconv.benching import roofline
from reconv.benching.engines import TORCH, Engine, Outputs, Runner, UnservedError, eager
from reconv.benching.memory import keep_memory
from reconv.benching.operands import Operands
from reconv.benching.task import Task
from reconv.spec import Deform
from reconv.targets.timing import Timing, interleave, warmed_ms

WARM_MS = 10.0  # of calls of one engine before the next one's turn, so that it finds the caches as it left them
MOST_CALLS = 20  # of these
NOISE = 0.15  # spread over median, above which a measurement is repeated
TRIES = 3
SLOW_MS, FAR = 300.0, 20  # what takes longer, and so many times as long as the fastest, is called once more, not again


@dataclass(frozen=True)
class Figure:
    """What one engine gave: a timing, or the reason why there is none."""

    timing: Timing | None = None
    skipped: str = ""
    wrong: str = ""

    def to_dict(self) -> dict[str, Any]:
        if self.timing is None:
            return {"wrong": self.wrong} if self.wrong else {"skipped": self.skipped}
        return {"ms": self.timing.median_ms, "spread": self.timing.spread_ms, "rounds": self.timing.rounds}


@dataclass(frozen=True)
class Result:
    """A task on a number of threads, by engine."""

    task: Task
    threads: int
    figures: dict[str, Figure] = field(default_factory=dict)
    roofline_ms: float = 0.0

    def best_ms(self, family: str) -> float | None:
        """Of the memory formats of "torch" or "reconv"."""
        found = [f.timing.median_ms for name, f in self.figures.items() if f.timing and name.split()[0] == family]
        return min(found, default=None)

    @property
    def ratio(self) -> float | None:
        """PyTorch's time over ours, each in its best memory format; above 1 we win."""
        torchs, ours = self.best_ms("torch"), self.best_ms("reconv")
        return torchs / ours if torchs and ours else None

    @property
    def of_roofline(self) -> float | None:
        """The share of the machine's limit that we reach."""
        ours = self.best_ms("reconv")
        return self.roofline_ms / ours if ours else None

    def to_dict(self) -> dict[str, Any]:
        task = self.task
        return {
            "problem": str(task), "group": task.group, "threads": self.threads, "macs": task.macs, "bytes": task.bytes,
            "engines": {name: figure.to_dict() for name, figure in self.figures.items()},
            "roofline_ms": self.roofline_ms, "ratio": self.ratio, "of_roofline": self.of_roofline,
        }  # fmt: skip


def measure(task: Task, engines: Sequence[Engine], threads: int, seconds: float) -> Result:
    """Timings of the engines whose results are right, in about so many seconds besides the checks."""
    keep_memory()
    limits = roofline.measured(threads)
    figures, runners = dict[str, Figure](), dict[str, Runner]()
    with _set(task, threads):
        given, expected = _expected(task)
        laid = {layout: given.laid(layout) for layout in dict.fromkeys(engine.layout for engine in engines)}
        for engine in engines:
            try:
                run = engine.prepare(task, laid[engine.layout], threads)
                wrong = _wrong(task, expected, _values(run()))
            except UnservedError as reason:
                figures[engine.name] = Figure(skipped=str(reason))
                continue
            figures[engine.name] = Figure(wrong=wrong)
            if not wrong:
                runners[engine.name] = run
        timings = _timings(list(runners.values()), seconds)
    figures |= {name: Figure(timing) for name, timing in zip(runners, timings, strict=True)}
    return Result(task, threads, figures, limits.roofline_ms(task))


@lru_cache(maxsize=1)  # for each number of threads in turn
def _expected(task: Task) -> tuple[Operands, list[Tensor]]:
    """The tensors of a task, and what it gives in float64."""
    given = Operands.of(task)
    return given, _values(eager(TORCH, task, given.double())())


@contextmanager
def _set(task: Task, threads: int) -> Iterator[None]:
    """So many threads, and a mode without gradients where none are computed by autograd."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(task.direction != "training"):
            yield
    finally:
        torch.set_num_threads(before)


def _timings(runners: Sequence[Runner], seconds: float) -> list[Timing]:
    """Interleaved; again where it was noisy, of which the quietest is kept."""
    once = [warmed_ms(run) for run in runners]
    far = max(SLOW_MS, FAR * min(once, default=0))
    close = [number for number, ms in enumerate(once) if ms <= far]
    bursts = [max(1, min(MOST_CALLS, math.ceil(WARM_MS / once[number]))) for number in close]
    tries: list[list[Timing]] = []
    while close and len(tries) < TRIES and (not tries or _noise(tries[-1]) > NOISE):
        tries.append(interleave([runners[number] for number in close], seconds, most=1000, burst=bursts))
    timed = dict(zip(close, min(tries, key=_noise), strict=True)) if tries else {}
    return [timed.get(number) or Timing.of([ms]) for number, ms in enumerate(once)]


def _noise(timings: Iterable[Timing]) -> float:
    return max(timing.spread_ms / timing.median_ms for timing in timings)


# -- is it right? ---------------------------------------------------------------------------------
def _values(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _wrong(task: Task, expected: Sequence[Tensor], got: Sequence[Tensor]) -> str:
    """How far the outputs are from those of float64, where rounding does not explain it; else nothing."""
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape:
            return f"its output is {tuple(have.shape)}, not {tuple(want.shape)}"
        apart, allowed = (have.double() - want).abs().max().item(), _tolerance(task, want)
        if not apart <= allowed:
            return f"{apart:.2g} away from the result in float64; rounding explains {allowed:.2g}"
    return ""


def _tolerance(task: Task, want: Tensor) -> float:
    """Each value is rounded once as it is stored, and its sum as often as it has terms: errors grow with their root."""
    dtype = getattr(torch, task.dtype)
    terms = max(1, task.macs // want.numel())
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * math.sqrt(terms)
    if isinstance(task.block, Deform):  # where a point lies is rounded, too
        sums *= max(task.input_shape[2:])
    scale = want.square().mean().sqrt().item()
    return 8 * (torch.finfo(dtype).eps + sums) * scale

"""Interleaved timing: every candidate once a round, so that drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

from reconv.errors import conv_error

Runner = Callable[[], object]
BURST_MS = 100.0  # of calls one after the other, at most: what takes longer finds its caches cold anyway


@dataclass(frozen=True)
class Timing:
    """Median and spread (interquartile range) over rounds, in milliseconds.

    low_ms: the first quartile, which what else runs on the machine reaches less.
    """

    median_ms: float
    spread_ms: float
    rounds: int
    low_ms: float = field(default=float("nan"), compare=False)

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Timing:
        """Raises ConvError where there is nothing to take a median of."""
        if not samples_ms:
            raise conv_error("Timing", "at least one sample is needed", got={"samples": 0}, also=ValueError)
        if len(samples_ms) < 2:
            return cls(samples_ms[0], 0.0, 1, samples_ms[0])
        low, _, high = quantiles(samples_ms, n=4, method="inclusive")
        return cls(median(samples_ms), high - low, len(samples_ms), low)


def interleave(
    runners: Sequence[Runner], seconds: float, least: int = 5, most: int = 60, burst: int | Sequence[int] = 1
) -> list[Timing]:
    """Times each runner once a round until `seconds` are spent; `least` to `most` rounds.

    Args:    runners: calls of what is to be timed. seconds: for all of it.
             burst: calls of a runner in a round, one after the other, each a sample; fewer where they are slow. 1 is
             for the parts of a network: between two calls the others run, so that caches are as cold as they are inside
             it. A whole network is called again and again where it is used, and finds in the caches what its last call
             left. One number for all, or one for each runner.
    Example:
             >>> one, other = interleave([lambda: sum(range(10)), lambda: sum(range(1000))], seconds=0.01)
             >>> one.median_ms < other.median_ms
             True
    """
    once = [warmed_ms(run) for run in runners]
    asked = [burst] * len(runners) if isinstance(burst, int) else burst
    bursts = [max(1, min(calls, int(BURST_MS / each))) for calls, each in zip(asked, once, strict=True)]
    samples: list[list[float]] = [[] for _ in runners]
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < least or (rounds < most and time.perf_counter() < until):
        rounds += 1
        for run, kept, calls in zip(runners, samples, bursts, strict=True):
            for _ in range(calls):
                start = time.perf_counter_ns()
                run()
                kept.append((time.perf_counter_ns() - start) * 1e-6)
    return [Timing.of(kept) for kept in samples]


def warmed_ms(run: Runner) -> float:
    """Milliseconds of a call after one that allocates and fills the caches of primitives."""
    run()
    start = time.perf_counter_ns()
    run()
    return max(time.perf_counter_ns() - start, 1) * 1e-6

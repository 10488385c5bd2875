"""The limits of this machine, measured: how fast it multiplies and adds, and how fast it moves bytes."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from reconv.benching.task import Task
from reconv.ops.native import library

SIZES = tuple(2**n for n in range(17, 29))  # bytes that a copy reads and writes: from the caches to memory
SECONDS = 0.02  # of one measurement, of which the best of several counts
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """What some threads can reach together.

    Args:    peak: multiply-accumulates a second, by dtype. bandwidth: bytes a second, read and written, by SIZES.
    """

    threads: int
    peak: dict[str, float]
    bandwidth: tuple[float, ...]

    def roofline_ms(self, task: Task) -> float:
        """The time below which the task cannot be done: that of its arithmetic, or that of moving each byte once."""
        return 1e3 * max(task.macs / self.peak[task.dtype], task.bytes / self.bandwidth_of(task.bytes))

    def bandwidth_of(self, size: int) -> float:
        """That of a copy which moves as many bytes: a small one stays in the caches."""
        place = min(max(math.log2(size / SIZES[0]), 0), len(SIZES) - 1)
        low = min(int(place), len(SIZES) - 2)
        return self.bandwidth[low] + (place - low) * (self.bandwidth[low + 1] - self.bandwidth[low])


@cache
def measured(threads: int) -> Machine:
    """The limits, which takes about two seconds the first time."""
    return _measured(threads)


def _measured(threads: int) -> Machine:
    peak = {"float32": _peak(torch.float32, threads), "float64": _peak(torch.float64, threads)}
    peak["bfloat16"] = peak["float32"]  # which it is computed in
    return Machine(threads, peak, tuple(_bandwidth(size, threads) for size in SIZES))


def _peak(dtype: torch.dtype, threads: int) -> float:
    """By a loop of the native library that only multiplies and adds; without the library by a product of matrices."""
    native = getattr(library(), "reconv_peak", None)
    if native is None:
        return _peak_of_product(dtype, threads)
    native.argtypes, native.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    kind = (torch.float32, torch.float64).index(dtype)
    return _best(lambda count: native(kind, count), [()] * threads, unit=native(kind, 1))


def _peak_of_product(dtype: torch.dtype, threads: int) -> float:
    a, before = torch.rand(1024, 1024, dtype=dtype), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return 1024**3 / min(_timed(lambda: torch.mm(a, a)) for _ in range(2 + REPEATS))
    finally:
        torch.set_num_threads(before)


def _bandwidth(size: int, threads: int) -> float:
    """Of copies, each thread between two parts of memory of its own."""
    half = size // 2 // threads
    places = [(torch.ones(half, dtype=torch.uint8), torch.ones(half, dtype=torch.uint8)) for _ in range(threads)]

    def copy(count: int, source: torch.Tensor, target: torch.Tensor) -> None:
        first, second = target.data_ptr(), source.data_ptr()
        for _ in range(count):
            ctypes.memmove(first, second, half)

    return _best(copy, places, unit=2 * half)


def _best(work: Callable[..., object], each: Sequence[tuple[torch.Tensor, ...]], unit: int) -> float:
    """Units a second of all threads together: the best of some repetitions.

    Args:    work: does its first argument's number of units; the others are those of its thread.
    """
    once = min(_timed(lambda: work(3, *each[0])) for _ in range(3)) / 3
    count = max(1, int(SECONDS / once))
    return max(count * unit * len(each) / _together(work, each, count) for _ in range(REPEATS))


def _together(work: Callable[..., object], each: Sequence[tuple[torch.Tensor, ...]], count: int) -> float:
    """Seconds from the first start to the last end. ctypes lets go of Python's lock."""
    spans: list[tuple[float, float]] = []

    def run(own: tuple[torch.Tensor, ...]) -> None:
        gate.wait()
        start = time.perf_counter()
        work(count, *own)
        spans.append((start, time.perf_counter()))

    gate = threading.Barrier(len(each))
    others = [threading.Thread(target=run, args=(own,)) for own in each[1:]]
    for thread in others:
        thread.start()
    run(each[0])
    for thread in others:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

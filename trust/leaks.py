"""Thousands of calls of each operator: the memory of the process, and the tensors that are alive, stay as they were.

    python trust/leaks.py [--calls 10000] [--calls-of-networks 1000] [--seed 0]

Each call of `calls.py` is made a tenth of the times to warm up, then so often; what the process has then (its resident
memory, after the allocator has given back what is free), and tensors that Python knows, are compared: a leak of GRAIN
bytes a call is seen. Two leaks are planted first, one in Python and one in C's memory, and must be seen. `sizes`: calls
that grow and shrink at random, after which no more is held than after the largest alone. Writes
trust/results/leaks.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import calls as c
import test_families as families
from forked import call as elsewhere
from told import keep

from reconv.ops.native import FAMILIES
from reconv.spec import ConvSpec

GRAIN = 64  # bytes a call; less is noise of the allocator
SLACK = 1 << 20  # bytes that the process may grow by all the same
C = ctypes.CDLL(None)
C.malloc.restype = ctypes.c_void_p


def resident() -> int:
    """Bytes of memory that the process has, once free memory was given back."""
    gc.collect()
    C.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def alive() -> int:
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def grown(call: Callable[[], object], times: int) -> tuple[int, int]:
    """By how many bytes, and tensors, the process has grown over so many calls."""
    for _ in range(max(times // 10, 20)):
        call()
    bytes_, tensors = resident(), alive()
    for _ in range(times):
        call()
    return resident() - bytes_, alive() - tensors


def leaks(call: Callable[[], object], times: int) -> str | None:
    bytes_, tensors = grown(call, times)
    if tensors > 0:
        return f"{tensors} tensors more after {times} calls"
    if bytes_ > SLACK + GRAIN * times:  # seldom: it may be the allocator's noise, which does not come again
        bytes_, _ = grown(call, times)
    return f"{bytes_} bytes more after {times} calls" if bytes_ > SLACK + GRAIN * times else None


def planted() -> list[tuple[str, Callable[[], object]]]:
    kept: list[Tensor] = []

    def from_malloc() -> None:
        ctypes.memset(C.malloc(ctypes.c_size_t(300)), 1, 300)

    return [("a tensor kept at each call", lambda: kept.append(torch.zeros(3))), ("malloc without free", from_malloc)]


# -- sizes that grow and shrink -------------------------------------------------------------------
SIZED = ("ic16oc16k5x5p2g16", "ic16oc16k3x3p1g8", "ic9oc20k3x3p1", "ic4oc4k31p15g4")


def sized(size: int) -> None:
    """Native kernels alone: oneDNN, to which PyTorch turns, keeps what it has made for each of a thousand shapes."""
    for text in SIZED:
        spec = ConvSpec.parse(text)
        shape = (1, spec.in_channels, *[size] * spec.spatial_dims)
        for op in families.OPS:
            known, tensors = families.problem_of(op, spec, shape, torch.float32, "contiguous")
            for name in FAMILIES:
                if families.BY_NAME[name].refuse(known) is None:
                    families.BY_NAME[name].prepare(known)(*tensors)


def held_after(sizes: list[int]) -> int:
    """Bytes that a new process holds more, after calls of these sizes, than after small ones."""

    def run() -> int:
        sized(32)
        before = resident()
        for size in sizes:
            sized(size)
        return resident() - before

    return elsewhere(run)


def sizes(times: int, draw: random.Random) -> dict[str, Any]:
    largest = 512
    most = held_after([largest] * 3)
    wrong = []
    drawn = [draw.randint(32, largest) for _ in range(times)]
    if (held := held_after([*drawn, 32])) > 1.25 * most + 4 * SLACK:
        wrong.append(f"{held} bytes are held, after the largest alone {most}")
    return {"what": "kernels on maps of growing and shrinking sizes hold no more than on the largest",
            "tried": 3 * len(SIZED) * times, "failures": len(wrong),
            "held_bytes": held, "largest_bytes": most, "found": wrong}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--calls-of-networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [sizes(200, random.Random(asked.seed))]
    seen = [name for name, call in planted() if leaks(call, asked.calls)]
    rows.append({"what": "leaks that were planted are seen", "tried": 2, "failures": 2 - len(seen), "found": []})
    kinds: list[tuple[str, dict[str, c.Call], int]] = [
        ("functions, forward", c.entrances(False), asked.calls),
        ("functions, with all gradients", c.entrances(True), asked.calls),
        ("layers and networks, forward", c.modules(False), asked.calls_of_networks),
        ("layers and networks, with all gradients", c.modules(True), asked.calls_of_networks),
        ("every kernel on every case of the tests' table", c.kernels(), max(asked.calls // 100, 20)),
    ]
    for what, table, times in kinds:
        wrong = []
        for name, call in table.items():
            if why := leaks(call, times):
                wrong.append(f"{name}: {why}")
                print(wrong[-1], file=sys.stderr, flush=True)
        rows.append({"what": f"{what}: memory and tensors as before", "tried": times * len(table), "calls_each": times,
                     "failures": len(wrong), "found": wrong[:5]})  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    keep("leaks", rows, seed=asked.seed, grain_bytes=GRAIN)
    if any(row["failures"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

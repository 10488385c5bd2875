"""Concurrent calls, and calls in other processes: the bits of one thread alone.

    python trust/threads.py [--rounds 20] [--seed 0]

Each call of `calls.py` is first made alone. Then, from many Python threads at once, each thread taking the calls in an
order of its own: on tensors that all share (each call's own are read by all threads); with another number of compute
threads at each call of a kernel; while another thread makes the table of known calls forget; in DataLoader workers, in
processes that were forked after the kernels and OpenMP had run, and in spawned ones. A call fails that raises or gives
other bits; a process fails that has not ended in time. Writes trust/results/threads.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
import calls as c
from told import keep

from reconv.ops import ways

WORKERS = 6
MINUTES = 5  # in which a process must have ended
_threads = threading.local()


def count() -> int:
    """Of compute threads, for the Python thread that asks."""
    return getattr(_threads, "count", 1)


def everything(grads: bool = True) -> dict[str, c.Call]:
    made = c.kernels(count) | c.entrances(False) | c.modules(False)
    return made | c.entrances(True) | c.modules(True) if grads else made


def alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def alone(table: dict[str, c.Call]) -> dict[str, list[Tensor]]:
    torch.set_num_threads(1)
    return {name: call() for name, call in table.items()}


def at_once(table: dict[str, c.Call], wanted: dict[str, list[Tensor]], rounds: int, seed: int,
            before: Callable[[random.Random], object]) -> tuple[int, list[str]]:  # fmt: skip
    """How many calls were made, and which were wrong. before: each call."""
    wrong: list[str] = []
    made = [0] * WORKERS

    def work(number: int) -> None:
        torch.set_num_threads(1)
        draw = random.Random(f"{seed} {number}")
        for _ in range(rounds):
            for name in draw.sample(sorted(table), len(table)):
                before(draw)
                try:
                    if not alike(table[name](), wanted[name]):
                        wrong.append(f"{name}: other bits")
                except Exception as error:
                    wrong.append(f"{name}: {error!r}")
                made[number] += 1

    running = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(made), wrong


def with_other_threads(draw: random.Random) -> None:
    _threads.count = draw.choice((1, 2, 3))


def with_forgetting(draw: random.Random) -> None:
    if draw.random() < 0.05:
        ways.forget()


# -- other processes ------------------------------------------------------------------------------
class Calls(Dataset[list[str]]):
    """An item is a call, made in a worker: what is wrong with it."""

    def __init__(self, wanted: dict[str, list[Tensor]], table: dict[str, c.Call] | None = None) -> None:
        self.wanted, self.table, self.names = wanted, table, sorted(wanted)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list[str]:
        self.table = self.table or everything(False)  # what is spawned makes its own
        name = self.names[index]
        return [] if alike(self.table[name](), self.wanted[name]) else [f"{name}: other bits"]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"table": None}


def in_workers(wanted: dict[str, list[Tensor]], table: dict[str, c.Call], method: str) -> tuple[int, list[str]]:
    loader = DataLoader(Calls(wanted, table), batch_size=None, num_workers=2, multiprocessing_context=method,
                        timeout=60 * MINUTES)  # fmt: skip
    wrong = [line for lines in loader for line in lines]
    return len(wanted), wrong


def after_fork(table: dict[str, c.Call], wanted: dict[str, list[Tensor]], compute: int) -> tuple[int, list[str]]:
    """In a child of a process whose kernels have used OpenMP's threads, which the child does not have."""
    for name in table:  # so that there is a team
        _threads.count = 3
        table[name]()
    if not (child := os.fork()):
        _threads.count = compute
        os._exit(0 if all(alike(table[name](), wanted[name]) for name in sorted(table)) else 1)
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return len(table), [] if status == 0 else [f"a forked process ended with {status}"]
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return len(table), ["a forked process hung"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table, native = everything(), c.kernels(count)
    wanted = alone(table)
    few = {name: wanted[name] for name in everything(False)}
    rows: list[dict[str, Any]] = []

    def row(what: str, found: tuple[int, list[str]]) -> None:
        tried, wrong = found
        rows.append({"what": what, "tried": tried, "failures": len(wrong), "found": sorted(set(wrong))[:5]})
        print(rows[-1], file=sys.stderr, flush=True)

    rounds, seed = asked.rounds, asked.seed
    row(f"calls from {WORKERS} Python threads at once, on shared tensors",
        at_once(table, wanted, rounds, seed, lambda draw: None))  # fmt: skip
    row(f"kernels from {WORKERS} Python threads, another number of compute threads at each call",
        at_once(native, wanted, rounds, seed, with_other_threads))  # fmt: skip
    row(f"calls from {WORKERS} Python threads, all that is known of calls being forgotten between them",
        at_once(c.entrances(False) | c.entrances(True), wanted, 5 * rounds, seed, with_forgetting))  # fmt: skip
    for method in ("fork", "spawn"):
        row(f"calls in DataLoader workers, {method}ed", in_workers(few, {n: table[n] for n in few}, method))
    for compute in (1, 2):
        row(f"kernels in a process forked after OpenMP had run, {compute} thread{'s' * (compute > 1)} asked for",
            after_fork(native, wanted, compute))  # fmt: skip
    keep("threads", rows, seed=seed, rounds=rounds, workers=WORKERS, cores=multiprocessing.cpu_count())
    if any(each["failures"] for each in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
